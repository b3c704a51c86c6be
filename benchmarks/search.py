"""A hundred trials over the head and how it learns, on cached features, against logistic regression on the same split.

    python benchmarks/search.py --root ../shared/data/emergency-vehicles --weights mobilenet_v2-imagenet.pth

The search is the whole command, imports and report included, with the features in the cache. The rival is
scikit-learn's LogisticRegression on the same features, the best of five values of C on the same validation split.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from common import build_parser, compose_config, train_seconds
from sklearn.linear_model import LogisticRegression

from headstart.cache.features import frozen_features
from headstart.data.build import open_source
from headstart.data.datamodule import ImageDataModule
from headstart.data.preprocessing import evaluation_transform
from headstart.data.splits import make_splits
from headstart.models.backbone import build_backbone
from headstart.utils.hashing import module_sha256


def rival(overrides: list[str]) -> tuple[float, float]:
    """Return logistic regression's best validation accuracy, and the seconds that its five fits took."""
    settings = compose_config(overrides)
    source = open_source(settings.data.source, **settings.data.of_source())
    backbone = build_backbone(**asdict(settings.model))
    transform = evaluation_transform(backbone.preprocessing)
    splits = make_splits(source, **settings.data.of_splits())
    frozen = frozen_features(
        backbone.module.eval(),
        ImageDataModule(splits, training=transform, evaluation=transform, batch_size=32),
        pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False),
        num_features=backbone.num_features,
        description={"model": backbone.description, "backbone_sha256": module_sha256(backbone.module)},
        engine="auto",
        views=1,
        max_gb=20,
    )
    sets = {}
    for split in ("train", "val"):
        batches = [
            (features.numpy(), labels.numpy()) for features, labels, *_ in frozen.data.evaluation_dataloader(split)
        ]
        sets[split] = tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    start = time.perf_counter()
    fitted = (LogisticRegression(C=c, max_iter=5000).fit(*sets["train"]) for c in (1e-3, 1e-2, 1e-1, 1, 10))
    best = max(float(model.score(*sets["val"])) for model in fitted)
    return best, time.perf_counter() - start


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("overrides", nargs="*", help="more of the command line, such as launcher=joblib")
    arguments = parser.parse_args()
    data = ["data=emergency", f"data.root={arguments.root.resolve()}"]
    overrides = [*data, "model=mobilenet_v2", f"model.weights={arguments.weights.resolve()}", "trainer=cpu"]
    with tempfile.TemporaryDirectory() as name:
        os.environ["HEADSTART_CACHE"] = f"{name}/cache"
        accuracy, fits = rival(overrides)
        search = [
            "-m",
            "sweep=head_lr",
            f"sweep.trials={arguments.trials}",
            "sweep.allow_failures=true",
            f"hydra.sweep.dir={name}/sweep",
        ]
        more = ["trainer.enable_progress_bar=false", *arguments.overrides]
        seconds = train_seconds([*search, *overrides, *more])
        with Path(name, "sweep", "sweep.csv").open() as file:
            best, *others = csv.DictReader(file)
    print(f"{len(others) + 1} trials in {seconds:.0f} s; the best has {float(best['val/accuracy']):.4f}: {best['job']}")
    print(f"logistic regression, the best of five: {accuracy:.4f}; its fits took {fits:.1f} s")
    print(f"ratio of errors: {(1 - float(best['val/accuracy'])) / (1 - accuracy):.2f}")


if __name__ == "__main__":
    main()
