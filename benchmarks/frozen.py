"""Cost of a frozen backbone: one epoch of a plain LightningModule, against headstart's whole run.

    python benchmarks/frozen.py
    python benchmarks/frozen.py --root ../shared/data/emergency-vehicles --weights mobilenet_v2-imagenet.pth

Measures, one after the other and each with all cores: (a) one epoch of a plain LightningModule whose backbone is
frozen by `requires_grad_(False)`; (b) `python train.py` with 30 epochs from an empty feature cache, the whole process;
(c) the same again; (d) decoding and transforming alone, and the fastest engine over the decoded batches alone; (e) the
plain network, channels first, over the same batches alone. Without --root, images of the vehicle set's size are made.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import build_parser, run_part, train_seconds, write_smooth_image

BATCH_SIZE = 32


def make_images(root: Path, count: int) -> None:
    """Write JPEG files of the size of the vehicle set, with its two classes."""
    rng = np.random.default_rng(0)
    lines = ["image_names,emergency_or_not"]
    for index in range(count):
        write_smooth_image(root / "images" / f"{index}.jpg", rng, (14, 14), (224, 224))
        lines.append(f"{index}.jpg,{index % 2}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def random_weights(path: Path) -> None:
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    torch.save(mobilenet_v2().state_dict(), path)


def preprocessing() -> Any:
    from headstart.data.preprocessing import Preprocessing

    return Preprocessing(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def loaders(root: Path) -> tuple[Any, Any]:
    """Return loaders of uint8 training and validation batches of the published split, with one worker for each core."""
    from headstart.data.build import open_source
    from headstart.data.datamodule import ImageDataModule
    from headstart.data.preprocessing import evaluation_transform
    from headstart.data.splits import make_splits

    source = open_source(
        "csv", root=root, train_csv="*train.csv", image_column="image_names", label_column="emergency_or_not"
    )
    transform = evaluation_transform(preprocessing())
    data = ImageDataModule(
        make_splits(source, val_fraction=0.1, test_fraction=0, split_seed=13),
        training=transform,
        evaluation=transform,
        batch_size=BATCH_SIZE,
    )
    return data.train_dataloader(), data.val_dataloader()


def plain_epoch(root: Path, weights: Path) -> dict[str, float]:
    """Measure (a), which uses nothing of headstart but the loaders."""
    import lightning.pytorch as pl
    import torch
    from torch.nn import functional as F
    from torchvision.models import mobilenet_v2

    from headstart.data.preprocessing import Normalisation

    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            network = mobilenet_v2()
            network.load_state_dict(torch.load(weights, weights_only=True))
            network.requires_grad_(False)
            network.classifier[1] = torch.nn.Linear(1280, 2)
            self.network, self.normalise = network, Normalisation(preprocessing())

        def on_after_batch_transfer(self, batch: Any, _: int) -> Any:
            return self.normalise(batch[0]), batch[1]

        def training_step(self, batch: Any, _: int) -> Any:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val/loss", F.cross_entropy(self.network(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.network.classifier.parameters())

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    classifier, batches = Plain(), loaders(root)
    start = time.perf_counter()
    trainer.fit(classifier, *batches)
    return {"plain_epoch_s": time.perf_counter() - start}


def parts_alone(root: Path, weights: Path) -> dict[str, float]:
    """Measure (d) and (e)."""
    import torch
    from lightning.pytorch.plugins.precision import Precision

    from headstart.cache.engines import Network, build_engine
    from headstart.data.preprocessing import Normalisation
    from headstart.models.backbone import build_backbone

    start, normalise = time.perf_counter(), Normalisation(preprocessing())
    batches = [normalise(images) for loader in loaders(root) for images, _ in loader]
    decoding = time.perf_counter() - start
    count = sum(map(len, batches))

    backbone = build_backbone("torchvision", "mobilenet_v2", str(weights)).module.eval()
    with torch.inference_mode():
        backbone(batches[0])
        start = time.perf_counter()
        for images in batches[:12]:
            backbone(images)
        eager = 12 * BATCH_SIZE / (time.perf_counter() - start)

    network = Network(backbone.to(memory_format=torch.channels_last), torch.device("cpu"), Precision())
    engine = build_engine("auto", network, batches[0])
    start = time.perf_counter()
    for images in batches:
        engine(images)
    return {
        "images": count,
        "decoding_s": decoding,
        "forward_s": time.perf_counter() - start,
        "eager_images_per_s": eager,
        "engine": engine.name,  # type: ignore[dict-item]
    }


def whole_run(root: Path, weights: Path, cache: Path, folder: Path, epochs: int) -> dict[str, float]:
    """Measure (b) or (c), the command that a user types, from start to end."""
    overrides = [
        "data=emergency",
        f"data.root={root}",
        "model=mobilenet_v2",
        f"model.weights={weights}",
        "freeze=true",
        "augment=none",
        f"epochs={epochs}",
        "trainer=cpu",
        f"hydra.run.dir={folder}",
    ]
    seconds = train_seconds(overrides, cache)
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return {"process_s": seconds, **metrics}


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, help="the emergency vehicles; without it, images are made")
    parser.add_argument("--weights", type=Path, help="of torchvision's mobilenet_v2; without it, random ones")
    parser.add_argument("--images", type=int, default=1646)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--part", choices=("plain", "parts"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        measure = {"plain": plain_epoch, "parts": parts_alone}[arguments.part]
        print(json.dumps(measure(arguments.root, arguments.weights)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, weights = arguments.root, arguments.weights
        if root is None:
            root = folder / "images"
            make_images(root, arguments.images)
        if weights is None:
            weights = folder / "weights.pth"
            random_weights(weights)
        root, weights = root.resolve(), weights.resolve()
        inputs = ("--root", str(root), "--weights", str(weights))
        parts = run_part(__file__, *inputs, "--part", "parts")
        cold = whole_run(root, weights, folder / "cache", folder / "cold", arguments.epochs)
        warm = whole_run(root, weights, folder / "cache", folder / "warm", arguments.epochs)
        plain = run_part(__file__, *inputs, "--part", "plain")["plain_epoch_s"]
    report(parts, cold, warm, plain)


def report(parts: dict[str, Any], cold: dict[str, float], warm: dict[str, float], plain: float) -> None:
    extraction = cold["time/features_s"]
    rate = parts["images"] / extraction
    both = parts["decoding_s"] + parts["forward_s"]
    eager = parts["eager_images_per_s"]
    rows = [
        ("(a) one epoch of a plain LightningModule", plain, "s", None, ""),
        ("(b) headstart, whole process, empty cache", cold["process_s"], "s", cold["process_s"] / plain, "of (a)"),
        ("(c) headstart, whole process, again", warm["process_s"], "s", warm["process_s"] / plain, "of (a)"),
        ("(d) decoding alone", parts["decoding_s"], "s", None, ""),
        ("    the bare forward pass alone", parts["forward_s"], "s", None, ""),
        ("    headstart's extraction", extraction, "s", extraction / both, "of their sum"),
        ("(e) plain network, channels first", eager, "images/s", None, ""),
        ("    headstart's extraction", rate, "images/s", rate / eager, "times (e)"),
    ]
    print(
        f"{parts['images']} images, {os.cpu_count()} cores, engine {parts['engine']}, epochs run {cold['epochs/run']}"
    )
    print(f"val/accuracy {cold['val/accuracy']:.4f} and {warm['val/accuracy']:.4f}")
    for what, value, unit, ratio, of in rows:
        print(f"{what:<44}{value:8.1f} {unit:<9}" + (f"{ratio:6.2f} {of}" if ratio else ""))


if __name__ == "__main__":
    main()
