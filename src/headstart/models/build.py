"""The network that the control panel asks for: its group `model`."""

from __future__ import annotations

import logging
from dataclasses import asdict

from headstart.config.schema import Config
from headstart.models.backbone import Backbone, build_backbone, check_input

log = logging.getLogger(__name__)


def open_backbone(config: Config) -> Backbone:
    """The pretrained network, with the preprocessing that it gets here."""
    backbone = build_backbone(**asdict(config.model))
    preprocessing = backbone.preprocessing.changed(**config.data.of_preprocessing())
    check_input(backbone, preprocessing.crop)
    if config.freeze is True and config.model.weights is None:
        log.warning("the backbone is frozen at random weights: use freeze=false, or model.weights=default")
    return backbone._replace(preprocessing=preprocessing)
