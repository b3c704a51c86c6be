"""Reading one image file, whatever is in it, as RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from headstart.errors import DataError

# What counts as an image in a folder; torchvision's ImageFolder takes the same.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def read_image(path: str | Path) -> Image.Image:
    """Reads an image file.

    Args:
        path: a file of any format that Pillow reads; its name's extension does not matter.

    Returns:
        The upright image (EXIF orientation applied) in mode RGB. Greys are repeated, 16-bit values scaled to 8,
        transparency is dropped, of an animation the first frame is taken.

    Raises:
        DataError: the file is missing, no image, truncated or too large to be one; the message names it.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: it is not there or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def decode_image(data: bytes, path: str | Path) -> Image.Image:
    """Decodes the bytes of an image file, as `read_image` does; `path` is for messages."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            return _to_rgb(ImageOps.exif_transpose(file))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for some broken PNGs and ValueError for some broken TIFFs.
        raise _unreadable(path, error) from None


def _unreadable(path: str | Path, error: Exception) -> DataError:
    # Pillow would name the buffer that the bytes are in.
    what = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
    return DataError(f"{path}: not an image that can be read ({what}). Replace the file or take it out of the data.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greys come as I;16 or I, and Pillow's own conversion would clip them at 255.
        values = np.asarray(image, dtype=np.int64)
        wide = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray(np.clip(values >> 8 if wide else values, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when it drops a palette's transparency at once
    return image.convert("RGB")
