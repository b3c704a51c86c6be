"""Construction of the backbone from the config group `model`."""

from __future__ import annotations

import logging
from dataclasses import asdict

from headstart.config.schema import Config
from headstart.models.backbone import Backbone, build_backbone, check_input

log = logging.getLogger(__name__)
# Networks and image sizes that this process has checked: weights do not matter, and a sweep's jobs share the network.
_passed: set[tuple[object, ...]] = set()


def open_backbone(config: Config) -> Backbone:
    """Build the backbone with the preprocessing of the run, and check that it accepts images of the configured size.

    Raises:
        ModelError: if there is no such network, its weights are not available, or it does not accept the image size.
    """
    backbone = build_backbone(**asdict(config.model))
    preprocessing = backbone.preprocessing.with_overrides(**config.data.of_preprocessing())
    passed = (type(backbone.module), *backbone.description.values(), preprocessing.crop)
    if passed not in _passed:
        check_input(backbone, preprocessing.crop)
        _passed.add(passed)
    if config.freeze is True and config.model.weights is None:
        log.warning("the backbone is frozen at random weights: use freeze=false, or model.weights=default")
    return backbone._replace(preprocessing=preprocessing)
