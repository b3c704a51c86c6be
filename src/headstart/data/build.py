"""The images that the control panel asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headstart.data.csv_table import csv
from headstart.data.dataset import Source
from headstart.data.image_folder import imagefolder
from headstart.data.public_datasets import caltech101, digits, glyphs, pets, stl10

SOURCES: dict[str, Callable[..., Source]] = {
    "imagefolder": imagefolder,
    "csv": csv,
    "stl10": stl10,
    "pets": pets,
    "caltech101": caltech101,
    "digits": digits,
    "glyphs": glyphs,
}


def open_source(name: str, **settings: Any) -> Source:
    """Finds the images of a data source.

    Args:
        name: a key of `SOURCES`.
        **settings: the arguments of that function.

    Raises:
        DataError: images, tables or classes are not as they should be; the message says what to do.
    """
    return SOURCES[name](**settings)
