"""Grids of images: inputs of the network, augmented views, predictions, and the worst mistakes."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
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
BAR = 210  # length of a probability bar of 100 %, in pixels
GAP = 14  # between images, in pixels
LINE = 15  # height of a line of text, in pixels
LETTERS = 21  # characters that fit below an image
GRID_IMAGES = 16  # images in a grid
THUMBNAIL = 512  # longest side of a loaded image, in pixels
VIEWS = 5  # augmented views of an image


@dataclass(frozen=True)
class Tile:
    """An image with its caption.

    Attributes:
        image: RGB image of any size.
        caption: the lines of text below it.
        correct: whether the prediction is correct; None if there is none.
        top: the most probable classes with their probabilities.
        overlay: the image with a heat map of the predicted class over it, if one was made.
        path: the path of the image file; empty if the image is not a file.
    """

    image: Image.Image
    caption: tuple[str, ...]
    correct: bool | None = None
    top: tuple[tuple[str, float], ...] = ()
    overlay: Image.Image | None = None
    path: str = ""

    def data_uri(self, *, overlay: bool = False) -> str:
        """Encode the image, or its overlay if there is one, as a JPEG data URI with sides of at most `SIDE` pixels."""
        image = (self.overlay if overlay and self.overlay else self.image).copy()
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# --- choosing images -----------------------------------------------------------------------------------------


def network_inputs(
    samples: Samples, transform: Transform, preprocessing: Preprocessing, class_names: Sequence[str]
) -> list[Tile]:
    """Return training images as the network sees them, spread evenly over the classes; their normalisation is undone.

    Raises:
        DataError: an image cannot be read.
    """
    dataset = ImageDataset(samples, transform)
    return [
        Tile(
            denormalise(dataset[index, mixed_seed("seen", index)][0], preprocessing),
            (class_names[samples.labels[index]],),
        )
        for index in choose_by_class(samples.labels, GRID_IMAGES)
    ]


def augmented_views(
    samples: Samples, transform: Transform, evaluation: Transform, preprocessing: Preprocessing, *, images: int = 3
) -> list[Tile]:
    """Return some images by the evaluation transform, each followed by `VIEWS` of the seeded training transform."""
    plain, augmented = ImageDataset(samples, evaluation), ImageDataset(samples, transform)
    tiles: list[Tile] = []
    for index in choose_by_class(samples.labels, 10 * images):
        try:
            tiles.append(Tile(denormalise(plain[index][0], preprocessing), ("original",)))
        except DataError:
            continue  # try the next one: `headstart look` reports unreadable files
        for view in range(VIEWS):
            pixels = augmented[index, mixed_seed("augmented", index, view)][0]
            tiles.append(Tile(denormalise(pixels, preprocessing), (f"view {view + 1}",)))
        if len(tiles) >= images * (VIEWS + 1):
            break
    return tiles


def choose_by_class(labels: NDArray[np.int64], images: int) -> list[int]:
    """Return the indices of up to `images` images, one of each class in turn, in a fixed random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    turns: defaultdict[int, Iterator[int]] = defaultdict(count)
    return sorted(order, key=lambda index: next(turns[int(labels[index])]))[:images]


def load_thumbnail(samples: Samples, index: int, side: int = THUMBNAIL) -> Image.Image:
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


def prediction_tiles(evaluation: Evaluation, samples: Samples, indices: Sequence[int]) -> list[Tile]:
    """Return the images of a split at these indices, with their names and predictions.

    Raises:
        DataError: an image cannot be read.
    """
    names = evaluation.class_names
    tiles = []
    for index in indices:
        probabilities, classes = evaluation.probabilities[index].sort(descending=True, stable=True)
        top = tuple((names[label], float(p)) for label, p in zip(classes[:TOP], probabilities[:TOP], strict=True))
        true, predicted = names[evaluation.labels[index]], f"{top[0][0]} {top[0][1]:.0%}"
        correct = top[0][0] == true
        mistake = f"{true} → {predicted}"
        result = (predicted,) if correct else (mistake,) if len(mistake) <= LETTERS else (true, f"→ {predicted}")
        file = samples.images[index]
        caption = (Path(samples.names[index]).name, *result)
        path = file if isinstance(file, str) else ""
        tiles.append(Tile(load_thumbnail(samples, index), caption, correct, top, path=path))
    return tiles


# --- drawing them --------------------------------------------------------------------------------------------


@figure
def grid(tiles: Sequence[Tile], columns: int = 8, *, bars: bool = False) -> Figure:
    """Draw images in a grid with their captions.

    Args:
        tiles: the images; an overlay is drawn to the right of its image, and both take two columns.
        columns: the number of columns.
        bars: whether to draw the most probable classes to the right of each image, as bars.
    """
    beside = BAR + GAP if bars else SIDE if any(tile.overlay for tile in tiles) else 0
    letters = LETTERS * (2 if beside else 1)
    columns = max(1, min(columns // (2 if beside else 1), len(tiles)))
    width, height = SIDE + beside + GAP, SIDE + LINE * max((len(tile.caption) for tile in tiles), default=0) + 4 + GAP
    fig, axes = _canvas(columns * width + GAP, -(-len(tiles) // columns) * height + GAP)
    for index, tile in enumerate(tiles):
        left, top = GAP + index % columns * width, GAP + index // columns * height
        _draw_image(axes, tile.image, left, top)
        if tile.overlay:
            _draw_image(axes, tile.overlay, left + SIDE, top)
        for number, line in enumerate(tile.caption):
            colour = INK if tile.correct is None or number == 0 else GREEN if tile.correct else ORANGE
            axes.text(left, top + SIDE + LINE * (number + 0.9), short(line, letters), fontsize=8, color=colour)
        for number, (name, probability) in enumerate(tile.top if bars else ()):
            start, level = left + SIDE + GAP, top + number * SIDE / TOP
            axes.text(start, level + 12, f"{short(name, 26)}  {probability:.1%}", fontsize=8)
            axes.barh(level + 20, max(probability * BAR, 1), left=start, height=7, color=BLUE)
    return fig


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure whose coordinates are pixels from its upper left corner."""
    fig = Figure(figsize=(width / DPI, height / DPI), facecolor="white")
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return fig, axes


def _draw_image(axes: Axes, image: Image.Image, left: float, top: float) -> None:
    """Draw an image, scaled to fit and centred, in a square of `SIDE` pixels."""
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    left, top = left + (SIDE - width) / 2, top + (SIDE - height) / 2
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest", aspect="auto")
