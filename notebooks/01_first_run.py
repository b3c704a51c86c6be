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
# # A first run
#
# headstart trains image classifiers from pretrained networks. A network that has seen many images already knows
# edges, strokes and shapes: that part, the *backbone*, is kept. Only a small new last layer, the *head*, learns to
# tell your classes apart. So a few labelled images are enough, and the training takes seconds.
#
# This notebook needs no network and no GPU. It teaches a small backbone, which was pretrained on rendered letters
# and digits, to read handwritten digits from ten labelled images of each.

# %% tags=["parameters"]
RUNS = None  # where the runs go; None: a new folder below outputs/
EPOCHS = 30  # of the run from scratch

# %%
import json
import os
import sys
from datetime import datetime
from pathlib import Path

from IPython.display import Image, display

# Commands are given where train.py is, as in the README.
os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").is_file()))
RUNS = Path(RUNS or f"outputs/notebooks/{datetime.now():%Y-%m-%d_%H-%M-%S}")
PYTHON = f'"{sys.executable}"'  # in quotes: its path may have spaces

# %% [markdown]
# ## One command
#
# In a terminal this is `python train.py`, without any more words: the digits, the small backbone and a frozen
# training are the defaults. Here we only say where the run goes, and that we want no progress bars.

# %%
# !{PYTHON} train.py "hydra.run.dir={RUNS}/frozen" trainer.enable_progress_bar=false

# %% [markdown]
# Everything that the run has to tell is in its folder: the settings, the figures, the split of the images, the
# checkpoints, TensorBoard's curves, a report (`report/index.html`, to be opened in a browser) and `model/`, which is
# all that you need to use the classifier elsewhere.

# %%
frozen = RUNS / "frozen"
print(*sorted(path.name for path in frozen.iterdir()), sep="\n")

# %%
metrics = json.loads((frozen / "metrics.json").read_text())
for name in ("train/accuracy", "val/accuracy", "test/accuracy", "params/trainable", "params/total", "time/fit_s"):
    print(f"{name:20} {metrics[name]:,}")

# %% [markdown]
# Accuracies are fractions: 0.98 means that 98 of 100 images got the right class. Of three splits, the network learns
# from *train*; *val* compares settings, and says which epoch of a longer training was best; *test* was not looked at
# before, so its figure is the one to trust. With a frozen backbone there is nothing to set: the head is fitted to its
# optimum, without a learning rate.
#
# These are training images as the network sees them. There are only a hundred.

# %%
from headstart.config.compose import evaluation_config
from headstart.data.preprocessing import Preprocessing
from headstart.models.model_folder import read_artifact
from headstart.report import image_grids
from headstart.report.run_report import images_of
from headstart.report.style import png
from headstart.runs.finished import read_finished


def show(figure):
    """Displays a figure here as it looks in a report."""
    display(Image(png(figure)))


run = read_finished(frozen)
data = images_of(frozen)
preprocessing = Preprocessing.from_dict(read_artifact(frozen).description["preprocessing"])
show(image_grids.grid(image_grids.network_inputs(data.splits["train"], data.training, preprocessing, run.class_names)))

# %% [markdown]
# ## The same from Python, and from scratch
#
# What is a pretrained backbone worth? The same network with random weights, all of it trained on the same hundred
# images, is `python train.py freeze=false model.weights=null`. In Python, words of the command line become a checked
# configuration, and `train.run` does the rest and returns the figure that picks the best epoch, `val/accuracy`. A
# misspelt word would stop here, with a suggestion. This takes a quarter of a minute on two cores.

# %%
from headstart import train

words = ["freeze=false", "model.weights=null", f"epochs={EPOCHS}", "trainer.enable_progress_bar=false", "report=false"]
scratch = RUNS / "scratch"
train.run(evaluation_config(None, words), scratch)

# %% [markdown]
# Side by side, on the same test images. The bars are 95 % intervals: on other digits of the same kind, an accuracy
# would be expected within them.

# %%
from headstart.report.comparison import accuracies, compare_runs, curves

_, compared = compare_runs([run, read_finished(scratch)])
show(accuracies(compared))
show(curves(compared, "val/accuracy"))

# %%
for one in compared:
    metrics = one.run.metrics
    print(
        f"{one.run.folder.name:8} test accuracy {metrics['test/accuracy']:.3f}, "
        f"{metrics['params/trainable']:7,} parameters trained in {metrics['time/fit_s']:.0f} s"
    )

# %% [markdown]
# The pretrained backbone wins in the first epoch already, is better in the end, and costs less: as it does not change,
# headstart lets it see each image once and keeps what it says. The next run on these images does not compute it again.
#
# ## Using the model
#
# `headstart.load` takes a run folder and needs nothing else: neither Lightning nor the training data.

# %%
import headstart

model = headstart.load(frozen)
test = data.splits["test"]
answer = model.predict(test.images[0], top=3)  # a path, a PIL image, an array, a tensor; or many of them
print(f"a {run.class_names[test.labels[0]]}, and the model says:")
for name, probability in answer.top:
    print(f"  {name} {probability:6.1%}")

# %% [markdown]
# The classes that it finds most probable in four test images, and in the four that it is least sure of. Below each
# image stand its name and the answer: green where it is right; where it is not, the true class comes first.

# %%
least_sure = run.evaluation.probabilities.amax(dim=1).argsort()[:4].tolist()
chosen = image_grids.choose_by_class(run.evaluation.labels, 4) + least_sure
show(image_grids.grid(image_grids.prediction_tiles(run.evaluation, test, chosen), columns=4, bars=True))

# %% [markdown]
# ## Where to go from here
#
# - **Look at the curves:** `tensorboard --logdir outputs`, in a terminal.
# - **Open the report:** `report/index.html` in the run folder, with the pictures above and more.
# - **Look inside a run:** the notebook `02_look_inside_a_run.py` asks where the model is wrong, how sure it is, and
#   whether another one is really better.
# - **Take your own photos:** `03_your_own_photos.py` goes from a folder of images to a model.
# - **Turn the knobs:** every key of `conf/train.yaml` is a word on the command line, such as `model=resnet34`,
#   `augment=standard`, `lr=3e-4`; `docs/configuration.md` lists them.
