"""Synthetic images of letters and digits, rendered from fonts: labelled images without a download.

The images resemble small handwritten digits: one white glyph that fills a black image, at a low resolution. A backbone
that learns to classify them learns strokes, corners and loops.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Maps a class name to its characters. Characters that look alike when every glyph fills its image share a class:
# O and 0, the bars 1, I and l, and letters whose two cases differ little except in size. Other lower-case letters
# are called "small_a" and so on, so that no two class names differ in case alone.
_CHARACTERS: dict[str, str] = {
    "0": "0Oo",
    "1": "1Il",
    **{digit: digit for digit in "23456789"},
    **{letter: letter for letter in "ABDEFGHLMNQRTY"},
    **{letter: letter + letter.lower() for letter in "CJKPSUVWXZ"},
    **{f"small_{letter}": letter for letter in "abdefghimnqrty"},
}

GLYPHS: tuple[str, ...] = tuple(_CHARACTERS)
"""The class names, digits first; a label is an index into this tuple."""

# The fonts of matplotlib that have every character above; its other fonts contain mathematical symbols.
_FONTS: tuple[str, ...] = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmmi10", "cmtt10"),
)

_CANVAS = 96  # side of the square canvas on which a glyph is drawn and warped, in pixels
_FONT_SIZE = 44  # leaves room on the canvas for rotation, shear and warping
_MESH = 4  # the elastic warp moves the corners of _MESH x _MESH cells
_WARP = 3.5  # standard deviation of these shifts, in pixels
_GRIDS = (8, 8, 8, 8, 9, 10, 12, 16)  # sides of the coarse grid, in cells: mostly 8, as in the digits data set


def render_glyphs(per_class: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labelled glyphs, each with a font, shape and contrast of its own.

    Args:
        per_class: number of images of each class, at least 1.
        size: height and width of the images in pixels, at least 8.
        seed: the same seed draws the same images. The global random state is neither read nor changed.

    Returns:
        The images, uint8 of shape (N, size, size, 3), RGB in 0..255, and their labels, int64 of shape (N,).
        Labels are indices into `GLYPHS`, in the order 0, 1, ..., 0, 1, ...; N is ``per_class * len(GLYPHS)``.

    Raises:
        ValueError: `per_class` or `size` is too small.
    """
    if per_class < 1 or size < 8:
        raise ValueError(f"render_glyphs needs per_class >= 1 and size >= 8, got {per_class} and {size}")
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(len(GLYPHS), dtype=np.int64), per_class)
    grey = np.stack([_render(GLYPHS[label], size, rng) for label in labels])
    return np.repeat(grey[..., np.newaxis], 3, axis=-1), labels


def _render(glyph: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Render one grey image of a glyph, uint8 of shape (size, size)."""
    coarse = _look_through_grid(_bend(_draw(glyph, rng), rng), rng)
    # Images of the digits data set are enlarged with the same bilinear interpolation, which blurs them.
    enlarged = coarse.resize((size, size), Image.Resampling.BILINEAR)
    return _vary_contrast(np.asarray(enlarged), rng)


def _draw(glyph: str, rng: np.random.Generator) -> Image.Image:
    """Draw a glyph in white on a black canvas, with a random font and stroke width."""
    characters = _CHARACTERS[glyph]
    character = characters[rng.integers(len(characters))]
    font = _font(_FONTS[rng.integers(len(_FONTS))])
    stroke = rng.uniform(0.0, 2.0)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    centre = (_CANVAS / 2, _CANVAS / 2)
    ImageDraw.Draw(canvas).text(centre, character, fill=255, font=font, anchor="mm", stroke_width=stroke)
    return canvas


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    """Load one of the fonts that are part of matplotlib."""
    import matplotlib  # here, so that importing this module stays fast

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _bend(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate, shear, stretch and elastically warp a drawing with a single resampling."""
    ticks = np.linspace(0, _CANVAS, _MESH + 1, dtype=int)
    target = np.stack(np.meshgrid(ticks, ticks), axis=-1)  # corners of the mesh: [row, column] -> (x, y)
    source = (target - _CANVAS / 2) @ _random_affine(rng).T + _CANVAS / 2
    source += rng.normal(0.0, _WARP, source.shape)
    rectangles = np.concatenate([target[:-1, :-1], target[1:, 1:]], axis=-1).reshape(-1, 4)
    # Pillow expects the four corners of a cell anticlockwise, starting at the upper left.
    corners = [source[:-1, :-1], source[1:, :-1], source[1:, 1:], source[:-1, 1:]]
    quads = np.concatenate(corners, axis=-1).reshape(-1, 8)
    mesh = list(zip(map(tuple, rectangles.tolist()), quads.tolist(), strict=True))
    return canvas.transform(canvas.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _random_affine(rng: np.random.Generator) -> np.ndarray:
    """Draw a small random rotation, shear and change of aspect ratio, as a 2 x 2 matrix."""
    angle, shear = rng.normal(0.0, 0.15), rng.normal(0.0, 0.2)
    stretch = np.exp(rng.normal(0.0, 0.2))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine: np.ndarray = rotation @ np.array([[stretch, shear], [0.0, 1.0]])
    return affine


def _look_through_grid(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Downsample a drawing to a coarse grid that the glyph nearly fills, slightly off centre."""
    left, top, right, bottom = ink.getbbox() or (0, 0, *ink.size)
    side = max(right - left, bottom - top) / rng.uniform(0.85, 1.05)
    centre = np.array([left + right, top + bottom]) / 2 + rng.normal(0.0, 0.04 * side, 2)
    upper_left, lower_right = np.clip([centre - side / 2, centre + side / 2], 0, _CANVAS).tolist()
    cells = _GRIDS[rng.integers(len(_GRIDS))]
    return ink.resize((cells, cells), Image.Resampling.BOX, box=(*upper_left, *lower_right))


def _vary_contrast(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a random gamma and a random brightness to a grey image; black stays black."""
    gamma, brightness = np.exp(rng.normal(0.0, 0.25)), rng.uniform(0.75, 1.0)
    contrasted: np.ndarray = 255 * brightness * (grey / 255) ** gamma
    return contrasted.round().astype(np.uint8)
