"""Heads: classifiers on the features of a backbone, in place of a network's last layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


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


class FittedHead(NamedTuple):
    """A linear head at its optimum on features of the frozen backbone, from which fine-tuning starts.

    Attributes:
        description: what checkpoints record of it: its `weight_decay` on standardised features, the `log_loss` of the
            cross-validation that chose it, and `val/accuracy` and `val/loss` of the head itself.
        weights: its state dict; None in a resumed run, whose checkpoint has the weights.
        seconds: how long the features and the fit took.
    """

    description: dict[str, float]
    weights: dict[str, Tensor] | None = None
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """Return the entries for metrics.json: `head/weight_decay` and so on, and `time/head_s`."""
        described = {f"head/{name}": value for name, value in self.description.items()}
        return {**described, "time/head_s": round(self.seconds, 3)}
