"""Measures what `headstart check` finds of faults that are planted in real images.

    python benchmarks/check_features.py copies ../shared   # near copies: recall and precision by set and transformation
    python benchmarks/check_features.py labels ../shared   # flipped labels: average precision by set and fraction

The folder holds `data/` and `weights/`. Planted copies are of other strengths than those that the check calibrates
itself on. Pairs of different files that are found, too, are listed to look at: real sets hold near copies of their own.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import build_parser, compose_config, describe_machine
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    from headstart.cache.feature_loaders import FeatureTable
    from headstart.checks.heads import CrossValidation
    from headstart.checks.table import ImageTable
    from headstart.config.schema import Config
    from headstart.data.dataset import Samples

MOBILENET = ("model=mobilenet_v2", "model.weights={folder}/weights/mobilenet_v2-imagenet.pth")
SETS = {
    "vehicles": ("data=emergency", "data.root={folder}/data/emergency-vehicles", *MOBILENET),
    "ants and bees": ("data=imagefolder", "data.root={folder}/data/hymenoptera", *MOBILENET),
    "three breeds": ("data=pets", "data.root={folder}/data/pets-3breeds", *MOBILENET),
}
# Pairs of a set's own images that show nearly the same picture; each was looked at.
OWN_COPIES = {
    # The first are one photograph, the others photographs of one scene a moment apart.
    "vehicles": "1148-1572 22-417 50-724 631-818 312-735 667-870",
    # All are one photograph.
    "three breeds": (
        "Abyssinian_11-Abyssinian_177 Abyssinian_122-Abyssinian_172 Abyssinian_151-Abyssinian_99 "
        "Abyssinian_24-Abyssinian_56 Abyssinian_24-Abyssinian_80 Abyssinian_56-Abyssinian_80 "
        "Abyssinian_40-Abyssinian_63 Abyssinian_5-Abyssinian_87 Bengal_83-Bengal_85"
    ),
}
PLANTED = 200  # copies by each transformation
FRACTIONS, SEEDS = (0.01, 0.05, 0.25), 20  # of flipped labels
# Doubtful labels of ants and bees: a wasp among the ants, a dandelion with a speck of an ant, a nest among the bees.
DOUBTFUL = ("ants/1473187633_63ccaacea6.jpg", "ants/466430434_4000737de9.jpg", "bees/2493379287_4100e1dacc.jpg")


def crop(image: Image.Image, rng: np.random.Generator, least: float = 0.75) -> Image.Image:
    """Cut out a part of an image, of 75 % to 95 % of either side."""
    fraction = rng.uniform(least, 0.95)
    width, height = (round(length * fraction) for length in image.size)
    x, y = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


def resize(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shrink an image to 40 % to 80 % of its sides."""
    fraction = rng.uniform(0.4, 0.8)
    return image.resize((round(image.width * fraction), round(image.height * fraction)), Image.Resampling.BICUBIC)


def recompress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compress an image as a JPEG of quality 15 to 50."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(15, 51)))
    return Image.open(file).convert("RGB")


def border(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put a border of one colour around an image, of 3 % to 12 % of the shorter side."""
    colour = [(0, 0, 0), (255, 255, 255), tuple(rng.integers(0, 256, 3).tolist())][rng.integers(3)]
    return ImageOps.expand(image, max(1, round(min(image.size) * rng.uniform(0.03, 0.12))), fill=colour)


def reshape(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut off 10 % to 25 % of the width or of the height, so that the shape is another."""
    cut, across = rng.uniform(0.1, 0.25), rng.random() < 0.5
    width, height = (
        round(length * (1 - cut * along)) for length, along in zip(image.size, (across, not across), strict=True)
    )
    x, y = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


def brightness(low: float, high: float) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    """Return a transformation that multiplies all pixels by one factor."""
    return lambda image, rng: ImageEnhance.Brightness(image).enhance(rng.uniform(low, high))


TRANSFORMATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": crop,
    "resize": resize,
    "recompress": recompress,
    "mirror": lambda image, rng: ImageOps.mirror(image),  # noqa: ARG005
    "brighter": brightness(1.15, 1.5),
    "darker": brightness(0.5, 0.85),
    "border": border,
    "mirror, crop, recompress": lambda image, rng: recompress(crop(ImageOps.mirror(image), rng, 0.85), rng),
    "other shape": reshape,
}


