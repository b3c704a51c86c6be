# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look inside a run
#
# One accuracy says little about a classifier. Which classes does it confuse? Is it right when it is sure? What do the
# images look like that it gets wrong? And is another model really better, or was it luck?
#
# The pictures are those of the report (`headstart report RUN` writes it to `report/index.html`); here you have them,
# and the numbers behind them, at hand in Python.

# %% tags=["parameters"]
RUN = None  # a run folder, such as "outputs/2026-01-31/12-00-00"; None: small runs are made below
OTHERS = []  # run folders on the same data, to compare it with
RUNS = None  # where the small runs go; None: a new folder below outputs/

# %%
import os
from datetime import datetime
from pathlib import Path

import numpy as np
from IPython.display import Image, display

from headstart.config.compose import evaluation_config
from headstart.report import charts, image_grids, statistics
from headstart.report.run_report import images_of
from headstart.report.style import CYCLE, INK, figure, new_figure, png
from headstart.runs.finished import read_finished
from headstart.train import run as train

# Folders are named from where train.py is, as in the README.
os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file()))
RUNS = Path(RUNS or f"outputs/notebooks/{datetime.now():%Y-%m-%d_%H-%M-%S}")


def show(drawn):
    """Displays a figure here as it looks in a report."""
    display(Image(png(drawn)))


# %% [markdown]
# ## The run
#
# Without a run of your own, this makes three small ones: the default, which learns digits from ten labelled images of
# each; the same with a hidden layer in the head; the same with three labelled images of each.


# %%
def small_run(name, *words):
    """Trains with the words of a command line; gives the run folder."""
    train(
        evaluation_config(None, ["optimizer=adam", "report=false", "trainer.enable_progress_bar=false", *words]),
        RUNS / name,
    )
    return RUNS / name


if RUN is None:
    RUN = small_run("ten-labels")
    OTHERS = [small_run("hidden-layer", "head=mlp"), small_run("three-labels", "data.train_per_class=3")]

# %% [markdown]
# `read_finished` reads back what a run has written. Its predictions for the test images (for the validation images, if
# there is no test split) are `run.evaluation`: labels, predictions, logits, calibrated probabilities, losses.

# %%
run = read_finished(Path(RUN))
evaluation = run.evaluation
print(f"{run.folder}: {len(run.class_names)} classes, {len(evaluation.labels):,} {evaluation.split} images")
print("classes:", *run.class_names)

# %% [markdown]
# ## Curves
#
# A training loss that falls while that of validation rises is overfitting. If both still fall at the end, more epochs
# or a larger learning rate would help. The dashed line is the epoch that was kept.

# %%
show(charts.curve(run.curves, "loss", best=run.best_epoch, stopped=run.stopped_early))
show(charts.curve(run.curves, "accuracy", best=run.best_epoch, stopped=run.stopped_early))

# %% [markdown]
# ## How certain is the accuracy?
#
# Other test images would have given another figure. Wilson's interval says how far off it may be: 95 of 100 such
# intervals hold the true accuracy. Four times as many test images make it half as wide.

# %%
right = evaluation.predicted == evaluation.labels
low, high = statistics.wilson(int(right.sum()), len(right))
print(f"{right.sum()} of {len(right)} are right: {right.mean():.3f}, between {low:.3f} and {high:.3f}")

# %% [markdown]
# ## Which classes?
#
# Each row of the confusion matrix is a true class, each column a predicted one. What is off the diagonal is wrong.

# %%
matrix = evaluation.confusion
show(charts.confusion(matrix, run.class_names))

# %%
for true, predicted, count in charts.confused_pairs(matrix, run.class_names)[:5]:
    print(f"{count} × {true} was taken for {predicted}")

# %% [markdown]
# The hardest classes come first. Their intervals are wide: there are few images of each, so the order of classes whose
# intervals overlap may be luck.

# %%
show(charts.class_accuracy(matrix, run.class_names))

# %% [markdown]
# ## Is it right when it is sure?
#
# Of the images that it is 90 % sure of, 90 % should be right. Networks are often too sure; after a short training, such
# as that of the small runs here, they are not sure enough. One number mends much of that: the logits are divided by a
# *temperature*, which the run has fitted on validation images. The classes stay as they are. ECE, the expected
# calibration error, is the mean distance from the dotted line.

