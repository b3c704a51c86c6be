"""Measures how good the backbone is that `headstart advise` would name.

    python benchmarks/advise.py rule ../shared       # on a public table of probes: regret of the first pick
    python benchmarks/advise.py sets ../shared       # on real images, against full runs and LogME
    python benchmarks/advise.py intervals ../shared  # how many of the 95 % intervals hold the accuracy

The folder holds `advise/`, `data/` and `weights/`. Regret is how many points of accuracy the pick lies below the best.

The table (48 networks, 20 sets, 5 draws of 16 images a class) has accuracies of heads, not answers to images. So the
rule takes those for possibly the best whose scores are within two standard errors, where `headstart advise` compares
answers. Draws differ in the images that a head is fitted to and share a large test split: they are less noisy than an
accuracy on the 16 images a class themselves. The table says nothing of fine-tuning. Standing is the mean over the other
19 sets, which knows more than an accuracy on ImageNet would. Eight networks are at chance on ImageNet in some or all
draws, which looks like failed measurements: they stay, and figures without that set are printed too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from check_features import MOBILENET, SETS
from common import build_parser, compose_config, describe_machine
from numpy.typing import NDArray

Values = NDArray[np.float64]

PER_CLASS = 16
# Classes of the sets of the table, in its order.
CLASSES = (10, 100, 102, 211, 47, 10, 7, 100, 101, 43, 1000, 10, 102, 37, 2, 45, 10, 397, 196, 101)
IMAGENET = 10  # index of the set
LIST, LISTS = 10, 20  # networks of a random list, and lists for each set and pair of draws
SAMPLES = 20  # of each real set, to pick a backbone by
SUBSAMPLES = 200  # of each real set and size, to make intervals from
WEIGHTS = {
    "mobilenet_v2": MOBILENET,
    "mobilenet_v2, torchvision": ("model=mobilenet_v2", "model.weights={folder}/weights/mobilenet_v2-torchvision.pth"),
    "squeezenet1_0": ("model=squeezenet1_0", "model.weights={folder}/weights/squeezenet1_0-imagenet.pth"),
    "squeezenet1_1": (
        "model=torchvision",
        "model.name=squeezenet1_1",
        "model.weights={folder}/weights/squeezenet1_1-imagenet.pth",
    ),
    "random weights": ("model=mobilenet_v2", "model.weights=null"),
}


@dataclass(frozen=True)
class Case:
    """A set and a list of networks of the table.

    Attributes:
        images: number of images of a draw.
        standing: mean accuracy of each network on the other sets.
        first: accuracies in one draw.
        second: accuracies in another draw.
        truth: mean accuracies in the three draws that no rule sees.
    """

    images: int
    standing: Values
    first: Values
    second: Values
    truth: Values

    def take(self, networks: NDArray[np.int64]) -> Case:
        """Return the case of a shorter list."""
        values = (self.standing, self.first, self.second, self.truth)
        return Case(self.images, *(one[networks] for one in values))


def main() -> None:
    """Run one of the measurements."""
    parser = build_parser(__doc__)
    parser.add_argument("what", choices=["rule", "sets", "intervals"])
    parser.add_argument("folder", type=Path, help="holds advise/, data/ and weights/")
    arguments = parser.parse_args()
    print(describe_machine())
    parts = {"rule": measure_rule, "sets": measure_sets, "intervals": measure_intervals}
    parts[arguments.what](arguments.folder.resolve())


def measure_rule(folder: Path) -> None:
    """Print the regret of each rule on the table, over full lists and over random ones."""
    with np.load(folder / "advise" / "probes-16shot.npz") as file:
        table = file["A"]
    rules: dict[str, Callable[[Case], int]] = {
        "static list": lambda case: int(case.standing.argmax()),
        "one probe": lambda case: int(case.first.argmax()),
        "two probes": lambda case: int((case.first + case.second).argmax()),
        "ours": pick,
    }
    rng = np.random.default_rng(0)
    full = [list(cases(table, number)) for number in range(table.shape[1])]
    short = [
        [case.take(rng.permutation(len(case.truth))[:LIST]) for case in of_set for _ in range(LISTS)] for of_set in full
    ]
    for lists, by_set in {"all 48 networks": full, f"{LIST} networks at random": short}.items():
        for name, rule in rules.items():
            print_regret(f"{lists}: {name}", [[regret(case.truth, rule(case)) for case in of_set] for of_set in by_set])


def cases(table: Values, number: int) -> Iterator[Case]:
    """Yield the case of a set for each ordered pair of draws.

    Args:
        table: shape (networks, sets, draws).
        number: index of the set.
    """
    means = table.mean(axis=2)
    standing = np.delete(means - means.mean(axis=0), number, axis=1).mean(axis=1)
    draws = table.shape[2]
    for first, second in itertools.permutations(range(draws), 2):
        unseen = [draw for draw in range(draws) if draw not in (first, second)]
        own = table[:, number]
        truth = own[:, unseen].mean(axis=1)
        yield Case(PER_CLASS * CLASSES[number], standing, own[:, first], own[:, second], truth)


def pick(case: Case) -> int:
    """Return the network to take: one draw for all, and a second one for those that may still be the best."""
    from headstart.advice.prior import OWN_NOISE, with_prior

    score = with_prior(case.first, case.standing, case.images)
    best = float(case.first[score.argmax()])
    error = (2 * OWN_NOISE * best * (1 - best) / case.images) ** 0.5  # of the difference of two accuracies
    may_be_best = score >= score.max() - 2 * error
    accuracy = np.where(may_be_best, (case.first + case.second) / 2, case.first)
    score = with_prior(accuracy, case.standing, 2 * case.images)
    return int(np.where(may_be_best, score, -np.inf).argmax())


def regret(truth: Values, picked: int) -> float:
    """Return how far a pick is from the best, in points."""
    return 100 * float(truth.max() - truth[picked])


def print_regret(name: str, by_set: list[list[float]]) -> None:
    """Print the mean regret over sets, the worst set, the worst case, and the fraction within a point."""
    means = np.array([np.mean(of_set) for of_set in by_set])
    every = np.concatenate([np.array(of_set) for of_set in by_set])
    within = np.mean([np.mean(np.array(of_set) <= 1) for of_set in by_set])
    print(
        f"{name}: mean {means.mean():.3f} (without ImageNet {np.delete(means, IMAGENET).mean():.3f}), worst set "
        f"{means.max():.2f}, 95th percentile {np.percentile(every, 95):.2f}, worst case {every.max():.1f}, within a "
        f"point {100 * within:.1f} %",
        flush=True,
    )


def measure_sets(folder: Path) -> None:
    """Print how far the picks by leave-one-out and by LogME on 16 images a class are from the best full run."""
    for name, features, labels, full in real_sets(folder, "train"):
        print(f"{name}: " + ", ".join(f"{of} {100 * value:.1f}" for of, value in zip(WEIGHTS, full, strict=True)))
        for rule, score in {"ours": accuracy_left_out, "LogME": log_evidence}.items():
            start, picks = time.perf_counter(), []
            for seed in range(SAMPLES):
                sample = sample_images(labels, PER_CLASS, np.random.default_rng(seed))
                picks.append(int(np.argmax([score(rows[sample], labels[sample]) for rows in features])))
            regrets = [regret(full, picked) for picked in picks]
            everything = int(np.argmax([score(rows, labels) for rows in features]))
            print(
                f"{name}: {rule}: mean regret {np.mean(regrets):.2f}, worst {max(regrets):.2f}, random weights picked "
                f"{picks.count(len(WEIGHTS) - 1)} times; by all images {regret(full, everything):.2f}; "
                f"{(time.perf_counter() - start) / SAMPLES:.2f} s a sample",
                flush=True,
            )


def real_sets(folder: Path, *splits: str) -> Iterator[tuple[str, list[NDArray[np.float32]], NDArray[np.int64], Values]]:
    """Yield each real set: name, features by backbone, labels, and out-of-fold accuracies of heads fitted to all.

    Args:
        folder: holds data/ and weights/.
        splits: those whose images are taken.
    """
    import torch

    from headstart.checks.feature_reader import open_reader
    from headstart.checks.heads import cross_validate
    from headstart.checks.table import image_table
    from headstart.data.build import open_images
    from headstart.data.preprocessing import evaluation_transform

    for name, overrides in SETS.items():
        features, accuracies = [], []
        for weights in WEIGHTS.values():
            chosen = [
                *(one for one in overrides if one not in MOBILENET),
                *weights,
                "trainer.enable_progress_bar=false",
            ]
            config = compose_config([one.format(folder=folder) for one in chosen])
            images = open_images(config.data)
            kept = {split: samples for split, samples in images.splits.items() if split in splits}
            table = image_table(replace(images, splits=kept))
            reader, labels = open_reader(config), table.samples.labels
            transform = evaluation_transform(reader.backbone.preprocessing)
            read = reader.read({"train": table.samples}, transform).training_table
            everything, classes = np.arange(len(table)), len(table.class_names)
            fitted = cross_validate(read, everything, labels, None, classes, lambda _: None)
            accuracies.append(float((fitted.answers().argmax(axis=1) == labels).mean()))
            features.append(read.rows_at(torch.from_numpy(everything))[0].float().numpy())
        yield name, features, labels, np.array(accuracies)


def sample_images(labels: NDArray[np.int64], per_class: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the indices of images drawn at random, as many of each class."""
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(labels.max() + 1)]
    )


