"""Pictures of images: what the network sees, what augmentation does, what it answers, and where it is wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from headstart.data.datamodule import ImageDataset, open_image
from headstart.data.dataset import Samples
from headstart.data.image_io import read_thumbnail
from headstart.data.preprocessing import Preprocessing, Transform, pixels_of
from headstart.data.samplers import mixed_seed
from headstart.report.style import BLUE, DPI, GREEN, INK, ORANGE, figure, short
from headstart.runs.predictions import TOP, Evaluation
from headstart.utils.errors import DataError

SIDE = 150  # of an image in a figure, in pixels
GAP = 14
LINE = 15  # height of a line of text
LETTERS = 21  # that fit below an image
SHOWN = 16  # images of a batch
THUMBNAIL = 512  # most pixels of an image that is shown, on either side
VIEWS = 5  # augmented, of an image


@dataclass(frozen=True)
class Tile:
    """An image with what is said of it.

    Attributes:
        image: RGB, of any size.
        lines: what stands below it.
        right: whether the answer is right, if there is one.
        bars: the most probable classes with their probabilities.
        overlay: the image with what speaks for the answer, if it was asked for.
        path: of the file, if it is one.
    """

    image: Image.Image
    lines: tuple[str, ...]
    right: bool | None = None
    bars: tuple[tuple[str, float], ...] = ()
    overlay: Image.Image | None = None
    path: str = ""

    def data_uri(self, side: int = SIDE, *, overlay: bool = False) -> str:
        """The image as a JPEG within a web page, of at most `side` pixels."""
        image = (self.overlay if overlay and self.overlay else self.image).copy()
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# --- choosing images -----------------------------------------------------------------------------------------


def seen(
    samples: Samples, transform: Transform, preprocessing: Preprocessing, class_names: Sequence[str]
) -> list[Tile]:
    """Images as the network sees them in training, evenly spread over the classes.

    Args:
        samples: the training images.
        transform: the training transform; seeded, so that the picture is the same again.
        preprocessing: whose normalisation is undone.
        class_names: in label order.
    """
    dataset = ImageDataset(samples, transform)
    chosen = by_class(samples.labels, SHOWN)
    images = [pixels_of(dataset[index, mixed_seed("seen", index)][0], preprocessing) for index in chosen]
    return [Tile(image, (class_names[samples.labels[index]],)) for image, index in zip(images, chosen, strict=True)]


def augmented(
    samples: Samples,
    transform: Transform,
    evaluation: Transform,
    preprocessing: Preprocessing,
    *,
    images: int = 3,
    views: int = VIEWS,
) -> list[Tile]:
    """The same images without and with augmentation: of each one the evaluation's view, then several random ones."""
    plain, random = ImageDataset(samples, evaluation), ImageDataset(samples, transform)
    tiles: list[Tile] = []
    for index in by_class(samples.labels, 10 * images):
        try:
            tiles.append(Tile(pixels_of(plain[index][0], preprocessing), ("without",)))
        except DataError:
            continue  # the next one, then: `headstart look` is there to find such files
        for view in range(views):
            pixels = random[index, mixed_seed("augmented", index, view)][0]
            tiles.append(Tile(pixels_of(pixels, preprocessing), (f"view {view + 1}",)))
        if len(tiles) >= images * (views + 1):
            break
    return tiles


