"""Damaged files are read, or refused by one message, in a short time.

A few of each kind are tried every time, 10,000 of them by `pytest -m soak`.
"""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import headstart
from headstart.config.compose import evaluation_config
from headstart.data.csv_table import csv, read_table
from headstart.data.image_io import image_size, read_image, read_thumbnail
from headstart.models.model_folder import read_artifact, save_model
from headstart.runs.finished import read_finished
from headstart.runs.jobs import find_jobs
from headstart.runs.listing import find_runs, read_run
from headstart.utils.errors import HeadstartError
from tests.helpers.images import class_folders, photo, write_csv
from tests.helpers.mutations import mutated, mutated_values

FEW, MANY = 25, int(os.environ.get("HEADSTART_MUTATIONS", "10000"))
MAX_S, MAX_BYTES = 10.0, 1 << 30  # of one file

Try = Callable[[random.Random], object]
Kind = Callable[[Path, Path], Try]


def read_or_refuse(*readers: Callable[[], Any]) -> None:
    for read in readers:
        with suppress(HeadstartError):
            read()


def images(_: Path, folder: Path) -> Try:
    good = []
    for format in ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF"):
        photo(folder / "photo.png", 1)
        file = io.BytesIO()
        Image.open(folder / "photo.png").save(file, format=format)
        good.append(file.getvalue())
    path = folder / "image"

    def attempt(rng: random.Random) -> None:
        path.write_bytes(mutated(rng.choice(good), rng))
        read_or_refuse(lambda: read_image(path), lambda: image_size(path), lambda: read_thumbnail(path, 20))

    return attempt


def tables(_: Path, folder: Path) -> Try:
    class_folders(folder / "images", images=3)
    rows = [(f"{name}/{index}.jpg", name) for name in ("cat", "dog") for index in range(3)]
    good = write_csv(folder / "train.csv", [("image", "label"), *rows]).read_bytes()

    def attempt(rng: random.Random) -> None:
        data = mutated(good, rng)
        (folder / "train.csv").write_bytes(data.decode("latin-1").encode("utf-16") if rng.random() < 0.2 else data)
        read_or_refuse(lambda: csv(folder), lambda: read_table(folder / "train.csv"))

    return attempt


def descriptions(finished: Path, folder: Path) -> Try:
    """Mutate the bytes of model.json, or its values, with digests that fit."""
    artifact = read_artifact(finished)
    good = (finished / "model" / "model.json").read_bytes()
    model = Path(shutil.copytree(finished / "model", folder / "model"))

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.3:
            (model / "model.json").write_bytes(mutated(good, rng))
        else:
            with suppress(AttributeError, TypeError):  # of what cannot be written
                save_model(model, artifact.state, mutated_values(artifact.description, rng))
        read_or_refuse(lambda: headstart.load(model, "cpu"))

    return attempt


def checkpoints(finished: Path, folder: Path) -> Try:
    """Mutate the bytes of a checkpoint, or its hyperparameters."""
    path = folder / "best.ckpt"
    good = (finished / "checkpoints" / "best.ckpt").read_bytes()
    checkpoint = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.5:
            path.write_bytes(mutated(good, rng))
        else:
            described = mutated_values(checkpoint["hyper_parameters"], rng)
            torch.save({**checkpoint, "hyper_parameters": described}, path)
        read_or_refuse(lambda: headstart.load(path, "cpu"))

    return attempt


def runs(finished: Path, folder: Path) -> Try:
    """Mutate the files that report, evaluate and runs read."""
    run = Path(shutil.copytree(finished, folder / "run", ignore=shutil.ignore_patterns("*.ckpt", "report")))
    record = '{"digest": "a", "monitor": "val/accuracy", "settings": {"lr": 0.1}, "attempts": 1}'
    (run / "job.json").write_text(record)
    read = [path for path in run.rglob("*") if path.is_file() and path.suffix not in (".log", ".safetensors")]
    good = {path: path.read_bytes() for path in (*read, *run.rglob("outputs.safetensors"))}

    def attempt(rng: random.Random) -> None:
        path = rng.choice(list(good))
        path.write_bytes(mutated(good[path], rng))
        read_or_refuse(
            lambda: read_finished(run),
            lambda: evaluation_config(run, []),
            lambda: find_runs(folder),
            lambda: [(job.reason, job.value()) for job in find_jobs(folder)],
        )
        path.write_bytes(good[path])

    return attempt


KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (images, tables, descriptions, checkpoints, runs)}


def fuzz(kind: str, finished: Path, folder: Path, count: int, seed: int) -> None:
    attempt = KINDS[kind](finished, folder)
    attempt(random.Random(0))  # imports
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    longest = 0.0
    for number in range(count):
        start = time.perf_counter()
        try:
            attempt(random.Random(f"{seed}/{number}"))
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}/{number}: {type(error).__name__}: {error}") from error
        longest = max(longest, time.perf_counter() - start)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base
    print(f"{kind}: {count} files, seed {seed}; the longest took {longest:.2f} s, {more / 2**20:.0f} MiB over the base")
    assert longest < MAX_S
    assert more < MAX_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_files_with_something_wrong(kind: str, finished: Path, tmp_path: Path) -> None:
    fuzz(kind, finished, tmp_path, FEW, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_files_with_something_wrong(kind: str, finished: Path, tmp_path: Path) -> None:
    fuzz(kind, finished, tmp_path, MANY // len(KINDS), seed=time.time_ns())


def test_a_run_that_was_left_alone_is_read(finished: Path) -> None:
    assert read_finished(finished).class_names == tuple("0123456789")
    assert read_run(finished) is not None