def main() -> None:
    """Run one of the measurements."""
    parser = build_parser(__doc__)
    parser.add_argument("what", choices=["copies", "labels"])
    parser.add_argument("folder", type=Path, help="holds data/ and weights/")
    arguments = parser.parse_args()
    print(describe_machine())
    {"copies": measure_copies, "labels": measure_labels}[arguments.what](arguments.folder)


def measure_copies(folder: Path) -> None:
    """Plant near copies in each set, and print how many are found."""
    for name, overrides in SETS.items():
        with tempfile.TemporaryDirectory() as planted:
            plant_copies(name, [override.format(folder=folder.resolve()) for override in overrides], Path(planted))


def plant_copies(name: str, overrides: list[str], planted: Path) -> None:
    """Plant near copies in a set, by one transformation after the other, and print recall and precision.

    A pair that is found is right if one is the planted copy of the other, or both are copies of one image, or of two of
    `OWN_COPIES`. All pairs of different files are listed, to look at.

    Args:
        name: name of the set.
        overrides: those that select it.
        planted: a folder for the copies.
    """
    from headstart.checks.feature_reader import open_reader
    from headstart.checks.features import calibrate, compare
    from headstart.checks.near_copies import SAME, alignment_of_pairs, candidate_pairs
    from headstart.data.preprocessing import evaluation_transform

    config, table = open_table(overrides)
    originals, copies = plant(table.samples, planted)
    samples, reader = table.samples.joined(copies), open_reader(config)
    features = reader.read({"train": samples}, evaluation_transform(reader.backbone.preprocessing)).training_table
    first = first_of_equal(table)
    real, sources = np.unique(first), np.concatenate([first, np.tile(first[originals], len(TRANSFORMATIONS))])
    projection, threshold = calibrate(reader, samples, features, real)
    print(f"{name}: {threshold}")
    scores, different = dict[tuple[int, ...], float](), set[str]()  # pairs of the set are compared once
    for number, kind in enumerate(TRANSFORMATIONS):
        rows = len(table) + number * len(originals) + np.arange(len(originals))
        similar = compare(features, np.concatenate([real, rows]), projection, threshold, shown=False)
        pairs = list(map(tuple, similar.images[candidate_pairs(similar.neighbours, threshold.similarity)].tolist()))
        new = [pair for pair in pairs if pair not in scores]
        scores |= dict(zip(new, alignment_of_pairs(samples, np.array(new), lambda _: None).tolist(), strict=True))
        found = np.array([pair for pair in pairs if scores[pair] >= SAME])
        shown = np.sort(sources[found], axis=1)
        same = shown[:, 0] == shown[:, 1]
        others = ["-".join(sorted(Path(samples.names[index]).stem for index in pair)) for pair in shown[~same]]
        different.update(others)
        own = sum(pair in OWN_COPIES.get(name, "").split() for pair in others)
        print(
            f"{name}: {kind}: recall {len(np.unique(found[same, 1])) / len(rows):.3f}; of {len(found)} pairs "
            f"{same.sum()} are planted, {own} the set's own, {len(others) - own} unknown: "
            f"precision {(same.sum() + own) / len(found):.3f}, {same.mean():.3f} without the set's own",
            flush=True,
        )
    print(f"{name}: different files: {' '.join(sorted(different))}")


def plant(samples: Samples, folder: Path) -> tuple[NDArray[np.int64], Samples]:
    """Write copies of `PLANTED` images by the first of `TRANSFORMATIONS`, then by the second, and so on.

    Returns:
        The indices of the images, and the copies.
    """
    from headstart.data.dataset import file_samples
    from headstart.data.image_io import read_image

    rng, files = np.random.default_rng(0), list[str]()
    originals = rng.permutation(len(samples))[:PLANTED]
    for kind, transform in TRANSFORMATIONS.items():
        (folder / kind).mkdir()
        for index in originals:
            files.append(str(folder / kind / f"{index}.jpg"))
            transform(read_image(samples.images[index]), rng).save(files[-1], quality=90)
    labels = np.tile(samples.labels[originals], len(TRANSFORMATIONS))
    return originals, file_samples(files, labels.tolist(), folder)


