"""Speed of training from images, as a fraction of training on tensors that are already on the device.

    python benchmarks/finetune.py                                           # generated photographs, 500 × 375
    python benchmarks/finetune.py --root FOLDER                             # your own, a folder for each class
    python benchmarks/finetune.py --models resnet50 vgg16 --batch-size 256 --images 8192    # on a GPU

The same Trainer trains the whole network from four kinds of batches in turns: synthetic ones on the device; the decoded
images of `data.cache=decoded`; files through `ImageDataModule`; and files as torchvision's ImageFolder and a plain
DataLoader with a process for each core read them. Prints images per second of the fastest round of each, and the
ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from common import build_parser, describe_machine
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from headstart.cache.decoded_images import use_decoded_images
from headstart.data.augmentation import training_transform
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.image_folder import imagefolder
from headstart.data.preprocessing import evaluation_transform
from headstart.data.workers import default_workers
from headstart.models.backbone import Backbone, build_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer
from headstart.training.trainer import build_trainer, quiet_lightning

AUGMENT: dict[str, Any] = {"name": "standard", "scale": 0.35}


class Clock(pl.Callback):
    """Measures images per second of the second epoch; the first one warms up memory, kernels and the disk's cache.

    The clock starts with the epoch, so that batches which workers prepare ahead count.
    """

    def __init__(self) -> None:
        self.images_a_second = 0.0
        self._start, self._images = 0.0, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, _: Any) -> None:
        """Start, before there is a loader's first batch."""
        self._finish(trainer)
        self._start, self._images = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, __: Any, batch: Batch, step: int) -> None:
        """End with the last batch."""
        self._images += len(batch[1])
        if step + 1 == trainer.num_training_batches:
            self._finish(trainer)
            self.images_a_second = self._images / (time.perf_counter() - self._start)

    @staticmethod
    def _finish(trainer: pl.Trainer) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()


class Synthetic:
    """Batches of one tensor that lies on the device."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.steps)


def write_photographs(root: Path, images: int) -> Path:
    """Write noisy JPEGs of 500 × 375 pixels and about 40 kB each, as photographs have."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as processes:
        list(processes.map(partial(write_photograph, root / "train"), range(images), chunksize=16))
    return root / "train"


def write_photograph(root: Path, index: int) -> None:
    """Write one of them, in one of two classes."""
    rng, path = np.random.default_rng(index), root / "ab"[index % 2] / f"{index}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = smooth + rng.integers(-8, 9, (375, 500, 1))
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def plain_loader(root: Path, backbone: Backbone, batch_size: int) -> DataLoader[Any]:
    """Return a loader of a folder as PyTorch's tutorials build it."""
    preprocessing = backbone.preprocessing
    steps = [
        transforms.RandomResizedCrop(preprocessing.crop, scale=(AUGMENT["scale"], 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ]
    return DataLoader(
        datasets.ImageFolder(str(root), transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


def images_a_second(backbone: Backbone, trainer: pl.Trainer, clock: Clock, data: Any) -> float:
    """Train two epochs, and return the images per second of the second."""
    classifier = TransferClassifier(
        backbone.module,
        torch.nn.Linear(backbone.num_features, 2),
        ("a", "b"),
        preprocessing=backbone.preprocessing,
        freeze=False,
        optimizer=partial(build_optimizer, name="adamw", lr=1e-5, weight_decay=0.01),
    )
    trainer.fit(classifier, data)
    return clock.images_a_second


def main() -> None:
    """Print a table for each network."""
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, help="a folder with a folder for each class (generated photographs)")
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50"], help="of torchvision")
    parser.add_argument("--images", type=int, default=256, help="that are generated (256)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    arguments = parser.parse_args()
    quiet_lightning()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HEADSTART_CACHE"] = str(Path(scratch) / "cache")
        root = arguments.root or write_photographs(Path(scratch), arguments.images)
        print(f"{describe_machine()}, batches of {arguments.batch_size}")
        for name in arguments.models:
            measure(name, root, arguments, "gpu" if torch.cuda.is_available() else "cpu")


def measure(name: str, root: Path, arguments: argparse.Namespace, accelerator: str) -> None:
    """Print images per second of each kind of batches."""
    source = imagefolder(root, min_classes=1)
    (samples,) = source.splits.values()
    backbone = build_backbone("torchvision", name, None)
    if arguments.compile:
        backbone.module.compile()
    preprocessing = backbone.preprocessing
    rates: dict[str, list[float]] = {}

    def trained(kind: str, data: Callable[[pl.Trainer], Any]) -> None:
        clock = Clock()
        settings = {"accelerator": accelerator, "devices": 1, "strategy": "auto", "precision": "auto", "max_epochs": 2}
        quiet = {"enable_progress_bar": False, "limit_val_batches": 0}
        trainer = build_trainer([clock], [], settings | quiet)
        rates.setdefault(kind, []).append(images_a_second(backbone, trainer, clock, data(trainer)))
        print(f"{name}, {kind}: {rates[kind][-1]:,.1f} images/s", flush=True)

    def files(_: pl.Trainer) -> ImageDataModule:
        return ImageDataModule(
            {"train": samples},
            training=training_transform(preprocessing, **AUGMENT),
            evaluation=evaluation_transform(preprocessing),
            batch_size=arguments.batch_size,
            num_workers=default_workers(),
        )

    steps = len(samples) // arguments.batch_size

    def synthetic(trainer: pl.Trainer) -> Synthetic:
        device, size = trainer.strategy.root_device, arguments.batch_size
        images = torch.randn(size, 3, preprocessing.crop, preprocessing.crop, device=device)
        return Synthetic((images, torch.randint(2, (size,), device=device)), steps)

    def decoded(trainer: pl.Trainer) -> ImageDataModule:
        data = files(trainer)
        assert use_decoded_images(data, max_gb=50.0, show_progress=False)
        return data

    for _ in range(arguments.rounds):
        trained("synthetic", synthetic)
        trained("decoded", decoded)
        trained("files", files)
        trained("plain", lambda _: plain_loader(root, backbone, arguments.batch_size))
    best = {kind: max(of_rounds) for kind, of_rounds in rates.items()}
    print(f"{name}: images/s: " + ", ".join(f"{kind} {rate:,.1f}" for kind, rate in best.items()))
    print(
        f"{name}: decoded / synthetic {best['decoded'] / best['synthetic']:.3f}, "
        f"decoded / plain {best['decoded'] / best['plain']:.2f}, "
        f"files / synthetic {best['files'] / best['synthetic']:.3f}"
    )


if __name__ == "__main__":
    main()
