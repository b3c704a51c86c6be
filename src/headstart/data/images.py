"""Reading one image file, whatever is in it, as RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
    try:
        with Image.open(path) as file:
            return _to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for some broken PNGs and ValueError for some broken TIFFs.
        raise DataError(
            f"{path}: not an image that can be read ({error}). Replace the file or take it out of the data."
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greys come as I;16 or I, and Pillow's own conversion would clip them at 255.
        values = np.asarray(image, dtype=np.int64)
        wide = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray(np.clip(values >> 8 if wide else values, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when it drops a palette's transparency at once
    return image.convert("RGB")
