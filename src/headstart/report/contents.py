"""Contents of a run's report: charts and image grids, made once for the web page and for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

from matplotlib.figure import Figure

from headstart.data.datamodule import ImageDataModule
from headstart.data.preprocessing import Preprocessing
from headstart.inference.explain.heatmaps import explain, overlay
from headstart.inference.model import Model
from headstart.models.model_folder import Artifact, read_artifact
from headstart.report import charts, image_grids
from headstart.report.image_grids import Tile
from headstart.report.style import png
from headstart.runs.finished import FinishedRun
from headstart.runs.predictions import OUT_OF_FOLD
from headstart.utils.errors import format_error

log = logging.getLogger(__name__)
Result = TypeVar("Result")
EXAMPLES = 8  # predictions shown as examples
WORST = 50  # misclassified images that the page lists
EXPLAINED = 12  # those that get a heat map: each needs a forward and a backward pass


@dataclass
class Contents:
    """The contents of a report.

    Attributes:
        run: the run that is reported.
        charts: the charts that could be drawn, by name, in order.
        tiles: the images that could be read, with captions, by name.
        problems: what could not be drawn, and why.
    """

    run: FinishedRun
    charts: dict[str, Figure] = field(default_factory=dict)
    tiles: dict[str, list[Tile]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def attempt(self, name: str, make: Callable[[], Result]) -> Result | None:
        """Return the result of `make`; if it raises, log a warning, note the problem and return None.

        One chart that fails thus does not prevent the rest of the report.
        """
        try:
            return make()
        except Exception as error:  # any library may raise anything
            reason = format_error(error)
            self.problems.append(f"{name}: {reason}")
            log.warning("%s: %s cannot be shown: %s", self.run.folder, name, reason)
            return None

    @cached_property
    def pngs(self) -> dict[str, bytes]:
        """Return all charts and image grids as PNG files, by name."""
        figures = dict(self.charts)
        for name, tiles in self.tiles.items():
            match name:
                case "examples":
                    figures[name] = image_grids.grid(tiles, columns=4, bars=True)
                case "augmented":
                    figures[name] = image_grids.grid(tiles, columns=image_grids.VIEWS + 1)
                case _:
                    most = EXPLAINED if tiles[0].overlay else image_grids.GRID_IMAGES
                    figures[name] = image_grids.grid(tiles[:most])
        return {name: png(fig) for name, fig in figures.items()}


def collect(run: FinishedRun, data: ImageDataModule | None) -> Contents:
    """Make everything that a report shows, and note what failed; without the run's images, there are no image grids."""
    contents = Contents(run)
    for name, draw in _charts(run).items():
        if chart := contents.attempt(name, draw):
            contents.charts[name] = chart
    grids = contents.attempt("images", lambda: _tiles(run, data, read_artifact(run.folder))) if data else None
    for name, load in (grids or {}).items():
        if tiles := contents.attempt(name, load):
            contents.tiles[name] = tiles
    return contents


def _charts(run: FinishedRun) -> dict[str, Callable[[], Figure]]:
    evaluation, names = run.evaluation, run.class_names
    drawers: dict[str, Callable[[], Figure]] = {}
    if run.curves:
        best = run.best_epoch if run.chooses_epoch else None
        curve = partial(charts.curve, run.curves, best=best, stopped=run.stopped_early)
        rates = any(name.startswith("lr-") for name in run.curves)
        kinds = ("loss", "accuracy", *(["learning_rate"] if rates else []))
        drawers = {kind: partial(curve, kind=kind) for kind in kinds}
    lr = run.metrics.get("auto/lr")
    if len(run.lr_range) and lr is not None:
        drawers["lr_range"] = lambda: charts.lr_range(run.lr_range, lr)
    drawers["confusion"] = lambda: charts.confusion(evaluation.confusion, names)
    if len(names) > charts.NUMBERED:
        drawers["most_confused"] = lambda: charts.most_confused(evaluation.confusion, names)
    drawers["reliability"] = lambda: charts.reliability(evaluation.logits, evaluation.labels, evaluation.temperature)
    drawers["class_accuracy"] = lambda: charts.class_accuracy(evaluation.confusion, names)
    drawers["accuracy_by_size"] = lambda: charts.accuracy_by_size(run.train_counts, evaluation.confusion, names)
    return drawers


def _tiles(run: FinishedRun, data: ImageDataModule, artifact: Artifact) -> dict[str, Callable[[], list[Tile]]]:
    preprocessing = Preprocessing.from_dict(artifact.description["preprocessing"])
    evaluation, train = run.evaluation, data.splits["train"]
    samples = data.splits[evaluation.split]
    examples = image_grids.choose_by_class(evaluation.labels, EXAMPLES)
    worst = image_grids.worst_indices(evaluation)[:WORST]
    # Out-of-fold answers are those of the folds' models, which this model cannot explain.
    explained = None if evaluation.split == OUT_OF_FOLD else artifact
    return {
        "seen": lambda: image_grids.network_inputs(train, data.training, preprocessing, run.class_names),
        "augmented": lambda: image_grids.augmented_views(train, data.training, data.evaluation, preprocessing),
        "examples": lambda: image_grids.prediction_tiles(evaluation, samples, examples),
        "worst": lambda: add_heatmaps(image_grids.prediction_tiles(evaluation, samples, worst), explained),
    }


def add_heatmaps(tiles: list[Tile], artifact: Artifact | None) -> list[Tile]:
    """Add heat maps of the predicted classes to the first `EXPLAINED` tiles, cropped as the network sees them.

    All tiles are returned unchanged without a model, and, with a warning, if the heat maps cannot be made.
    """
    if not tiles or artifact is None:
        return tiles
    first = tiles[:EXPLAINED]
    try:
        images, classes = [tile.path or tile.image for tile in first], [tile.top[0][0] for tile in first]
        heatmaps = explain(Model(artifact), images, classes)
    except Exception as error:  # such as a network without a feature map: show the images alone
        log.warning("%s: the worst mistakes are not explained: %s", artifact.path, format_error(error))
        return tiles
    overlays = [
        replace(tile, image=heatmap.crop, overlay=overlay(heatmap.crop, heatmap.heat))
        for tile, heatmap in zip(first, heatmaps, strict=True)
    ]
    return overlays + tiles[EXPLAINED:]
