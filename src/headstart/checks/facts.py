"""Facts of all images: what their files, headers and small copies tell, remembered by content."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from headstart.cache.disk import DIGESTS, FACTS, GIGABYTE, make_room, sets_folder
from headstart.cache.fingerprints import array_digests, file_digests
from headstart.cache.segments import key_of
from headstart.cache.store import FeatureStore
from headstart.checks.headers import HEADER, check_whole, read_header
from headstart.checks.measures import PIXELS, SIDE, measure, small_copy
from headstart.checks.table import ImageTable
from headstart.data.image_io import FORMATS, why_unreadable
from headstart.data.preprocessing import PIXELS_VERSION
from headstart.data.workers import default_workers, exit_with_parent
from headstart.training.trainer import keep_freed_memory
from headstart.utils.files import read_regular
from headstart.utils.hashing import description_sha256

VERSION = 1  # of the facts: raise it when any of their values changes
BATCH = 32  # images that are measured at once: more need memory that the system has to provide anew each time
CHUNK = 4096  # images that are hashed and then measured, while the system still has their files in memory
LIMIT = GIGABYTE  # maximum size of all facts in the cache, those of about four million images
LARGEST = 10**9  # numbers in names are cut off here: float32 has no place for all digits

CHANGED = "the file changes while it is read"
NOTHING = hashlib.sha256().digest()  # the digest of files that cannot be opened, and of empty ones

Images = Sequence[str] | NDArray[np.uint8]


@dataclass(frozen=True)
class Facts:
    """Facts of all images of a table, in its order.

    Attributes:
        digest: SHA-256 of each file, or of each array; see `fingerprints`.
        error: why an image cannot be read; empty if it can.
        header: what the headers tell, dtype `HEADER`, shape (images,); zeros where there is an error.
        pixels: what the pixels tell, dtype `PIXELS`, shape (images,); zeros where there is an error. None if the images
            were not decoded.
        names: names of the images.
    """

    digest: list[bytes]
    error: list[str]
    header: NDArray[np.void]
    pixels: NDArray[np.void] | None
    names: Sequence[str]

    def columns(self) -> tuple[list[str], NDArray[np.float32]]:
        """Return what each image's wrapper tells, as opposed to its content.

        Returns:
            The names of the columns, and their values of shape (images, columns). What an image does not have is NaN,
            such as the JPEG quality of a PNG; of an image that cannot be read, everything is.
        """
        header = self.header
        sides = header["width"].astype(np.float64), header["height"].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # images that cannot be read have no pixels
            columns = {
                "file size": header["bytes"],
                "bytes per pixel": header["bytes"] / (sides[0] * sides[1]),
                "width": sides[0],
                "height": sides[1],
                "aspect ratio": sides[0] / sides[1],
            }
        columns["colour mode"] = np.unique(header["mode"], return_inverse=True)[1]
        columns["file format"] = np.unique(header["format"], return_inverse=True)[1]
        columns["JPEG quality"] = header["quality"]
        columns["chroma subsampling"] = header["subsampling"]
        columns["progressive JPEG"] = header["progressive"]
        columns["number of EXIF tags"] = header["exif_tags"]
        columns["camera"] = header["camera"]
        columns["date in EXIF data"] = header["date"]
        for index, colour in enumerate(("red", "green", "blue") if self.pixels is not None else ()):
            for place in ("border", "mean"):
                columns[f"{place} {colour}"] = self.pixels[place][:, index]  # type: ignore[index]
        stems = [PurePosixPath(name).stem for name in self.names]
        columns["number in the file name"] = np.array([_last_number(stem) for stem in stems])
        columns["length of the file name"] = np.array([len(stem) for stem in stems])
        values = np.stack([column.astype(np.float32) for column in columns.values()], axis=1)
        values[[bool(error) for error in self.error]] = np.nan
        return list(columns), values


def _last_number(stem: str) -> float:
    numbers = re.findall(r"[0-9]+", stem)
    return float(min(int(numbers[-1][:10]), LARGEST)) if numbers else np.nan


def read_facts(table: ImageTable, *, decode: bool, folder: Path, advance: Callable[[int], None]) -> Facts:
    """Return the facts of all images; a file that cannot be read gives an error in them.

    A file is read twice: for its digest, and for everything else if the cache has nothing under that digest.

    Args:
        table: the images.
        decode: whether to decode the images, too, at a small size.
        folder: the cache folder.
        advance: called with the number of images that were finished.

    Raises:
        DataError: the cache cannot be written.
    """
    count, dtypes = len(table), [HEADER, PIXELS] if decode else [HEADER]
    pixels = np.zeros(count, dtype=PIXELS) if decode else None
    facts = Facts([], [""] * count, np.zeros(count, dtype=HEADER), pixels, table.samples.names)
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(_open_store(folder, dtype))) for dtype in dtypes]
        for start in range(0, count, CHUNK):
            images = table.samples.images[start : start + CHUNK]
            if isinstance(images, np.ndarray):
                facts.digest.extend(array_digests(images))
            else:
                facts.digest.extend(file_digests(images, folder / DIGESTS, lambda _: None))
            _read_chunk(images, start, facts, stores, advance)
    make_room(
        folder, 0, LIMIT, kind=FACTS
    )  # rows are small: they are evicted afterwards, the least recently used first
    if CHANGED in facts.error:
        # A file has changed without a new time stamp, so the remembered digests cannot be trusted.
        (folder / DIGESTS).unlink(missing_ok=True)
    return facts


def _open_store(folder: Path, dtype: np.dtype[np.void]) -> FeatureStore:
    """Open the set of facts of this dtype; they depend on the versions of Pillow and of our own code."""
    description = {
        "facts": "headers" if dtype == HEADER else "pixels",
        "fields": repr(dtype.descr),
        "pillow": PIL.__version__,
        "version": [VERSION, PIXELS_VERSION],
    }
    return FeatureStore(sets_folder(folder, FACTS) / description_sha256(description)[:32], 1, dtype, description)


def _read_chunk(
    images: Images,
    start: int,
    facts: Facts,
    stores: Sequence[FeatureStore],
    advance: Callable[[int], None],
) -> None:
    """Fill in the facts of some images, the first of which is at `start`, from the cache or from the images."""
    digests = facts.digest[start:]
    keys = [key_of(digest, 0) for digest in digests]
    missing = set[bytes]().union(*(store.missing(keys) for store in stores))
    known = [index for index, key in enumerate(keys) if key not in missing]
    for store, rows in zip(stores, (facts.header, facts.pixels), strict=False):
        assert rows is not None
        if known:
            rows[np.add(known, start)] = store.rows([keys[i] for i in known]).take(np.arange(len(known)))[:, 0]
    advance(len(known))
    # Equal files are read once. Those that cannot be opened have equal digests, and each has an error of its own.
    equal: dict[bytes | int, list[int]] = {}
    for index, digest in enumerate(digests):
        if keys[index] in missing:
            equal.setdefault(index if digest == NOTHING else digest, []).append(index)
    first = [indices[0] for indices in equal.values()]
    for batch in _read(images, digests, first, decode=facts.pixels is not None):
        _remember(batch, digests, stores)
        for position, index in enumerate(batch.indices):
            same = np.add(equal[index if digests[index] == NOTHING else digests[index]], start)
            facts.header[same] = batch.header[position]
            if facts.pixels is not None and batch.pixels is not None:
                facts.pixels[same] = batch.pixels[position]
            for image in same:
                facts.error[image] = batch.errors[position]
            advance(len(same))


@dataclass(frozen=True)
class _Batch:
    """Facts of some images; see `Facts`.

    Attributes:
        indices: of the images.
        errors: why an image cannot be read; empty if it can.
        header: shape (images,).
        pixels: shape (images,); None if the images were not decoded.
    """

    indices: Sequence[int]
    errors: Sequence[str]
    header: NDArray[np.void]
    pixels: NDArray[np.void] | None


def _read(images: Images, digests: Sequence[bytes], indices: Sequence[int], *, decode: bool) -> Iterator[_Batch]:
    """Read the images at these indices, each file once, in worker processes if there are many.

    Threads would hardly help: half of the time goes to Python's own code, which holds a lock.
    """
    batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
    forked = torch.multiprocessing.get_start_method() == "fork"  # others import the caller's script again
    yield from DataLoader(
        _Batches(images, digests, batches, decode),
        batch_size=None,
        num_workers=min(default_workers(), len(batches) // 2) if forked else 0,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # its own, so that the run's random state does not depend on what is cached
    )


def _begin_worker(worker: int) -> None:
    exit_with_parent(worker)
    keep_freed_memory()  # a quarter of the time would go to zeroing pages


@dataclass(frozen=True)
class _Batches(Dataset[_Batch]):
    """A dataset of batches; see `_read`.

    Attributes:
        images: the images.
        digests: their digests.
        batches: indices of the images of each batch.
        decode: whether to decode them, too.
    """

    images: Images
    digests: Sequence[bytes]
    batches: Sequence[Sequence[int]]
    decode: bool

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> _Batch:
        return _read_batch(self.images, self.digests, self.batches[index], decode=self.decode)


def _read_batch(images: Images, digests: Sequence[bytes], indices: Sequence[int], *, decode: bool) -> _Batch:
    """Read the images at these indices."""
    count = len(indices)
    errors, header = [""] * count, np.zeros(count, dtype=HEADER)
    copies = np.zeros((count, SIDE, SIDE, 3), dtype=np.uint8)
    for position, index in enumerate(indices):
        try:
            if isinstance(images, np.ndarray):
                data, opened = images[index].tobytes(), Image.fromarray(images[index])
            else:
                data = _read_bytes(images[index], digests[index])
                opened = Image.open(io.BytesIO(data), formats=FORMATS)
            with opened as image:
                found = read_header(image, len(data))
                if decode:
                    copies[position] = small_copy(image)
                else:
                    check_whole(image, data)
                header[position] = found
        except Exception as error:  # for damaged files, Pillow's parsers raise all sorts of errors
            errors[position] = why_unreadable(error)
    pixels = None
    if decode:
        pixels = measure(copies, header["width"].astype(np.int64) * header["height"])
        pixels[[bool(error) for error in errors]] = np.zeros((), dtype=PIXELS)
    return _Batch(indices, errors, header, pixels)


def _read_bytes(path: str, digest: bytes) -> bytes:
    data = read_regular(path)
    if not data:
        raise ValueError("the file is empty")
    if hashlib.sha256(data).digest() != digest:
        raise ValueError(CHANGED)
    return data


def _remember(batch: _Batch, digests: Sequence[bytes], stores: Sequence[FeatureStore]) -> None:
    """Append the facts of images that can be read to the cache; the others are few, and may be mended."""
    for store, rows in zip(stores, (batch.header, batch.pixels), strict=False):
        keys = [key_of(digests[index], 0) for index in batch.indices]
        chosen = [i for i, key in enumerate(keys) if not batch.errors[i] and key not in store]
        if chosen and rows is not None:
            store.append([keys[i] for i in chosen], rows[chosen])
