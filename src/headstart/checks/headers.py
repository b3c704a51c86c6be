"""What the header of an image file tells: size, mode, format, JPEG tables and EXIF data."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from headstart.data.image_io import ORIENTATION, check_sides, to_rgb

# Of an image that has none: 0 for integers, NaN for floats.
HEADER = np.dtype(
    [
        ("bytes", "<i8"),  # size of the file
        ("width", "<i4"),  # as it is stored, before EXIF data turn it
        ("height", "<i4"),
        ("mode", "S8"),  # Pillow's name of the colour mode, such as RGB or I;16B
        ("format", "S10"),  # Pillow's name of the format, such as JPEG; empty for an array
        ("orientation", "<i2"),  # of EXIF data, 1 to 8
        ("exif_tags", "<i4"),  # number of tags
        ("camera", "<i4"),  # a number below 2^16 for maker and model
        ("date", "<f8"),  # days since 2000, from EXIF data
        ("quality", "<f4"),  # of JPEG, 1 to 100, estimated from its tables
        ("subsampling", "<f4"),  # of JPEG: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0
        ("progressive", "<f4"),  # of JPEG: 0 or 1
    ]
)
# What every file of a format ends with, after which some programs leave other bytes.
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
TAIL = 64  # bytes in which the end is looked for
MAKE, MODEL, DATE, EXIF_TAGS, DATE_TAKEN = 0x010F, 0x0110, 0x0132, 0x8769, 0x9003
STANDARD_SUM = 3691  # of the luminance table in Annex K of the JPEG standard, which libjpeg scales by the quality


def read_header(image: Image.Image, size: int) -> NDArray[np.void]:
    """Return the facts of an opened image, which is not decoded, as a scalar of dtype `HEADER`.

    Args:
        image: an image.
        size: size of its file in bytes.

    Raises:
        ValueError: it has no pixels, or is too long and thin.
    """
    check_sides(image.size)
    header = np.zeros((), dtype=HEADER)
    for name in ("date", "quality", "subsampling", "progressive"):
        header[name] = np.nan
    header["bytes"], (header["width"], header["height"]) = size, image.size
    header["mode"], header["format"] = image.mode.encode(), (image.format or "").encode()
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        header["quality"] = _jpeg_quality(image.quantization)
        sampling = JpegImagePlugin.get_sampling(image)
        header["subsampling"] = sampling if sampling >= 0 else np.nan  # a grey image has none
        header["progressive"] = "progressive" in image.info
    with suppress(Exception):  # for damaged EXIF data, Pillow's parsers raise all sorts of errors
        _read_exif(image.getexif(), header)
    return header


def _jpeg_quality(tables: dict[int, Any]) -> float:
    """Return the quality at which libjpeg would have written these tables; that of other encoders is approximate."""
    if not tables:
        return np.nan
    scale = 100 * sum(next(iter(tables.values()))) / STANDARD_SUM
    return round(float(np.clip((200 - scale) / 2 if scale <= 100 else 5000 / scale, 1, 100)))


def _read_exif(exif: Image.Exif, header: NDArray[np.void]) -> None:
    if not exif:
        return
    header["exif_tags"] = len(exif)
    orientation = exif.get(ORIENTATION, 0)
    header["orientation"] = orientation if orientation in range(1, 9) else 0
    camera = f"{exif.get(MAKE, '')} {exif.get(MODEL, '')}".strip()
    if camera:
        header["camera"] = 1 + zlib.crc32(camera.encode()) % (2**16 - 1)
    taken = exif.get_ifd(EXIF_TAGS)
    header["exif_tags"] += len(taken)
    when = datetime.strptime(str(taken.get(DATE_TAKEN) or exif[DATE]), "%Y:%m:%d %H:%M:%S")
    header["date"] = (when - datetime(2000, 1, 1)).total_seconds() / 86400


def check_whole(image: Image.Image, data: bytes) -> None:
    """Check that the file of an opened image is not cut off; it is decoded only if its end looks like it.

    Args:
        image: the image.
        data: its file.

    Raises:
        Exception: it is; see `to_rgb`.
    """
    if image.format == "WEBP":
        whole = len(data) >= 8 + struct.unpack("<I", data[4:8])[0]
    elif image.format == "BMP":
        whole = len(data) >= struct.unpack("<I", data[2:6])[0]
    elif image.format == "GIF":
        whole = False  # the byte that ends a GIF may be anywhere in it
    else:  # of other formats, and of arrays, nothing is expected
        whole = ENDS.get(image.format or "", b"") in data[-TAIL:]
    if not whole:
        to_rgb(image)
