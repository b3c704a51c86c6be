"""Seconds of `headstart check --tiers files,pixels` on a folder of JPEGs, against imagededup and CleanVision.

    python benchmarks/check.py --images 10000
    python benchmarks/check.py --images 200000 --size 64 --no-rivals   # many small files: time and memory

The images are written first, in two classes, with every tenth a copy. Ours runs twice, with an empty cache and then
with what it has remembered. imagededup looks for duplicates by its perceptual hash, CleanVision for all that it knows;
each is left out, with a line, if it is not installed (`pip install imagededup cleanvision`).
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import build_parser, describe_machine, write_smooth_image

COPIED = 10  # every tenth image is a copy of the one before it


def write_images(folder: Path, images: int, size: int) -> None:
    """Write JPEGs in two folders of classes, every `COPIED`th a copy."""
    rng, last = np.random.default_rng(0), folder
    for index in range(images):
        path = folder / f"class {index % 2}" / f"{index:06}.jpg"
        if index % COPIED == 0 and index:
            shutil.copyfile(last, path)
        else:
            write_smooth_image(path, rng, cells=(16, 16), size=(size, size))
            last = path


def ours(folder: Path, out: Path) -> Callable[[], str]:
    """Return the check of files and pixels, as the command runs it."""
    from headstart.checks.run import check
    from headstart.config.compose import evaluation_config

    config = evaluation_config(None, ["data=imagefolder", f"data.root={folder}"])

    def run() -> str:
        counts = check(config, out, ["files", "pixels"]).counts
        page = (out / "index.html").stat().st_size / 1e6
        return f"{counts.get('copy', 0)} copies; the page has {page:.1f} MB"

    return run


def imagededup(folder: Path) -> Callable[[], str]:
    """Return imagededup's search for duplicates by perceptual hash."""
    from imagededup.methods import PHash

    def run() -> str:
        found = PHash(verbose=False).find_duplicates(image_dir=folder, recursive=True)
        return f"{sum(map(bool, found.values()))} images with a duplicate"

    return run


def cleanvision(folder: Path) -> Callable[[], str]:
    """Return CleanVision's search for all issues, in as many processes as cores."""
    from cleanvision import Imagelab

    def run() -> str:
        lab = Imagelab(data_path=str(folder), verbose=False)
        lab.find_issues(n_jobs=os.cpu_count(), verbose=False)
        return f"{int(lab.issues['is_exact_duplicates_issue'].sum())} images with an exact duplicate"

    return run


def main() -> None:
    """Print a line for each of them."""
    parser = build_parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=224, help="width and height in pixels")
    parser.add_argument("--no-rivals", action="store_true")
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = Path(name, "images"), dict[str, float]()
        os.environ["HEADSTART_CACHE"] = str(Path(name, "cache"))
        write_images(folder, arguments.images, arguments.size)
        run = ours(folder, Path(name, "page"))
        rivals = {} if arguments.no_rivals else {"imagededup": imagededup, "CleanVision": cleanvision}
        for label in ("headstart", "headstart, again", *rivals):
            try:
                measured = run if label not in rivals else rivals[label](folder)
            except ImportError as error:
                print(f"{label}: not installed ({error})")
                continue
            start = time.perf_counter()
            found = measured()
            seconds[label] = time.perf_counter() - start
            ratio = seconds[label] / seconds["headstart"]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            rate = arguments.images / seconds[label]
            print(
                f"{label}: {seconds[label]:.1f} s ({ratio:.2f} ×), {rate:.0f} images/s, {found}; peak {memory:.2f} GB"
            )


if __name__ == "__main__":
    main()
