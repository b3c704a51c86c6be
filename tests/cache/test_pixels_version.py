"""Cached rows are keyed by `PIXELS_VERSION`: whoever changes a pixel without raising it would be served stale rows."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from headstart.cache.extraction import ViewDataset, Views
from headstart.data.augmentation import training_transform
from headstart.data.dataset import Samples
from headstart.data.image_io import decode_image
from headstart.data.preprocessing import PIXELS_VERSION, Preprocessing, Transform, evaluation_transform
from tests.helpers.decoded import PREPROCESSING, decoded, module
from tests.helpers.runs import choices, composed

VERSION = 1
# Of each output 3 channels of 4 by 4 pixels, as uint8 before normalisation, in base64.
PINS = {
    "decoded 16 bit": "FU/Baz9/96dpry3jk99jHxVPwWs/f/enaa8t45PfYx8VT8FrP3/3p2mvLeOT32Mf",
    "decoded 32 bit": "FU/Baz9/96dpry3jk99jHxVPwWs/f/enaa8t45PfYx8VT8FrP3/3p2mvLeOT32Mf",
    "decoded 1 bit": "/////wD/AAAAAAAA/wD/AP////8A/wAAAAAAAP8A/wD/////AP8AAAAAAAD/AP8A",
    "decoded CMYK": "FU/Baz9/96dpry3jk99jH0eB851xsSnZm+FfFcURlVF5syXPo+NbC80TkUf3Q8eD",
    "decoded transparent": "FU/Baz9/96dpry3jk99jH0eB851xsSnZm+FfFcURlVF5syXPo+NbC80TkUf3Q8eD",
    "decoded transparent palette": "ADPMZjOZ/5lmmTP/mf9mMzOZ/5lmmTPMmcwzAMwAmWZmmTPMmcxmAMwAmWb/M8xm",
    "decoded turned": "k2k/Fd+vf09jLffBH+Ona8WbcUcR4bGBlV8p81EV2Z33zaN5QxPjs8eRWyWDRwvP",
    "decoded animated": "PnjNlGiobLOSu1ZYvFSMSD54zZRoqGyzkrtWWLxUjEg+eM2UaKhss5K7Vli8VIxI",
    "evaluation nearest": "XVdBr0OBnU8pq/nvD9VVj4+Jc+F1s8+BW90rIUEHh8HBu6UTp+UBs40PXVNzObnz",
    "evaluation bilinear": "XG1jjUh+f4k5np+MZqdfi4uHh4hxlINyVp5zeztscXanmX5zoY58fIhxWXFtSpaW",
    "evaluation bicubic": "VmVbkDp/f4woqamMYrRWiZKPhYlvnohtS69yfCtvbXOzp31yqZR8fIRyUW1pOpqb",
    "augment caltech": "jIlpY1ZcdnAzVmWBR2qNf2+Nd3qFdWh2U3WBeFyFhXZjaW5zq497gIKegISIh21e",
    "packed caltech": "mnSWPYV1ZUmVgYqYgJN2kJGTUWqLeId/c4JunIJ2hnh9kGWbjZ6nr4t4e3JxbZJy",
    "augment flip": "XG1jjUh+f4k5np+MZqdfi4uHh4hxlINyVp5zeztscXanmX5zoY58fIhxWXFtSpaW",
    "packed flip": "XG1jjUh+f4k5np+MZqdfi4uHh4hxlINyVp5zeztscXanmX5zoY58fIhxWXFtSpaW",
    "augment none": "XG1jjUh+f4k5np+MZqdfi4uHh4hxlINyVp5zeztscXanmX5zoY58fIhxWXFtSpaW",
    "packed none": "XG1jjUh+f4k5np+MZqdfi4uHh4hxlINyVp5zeztscXanmX5zoY58fIhxWXFtSpaW",
    "augment pad_crop": "e32IiHeAd3p7doF3eXFmn4twb3aAhImUkHuDcGlzapZnZHpuhnRwf4Byin2HgIRv",
    "packed pad_crop": "iHRzdZiVfJaJh4iMdXp3dGeMcpVscYV/gXqGiY12dHeXbGyChX6NjXKDhHt5hnaB",
    "augment randaugment": "QFZWZFVJWFmNNk5lXjZDcVdpWmExZk5adFtRZYJLYEt2eVZeS3hhWSt9aVuSb3dY",
    "packed randaugment": "jX94j1SJf42VjI+CAAAAAJeRc3l5moCBVJZleQAAAACXjJWLnY1+e1yCcm4AAAAA",
    "augment standard": "WKZsknWab3fCpGd8gZRfiXiHcmtEiGt+n7F3hrO2jHSjYnN8aGOKhTyJi3vIiqZ8",
    "packed standard": "jo2NgnNicYVhWpF7tXFwfY5sgGuSXox/XFmYbW5TY5l3gHqIoHCNdoV4cH85bXeF",
    "augment trivialaugment": "QHpPa1ZxUVeOeEtbXmxFZFhjU04yZE5cdYJXYoOFZ1V3SFRbTEhlYSxkZlqTZXpb",
    "packed trivialaugment": "AAAAAAAAAAB7f3STjXttggAAAAAAAAAAgoeOfWx3hH0AAAAAAAAAAHeRgoBsk5R5",
    "view 1 erased": "XG1jjUiAf4k5gJ+MZqdfi4uHh4hxZoNyVmZzeztscXanmX5zoUx8fIhMWXFtSpaW",
    "view 2 erased": "XG1jjYB+f4k5np+MZqdfi4uHh4hmlINyVp5zeztscXanmX5zTI58fIhxWXFtSpaW",
}


def picture(height: int, width: int) -> np.ndarray[Any, Any]:
    """An image of fine structure, which any other resampling changes."""
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((x * x * 7 + y * 13 + x * y + channel * 50) % 256).astype(np.uint8)


SAMPLES = Samples(picture(90, 80)[None], np.zeros(1, np.int64), ["image"])


def sample(pixels: Tensor) -> str:
    """Describe uint8 pixels of shape (3, height, width)."""
    _, height, width = pixels.shape
    return base64.b64encode(pixels[:, height // 8 :: height // 4, width // 8 :: width // 4].numpy().tobytes()).decode()


def view(transform: Transform, number: int = 3) -> str:
    """Describe a view of the image, as features are computed of it."""
    (image,) = ViewDataset({"train": SAMPLES}, transform)[Views("train", 0, bytes(range(32)), (number,))]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    return sample(((image * std + mean) * 255).round().clamp(0, 255).byte())


def read(image: Image.Image, kind: str, **options: Any) -> str:
    """Describe an image that was written to a file and decoded; all kinds are lossless."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return sample(torch.from_numpy(np.array(decode_image(file.getvalue(), kind))).permute(2, 0, 1))


