"""Show a map over image cells on the picture itself.

A model cuts its input into square cells; the input is a resized and then cropped (or padded) copy of the picture. What
is drawn here is that map in the picture's own pixels: the nearest upscale to the model's input, taken back through crop
and resize. As both steps are separable, they are two small matrices, [pixel, cell] down and across the picture. A blur,
being separable too, only softens these matrices: it is exact, has no border effects and costs the same at any size.

`grid` is anything with `rows, cols` (cells), `cell` (model pixels per cell side), `width, height` (the picture's
pixels), `resized` (width, height after the resize) and `offset` (left, top: where the model's input starts inside the
resized picture; a crop is positive, padding is negative).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image
from scipy.special import ndtr

from analysis.plots import Figure, visible

COLOURMAP = "turbo"
"""Any matplotlib name. Seen on a photograph, on black and on light grounds, turbo keeps a weak second spot visible on
all three, where inferno, plasma and viridis fade into skin, dark cloth or paper; it is jet without false bands."""

TOP = {"turbo": 0.84, "jet": 0.88}
"""How far up a colour map is used: these two end in a dark red that would make a peak look weaker than its rim."""

LONGER_SIDE = 480  # pixels of a saved image, at least
COLUMNS = 8  # images in a row of a strip
FLATTEST, TALLEST = 0.1, 3.0
"""Least and largest height of the axes of an image, in widths; 10 x 4000 pixels would otherwise make a strip of 120,000
pixels."""


@dataclass(frozen=True)
class OverlayStyle:
    """Drawing of a map over its image; see `overlay`."""

    alpha: float = 0.7
    """Opacity of the overlay where attention is highest."""
    power: float = 1.5
    """Exponent on the map before it is coloured; higher shows only the peaks."""
    blur: float = 0.5
    """Standard deviation of the overlay's blur, in cells."""
    colourmap: str = COLOURMAP
    """Any colour map of matplotlib, such as jet for comparison with papers."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or not self.power > 0 or not self.blur >= 0:
            raise ValueError("give --alpha within 0..1, --power above 0 and --blur of at least 0")
        if self.colourmap not in matplotlib.colormaps:
            raise ValueError(f"--colourmap {self.colourmap!r} is unknown to matplotlib; try turbo, viridis or jet")


def to_pixels(cell_map: np.ndarray, grid, blur: float = 0.0, size: tuple[int, int] | None = None) -> np.ndarray:
    """The map in the picture's pixels: float32 [height, width], 0 where the model sees nothing.

    cell_map: [row, col], one value per cell, finite and >= 0.
    blur: standard deviation of a Gaussian, in cells; 0 leaves every pixel with exactly the value of its own cell.
    size: (width, height) of the whole picture where it is drawn larger or smaller than it is.
    Raises ValueError for a map of another size than the grid's, or with other values.
    """
    cell_map = np.asarray(cell_map, dtype=np.float32)
    if cell_map.shape != (grid.rows, grid.cols):
        raise ValueError(f"the map has shape {cell_map.shape} but the grid is {grid.rows} rows x {grid.cols} columns")
    if not np.isfinite(cell_map).all() or cell_map.min() < 0:
        raise ValueError("the map holds negative or non-finite values; a map of attention is finite and >= 0")
    across, down = _axes(grid, size, blur)
    return down @ cell_map @ across.T


def seen(grid, size: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels of the image (drawn at `size`) that reach the model: bool [height, width]."""
    across, down = _axes(grid, size, blur=0.0)
    return np.logical_and.outer(down.any(axis=1), across.any(axis=1))


def overlay(
    image: Image.Image,
    cell_map: np.ndarray,
    grid,
    style: OverlayStyle = OverlayStyle(),
    unseen: float = 0.35,
    at_least: int = 0,
    at_most: int | None = None,
) -> Image.Image:
    """The picture with the map laid over it: PIL RGB, at the picture's own size unless a bound below asks for another.

    The map [row, col] is divided by its maximum and raised to `style.power`, which gives the colour; `style.alpha`
    times the square root of that is the opacity. Where there is no attention the picture stays as it is.
    unseen: brightness left to the margins that the model never sees (1 leaves them as they are).
    at_least: enlarge the picture by a whole number until its longer side has this many pixels.
    at_most: shrink the picture until its longer side has this many pixels (for strips of large photographs).
    Raises ValueError for a picture of another size than the grid was made for, and as `to_pixels` does.
    """
    if image.size != (grid.width, grid.height):
        raise ValueError(
            f"the picture is {image.width} x {image.height} pixels but the grid was made for {grid.width} x"
            f" {grid.height}; pass the picture as the model got it (EXIF rotation applied, not resized)"
        )
    image = enlarge(image.convert("RGB"), at_least)
    if at_most is not None:
        image.thumbnail((at_most, at_most), Image.Resampling.BOX)
    heat = to_pixels(cell_map, grid, style.blur, image.size)
    heat = (heat / (heat.max() or 1.0)) ** style.power
    colours = matplotlib.colormaps[style.colourmap](heat * TOP.get(style.colourmap, 1.0), bytes=True)
    cover = style.alpha * np.sqrt(heat)
    kept = (1 - cover) * np.where(seen(grid, image.size), np.float32(1), np.float32(unseen))
    pixels = np.array(image)
    for channel in range(3):  # one at a time: photographs are large
        pixels[..., channel] = np.rint(kept * pixels[..., channel] + cover * colours[..., channel])
    return Image.fromarray(pixels)


