"""Decoding JPEG files with torchvision and with Pillow; and an epoch of decoded images against one of files.

    python benchmarks/decoding.py --root ../shared/data/hymenoptera
    python benchmarks/decoding.py --root FOLDER --augment randaugment

Prints, on one core: images per second of each decoder, their ratio, and how far their pixels differ; the result of each
on unusual files; then images per second of training epochs without a network, from files and from decoded images.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import build_parser, compose_config
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from headstart.cache.decoded_images import use_decoded_images
from headstart.data.augmentation import training_transform
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.data.image_io import decode_image
from headstart.data.preprocessing import Normalisation, Preprocessing, evaluation_transform

PREPROCESSING = Preprocessing(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BATCH = 32
JPEG = b"\xff\xd8"  # what such a file begins with, whatever its name


def with_pillow(data: bytes) -> Image.Image:
    return decode_image(data, "a file")


def with_torchvision(data: bytes) -> Image.Image:
    """Decode to a PIL image, too, because the preprocessing of the weights resizes with Pillow."""
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels = decode_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def compare_decoders(files: list[Path]) -> None:
    contents = [path.read_bytes() for path in files]
    seconds: dict[str, list[float]] = {"torchvision": [], "Pillow": []}
    for _ in range(3):
        for name, decode in (("torchvision", with_torchvision), ("Pillow", with_pillow)):
            start = time.perf_counter()
            for data in contents:
                decode(data)
            seconds[name].append(time.perf_counter() - start)
    largest, means = 0, []
    for data in contents:
        difference = np.abs(np.asarray(with_torchvision(data)).astype(int) - np.asarray(with_pillow(data)))
        largest = max(largest, int(difference.max()))
        means.append(difference.mean())
    rates = {name: len(contents) / min(times) for name, times in seconds.items()}
    print(f"{len(files)} files: torchvision {rates['torchvision']:.0f}, Pillow {rates['Pillow']:.0f} images/s")
    print(f"torchvision over Pillow: {rates['torchvision'] / rates['Pillow']:.2f}")
    print(f"pixels differ by {largest} at most, by {np.mean(means):.4f} on the average")


def compare_odd_files(photo: Path) -> None:
    with Image.open(photo) as file:
        picture = file.convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {
        "CMYK": (picture.convert("CMYK"), {}),
        "grey": (picture.convert("L"), {}),
        "turned by EXIF": (picture, {"exif": turned}),
        "progressive": (picture, {"progressive": True}),
    }
    odd: dict[str, bytes] = {}
    for name, (image, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options)
        odd[name] = buffer.getvalue()
    odd["truncated"] = photo.read_bytes()[:-900]
    for name, data in odd.items():
        results: list[Any] = []
        for decode in (with_torchvision, with_pillow):
            try:
                results.append(np.asarray(decode(data)))
            except Exception as error:
                results.append(f"{type(error).__name__}: {str(error).splitlines()[0][:60]}")
        if all(isinstance(result, np.ndarray) for result in results) and results[0].shape == results[1].shape:
            difference = np.abs(results[0].astype(int) - results[1])
            print(f"{name}: pixels differ by {difference.max()} at most, by {difference.mean():.3f} on the average")
        else:
            print(f"{name}: " + "; ".join(str(getattr(result, "shape", result)) for result in results))


def compare_epochs(files: list[Path], augment: str) -> None:
    settings = asdict(compose_config([f"augment={augment}"]).augment)
    paths = [str(path) for path in files]
    splits = {"train": Samples(paths, np.zeros(len(paths), dtype=np.int64), paths)}

    def images() -> ImageDataModule:
        return ImageDataModule(
            splits,
            training=training_transform(PREPROCESSING, **settings),
            evaluation=evaluation_transform(PREPROCESSING),
            batch_size=BATCH,
            num_workers=0,
        )

    def rate(loader: object, epochs: int = 2) -> float:
        """Return the images per second of the best epoch, in processor time, which other processes hardly affect.

        Batches are normalised as the classifier does it.
        """
        rates, normalise = [], Normalisation(PREPROCESSING)
        for _ in range(epochs):
            start = time.process_time()
            count = sum(len(normalise(pixels)) for pixels, _ in loader)  # type: ignore[attr-defined]
            rates.append(count / (time.process_time() - start))
        return max(rates)

    print(f"{augment}, files: {rate(images().train_dataloader()):.0f} images/s")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HEADSTART_CACHE"] = cache
        start, decoded = time.process_time(), images()
        assert use_decoded_images(decoded, max_gb=50, show_progress=False)
        print(f"decoding them, for evaluation too: {len(paths) / (time.process_time() - start):.0f} images/s")
        print(f"{augment}, decoded images: {rate(decoded.train_dataloader()):.0f} images/s")


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="a folder with JPEG files, at any depth")
    parser.add_argument("--augment", default="standard")
    parser.add_argument("--only", choices=("decoders", "epochs"))
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.root.rglob("*.jp*g") if path.read_bytes()[:2] == JPEG)
    torch.set_num_threads(1)
    if arguments.only != "epochs":
        compare_decoders(files)
        compare_odd_files(files[0])
    if arguments.only != "decoders":
        compare_epochs(files, arguments.augment)


if __name__ == "__main__":
    main()
