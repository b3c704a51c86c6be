"""What replaces a network's last layer."""

from __future__ import annotations

from torch import nn


def build_head(name: str, num_features: int, num_classes: int, **settings: float) -> nn.Module:
    """Builds a head by its name.

    Args:
        name: "linear" or "mlp".
        num_features: width of the backbone's output.
        num_classes: width of the logits.
        **settings: the arguments of that head, as `conf/head/` names them.

    Returns:
        A module from features of shape (batch, num_features) to logits of shape (batch, num_classes).
    """
    match name:
        case "linear":
            return nn.Linear(num_features, num_classes)
        case "mlp":
            return mlp(num_features, num_classes, int(settings["hidden"]), settings["dropout"])
    raise ValueError(f"no head is called {name!r}")


def mlp(num_features: int, num_classes: int, hidden: int, dropout: float) -> nn.Sequential:
    """A hidden layer with ReLU and dropout in front of the classes."""
    return nn.Sequential(
        nn.Linear(num_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
    )
