"""Image files of explanations: the network's input beside the same image with a heat map over it."""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from headstart.inference.explain.heatmaps import BATCH, Explainer, Heatmap, overlay
from headstart.utils.console import say
from headstart.utils.errors import ConfigError, DataError
from headstart.utils.files import write_atomically

if TYPE_CHECKING:
    from headstart.inference.image_inputs import Input
    from headstart.inference.model import Model, Prediction

    Result = tuple[str, Prediction | DataError]

LEAST_SIDE = 224  # least side of a panel, in pixels; smaller images are enlarged
TITLE_HEIGHT, FONT_SIZE, MARGIN = 28, 15, 6
PAPER, INK = "white", "#10131a"
QUALITY = 90  # JPEG quality, from 1 to 95
NAME_BYTES = 60  # most bytes of a folder's or a file's name; file systems allow 255 for the whole name, some 143


class HeatmapWriter:
    """Write an image file with a heat map for each prediction.

    Args:
        model: the model that made the predictions.
        folder: the folder of the files; created if it does not exist.

    Raises:
        ConfigError: the folder is a file, or the package grad-cam is missing.
        ModelError: the network has no feature map.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--explain {folder} is a file: name a folder for the heat maps.")
        folder.mkdir(parents=True, exist_ok=True)
        self._explainer, self._folder = Explainer(model), folder
        self._waiting: list[tuple[str, Prediction, Image.Image]] = []

    def write_each(self, images: Iterable[Input], results: Iterable[Result]) -> Iterator[Result]:
        """Yield the results for images unchanged, and write the files of the predictions among them in batches."""
        for image, (name, prediction) in zip(images, results, strict=True):
            yield name, prediction
            if not isinstance(prediction, DataError):
                self._add(image.path, prediction)
            if len(self._waiting) == BATCH:
                self._write()
        self._write()

    def _add(self, path: str, prediction: Prediction) -> None:
        try:
            if not Path(path).is_file():  # such as a pipe, which can be read only once
                raise DataError(f"{path}: no file that can be read again.")
            self._waiting.append((path, prediction, self._explainer.crop(path)))
        except DataError as error:  # the prediction itself is fine, and others follow
            say(f"no heat map: {error}")

    def _write(self) -> None:
        """Write the files of the waiting predictions."""
        waiting, self._waiting = self._waiting, []
        crops, classes = [crop for *_, crop in waiting], [prediction.class_name for _, prediction, _ in waiting]
        for (path, prediction, _), heatmap in zip(waiting, self._explainer.explain(crops, classes), strict=True):
            write_atomically(self._folder / file_name(path), partial(_save, draw(heatmap, prediction.probability)))


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, "JPEG", quality=QUALITY, subsampling=0)


def file_name(path: str) -> str:
    """Return the name of an image file's explanation: folder and file name in portable characters, and a digest.

    The digest of the absolute path makes the name unique and reproducible.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow symbolic links)
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]
    parts = [_portable(whole.parent.name), _portable(whole.stem)]
    return f"{'_'.join(part for part in parts if part)}-{digest}.jpg"


def _portable(name: str) -> str:
    letters = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).strip("._-")
    return letters.encode()[:NAME_BYTES].decode(errors="ignore")


# --- drawing -------------------------------------------------------------------------------------------------


def draw(heatmap: Heatmap, probability: float) -> Image.Image:
    """Draw the network's input beside the same image with the heat map over it, below a title with the probability.

    Returns an RGB image whose two panels are at least 224 pixels wide.
    """
    side = heatmap.crop.width * math.ceil(LEAST_SIDE / heatmap.crop.width)
    crop = heatmap.crop.resize((side, side), Image.Resampling.NEAREST)  # its pixels are what the network sees
    heat = Image.fromarray(heatmap.heat).resize((side, side), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (2 * side + MARGIN, TITLE_HEIGHT + side), PAPER)
    canvas.paste(crop, (0, TITLE_HEIGHT))
    canvas.paste(overlay(crop, np.asarray(heat)), (side + MARGIN, TITLE_HEIGHT))
    _draw_title(canvas, heatmap.class_name, f"  {probability:.1%}")
    return canvas


def _draw_title(canvas: Image.Image, class_name: str, ending: str) -> None:
    """Draw a class name, shortened to fit the canvas, and the text that follows it."""
    import matplotlib as mpl  # imported late, and only for its fonts

    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    name = "".join(letter if letter.isprintable() else "?" for letter in class_name)
    text = name + ending
    while name and font.getlength(text) > canvas.width - 2 * MARGIN:
        name = name[:-1]
        text = f"{name}…{ending}"
    ImageDraw.Draw(canvas).text((MARGIN, TITLE_HEIGHT / 2), text, fill=INK, font=font, anchor="lm")