# %%
show(charts.reliability(evaluation.logits, evaluation.labels, evaluation.temperature))

# %%
before = statistics.calibration_error(evaluation.logits, evaluation.labels)
after = statistics.calibration_error(evaluation.logits / evaluation.temperature, evaluation.labels)
confidence = evaluation.probabilities.amax(dim=1).numpy()  # with the temperature, as `headstart predict` gives them
print(f"temperature {evaluation.temperature:.2f}: calibration error {before:.3f} before, {after:.3f} after")
print(f"mean confidence {confidence.mean():.3f}, accuracy {right.mean():.3f}")

# %% [markdown]
# So a threshold means something. What if only answers above it counted, and a person looked at the rest?

# %%
for threshold in (0.0, 0.5, 0.8, 0.9, 0.99):
    kept = confidence >= threshold
    if kept.any():
        print(
            f"at least {threshold:4.0%} sure: {kept.mean():6.1%} of the images, {right[kept].mean():.1%} of these right"
        )

# %% [markdown]
# ## The hardest images
#
# Wrong answers, the largest losses first. Look for wrong labels, bad images, and classes that cannot be told apart.
# Below each image: its name, its true class, the answer.

# %%
data = images_of(run.folder)
samples = data.splits[evaluation.split]
worst = image_grids.worst_indices(evaluation)[:16]
show(image_grids.grid(image_grids.prediction_tiles(evaluation, samples, worst)))

# %% [markdown]
# The same is in `evaluation/SPLIT/predictions.csv` of the run folder, a row for each image.
#
# ## What the head gets to see
#
# The backbone turns each image into a vector of features, and the head draws planes between them. Their two main
# directions (principal components) show only a part of it: classes that lie apart here are easy, and those on top of
# each other may still be apart in other directions. Wrong answers have a ring.


# %%
@figure
def feature_map(features, labels, wrong, class_names):
    """Features of images in the plane of their two main directions."""
    centred = features - features.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ directions[:2].T).T
    share = (spread[:2] ** 2).sum() / (spread**2).sum()

    drawn = new_figure(6.6, 4.6)
    axes = drawn.subplots()
    for label in np.unique(labels):
        own = labels == label
        colour, marker = CYCLE[label % len(CYCLE)], "o^sDvP"[label // len(CYCLE) % 6]
        axes.scatter(x[own], y[own], s=16, color=colour, marker=marker, alpha=0.75, label=class_names[label])
    axes.scatter(x[wrong], y[wrong], s=90, facecolors="none", edgecolors=INK, label="wrong")
    axes.set(xlabel="first direction", ylabel="second direction", title=f"features: {share:.0%} of their variance")
    drawn.legend(loc="outside right upper", fontsize=8)
    return drawn


chosen = evaluation.outputs.featured  # at most 500 images have their features kept
features = evaluation.outputs.features.float().numpy()
show(feature_map(features, evaluation.labels[chosen], ~right[chosen], run.class_names))

# %% [markdown]
# Of a run with a report, TensorBoard's PROJECTOR has the same points in three dimensions, with their images.
#
# ## Is another run really better?
#
# All runs here have answered to the same images, so only those count that one run has right and the other wrong.
# McNemar's test asks: if both were equally good, how often would these fall as unevenly as they did? A p-value of 0.01
# says once in a hundred times, so there is hardly a doubt; one of 0.3 says that the images do not tell.

# %%
from headstart.report.comparison import accuracies, compare_runs, curves

split, compared = compare_runs([run, *(read_finished(Path(folder)) for folder in OTHERS)])
show(accuracies(compared))
show(curves(compared, "val/accuracy"))

# %%
best = compared[0]
print(f"the best on {split}: {best.name}")
for one in compared[1:]:
    only_best, only_this, p_value = one.against_best
    print(f"{one.name}: {only_best} images are right only with the best, {only_this} only with this; p = {p_value:.2g}")

# %% [markdown]
# Intervals that overlap do not show that two runs are equal: they are on the same images, and the paired test sees
# more. And a test split that has picked the best of many runs is no test any more: compare on validation images, and
# look at the test split once. `headstart report RUN OTHER` writes such a comparison as a web page.
