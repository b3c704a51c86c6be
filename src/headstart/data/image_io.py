"""Image files, arrays and tensors, read and decoded as upright RGB images."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from headstart.utils.errors import DataError
from headstart.utils.files import read_regular, regular_file

if TYPE_CHECKING:  # the `headstart` command lists images without importing torch
    from torch import Tensor

    ImageLike = str | Path | Image.Image | NDArray[Any] | Tensor

# Not all formats of Pillow: some run other programs (EPS), others are rarely tested.
AVIF = bool(features.check("avif"))  # since Pillow 11.3, if its wheel includes AVIF
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", *(("AVIF",) if AVIF else ()))

ORIENTATION, ROTATED = 0x0112, 5  # EXIF tag; orientations from 5 on swap width and height

# Resizing keeps the aspect ratio: a line of a million pixels would become an image of 200 GB.
MAX_RATIO = 500

# The extensions of torchvision's ImageFolder, and with them GIF and AVIF (first frame).
TORCHVISION_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
EXTENSIONS = (*TORCHVISION_EXTENSIONS, ".gif", *((".avif",) if AVIF else ()))


def read_image(path: str | Path) -> Image.Image:
    """Read an image file.

    Args:
        path: a file in one of `FORMATS`; its extension does not matter.

    Returns:
        The upright image (EXIF orientation applied) in mode RGB. Grey values are repeated in three channels, 16-bit
        values are scaled to 8 bits, and transparency is dropped. Animations give their first frame.

    Raises:
        DataError: the file is missing, truncated, too large, too long and thin, or not an image. The message names it.
    """
    return decode_image(read_bytes(path), path)


def as_image(image: ImageLike) -> Image.Image:
    """Convert any kind of image to upright RGB, with the same result for a file and for an image in memory.

    Args:
        image: a path, a PIL image, an array or a tensor. Arrays have the shape (height, width) or (height, width, 1, 3
            or 4), tensors (height, width) or (1, 3 or 4, height, width). Pixels are uint8, uint16, or floats in [0, 1].

    Raises:
        DataError: the image cannot be read, or its shape, type or values are not among these.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)  # Pillow decodes lazily: an opened image may still be undecoded
        except Exception as error:
            raise _unreadable(getattr(image, "filename", "") or "an image", error) from None
    try:
        values = image.detach().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
    except (TypeError, ValueError):  # such as a tensor of bfloat16
        raise DataError(f"{type(image).__name__} {getattr(image, 'dtype', '')} is not an image.") from None
    channels_first = hasattr(image, "detach") and values.ndim == 3
    pixels = Image.fromarray(_pixels(np.moveaxis(values, 0, -1) if channels_first else values))
    try:
        return to_rgb(pixels)
    except ValueError as error:
        raise _unreadable("an array", error) from None


def _pixels(values: NDArray[Any]) -> NDArray[Any]:
    """Convert an array to uint8 pixels of shape (height, width) or (height, width, 3 or 4), as Pillow takes them."""
    shape = values.shape
    if values.ndim not in (2, 3) or (values.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise DataError(
            f"an array of shape {shape} is not an image: expected (height, width) or (height, width, 1, 3 or 4); a "
            f"tensor has its channels first."
        )
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # rejects NaN, too
            raise DataError(
                f"floats from {values.min():.3g} to {values.max():.3g} are not pixels: expected values in [0, 1], "
                f"or uint8 in [0, 255]. Pass preprocessed images to Model.logits()."
            )
        values = np.rint(values * 255).astype(np.uint8)
    elif values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise DataError(f"an array of {values.dtype} is not an image: expected uint8, uint16, or floats in [0, 1].")
    return values[:, :, 0] if values.ndim == 3 and shape[2] == 1 else np.ascontiguousarray(values)


def read_bytes(path: str | Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        DataError: the file is missing, not a regular file, or cannot be read.
    """
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise _unreadable(path, error) from None


def decode_image(data: bytes, path: str | Path) -> Image.Image:
    """Decode the bytes of an image file, as `read_image` does.

    Args:
        data: the bytes.
        path: the file that they come from, for messages.

    Raises:
        DataError: see `read_image`.
    """
    with _open(io.BytesIO(data), path) as file:
        return to_rgb(file)


def read_thumbnail(path: str | Path, side: int) -> Image.Image:
    """Read an image file at a small size, in a fraction of the time and memory of `read_image`.

    Args:
        path: see `read_image`.
        side: maximum length of the longer side, in pixels.

    Raises:
        DataError: see `read_image`.
    """
    with _open(path, path) as file:
        check_sides(file.size)
        file.thumbnail((side, side))
        return to_rgb(file)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the width and height of the upright image in a file; only its header is read.

    Raises:
        DataError: the file is missing or not an image.
    """
    with _open(path, path) as file:
        with suppress(struct.error):
            if file.getexif().get(ORIENTATION, 1) >= ROTATED:
                return file.height, file.width
        return file.size


@contextmanager
def _open(source: str | Path | io.BytesIO, path: str | Path) -> Iterator[Image.Image]:
    """Open an image file or its bytes; errors of the `with` block become a DataError that names the path."""
    try:
        opened = source if isinstance(source, io.BytesIO) else regular_file(source)
        with Image.open(opened, formats=FORMATS) as file:
            yield file
    except Exception as error:
        # For damaged files, Pillow's parsers raise all sorts of errors: SyntaxError, struct.error, ValueError, ...
        raise _unreadable(path, error) from None


def check_sides(size: tuple[int, int]) -> None:
    """Check that an image of this width and height has pixels and is not too long and thin.

    Raises:
        ValueError: otherwise.
    """
    if min(size) == 0:
        raise ValueError("it has no pixels")
    if max(size) > MAX_RATIO * min(size):
        raise ValueError(f"{size[0]} × {size[1]} pixels: one side is more than {MAX_RATIO} times the other")


def _unreadable(path: str | Path, error: Exception) -> DataError:
    reason = why_unreadable(error)
    return DataError(f"{path}: not an image that can be read ({reason}). Replace the file or take it out of the data.")


def why_unreadable(error: Exception) -> str:
    """Return why an image cannot be read, without its path, from the error that reading it has raised."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"  # Pillow's own message would name the BytesIO object
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright RGB; one that is both already is returned itself.

    Raises:
        Exception: Pillow's parsers raise all sorts of errors for damaged images; `why_unreadable` explains them.
    """
    check_sides(image.size)
    with suppress(struct.error):  # damaged EXIF: keep the image as it is, its orientation is unknown
        if image.getexif().get(ORIENTATION, 1) != 1:  # otherwise Pillow copies, in half of the time of decoding
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit grey images have mode I;16 or I, and Pillow's own conversion would clip them at 255.
        values = np.asarray(image)
        is_16_bit = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray(np.clip(values >> 8 if is_16_bit else values, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # converting a palette with transparency directly makes Pillow warn
    image.load()  # Pillow decodes lazily
    return image if image.mode == "RGB" else image.convert("RGB")
