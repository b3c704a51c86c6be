"""Pictures of explanations: what the network sees and where it sees the class, side by side, in files."""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
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

    Answer = tuple[str, Prediction | DataError]

LEAST_SIDE = 224  # of a panel, in pixels; smaller images are enlarged
TITLE_HEIGHT, FONT_SIZE, MARGIN = 28, 15, 6
PAPER, INK = "white", "#10131a"
QUALITY = 90  # of the JPEGs
NAME_BYTES = 60  # of a folder's or a file's name; file systems take 255 in all, some 143


class Pictures:
    """Writes a picture for each answer.

    Args:
        model: whose answers they are.
        folder: made if it is not there.

    Raises:
        ConfigError: the folder is a file, or the package grad-cam is missing.
        ModelError: the network makes no map of an image.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--explain {folder} is a file: name a folder for the pictures.")
        folder.mkdir(parents=True, exist_ok=True)
        self._explainer, self._folder = Explainer(model), folder
        self._waiting: list[tuple[str, Prediction, Image.Image]] = []

    def follow(self, images: Iterable[Input], answers: Iterable[Answer]) -> Iterator[Answer]:
        """Hands answers on, and writes their pictures a few at a time.

        Args:
            images: what the answers are to.
            answers: names and answers, as `headstart predict` writes them.
        """
        for image, (name, answer) in zip(images, answers, strict=True):
            yield name, answer
            if not isinstance(answer, DataError):
                self._add(image.path, answer)
            if len(self._waiting) == BATCH:
                self._write()
        self._write()

    def _add(self, path: str, answer: Prediction) -> None:
        try:
            if not Path(path).is_file():  # such as a pipe, which can be read once only
                raise DataError(f"{path}: no file that can be read again.")
            self._waiting.append((path, answer, self._explainer.crop(path)))
        except DataError as error:  # it has its answer, and the others have theirs to come
            say(f"no picture: {error}")

    def _write(self) -> None:
        """Writes the pictures that wait."""
        waiting, self._waiting = self._waiting, []
        crops, classes = [crop for *_, crop in waiting], [answer.class_name for _, answer, _ in waiting]
        for (path, answer, _), heatmap in zip(waiting, self._explainer.explain(crops, classes), strict=True):
            _save(picture(heatmap, answer.probability), self._folder / file_name(path))


def _save(image: Image.Image, path: Path) -> None:
    write_atomically(path, lambda temporary: image.save(temporary, "JPEG", quality=QUALITY, subsampling=0))


def file_name(path: str) -> str:
    """What the picture of an image file is called: after its folder and itself, in letters that every system takes.

    Two files never share a name, because a digest of the path tells them apart, and a file always has the same one.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links to files of other names)
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]
    words = [_plain(whole.parent.name), _plain(whole.stem)]
    return f"{'_'.join(word for word in words if word)}-{digest}.jpg"


def _plain(name: str) -> str:
    letters = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).strip("._-")
    return letters.encode()[:NAME_BYTES].decode(errors="ignore")


# --- drawing -------------------------------------------------------------------------------------------------


def picture(heatmap: Heatmap, probability: float) -> Image.Image:
    """The image as the network sees it beside the same with the heat over it; class and probability above.

    Args:
        heatmap: of the class.
        probability: of the class, in [0, 1].

    Returns:
        An RGB image; panels are at least 224 pixels wide.
    """
    side = heatmap.crop.width * math.ceil(LEAST_SIDE / heatmap.crop.width)
    crop = heatmap.crop.resize((side, side), Image.Resampling.NEAREST)  # its pixels are what the network sees
    heat = Image.fromarray(heatmap.heat).resize((side, side), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (2 * side + MARGIN, TITLE_HEIGHT + side), PAPER)
    canvas.paste(crop, (0, TITLE_HEIGHT))
    canvas.paste(overlay(crop, np.asarray(heat)), (side + MARGIN, TITLE_HEIGHT))
    _write_title(canvas, heatmap.class_name, f"  {probability:.1%}")
    return canvas


def _write_title(canvas: Image.Image, class_name: str, ending: str) -> None:
    """Writes a class name, shortened to what there is room for, and what follows it."""
    import matplotlib as mpl  # late, and for its fonts alone

    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    shown = "".join(letter if letter.isprintable() else "?" for letter in class_name)
    text, room = shown + ending, canvas.width - 2 * MARGIN
    while shown and font.getlength(text) > room:
        shown = shown[:-1]
        text = f"{shown}…{ending}"
    ImageDraw.Draw(canvas).text((MARGIN, TITLE_HEIGHT / 2), text, fill=INK, font=font, anchor="lm")