def by_class(labels: NDArray[np.int64], count: int) -> list[int]:
    """Indices of images, one of each class in turn, the same every time."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = order[labels[order] == label]
        turn[places] = np.arange(len(places))
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels))
    chosen = np.lexsort((ranks, turn))[:count]
    return [int(index) for index in chosen]


def examples(evaluation: Evaluation, samples: Samples, count: int = 8) -> list[Tile]:
    """Images of all classes with the most probable classes."""
    return answered(evaluation, samples, by_class(evaluation.labels, count))


def worst(evaluation: Evaluation, samples: Samples, count: int) -> list[Tile]:
    """The images with the largest losses that are wrong, the worst first."""
    return answered(evaluation, samples, worst_indices(evaluation)[:count])


def thumbnail(samples: Samples, index: int, side: int = THUMBNAIL) -> Image.Image:
    """One of the images, at most that large: photographs as they are would fill the memory.

    Raises:
        DataError: it cannot be read.
    """
    image = samples.images[index]
    return read_thumbnail(image, side) if isinstance(image, str) else open_image(samples, index)


def worst_indices(evaluation: Evaluation) -> list[int]:
    """Images that are wrong, by loss."""
    order = torch.argsort(evaluation.losses, descending=True, stable=True).numpy()
    return [int(index) for index in order[(evaluation.predicted != evaluation.labels)[order]]]


def answered(evaluation: Evaluation, samples: Samples, indices: Sequence[int]) -> list[Tile]:
    """Images with their names and what was answered.

    Raises:
        DataError: one cannot be read.
    """
    names = evaluation.class_names
    tiles = []
    for index in indices:
        shares, classes = evaluation.probabilities[index].sort(descending=True, stable=True)
        ranked = [(names[label], float(share)) for label, share in zip(classes[:TOP], shares[:TOP], strict=False)]
        image = thumbnail(samples, index)
        true = names[evaluation.labels[index]]
        right = ranked[0][0] == true
        said = f"{ranked[0][0]} {ranked[0][1]:.0%}"
        file = samples.images[index]
        path = file if isinstance(file, str) else ""
        mistake = f"{true} → {said}"
        answer = (said,) if right else (mistake,) if len(mistake) <= LETTERS else (true, f"→ {said}")
        lines = (Path(samples.names[index]).name, *answer)
        tiles.append(Tile(image, lines, right, tuple(ranked), path=path))
    return tiles


# --- drawing them --------------------------------------------------------------------------------------------


@figure
def grid(tiles: Sequence[Tile], columns: int = 8) -> Figure:
    """Images side by side with their lines below; an explanation stands beside its image."""
    wide = any(tile.overlay for tile in tiles)
    width, lines = (2 * SIDE if wide else SIDE), max((len(tile.lines) for tile in tiles), default=0)
    columns = max(1, min(columns // (1 + wide), len(tiles)))
    height = SIDE + LINE * lines + 4
    drawn, axes = _canvas(columns * (width + GAP) + GAP, -(-len(tiles) // columns) * (height + GAP) + GAP)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + GAP)
        _image(axes, tile.image, left, top)
        if tile.overlay:
            _image(axes, tile.overlay, left + SIDE, top)
        for number, line in enumerate(tile.lines):
            colour = _colour(tile, number)
            text = short(line, LETTERS * (1 + wide))
            axes.text(left, top + SIDE + LINE * (number + 0.9), text, fontsize=8, color=colour)
    return drawn


@figure
def with_bars(tiles: Sequence[Tile], columns: int = 2) -> Figure:
    """Images with bars of their most probable classes beside them."""
    bar, width, height = 210, SIDE + 210 + GAP, SIDE + LINE * 3
    columns = min(columns, len(tiles))
    drawn, axes = _canvas(columns * (width + GAP) + GAP, -(-len(tiles) // columns) * (height + GAP) + GAP)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + GAP)
        _image(axes, tile.image, left, top)
        for number, line in enumerate(tile.lines):
            colour = _colour(tile, number)
            axes.text(left, top + SIDE + LINE * (number + 0.9), short(line, 52), fontsize=8, color=colour)
        for number, (name, share) in enumerate(tile.bars):
            start, level = left + SIDE + GAP, top + number * SIDE / TOP
            axes.text(start, level + 12, f"{short(name, 26)}  {share:.1%}", fontsize=8)
            axes.barh(level + 20, max(share * bar, 1), left=start, height=7, color=BLUE)
    return drawn


def _colour(tile: Tile, line: int) -> str:
    """Of a line below an image: what was answered is green or orange."""
    if tile.right is None or line == 0:
        return INK
    return GREEN if tile.right else ORANGE


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure to put things onto, in pixels from its upper left corner."""
    drawn = Figure(figsize=(width / DPI, height / DPI), facecolor="white")
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return drawn, axes


def _image(axes: Axes, image: Image.Image, left: float, top: float) -> None:
    """Puts an image into a square, in the middle of it."""
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(
        image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    )
    left, top = left + (SIDE - width) / 2, top + (SIDE - height) / 2
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest", aspect="auto")
    axes.set(xlim=limits[0], ylim=limits[1])
