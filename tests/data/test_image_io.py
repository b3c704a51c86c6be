"""Image files of many kinds are read as upright RGB; for damaged ones see `make_bad_files`."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from headstart.data.image_io import read_image

RAMP = np.linspace(0, 255, 12 * 8).reshape(8, 12).astype(np.uint8)  # height 8, width 12


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_greys_are_repeated(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "grey.png", Image.fromarray(RAMP)))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.repeat(RAMP[..., None], 3, axis=-1))


def test_16_bit_greys_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "deep.png", Image.fromarray(RAMP.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], RAMP)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LA", "YCbCr"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "gif", "webp"])
def test_every_mode_that_a_format_can_hold_is_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    try:
        path = save(tmp_path / f"image.{suffix}", Image.fromarray(RAMP).convert("RGB").convert(mode))
    except (OSError, ValueError):
        pytest.skip(f"{suffix} cannot hold {mode}")
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (12, 8))
    assert np.asarray(image).std() > 30  # the ramp is still there


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn clockwise
    path = save(tmp_path / "turned.jpg", Image.fromarray(RAMP), exif=exif, quality=100)
    image = np.asarray(read_image(path))[..., 0]
    assert image.shape == (12, 8)
    assert np.abs(image.astype(int) - np.rot90(RAMP, -1)).max() < 10


def test_a_damaged_exif_block_does_not_hide_the_picture(tmp_path: Path) -> None:
    entry = bytes.fromhex(
        "0101 0002 00000006 00000032 0112 0003 00000001 00060000 9003 0002 00000005 00000038 00000000"
    )
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x03" + entry + b"hello\0" + b"2020\0"
    path = save(tmp_path / "damaged.jpg", Image.fromarray(RAMP), exif=block)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(path))
    assert read_image(path).size == (12, 8)


def test_transparent_palettes_are_read_without_a_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(RAMP).convert("P")
    path = save(tmp_path / "palette.png", palette, transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).mode == "RGB"
