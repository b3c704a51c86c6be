"""Peak resident memory of a run on cached features, with few and with many images.

    python benchmarks/memory.py

Each number of images has its own process: generated images of 8 x 8 pixels, 2048 features of a random frozen layer in
an empty cache, a head trained for two epochs, and the training split evaluated. Features of 200,000 images are 1.6 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time

from common import build_parser, run_part

WIDTH = 2048


def run(count: int) -> dict[str, float]:
    import lightning.pytorch as pl
    import numpy as np
    import torch
    from torch import nn

    from headstart.cache.features import frozen_features
    from headstart.data.datamodule import ImageDataModule
    from headstart.data.dataset import Samples
    from headstart.data.preprocessing import Preprocessing, evaluation_transform
    from headstart.training.checkpoints import without_backbone
    from headstart.training.classifier import TransferClassifier

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels, names, cut = rng.integers(0, 10, count), [str(index) for index in range(count)], count // 10
    splits = {
        "train": Samples(images[cut:], labels[cut:], names[cut:]),
        "val": Samples(images[:cut], labels[:cut], names[:cut]),
    }
    transform = evaluation_transform(Preprocessing(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    data = ImageDataModule(splits, training=transform, evaluation=transform, batch_size=32)
    torch.manual_seed(0)
    classifier = TransferClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(192, WIDTH)), nn.Linear(WIDTH, 10), [str(label) for label in range(10)]
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    features = frozen_features(
        classifier.backbone,
        data,
        trainer,
        num_features=WIDTH,
        description={},
        engine="eager",
        views=1,
        max_gb=20,
    )
    assert features is not None
    computed = time.perf_counter()
    with without_backbone(classifier):
        trainer.fit(classifier, features.data)
        trainer.test(classifier, features.data.evaluation_dataloader("train"), verbose=False)
    return {
        "features_s": computed - start,
        "fit_s": time.perf_counter() - computed,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[2_000, 200_000])
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(run(arguments.part)))
        return
    peaks = []
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["HEADSTART_CACHE"] = cache
            result = run_part(__file__, "--part", str(count))
        peaks.append(result["peak_mb"])
        print(
            f"{count:>9,} images: peak {result['peak_mb']:,.0f} MB, features in {result['features_s']:.0f} s, "
            f"two epochs in {result['fit_s']:.0f} s"
        )
    print(f"difference {peaks[-1] - peaks[0]:,.0f} MB, ratio {peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
