"""Web page on a data set before training: class counts, groups, image sizes, samples, augmented views and notes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headstart.config.schema import Config
from headstart.data.augmentation import training_transform
from headstart.data.build import open_images
from headstart.data.dataset import Samples
from headstart.data.image_io import image_size
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.models.backbone import build_backbone
from headstart.report import image_grids
from headstart.report.charts import NAMED
from headstart.report.group_tables import group_rows, groups_by_class, groups_csv
from headstart.report.html import data_name, write_html
from headstart.report.image_grids import Tile
from headstart.report.style import BLUE, SPLIT_COLOURS, WIDTH, count_axis, figure, new_figure, png, row_axes, short, svg
from headstart.utils.errors import DataError
from headstart.utils.files import csv_text, write_bytes, write_text
from headstart.utils.progress import progress_bar

MEASURED = 5000  # most files whose size is read: enough for a distribution, in seconds on a slow disk
ENDS = 20  # number of largest and of smallest classes shown if there are many
SAMPLED = (10, 6)  # most classes, and most images of each, in the sample


def look(config: Config, folder: Path, overrides: Sequence[str] = ()) -> Path:
    """Write index.html, counts.csv, groups.csv if there are groups, and each figure as a PNG; return the page's path.

    Args:
        config: the validated configuration: data, model (for its preprocessing) and augment.
        folder: the folder to write to.
        overrides: the overrides of the command line, for display.

    Raises:
        DataError: the data cannot be used; the message is the same as in training.
    """
    images = open_images(config.data)
    splits = images.splits
    preprocessing = preprocessing_of(config)
    train = splits["train"]
    sizes, unreadable = read_sizes(splits)
    tiles = {
        "samples": samples_by_class(train, images.class_names),
        "augmented": image_grids.augmented_views(
            train,
            training_transform(preprocessing, **asdict(config.augment)),
            evaluation_transform(preprocessing),
            preprocessing,
            images=4,
        ),
    }
    charts = {"counts": counts(splits, images.class_names), "sizes": size_distribution(sizes, preprocessing.crop)}
    grids = {
        "samples": image_grids.grid(tiles["samples"], SAMPLED[1]),
        "augmented": image_grids.grid(tiles["augmented"], image_grids.VIEWS + 1),
    }
    for name, fig in {**charts, **grids}.items():
        write_bytes(folder / f"{name}.png", png(fig))
    write_text(folder / "counts.csv", counts_csv(splits, images.class_names))
    groups = group_rows(splits, images.class_names)
    if groups:
        write_text(folder / "groups.csv", groups_csv(groups))
    return write_html(
        folder,
        "look.html.j2",
        config=config,
        data=data_name({f"data.{name}": value for name, value in asdict(config.data).items()}),
        splits=splits,
        class_names=images.class_names,
        groups=groups,
        groups_by_class=groups_by_class(splits, images.class_names),
        charts={name: svg(chart) for name, chart in charts.items()},
        tiles=tiles,
        columns={"samples": SAMPLED[1], "augmented": image_grids.VIEWS + 1},
        sizes=sizes,
        preprocessing=preprocessing,
        notes=[*images.notes, *unreadable],
        command=shlex.join(["headstart", "look", *overrides]),
    )


def preprocessing_of(config: Config) -> Preprocessing:
    """Return the preprocessing that the model expects, without downloading its weights."""
    model = asdict(config.model)
    if model["weights"] == "default" and model["library"] != "headstart":
        model["weights"] = None
    return build_backbone(**model).preprocessing.with_overrides(**config.data.of_preprocessing())


def read_sizes(splits: Mapping[str, Samples]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the (width, height) of at most `MEASURED` evenly spread images, and a note on each unreadable one."""
    everything = [(samples, index) for samples in splits.values() for index in range(len(samples))]
    chosen = everything[:: -(-len(everything) // MEASURED)]
    sizes, problems = [], []
    with progress_bar("Measuring", len(chosen), shown=len(chosen) > 1000) as advance:
        for samples, index in chosen:
            image = samples.images[index]
            try:
                sizes.append(image_size(image) if isinstance(image, str) else (image.shape[1], image.shape[0]))
            except DataError as error:
                problems.append(str(error))
            advance(1)
    return np.array(sizes, dtype=np.int64).reshape(-1, 2), problems


def samples_by_class(samples: Samples, class_names: Sequence[str]) -> list[Tile]:
    """Return some images of each class, class by class; of many classes, evenly spread ones."""
    present = np.unique(samples.labels)
    classes = present[np.linspace(0, len(present) - 1, min(len(present), SAMPLED[0])).round().astype(int)]
    tiles = []
    for label in classes:
        indices = np.flatnonzero(samples.labels == label)
        for index in indices[image_grids.choose_by_class(samples.labels[indices], SAMPLED[1])]:
            try:
                tiles.append(Tile(image_grids.load_thumbnail(samples, int(index)), (class_names[label],)))
            except DataError:
                continue  # among the notes, if `read_sizes` has read it
    return tiles


def counts_csv(splits: Mapping[str, Samples], class_names: Sequence[str]) -> str:
    """Return the number of images by class and split as CSV text."""
    columns = [np.bincount(samples.labels, minlength=len(class_names)).tolist() for samples in splits.values()]
    return csv_text([("class", *splits), *zip(class_names, *columns, strict=True)])


# --- charts --------------------------------------------------------------------------------------------------


@figure
def counts(splits: Mapping[str, Samples], class_names: Sequence[str]) -> Figure:
    """Draw the number of images of each class by split, the largest class on top.

    Of more than `NAMED` classes, only the `ENDS` largest and the `ENDS` smallest are shown.
    """
    table = np.array([np.bincount(samples.labels, minlength=len(class_names)) for samples in splits.values()])
    order = np.argsort(-table.sum(axis=0), kind="stable")
    many = len(order) > NAMED
    shown = np.concatenate([order[:ENDS], order[-ENDS:]]) if many else order
    fig, axes, rows = row_axes([short(class_names[index]) for index in shown])
    left = np.zeros(len(shown))
    for split, images in zip(splits, table[:, shown], strict=True):
        axes.barh(rows, images, left=left, color=SPLIT_COLOURS[split], height=0.75, label=split)
        left += images
    for row, total in zip(rows, left, strict=True):
        axes.annotate(f"{total:,.0f}", (total, row), (3, 0), textcoords="offset points", va="center", fontsize=7)
    title = f"the {ENDS} largest and the {ENDS} smallest of {len(order)} classes" if many else "images by class"
    axes.set(xlabel="images", title=title)
    axes.margins(x=0.1)
    count_axis(axes.xaxis, 5)
    fig.legend(loc="outside upper right", ncols=3, fontsize=8)
    return fig


@figure
def size_distribution(sizes: NDArray[np.int64], crop: int) -> Figure:
    """Draw the sizes of images, (width, height) in pixels of shape (images, 2), and the crop that the network sees."""
    fig = new_figure(WIDTH, 4.2)
    axes = fig.subplots()
    distinct, repeats = np.unique(sizes, axis=0, return_counts=True)
    areas = 14 + 220 * repeats / max(len(sizes), 1)
    axes.scatter(distinct[:, 0], distinct[:, 1], s=areas, color=BLUE, alpha=0.5, edgecolors="none", clip_on=False)
    limit = 1.08 * max(crop, int(sizes.max(initial=1)))
    label = f"network input: {crop} × {crop}"
    axes.plot((0, crop, crop), (crop, crop, 0), color=SPLIT_COLOURS["val"], linewidth=1.2, label=label)
    axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="width in pixels", ylabel="height in pixels", title="image sizes")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=8)
    return fig
