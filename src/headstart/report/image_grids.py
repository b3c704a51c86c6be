"""Grids of images: inputs of the network, augmented views, predictions, and the worst mistakes."""

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

from headstart.data.datamodule import ImageDataset
from headstart.data.dataset import Samples
from headstart.data.image_io import as_image, read_thumbnail
from headstart.data.preprocessing import Preprocessing, Transform, denormalise
from headstart.data.samplers import mixed_seed
from headstart.report.style import BLUE, DPI, GREEN, INK, ORANGE, figure, short
from headstart.runs.predictions import TOP, Evaluation
from headstart.utils.errors import DataError

SIDE = 150  # side of an image in a figure, in pixels
GAP = 14  # between images, in pixels
LINE = 15  # height of a line of text, in pixels
LETTERS = 21  # characters that fit below an image
SHOWN = 16  # images in a grid
THUMBNAIL = 512  # longest side of a loaded image, in pixels
VIEWS = 5  # augmented views of an image


@dataclass(frozen=True)
class Tile:
    """An image with its caption.

    Attributes:
        image: RGB image of any size.
        lines: the lines of text below it.
        right: whether the prediction is correct; None if there is none.
        bars: the most probable classes with their probabilities.
        overlay: the image with a heat map of the predicted class over it, if one was made.
        path: the path of the image file; empty if the image is not a file.
    """

    image: Image.Image
    lines: tuple[str, ...]
    right: bool | None = None
    bars: tuple[tuple[str, float], ...] = ()
    overlay: Image.Image | None = None
    path: str = ""

    def data_uri(self, side: int = SIDE, *, overlay: bool = False) -> str:
        """Encode the image as a JPEG data URI.

        Args:
            side: the longest side, in pixels.
            overlay: whether to encode the overlay, if there is one.
        """
        image = (self.overlay if overlay and self.overlay else self.image).copy()
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# --- choosing images -----------------------------------------------------------------------------------------


def seen(
    samples: Samples, transform: Transform, preprocessing: Preprocessing, class_names: Sequence[str]
) -> list[Tile]:
    """Return training images as the network sees them, spread evenly over the classes.

    Args:
        samples: the training images.
        transform: the training transform, seeded so that the result is reproducible.
        preprocessing: the preprocessing whose normalisation is undone.
        class_names: class names in label order.

    Raises:
        DataError: an image cannot be read.
    """
    dataset = ImageDataset(samples, transform)
    chosen = by_class(samples.labels, SHOWN)
    images = [denormalise(dataset[index, mixed_seed("seen", index)][0], preprocessing) for index in chosen]
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
    """Return images without augmentation, each followed by several random augmented views of it.

    Args:
        samples: the training images.
        transform: the training transform, seeded so that the result is reproducible.
        evaluation: the evaluation transform, for the image without augmentation.
        preprocessing: the preprocessing whose normalisation is undone.
        images: the number of images.
        views: augmented views of each image.
    """
    plain, random = ImageDataset(samples, evaluation), ImageDataset(samples, transform)
    tiles: list[Tile] = []
    for index in by_class(samples.labels, 10 * images):
        try:
            tiles.append(Tile(denormalise(plain[index][0], preprocessing), ("without",)))
        except DataError:
            continue  # try the next one: `headstart look` reports unreadable files
        for view in range(views):
            pixels = random[index, mixed_seed("augmented", index, view)][0]
            tiles.append(Tile(denormalise(pixels, preprocessing), (f"view {view + 1}",)))
        if len(tiles) >= images * (views + 1):
            break
    return tiles


def by_class(labels: NDArray[np.int64], count: int) -> list[int]:
    """Choose up to `count` images, one of each class in turn, with a fixed seed.

    Args:
        labels: the label of each image.
        count: how many to choose.

    Returns:
        Indices of images.
    """
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
    """Return images of all classes with their predictions.

    Raises:
        DataError: an image cannot be read.
    """
    return answered(evaluation, samples, by_class(evaluation.labels, count))


def worst(evaluation: Evaluation, samples: Samples, count: int) -> list[Tile]:
    """Return the misclassified images with the largest losses, the worst first.

    Raises:
        DataError: an image cannot be read.
    """
    return answered(evaluation, samples, worst_indices(evaluation)[:count])


def thumbnail(samples: Samples, index: int, side: int = THUMBNAIL) -> Image.Image:
    """Load an image, reduced to sides of at most `side` pixels if it is a file: full-size photographs need much memory.

    Raises:
        DataError: it cannot be read.
    """
    image = samples.images[index]
    return read_thumbnail(image, side) if isinstance(image, str) else as_image(image)


def worst_indices(evaluation: Evaluation) -> list[int]:
    """Return the indices of the misclassified images, sorted by descending loss."""
    order = torch.argsort(evaluation.losses, descending=True, stable=True).numpy()
    return [int(index) for index in order[(evaluation.predicted != evaluation.labels)[order]]]


def answered(evaluation: Evaluation, samples: Samples, indices: Sequence[int]) -> list[Tile]:
    """Return images with their names and predictions.

    Args:
        evaluation: the predictions of a split.
        samples: the images of that split.
        indices: which of them to return.

    Raises:
        DataError: an image cannot be read.
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
    """Draw images in a grid with their captions; an overlay is drawn to the right of its image."""
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
    """Draw images in a grid, each with bars of its most probable classes beside it."""
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
    """Return the colour of a line of the caption: green for a correct prediction, orange for a wrong one."""
    if tile.right is None or line == 0:
        return INK
    return GREEN if tile.right else ORANGE


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure whose coordinates are pixels from its upper left corner."""
    drawn = Figure(figsize=(width / DPI, height / DPI), facecolor="white")
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return drawn, axes


def _image(axes: Axes, image: Image.Image, left: float, top: float) -> None:
    """Draw an image, scaled to fit and centred, in a square of `SIDE` pixels."""
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(
        image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    )
    left, top = left + (SIDE - width) / 2, top + (SIDE - height) / 2
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest", aspect="auto")
    axes.set(xlim=limits[0], ylim=limits[1])
