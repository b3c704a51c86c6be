"""One look for all figures: colours, sizes, and how a figure becomes a file."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
from cycler import cycler
from matplotlib import font_manager
from matplotlib.figure import Figure

Parameters = ParamSpec("Parameters")

# Okabe and Ito's colours, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/).
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00")
# The colour of text and axes. On a web page it becomes the page's own, light or dark.
INK = "#10131a"
DPI = 110
OTHER_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic")
STYLE: dict[str, Any] = {
    # matplotlib brings the first along; it has no Chinese, Japanese or Korean letters, which the others have, if they
    # are installed.
    "font.family": ["DejaVu Sans", *(name for name in OTHER_FONTS if name in font_manager.get_font_names())],
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.dpi": DPI,
    "figure.titlesize": 11,
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.edgecolor": "none",
    "legend.facecolor": "none",
    "legend.framealpha": 0,
    "lines.linewidth": 1.8,
    "savefig.dpi": DPI,
    "svg.fonttype": "path",  # a reader's machine has other fonts, of other widths
    "svg.hashsalt": "headstart",  # the same figure is the same file
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$100"
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made or written here look like headstart's; others are left alone."""
    settings: Any = STYLE  # matplotlib's stubs want its keys as literals
    with mpl.rc_context(settings):
        yield


def figure(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Marks a function that makes a figure: it is drawn in this style, whatever the caller's is."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with styled():
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, of a size in inches, that finds room for its labels by itself."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def svg(drawn: Figure) -> str:
    """A figure for a web page: an `<svg>` element without a background, with text in the page's colour."""
    file = io.StringIO()
    _save(drawn, file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return re.sub(INK, "currentColor", text[text.index("<svg") :], flags=re.IGNORECASE)


def png(drawn: Figure) -> bytes:
    """A figure as a PNG file on white."""
    file = io.BytesIO()
    _save(drawn, file, format="png", facecolor="white")
    return file.getvalue()


def _save(drawn: Figure, file: io.StringIO | io.BytesIO, **settings: Any) -> None:
    with styled(), warnings.catch_warnings():
        # One for each letter that no font here has; it is drawn as a box.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        drawn.savefig(file, **settings)
        drawn.set_layout_engine("none")  # everything has its place now: finding it again takes as long as drawing


def short(name: str, length: int = 24) -> str:
    """A name of at most that many characters: the middle of a longer one is left out."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(printable) <= length:
        return printable
    end = (length - 1) // 3
    return f"{printable[: length - 1 - end]}…{printable[-end:]}"