def accuracy_left_out(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the accuracy of a ridge regression for images that are left out."""
    from headstart.training.tuning.leave_one_out import leave_one_out

    return float((leave_one_out(features, labels, None).argmax(axis=1) == labels).mean())


def log_evidence(features: NDArray[np.float32], labels: NDArray[np.int64], steps: int = 100) -> float:
    """Return LogME: the log evidence of Bayesian linear regressions, by image, mean over classes.

    The precisions of the weights and of the noise are those with the highest evidence (You et al., "LogME: Practical
    Assessment of Pre-trained Models for Transfer Learning", ICML 2021, algorithm 1; the fixed point of You et al.,
    JMLR 2022, converges to it).
    """
    rows = features.astype(np.float64)
    images, width = rows.shape
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    squares = singular**2
    evidences = []
    for label in range(labels.max() + 1):
        target = (labels == label).astype(np.float64)
        projected = np.square(left.T @ target)
        outside = max(0.0, float(target @ target - projected.sum()))
        alpha = beta = 1.0
        for _ in range(steps):
            shrunk = alpha + beta * squares
            gamma = float((beta * squares / shrunk).sum())
            weights = float((beta**2 * squares * projected / shrunk**2).sum())
            residual = float((projected * (alpha / shrunk) ** 2).sum()) + outside
            previous, alpha = alpha / beta, gamma / (weights + 1e-12)
            beta = (images - gamma) / (residual + 1e-12)
            if abs(alpha / beta - previous) <= 1e-3 * previous:
                break
        shrunk = alpha + beta * squares
        weights = float((beta**2 * squares * projected / shrunk**2).sum())
        residual = float((projected * (alpha / shrunk) ** 2).sum()) + outside
        determinant = float(np.log(shrunk).sum()) + (width - len(squares)) * np.log(alpha)
        evidence = width * np.log(alpha) + images * np.log(beta / (2 * np.pi)) - determinant
        evidences.append((evidence - beta * residual - alpha * weights) / (2 * images))
    return float(np.mean(evidences))


def measure_intervals(folder: Path) -> None:
    """Print how many intervals hold the mean accuracy at the sample's size, and that of heads fitted to all images.

    Random weights, the last of the backbones, are printed, but do not count in the means: with few images, leaving one
    out makes its class the rarer one, and features that say little then answer the other class.
    """
    from headstart.advice.best import compare
    from headstart.training.tuning.leave_one_out import leave_one_out

    for name, features, labels, full in real_sets(folder, "train", "val", "test"):
        for per_class in (16, 32, 64, 100):
            if per_class > np.bincount(labels).min() // 2:
                break
            rng, found = np.random.default_rng(0), []
            for _ in range(SUBSAMPLES):
                sample = sample_images(labels, per_class, rng)
                answers = [leave_one_out(rows[sample], labels[sample], None).argmax(axis=1) for rows in features]
                found.append(compare(np.stack(answers) == labels[sample], None))
            accuracy, low, high = (
                np.stack([getattr(one, value) for one in found]) for value in ("accuracy", "low", "high")
            )
            expected, images = accuracy.mean(axis=0), len(sample)
            scatter = accuracy.std(axis=0) / np.sqrt(expected * (1 - expected) / images)
            held = {
                "at this size": ((low <= expected) & (expected <= high)).mean(axis=0),
                "of all images": ((low <= full) & (full <= high)).mean(axis=0),
            }
            text = "; ".join(f"{what} {100 * of[:-1].mean():.1f} % ({format_percent(of)})" for what, of in held.items())
            print(
                f"{name}, {images} images: {text}; scatter / binomial {scatter.round(2)}, own noise "
                f"{own_noise(accuracy[:, :-1], images):.2f}",
                flush=True,
            )


def own_noise(accuracy: Values, images: int) -> float:
    """Return the variance of accuracies that backbones do not share, relative to p (1 - p) / n; see `with_prior`.

    Args:
        accuracy: in each sample, shape (samples, backbones).
        images: number of images of a sample.
    """
    means = accuracy.mean(axis=0)
    own = accuracy - means - accuracy.mean(axis=1, keepdims=True) + means.mean()
    variance = float(np.square(own).sum()) / ((len(own) - 1) * (len(means) - 1))
    return variance * images / float((means * (1 - means)).mean())


def format_percent(fractions: Values) -> str:
    """Return the percentages of all backbones."""
    return " ".join(f"{100 * value:.1f}" for value in fractions)


if __name__ == "__main__":
    main()
