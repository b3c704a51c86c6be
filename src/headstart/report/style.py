"""Common matplotlib style of all figures, and their conversion to SVG and PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Okabe and Ito's palette for colour-blind readers (https://jfly.uni-koeln.de/color/).
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00")
# The colour of text and axes. In an SVG it becomes the page's text colour, for light and dark mode.
INK = "#10131a"
DPI = 110
WIDTH = 5.2  # of a chart, in inches: text stays readable on a phone
OTHER_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic")
STYLE: Any = {  # matplotlib's type stubs require literal keys
    # matplotlib bundles the first; the others, if installed, add Chinese, Japanese and Korean characters.
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
    "svg.fonttype": "path",  # fonts on the reader's machine may differ in width
    "svg.hashsalt": "headstart",  # makes files reproducible
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$100"
    "xtick.color": INK,
    "ytick.color": INK,
}


# Decorates a function that makes a figure, so that it draws in headstart's style whatever the caller's style is.
figure = mpl.rc_context(STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of a size in inches, with constrained layout."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def row_axes(labels: Sequence[str]) -> tuple[Figure, Axes, NDArray[np.int64]]:
    """Create a figure with a labelled row for each text, the first on top; return it, its axes and the rows' y."""
    fig = new_figure(WIDTH, max(1.6, 1.0 + 0.24 * len(labels)))
    axes = fig.subplots()
    rows = np.arange(len(labels))[::-1]
    axes.set_yticks(rows, labels, fontsize=8)
    axes.set_ylim(-0.6, max(len(labels), 1) - 0.4)
    axes.grid(axis="y", visible=False)
    return fig, axes, rows


def count_axis(axis: Axis, bins: int = 10) -> None:
    """Put the ticks of an axis at whole numbers, written with thousands separators."""
    axis.set_major_locator(MaxNLocator(bins, integer=True, min_n_ticks=1))
    axis.set_major_formatter("{x:,.0f}")


def svg(fig: Figure) -> Markup:
    """Convert a figure to an `<svg>` element with a transparent background and text in the page's colour."""
    file = io.StringIO()
    _save(fig, file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return Markup(re.sub(INK, "currentColor", text[text.index("<svg") :], flags=re.IGNORECASE))


def png(fig: Figure) -> bytes:
    """Convert a figure to a PNG file with a white background."""
    file = io.BytesIO()
    _save(fig, file, format="png", facecolor="white")
    return file.getvalue()


def _save(fig: Figure, file: io.StringIO | io.BytesIO, **settings: Any) -> None:
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # matplotlib warns of every character that no installed font has, and draws a box.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        fig.savefig(file, **settings)
        fig.set_layout_engine("none")  # the layout is computed; repeating it is as slow as drawing


def short(name: str, length: int = 24) -> str:
    """Shorten a name to at most `length` characters by omitting its middle, and replace unprintable ones by "?"."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(printable) <= length:
        return printable
    end = (length - 1) // 3
    return f"{printable[: length - 1 - end]}…{printable[-end:]}"
