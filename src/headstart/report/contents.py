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
from headstart.utils.errors import format_error

log = logging.getLogger(__name__)
Made = TypeVar("Made")
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

    def attempt(self, name: str, make: Callable[[], Made]) -> Made | None:
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
        return {name: png(drawn) for name, drawn in {**self.charts, **self._grids()}.items()}

    def _grids(self) -> dict[str, Figure]:
        drawn: dict[str, Figure] = {}
        for name, tiles in self.tiles.items():
            match name:
                case "examples":
                    drawn[name] = image_grids.with_bars(tiles)
                case "augmented":
                    drawn[name] = image_grids.grid(tiles, columns=image_grids.VIEWS + 1)
                case _:
                    drawn[name] = image_grids.grid(tiles[: EXPLAINED if tiles[0].overlay else image_grids.SHOWN])
        return drawn


def collect(run: FinishedRun, data: ImageDataModule | None) -> Contents:
    """Make everything that a report shows.

    Args:
        run: the run, read from its folder.
        data: the images of the run; None leaves out the image grids.

    Returns:
        The contents, with the problems of those parts that failed.
    """
    contents = Contents(run)
    for name, draw in _charts(run).items():
        if chart := contents.attempt(name, draw):
            contents.charts[name] = chart
    found = contents.attempt("images", lambda: _tiles(run, data, read_artifact(run.folder))) if data else None
    for name, find in (found or {}).items():
        if tiles := contents.attempt(name, find):
            contents.tiles[name] = tiles
    return contents


def _charts(run: FinishedRun) -> dict[str, Callable[[], Figure]]:
    judged, names = run.judged, run.class_names
    correct, images = run.counts(judged)
    found: dict[str, Callable[[], Figure]] = {}
    if run.curves:
        curve = partial(charts.curve, run.curves, best=run.best_epoch, stopped=run.stopped_early)
        found = {kind: partial(curve, kind=kind) for kind in ("loss", "accuracy", "learning_rate")}
    lr = run.run.metrics.get("auto/lr")
    if len(run.lr_range) and lr is not None:
        found["lr_range"] = lambda: charts.lr_range(run.lr_range, lr)
    found["confusion"] = lambda: charts.confusion(run.matrix(judged), names)
    if len(names) > charts.NUMBERED:
        found["most_confused"] = lambda: charts.most_confused(run.matrix(judged), names)
    found["reliability"] = lambda: charts.reliability(judged.logits, judged.labels, judged.temperature)
    found["class_accuracy"] = lambda: charts.class_accuracy(correct, images, names)
    found["accuracy_by_size"] = lambda: charts.accuracy_by_size(run.trained, correct, images, names)
    return found


def _tiles(run: FinishedRun, data: ImageDataModule, artifact: Artifact) -> dict[str, Callable[[], list[Tile]]]:
    preprocessing = Preprocessing.from_dict(artifact.description["preprocessing"])
    judged, train = run.judged, data.splits["train"]
    samples = data.splits[judged.split]
    return {
        "seen": lambda: image_grids.seen(train, data.training, preprocessing, run.class_names),
        "augmented": lambda: image_grids.augmented(train, data.training, data.evaluation, preprocessing),
        "examples": lambda: image_grids.examples(judged, samples),
        "worst": lambda: explained(image_grids.worst(judged, samples, WORST), artifact),
    }


def explained(tiles: list[Tile], artifact: Artifact) -> list[Tile]:
    """Add heat maps of the predicted classes to the first `EXPLAINED` tiles, cropped as the network sees them.

    Args:
        tiles: misclassified images.
        artifact: the model to explain.

    Returns:
        All tiles; unchanged, with a warning, if the heat maps cannot be made.
    """
    if not tiles:
        return tiles
    try:
        first = tiles[:EXPLAINED]
        found = explain(
            Model(artifact), [tile.path or tile.image for tile in first], [tile.bars[0][0] for tile in first]
        )
    except Exception as error:  # such as a network without a feature map: show the images alone
        log.warning("%s: the worst mistakes are not explained: %s", artifact.path, format_error(error))
        return tiles
    pairs = zip(first, found, strict=True)
    shown = [replace(tile, image=heatmap.crop, overlay=overlay(heatmap.crop, heatmap.heat)) for tile, heatmap in pairs]
    return shown + tiles[EXPLAINED:]
