"""Reading one image file, whatever is in it, as RGB."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from headstart.utils.errors import DataError
from headstart.utils.files import regular

if TYPE_CHECKING:  # the `headstart` command finds images without waiting for torch
    from torch import Tensor

    ImageLike = str | Path | Image.Image | NDArray[Any] | Tensor

# Not all that Pillow knows: some formats run other programs (EPS) or are hardly ever tried.
AVIF = bool(features.check("avif"))  # from Pillow 11.3 on, where its wheel has it
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", *(("AVIF",) if AVIF else ()))

ORIENTATION, LYING = 0x0112, 5  # of EXIF: its tag, and from which value on width and height are exchanged

# Resizing keeps the ratio: of a line of a million pixels it would make an image of 200 GB.
MAX_RATIO = 500

# What counts as an image in a folder: what torchvision's ImageFolder takes, and the first frames of GIFs and AVIFs.
IMAGE_FOLDER = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
EXTENSIONS = (*IMAGE_FOLDER, ".gif", *((".avif",) if AVIF else ()))


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


def as_image(image: ImageLike) -> Image.Image:
    """Any kind of image as upright RGB, the same whether it is a file or already in memory.

    Args:
        image: a path; a PIL image; an array of shape (height, width) or (height, width, 1, 3 or 4); a tensor of shape
            (1, 3 or 4, height, width). Pixels are uint8, uint16, or floats in [0, 1].

    Raises:
        DataError: it cannot be read, or is not of these shapes and types.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return _to_rgb(image)  # opened, it may not have been decoded yet
        except Exception as error:
            raise _unreadable(getattr(image, "filename", "") or "an image", error) from None
    try:
        values = image.detach().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
    except (TypeError, ValueError):  # such as a tensor of bfloat16
        raise DataError(f"{type(image).__name__} {getattr(image, 'dtype', '')} is no image.") from None
    channels_first = hasattr(image, "detach") and values.ndim == 3
    pixels = Image.fromarray(_pixels(np.moveaxis(values, 0, -1) if channels_first else values))
    try:
        return _to_rgb(pixels)
    except ValueError as error:
        raise _unreadable("an array", error) from None


def _pixels(values: NDArray[Any]) -> NDArray[Any]:
    """Pixels as Pillow takes them: uint8, or uint16 without channels."""
    shape = values.shape
    if values.ndim not in (2, 3) or (values.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise DataError(
            f"an array of shape {shape} is no image: expected (height, width) or (height, width, 1, 3 or 4); a tensor "
            f"has its channels first."
        )
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is refused, too
            raise DataError(
                f"floats from {values.min():.3g} to {values.max():.3g} are no pixels: expected values in [0, 1], or "
                f"uint8 in [0, 255]. What is preprocessed already goes to Model.logits()."
            )
        values = np.rint(values * 255).astype(np.uint8)
    elif values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise DataError(f"an array of {values.dtype} is no image: expected uint8, uint16, or floats in [0, 1].")
    return values[:, :, 0] if values.ndim == 3 and shape[2] == 1 else np.ascontiguousarray(values)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: it is not there or cannot be read.
    """
    try:
        return regular(Path(path)).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise _unreadable(path, error) from None


def decode_image(data: bytes, path: str | Path) -> Image.Image:
    """Decodes the bytes of an image file, as `read_image` does; `path` is for messages."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return _to_rgb(file)
    except Exception as error:
        # Of damaged files Pillow's parsers raise whatever they stumble over: SyntaxError, struct.error, ValueError, ...
        raise _unreadable(path, error) from None


def read_thumbnail(path: str | Path, side: int) -> Image.Image:
    """Reads an image file at a small size, which takes a fraction of the time and the memory.

    Args:
        path: see `read_image`.
        side: most pixels that its longer side will have.

    Raises:
        DataError: see `read_image`.
    """
    try:
        with Image.open(regular(Path(path)), formats=FORMATS) as file:
            _check_sides(file.size)
            file.thumbnail((side, side))
            return _to_rgb(file)
    except Exception as error:
        raise _unreadable(path, error) from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file as it stands upright, from its head alone.

    Raises:
        DataError: it is missing or no image.
    """
    try:
        with Image.open(regular(Path(path)), formats=FORMATS) as file:
            with suppress(struct.error):
                if file.getexif().get(ORIENTATION, 1) >= LYING:
                    return file.height, file.width
            return file.size
    except Exception as error:
        raise _unreadable(path, error) from None


def _check_sides(size: tuple[int, int]) -> None:
    if min(size) == 0:
        raise ValueError("it has no pixels")
    if max(size) > MAX_RATIO * min(size):
        raise ValueError(f"{size[0]} × {size[1]} pixels: one side is more than {MAX_RATIO} times the other")


def _unreadable(path: str | Path, error: Exception) -> DataError:
    # Pillow would name the buffer that the bytes are in.
    what: object = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror  # the path is named already
    return DataError(f"{path}: not an image that can be read ({what}). Replace the file or take it out of the data.")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB."""
    _check_sides(image.size)
    with suppress(struct.error):  # a damaged EXIF block: the picture is there, and nothing is known of its orientation
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit greys come as I;16 or I, and Pillow's own conversion would clip them at 255.
        values = np.asarray(image)
        wide = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray(np.clip(values >> 8 if wide else values, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when it drops a palette's transparency at once
    return image.convert("RGB")
