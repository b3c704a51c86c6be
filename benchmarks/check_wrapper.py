"""`headstart check`: what it finds of what was planted, and how often it finds what is not there.

    python benchmarks/check_wrapper.py SHARED

SHARED holds `data/`. Prints, for each set, what its own labels can be read off, in how many of `--rounds`
rounds of permuted labels anything is reported, and in how many each planted leak is found: in the size of the file, the
JPEG quality, the border and the camera, which tell 81 % of labels that are otherwise random. Then the seconds by number
of images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common import build_parser, compose_config, describe_machine, write_smooth_image
from numpy.typing import NDArray
from PIL import Image

from headstart.checks.facts import read_facts
from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable, image_table
from headstart.checks.wrapper import wrapper_findings
from headstart.data.build import open_images
from headstart.data.dataset import LabelledImages, class_samples

TOLD = 0.81  # fraction of the labels that a planted leak tells
SETS = {
    "vehicles": ("emergency", "emergency-vehicles"),
    "ants and bees": ("imagefolder", "hymenoptera"),
    "three breeds": ("pets", "pets-3breeds"),
}


def image_columns(table: ImageTable) -> tuple[list[str], NDArray[np.float32]]:
    """Return the columns that a check reads of image files, and their names."""
    with tempfile.TemporaryDirectory() as cache:
        return read_facts(table, decode=True, folder=Path(cache), advance=lambda _: None).columns()


def relabelled(table: ImageTable, labels: NDArray[np.int64]) -> ImageTable:
    """Return the same images with other labels."""
    samples = type(table.samples)(table.samples.images, labels, table.samples.names)
    return ImageTable(samples, table.splits, table.class_names)


def digit_table(folder: Path) -> ImageTable:
    """Write the digits that come with scikit-learn as JPEGs, and return their table."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    files: list[list[str]] = [[] for _ in range(10)]
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / f"{index:04}.jpg"
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((32, 32)).save(path)
        files[label].append(str(path))
    return image_table(LabelledImages(tuple("0123456789"), {"train": class_samples(files, folder)}))


def write_leaking_images(folder: Path, leak: str, images: int, rng: np.random.Generator) -> ImageTable:
    """Write JPEGs of smooth noise in two classes of which a fraction `TOLD` is told by a leak.

    Args:
        folder: folder of the images.
        leak: "file size" (2,000 bytes more), "JPEG quality" (85 instead of 75), "border" (black instead of white),
            "camera" (another model in EXIF) or "nothing".
        images: number of images.
        rng: source of the noise and the labels.
    """
    files: list[list[str]] = [[], []]
    for index in range(images):
        label = int(rng.integers(2))
        mark = (label == 1) == (rng.random() < TOLD) if leak != "nothing" else False
        path = folder / f"{index:04}.jpg"
        width = int(rng.integers(48, 80))
        write_smooth_image(path, rng, cells=(6, 6), size=(width, 64))
        image, exif = Image.open(path).convert("RGB"), Image.Exif()
        if leak == "border":
            framed = Image.new("RGB", image.size, (0, 0, 0) if mark else (255, 255, 255))
            framed.paste(image.resize((image.width - 8, image.height - 8)), (4, 4))
            image = framed
        exif[272] = "A" if leak == "camera" and mark else f"B{rng.integers(3)}"
        image.save(path, quality=85 if leak == "JPEG quality" and mark else 75, exif=exif)
        if leak == "file size" and mark:
            path.write_bytes(path.read_bytes() + bytes(2000))  # programs that show it do not mind
        files[label].append(str(path))
    return image_table(LabelledImages(("left", "right"), {"train": class_samples(files, folder)}))


def count_alarms(check: Callable[[int], Sequence[Finding]], rounds: int) -> int:
    """Return in how many rounds anything is found."""
    return sum(bool(check(seed)) for seed in range(rounds))


def measure_set(name: str, table: ImageTable, rounds: int) -> None:
    """Print what the labels of a set can be read off, and the number of false alarms with permuted labels."""
    names, columns = image_columns(table)
    start = time.perf_counter()
    found = wrapper_findings(table, names, columns)
    seconds = time.perf_counter() - start
    print(f"{name}, {len(table)} images, {seconds:.1f} s: {'; '.join(one.detail for one in found) or 'nothing'}")

    def permuted(seed: int) -> Sequence[Finding]:
        labels = np.random.default_rng(seed).permutation(table.samples.labels)
        return wrapper_findings(relabelled(table, labels), names, columns, seed=seed)

    print(f"{name}, labels permuted: {count_alarms(permuted, rounds)} of {rounds} rounds report something")


def measure_leak(leak: str, images: int, rounds: int) -> None:
    """Print in how many rounds a planted leak is found; "nothing" counts false alarms."""

    def check(seed: int) -> Sequence[Finding]:
        with tempfile.TemporaryDirectory() as name:
            table = write_leaking_images(Path(name), leak, images, np.random.default_rng(seed))
            found = wrapper_findings(table, *image_columns(table), seed=seed)
        return [one for one in found if leak == "nothing" or one.image.startswith(leak)]

    print(f"{leak} planted, {images} images: {count_alarms(check, rounds)} of {rounds} rounds report it")


def measure_seconds(images: int, classes: int) -> None:
    """Print the seconds that noise takes, and those of a leak, which takes all permutations."""
    rng = np.random.default_rng(0)
    labels, columns = rng.integers(classes, size=images), rng.normal(size=(images, 20)).astype(np.float32)
    names = [f"column {index}" for index in range(20)]
    every = class_samples([[] for _ in range(classes)], Path())
    samples = type(every)([""] * images, labels, [""] * images)
    table = ImageTable(samples, np.zeros(images, dtype=np.int64), [str(index) for index in range(classes)])
    seconds = []
    for leak in (0.0, 5.0):
        columns[:, 0] += leak * labels
        start = time.perf_counter()
        wrapper_findings(table, names, columns)
        seconds.append(time.perf_counter() - start)
    print(f"{images} images, {classes} classes: noise {seconds[0]:.1f} s, a leak {seconds[1]:.1f} s")


def measure_wrapper(arguments: argparse.Namespace) -> None:
    """Print what is found in the real sets, in permuted and in generated ones."""
    for name, (source, folder) in SETS.items():
        config = compose_config([f"data={source}", f"data.root={arguments.shared.resolve()}/data/{folder}"])
        images = open_images(config.data)
        measure_set(name, image_table(images), arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        measure_set("digits", digit_table(Path(folder)), arguments.rounds)
    for leak in ("nothing", "file size", "JPEG quality", "border", "camera"):
        measure_leak(leak, arguments.images, arguments.rounds)
    for size, classes in ((300, 2), (20_000, 2), (20_000, 100), (200_000, 2), (200_000, 1000)):
        measure_seconds(size, classes)


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--images", type=int, default=200, help="generated images of a planted leak")
    arguments = parser.parse_args()
    print(describe_machine())
    measure_wrapper(arguments)


if __name__ == "__main__":
    main()