def odd_files() -> dict[str, str]:
    pixels = picture(12, 8)
    image, deep = Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "16 bit": read(deep, "PNG"),
        "32 bit": read(deep.convert("I"), "TIFF"),
        "1 bit": read(image.convert("1"), "PNG"),
        "CMYK": read(image.convert("CMYK"), "TIFF"),
        "transparent": read(Image.fromarray(np.dstack([pixels, pixels[..., 0]])), "PNG"),
        "transparent palette": read(image.convert("P"), "PNG", transparency=bytes(range(256))),
        "turned": read(image, "PNG", exif=turned),
        "animated": read(image.convert("L"), "TIFF", save_all=True, append_images=[Image.new("L", image.size)]),
    }


def outputs() -> dict[str, str]:
    """Describe what cached rows depend on: each kind of file, transform and view, and images packed into rows."""
    pixels_of = {f"decoded {name}": value for name, value in odd_files().items()}
    for interpolation in ("nearest", "bilinear", "bicubic"):
        preprocessing = Preprocessing(36, 32, interpolation, PREPROCESSING.mean, PREPROCESSING.std)
        pixels_of[f"evaluation {interpolation}"] = view(evaluation_transform(preprocessing))
    for name in choices("augment"):
        settings = asdict(composed(f"augment={name}").augment)
        pixels_of[f"augment {name}"] = view(training_transform(PREPROCESSING, **settings))
        (pixels,), _ = next(iter(decoded(module({"train": SAMPLES}, **settings)).train_dataloader()))
        pixels_of[f"packed {name}"] = sample(pixels)
    erasing = training_transform(PREPROCESSING, "none", random_erasing=1.0)
    return {**pixels_of, "view 1 erased": view(erasing, 1), "view 2 erased": view(erasing, 2)}


def differ(one: str, other: str) -> bool:
    """Whether more than a tenth of the values differ: another CPU may round some of them differently."""
    values = [np.frombuffer(base64.b64decode(text), np.uint8).astype(int) for text in (one, other)]
    return len(values[0]) != len(values[1]) or bool((np.abs(values[0] - values[1]) > 2).mean() > 0.1)


def test_pixels_change_only_with_their_version(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    now = outputs()
    changed = [name for name in {**PINS, **now} if differ(now.get(name, ""), PINS.get(name, ""))]
    assert (changed, PIXELS_VERSION) == ([], VERSION), (
        "these give other pixels than before. Raise PIXELS_VERSION in src/headstart/data/preprocessing.py, then update "
        "this pin. After another release of torchvision or Pillow, whose versions are in the key, update PINS alone: "
        f"{__file__}\n" + "\n".join(f'    "{name}": "{value}",' for name, value in now.items())
    )
