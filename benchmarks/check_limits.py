"""Measures the limits from which `headstart check` names outliers, and a difference between train and test.

    python benchmarks/check_limits.py outliers ../shared   # foreign images among those of a set: found, and its own
    python benchmarks/check_limits.py shift ../shared      # random splits: false alarms; transformed test images: found

The folder holds `data/` and `weights/`.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from check_features import SETS, TRANSFORMATIONS, first_of_equal, open_table, plant
from common import build_parser, describe_machine
from sklearn.model_selection import StratifiedShuffleSplit

from headstart.cache.feature_loaders import FeatureTable
from headstart.checks.feature_reader import open_reader
from headstart.checks.neighbours import fit_projection
from headstart.checks.outliers import neighbour_distances, outlier_scores
from headstart.checks.shift import DIMENSIONS, LARGEST_P, LEAST_AUC, told_apart
from headstart.checks.table import ImageTable
from headstart.config.schema import Config
from headstart.data.dataset import Samples
from headstart.data.preprocessing import evaluation_transform

FOREIGN, SEEDS, LIMITS = (3, 20), 5, (2.5, 3.0, 3.5, 4.0)
SPLITS, TESTED = 50, (0.1, 0.2, 0.5)  # random splits, and the fraction of the images that is in test


def main() -> None:
    """Run one of the measurements."""
    parser = build_parser(__doc__)
    parser.add_argument("what", choices=["outliers", "shift"])
    parser.add_argument("folder", type=Path, help="holds data/ and weights/")
    arguments = parser.parse_args()
    print(describe_machine())
    opened = {
        name: open_table([override.format(folder=arguments.folder.resolve()) for override in overrides])
        for name, overrides in SETS.items()
    }
    if arguments.what == "outliers":
        different = {name: table.samples.take(np.unique(first_of_equal(table))) for name, (_, table) in opened.items()}
        for name, (config, _) in opened.items():
            measure_outliers(name, config, different)
    else:
        for name, (config, table) in opened.items():
            with tempfile.TemporaryDirectory() as planted:
                measure_shift(name, config, table, Path(planted))


def read_features(config: Config, samples: Samples) -> FeatureTable:
    """Return the features of images by the config's backbone."""
    reader = open_reader(config)
    return reader.read({"train": samples}, evaluation_transform(reader.backbone.preprocessing)).training_table


def measure_outliers(name: str, config: Config, sets: dict[str, Samples]) -> None:
    """Put some images of other sets among those of a set, and print how many of either are above each of `LIMITS`.

    Foreign images have labels of the set, at random: somebody has put them into one of its classes.
    """
    samples = sets[name]
    for other, count in product([other for other in sets if other != name], FOREIGN):
        pool = sets[other]
        found, own = [], []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            chosen = pool.take(rng.permutation(len(pool))[:count])
            joined = samples.joined(replace(chosen, labels=rng.choice(samples.labels, count)))
            features, images = read_features(config, joined), np.arange(len(joined))
            distances = neighbour_distances(features, images, joined.labels, lambda _: None)
            above = outlier_scores(distances)[:, None] > np.array(LIMITS)
            found.append(above[len(samples) :].mean(axis=0))
            own.append(above[: len(samples)].sum(axis=0))
        shares, counts = (np.mean(rows, axis=0) for rows in (found, own))
        for limit, share, number in zip(LIMITS, shares, counts, strict=True):
            print(f"{name}, {count} of {other}: above {limit} are {share:.0%} of them, {number:.1f} own", flush=True)


def measure_shift(name: str, config: Config, table: ImageTable, planted: Path) -> None:
    """Split a set at random, and print how often a difference is reported; then with transformed test images."""
    originals, copies = plant(table.samples, planted)
    joined, first = table.samples.joined(copies), first_of_equal(table)
    features, images, labels = read_features(config, joined), np.unique(first), joined.labels
    components = fit_projection(features, images).of_images(features, np.arange(len(joined)))[:, -DIMENSIONS:]
    for tested in TESTED:
        found = []
        for seed in range(SPLITS):
            splitter = StratifiedShuffleSplit(1, test_size=tested, random_state=seed)
            sides = np.zeros(len(images), dtype=np.bool_)
            sides[next(splitter.split(images, labels[images]))[1]] = True
            found.append(told_apart(components[images], sides, labels[images], np.random.default_rng(0)))
        report(f"{name}, {tested:.0%} in test", found)
    others = np.setdiff1d(images, first[originals])
    for number, kind in enumerate(TRANSFORMATIONS):
        test = len(table) + number * len(originals) + np.arange(len(originals))
        both = np.concatenate([others, test])
        found = [told_apart(components[both], both >= len(table), labels[both], np.random.default_rng(0))]
        report(f"{name}, test images transformed: {kind}", found)


def report(what: str, found: list[tuple[float, float]]) -> None:
    """Print how many AUCs and p are beyond the limits."""
    aucs, p = np.array(found).T
    alarms = ((aucs >= LEAST_AUC) & (p <= LARGEST_P)).sum()
    print(
        f"{what}: {alarms} of {len(found)} reported; AUC {aucs.mean():.3f}, at most {aucs.max():.3f}; p at most "
        f"{LARGEST_P}: {(p <= LARGEST_P).sum()}",
        flush=True,
    )


if __name__ == "__main__":
    main()
