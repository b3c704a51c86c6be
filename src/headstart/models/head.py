"""Heads: classifiers on the features of a backbone, in place of a network's last layer."""

from __future__ import annotations

from torch import nn


def build_head(name: str, num_features: int, num_classes: int, **settings: float) -> nn.Module:
    """Build a head by its name.

    Args:
        name: "linear", or "mlp" for a hidden layer with ReLU and dropout in front of the linear layer.
        num_features: width of the backbone's output.
        num_classes: width of the logits.
        **settings: arguments of the head, named as in `conf/head/`: none for "linear", `hidden` and `dropout` for
            "mlp".

    Returns:
        A module that maps features of shape (batch, num_features) to logits of shape (batch, num_classes).

    Raises:
        ValueError: if there is no head of this name.
    """
    match name:
        case "linear":
            return nn.Linear(num_features, num_classes)
        case "mlp":
            hidden = int(settings["hidden"])
            layers = nn.Linear(num_features, hidden), nn.ReLU(), nn.Dropout(settings["dropout"])
            return nn.Sequential(*layers, nn.Linear(hidden, num_classes))
    raise ValueError(f"no head is called {name!r}")