def first_of_equal(table: ImageTable) -> NDArray[np.int64]:
    """Return, for each image, the index of the first with the same bytes."""
    from headstart.checks.copies import equal_groups

    first = np.arange(len(table))
    for group in equal_groups([Path(path).read_bytes() for path in table.samples.images]):
        first[group] = group[0]
    return first


def open_table(overrides: list[str]) -> tuple[Config, ImageTable]:
    """Return the config of a set and the table of its images."""
    from headstart.checks.table import image_table
    from headstart.data.build import open_images

    config = compose_config([*overrides, "trainer.enable_progress_bar=false"])
    return config, image_table(open_images(config.data))


def measure_labels(folder: Path) -> None:
    """Flip labels in each set, and print how well they are found."""
    from headstart.checks.copies import belonging_together, equal_groups
    from headstart.checks.feature_reader import open_reader
    from headstart.data.preprocessing import evaluation_transform

    for name, overrides in SETS.items():
        config, table = open_table([override.format(folder=folder.resolve()) for override in overrides])
        reader = open_reader(config)
        transform = evaluation_transform(reader.backbone.preprocessing)
        features = reader.read({"train": table.samples}, transform).training_table
        copies = equal_groups([Path(path).read_bytes() for path in table.samples.images])
        together = [str(unit) for unit in belonging_together(table, copies)]
        for how, groups in {"images at random": None, "copies in one fold": together}.items():
            if groups is None or copies:
                flip_labels(f"{name}, {how}", table, features, groups)


def flip_labels(name: str, table: ImageTable, features: FeatureTable, groups: list[str] | None) -> None:
    """Flip labels, and print means over seeds, each with its standard error.

    They are the average precision of the out-of-fold loss of heads fitted to all images ("plain"), of heads fitted
    again as the check does it ("again"), and of heads fitted to the labels before they were flipped ("to true labels"),
    and recall and precision of what the check names. "Without doubtful" is "again" without the images of `DOUBTFUL`.
    """
    from sklearn.metrics import average_precision_score

    from headstart.checks.heads import cross_validate
    from headstart.checks.wrong_labels import confident_classes, label_scores, without_contradicted

    def fit(labels: NDArray[np.int64]) -> CrossValidation:
        return cross_validate(features, np.arange(len(table)), labels, groups, classes, lambda _: None)

    classes = len(table.class_names)
    clear = np.array([not image.endswith(DOUBTFUL) for image in table.samples.names])
    of_true_labels = fit(table.samples.labels).answers()
    for fraction in FRACTIONS:
        found: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            labels, flipped = flip(table.samples.labels, classes, fraction, seed)
            fitted = fit(labels)
            again = without_contradicted(fitted, labels).answers()
            for kind, answers in {"plain": fitted.answers(), "again": again, "to true labels": of_true_labels}.items():
                score = average_precision_score(flipped, label_scores(answers, labels))
                found.setdefault(kind, []).append(float(score))
            if not clear.all():
                score = average_precision_score(flipped[clear], label_scores(again, labels)[clear])
                found.setdefault("without doubtful", []).append(float(score))
            named = confident_classes(again, labels) != labels
            found.setdefault("recall", []).append(float(named[flipped].mean()))
            found.setdefault("precision", []).append(float(flipped[named].mean()) if named.any() else 1.0)
        figures = (f"{kind} {np.mean(values):.3f} ± {standard_error(values):.3f}" for kind, values in found.items())
        print(f"{name}, {100 * fraction:g} % flipped: {'; '.join(figures)}", flush=True)


def standard_error(values: list[float]) -> float:
    """Return the standard error of the mean."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5


def flip(
    labels: NDArray[np.int64], classes: int, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give a fraction of the images another label, each other class with the same probability.

    Returns:
        The labels, and which are flipped.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(labels))[: max(1, round(fraction * len(labels)))]
    flipped, other = np.zeros(len(labels), dtype=np.bool_), labels.copy()
    flipped[chosen] = True
    other[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return other, flipped


if __name__ == "__main__":
    main()
