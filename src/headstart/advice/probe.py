"""A backbone under comparison: what heads on its features answer for a sample, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.advice.result import Candidate
from headstart.cache.engines import Network
from headstart.cache.feature_loaders import FeatureTable
from headstart.checks.feature_reader import FeatureReader, open_reader
from headstart.checks.heads import cross_validate
from headstart.config.schema import Config
from headstart.data.dataset import Samples
from headstart.data.preprocessing import evaluation_transform
from headstart.models.freezing import evaluation_mode
from headstart.training.tuning.leave_one_out import leave_one_out

BATCH, REPEATS = 4, 2  # images of a timed forward pass, and passes of which the faster one counts
DECODING = 0.01  # seconds to read and decode an image, until it has been measured
COUNTED = 16  # images after whose features the time of one is known


@dataclass
class Probe:
    """A candidate's backbone, the features of a growing sample, and their cost.

    Attributes:
        candidate: the backbone as the user named it.
        reader: computes features that are not cached.
        seconds: time for the features of one image.
        table: features of the sample; None before the first.
    """

    candidate: Candidate
    reader: FeatureReader
    seconds: float
    table: FeatureTable | None = None

    def read(self, sample: Samples) -> None:
        """Read the features of the sample; those of images that were in the one before are cached."""
        known = 0 if self.table is None else len(self.table.labels)
        start = time.perf_counter()
        data = self.reader.read({"train": sample}, evaluation_transform(self.reader.backbone.preprocessing))
        self.table = data.training_table
        new = len(sample) - known
        if new >= COUNTED:  # cached features make it cheap, as they will for the next sample of a second comparison
            self.seconds = (time.perf_counter() - start) / new

    def answers(self, labels: NDArray[np.int64], groups: Sequence[str] | None, *, fitted: bool) -> NDArray[np.bool_]:
        """Return which of the first images of the sample are answered correctly by a head that has not seen them.

        Args:
            labels: of those images, from 0.
            groups: of those images.
            fitted: fit heads in five folds, or take the closed form of ridge regression.
        """
        assert self.table is not None
        if not fitted:
            features = self.table.rows_at(torch.arange(len(labels)))[0].float().cpu().numpy()
            return np.asarray(leave_one_out(features, labels, groups).argmax(axis=1) == labels)
        found = cross_validate(
            self.table, np.arange(len(labels)), labels, groups, int(labels.max()) + 1, lambda _: None
        ).answers()
        return np.asarray(found.argmax(axis=1) == labels)


def open_probe(config: Config, candidate: Candidate) -> Probe:
    """Build a candidate's backbone, and time it.

    Raises:
        HeadstartError: it cannot be had, or does not take images of the configured size.
    """
    assert candidate.model is not None
    reader = open_reader(replace(config, model=candidate.model))
    rate = forward_rate(reader)
    image_size = reader.backbone.preprocessing.crop  # data.image_size may have changed it
    return Probe(replace(candidate, image_size=image_size, images_per_second=rate), reader, 1 / rate + DECODING)


def forward_rate(reader: FeatureReader) -> float:
    """Return the images a second that the network takes by itself, without decoding: its cost wherever it is used."""
    trainer, crop = reader.trainer, reader.backbone.preprocessing.crop
    with evaluation_mode(reader.backbone.module):
        network = Network(reader.backbone.module, trainer.strategy.root_device, trainer.precision_plugin)
        images, times = torch.rand(BATCH, 3, crop, crop), []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            network.run(network.module, images).cpu()  # waits for the device
            times.append(time.perf_counter() - start)
        network.module.cpu()
    return BATCH / min(times[1:])