def enlarge(image: Image.Image, at_least: int = 400) -> Image.Image:
    """A copy, each pixel repeated a whole number of times until the longer side has `at_least` pixels."""
    scale = max(1, math.ceil(at_least / max(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def axes_height(image: Image.Image, width: float) -> float:
    """Height of the axes that `show_image` fills, in the unit of their `width`."""
    return width * min(max(image.height / image.width, FLATTEST), TALLEST)


def show_image(axes, image: Image.Image) -> None:
    """Draw an image, undistorted, into axes of its own shape; one taller or flatter than TALLEST and FLATTEST allow
    stands in the middle of axes of that shape."""
    axes.imshow(image)
    width, height = max(image.width, image.height / TALLEST), max(image.height, image.width * FLATTEST)
    x, y = (image.width - 1) / 2, (image.height - 1) / 2  # pixel i reaches from i - 1/2 to i + 1/2
    axes.set(xlim=(x - width / 2, x + width / 2), ylim=(y + height / 2, y - height / 2))


def strip(
    overlays: Sequence[Image.Image],
    tokens: Sequence[str],
    shares: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """One figure of per-token pictures in reading order, each with its token underneath; rows of COLUMNS pictures.

    shares: per token, the attention mass on the image (0..1), printed below the token as "attention on image". Raises
    ValueError for an empty strip, or if the numbers of overlays, tokens and shares differ.
    """
    if not overlays or len(overlays) != len(tokens):
        raise ValueError(
            f"a strip needs a picture per token and at least one, but got {len(overlays)} for {len(tokens)} tokens"
        )
    if shares is not None and len(shares) != len(tokens):
        raise ValueError(f"a strip needs one share per token, but got {len(shares)} for {len(tokens)} tokens")
    columns = min(COLUMNS, len(tokens))
    rows = math.ceil(len(tokens) / columns)
    width = 1.5  # inches per picture
    height = axes_height(overlays[0], width) + (0.27 if shares is None else 0.57)
    head = 0.35 if title else 0.05
    figure = Figure(figsize=(max(width * columns, 2.0), height * rows + head), dpi=200, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    for axes in figure.subplots(rows, columns, squeeze=False).flat[len(tokens):]:
        axes.set_axis_off()
    for index, (picture, token) in enumerate(zip(overlays, tokens, strict=True)):
        axes = figure.axes[index]
        show_image(axes, picture)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        label = visible(token) if shares is None else f"{visible(token)}\nattention on image\n{shares[index]:.0%}"
        axes.set_xlabel(label, fontsize=9, labelpad=3, parse_math=False)
    return figure


def _axes(grid, size, blur):
    """Weights [pixel, cell] across and down the picture."""
    return tuple(
        _weights(pixels, resized, offset, grid.cell, cells, blur)
        for pixels, resized, offset, cells in zip(
            size or (grid.width, grid.height), grid.resized, grid.offset, (grid.cols, grid.rows), strict=True
        )
    )


def _weights(pixels, resized, offset, cell, cells, blur):
    """Weight of each cell in each pixel along one axis: float32 [pixel, cell]; rows sum to 1, or are 0 if unseen.

    The middle of pixel i of n lies at (i + 1/2) * resized / n in the resized picture. Whole numbers keep the border
    between two cells exact: the numerator and the denominator below are both doubled.
    """
    numerator = (2 * np.arange(pixels, dtype=np.int64) + 1) * resized - 2 * pixels * offset
    denominator = 2 * pixels * cell
    cell_of_pixel = numerator // denominator
    is_cell = cell_of_pixel[:, None] == np.arange(cells)
    if blur == 0:
        return is_cell.astype(np.float32)
    borders = (np.arange(cells + 1) - (numerator / denominator)[:, None]) / blur
    weights = np.diff(ndtr(borders), axis=1)  # the Gaussian's mass over each cell
    inside = is_cell.any(axis=1, keepdims=True)
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=inside).astype(np.float32)
