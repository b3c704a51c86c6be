"""Distance of `lr=auto`, and of other rules on the same curve, from the best learning rate of a grid.

    python benchmarks/lr_range.py "data=digits" "data=digits optimizer=sgd" "data=imagefolder data.root=... model=..."

Each argument is a setting, the overrides of a train.py command. It is trained at `lr=auto` and at the rates of a grid,
with several seeds. Prints the validation accuracy and loss of `lr=auto`, of the best rate of the grid and of 1e-3. For
each rule it prints how much accuracy its rate loses against the best one, and the ratio of its loss to the lowest
(interpolated between the rates of the grid).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import build_parser, run_metrics
from numpy.typing import NDArray

from headstart.training.tuning.lr_range_test import suggest_lr

GRID = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
COMMON = ("trainer=cpu", "trainer.enable_progress_bar=false", "report=false", "logger=csv")
Curve = NDArray[np.float64]  # rates or smoothed losses, shape (steps,)


def steepest(rates: Curve, smoothed: Curve) -> float:
    """Return the rate where the loss falls fastest by step (Lightning's rule)."""
    return float(rates[np.gradient(smoothed, np.log(rates)).argmin()])


def valley(rates: Curve, smoothed: Curve) -> float:
    """Return the middle of the longest run of steps, not all neighbours, in which the loss falls (fastai's rule)."""
    lengths = np.ones(len(smoothed), dtype=int)
    for step in range(1, len(smoothed)):
        higher = smoothed[:step] > smoothed[step]
        lengths[step] = 1 + (lengths[:step][higher].max() if higher.any() else 0)
    end = int(lengths.argmax())
    return float(rates[max(0, end - lengths[end] + 1) + lengths[end] // 2])


KEYS = ("accuracy", "loss")
RULES: dict[str, Callable[[Curve, Curve], float]] = {
    "steepest": steepest,
    "steepest / 10": lambda rates, smoothed: steepest(rates, smoothed) / 10,
    "lowest / 10": lambda rates, smoothed: float(rates[smoothed.argmin()]) / 10,
    "valley": valley,
    "1e-3, untested": lambda *_: 1e-3,
}


def trained(overrides: list[str], folder: Path) -> dict[str, float]:
    """Return the metrics of a run; a run that diverged has an accuracy of 0 and a loss of 99."""
    metrics = run_metrics([*COMMON, *overrides], folder)
    diverged = {"val/accuracy": 0.0, "val/loss": 99.0}
    return metrics | {name: value for name, value in diverged.items() if metrics[name] is None}


def main() -> None:
    """Print a row for each setting and one for each rule."""
    parser = build_parser(__doc__)
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    lost: dict[str, list[tuple[float, float]]] = {"lr=auto": [], **{name: [] for name in RULES}}
    rows = []
    for setting in arguments.settings:
        for seed in range(arguments.seeds):
            overrides = [*setting.split(), f"seed={seed}", f"epochs={arguments.epochs}"]
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                auto = trained([*overrides, "lr=auto"], folder / "auto")
                curve = np.loadtxt(folder / "auto" / "lr_range.csv", delimiter=",", skiprows=1).T
                grid = {lr: trained([*overrides, f"lr={lr}"], folder / str(lr)) for lr in GRID}
            log_rates = np.log(GRID)
            accuracies, losses = (np.array([run[f"val/{key}"] for run in grid.values()]) for key in KEYS)
            rates = {"lr=auto": suggest_lr(*curve), **{name: rule(curve[0], curve[2]) for name, rule in RULES.items()}}
            for name, rate in rates.items():
                accuracy = np.interp(np.log(rate), log_rates, accuracies)
                loss = np.exp(np.interp(np.log(rate), log_rates, np.log(losses)))
                lost[name].append((accuracies.max() - accuracy, loss / losses.min()))
            best = max(grid, key=lambda lr: grid[lr]["val/accuracy"])
            shown = {f"lr={auto['auto/lr']:g} (auto)": auto, f"lr={best:g} (best)": grid[best], "lr=1e-3": grid[1e-3]}
            metrics = (f"{name}: {run['val/accuracy']:.3f} {run['val/loss']:.3f}" for name, run in shown.items())
            rows.append(f"{setting} seed={seed} | {' | '.join(metrics)}")
    print("\n".join(rows))
    for name, pairs in lost.items():
        accuracy, loss = np.array(pairs).T
        print(f"{name}: accuracy lost {accuracy.mean():.3f}, at most {accuracy.max():.3f}; loss times "
              f"{np.exp(np.log(loss).mean()):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
