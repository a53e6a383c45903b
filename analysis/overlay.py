"""Overlay a map of image cells on the original image.

A model splits its input into square cells; the input is a resized and then cropped (or padded) copy of the image. The
overlay draws the map in the original image's pixels: the nearest upscale to the model's input, mapped back through crop
and resize. Both steps are separable, so they are two small matrices [pixel, cell], along y and x. A separable blur
changes only these matrices: it is exact, has no border effects and costs the same at any size.

`grid` is any object with `rows, cols` (cells), `cell` (model pixels per cell side), `width, height` (pixels of the
image), `resized` (width, height after the resize) and `offset` (left, top of the model's input inside the resized
image; a crop is positive, padding is negative).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image
from scipy.special import ndtr

from analysis.plots import Figure, visible
from data.errors import InputError

COLOURMAP = "turbo"
"""Any matplotlib name. On a photograph, on black and on light grounds, turbo keeps a weak second peak visible, while
inferno, plasma and viridis fade into skin, dark cloth or paper; it resembles jet without its false bands."""

TOP = {"turbo": 0.84, "jet": 0.88}
"""Upper end of a colour map: these two end in a dark red that would make a peak weaker than its rim."""

LONGER_SIDE = 480  # pixels of a saved image, minimum
COLUMNS = 8  # images in a row of a strip
WIDEST = 10  # columns of a comparison
FLATTEST, TALLEST = 0.1, 3.0
"""Smallest and largest height of the axes of an image, in widths; without them, an image of 10 x 4000 pixels would give
a strip of 120,000 pixels."""


@dataclass(frozen=True)
class OverlayStyle:
    """Drawing of a map over its image; see `overlay`."""

    alpha: float = 0.7
    """Opacity of the overlay at the maximum of attention."""
    power: float = 1.5
    """Exponent on the map before colouring; a higher value keeps only the peaks."""
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
    """The map in the image's pixels: float32 [height, width], 0 outside the model's input.

    cell_map: [row, col], one value per cell, finite and >= 0.
    blur: standard deviation of a Gaussian, in cells; with 0 every pixel has exactly the value of its own cell.
    size: (width, height) of the drawn image, if it differs from the original size.
    Raises ValueError for a map of another size than the grid's, or with negative or non-finite values.
    """
    cell_map = np.asarray(cell_map, dtype=np.float32)
    if cell_map.shape != (grid.rows, grid.cols):
        raise InputError(
            "map-size", f"the map has shape {cell_map.shape} but the grid is {grid.rows} rows x {grid.cols} columns"
        )
    if not np.isfinite(cell_map).all() or cell_map.min() < 0:
        raise InputError(
            "map-values", "the map holds negative or non-finite values; a map of attention is finite and >= 0"
        )
    across, down = _axes(grid, size, blur)
    return down @ cell_map @ across.T


def input_pixels(grid, size: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels of the image (drawn at `size`) inside the model's input: bool [height, width]."""
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
    """Overlay the map on the image: PIL RGB, at the image's own size unless `at_least` or `at_most` changes it.

    The map [row, col] divided by its maximum and raised to `style.power` gives the colour; `style.alpha` times the
    square root of that is the opacity. Pixels without attention are unchanged.
    unseen: brightness factor of the margins outside the model's input (1 leaves them unchanged).
    at_least: enlarge the image by an integer factor until its longer side has this many pixels.
    at_most: shrink the image until its longer side has this many pixels (for strips of large photographs).
    Raises ValueError for an image of another size than the grid's, and as `to_pixels` does.
    """
    if image.size != (grid.width, grid.height):
        raise InputError(
            "image-size",
            f"the image is {image.width} x {image.height} pixels but the grid was made for {grid.width} x"
            f" {grid.height}; pass the image as the model got it (EXIF rotation applied, not resized)",
        )
    image = enlarge(image.convert("RGB"), at_least)
    if at_most is not None:
        image.thumbnail((at_most, at_most), Image.Resampling.BOX)
    heat = to_pixels(cell_map, grid, style.blur, image.size)
    heat = (heat / (heat.max() or 1.0)) ** style.power
    colours = matplotlib.colormaps[style.colourmap](heat * TOP.get(style.colourmap, 1.0), bytes=True)
    cover = style.alpha * np.sqrt(heat)
    kept = (1 - cover) * np.where(input_pixels(grid, image.size), np.float32(1), np.float32(unseen))
    pixels = np.array(image)
    for channel in range(3):  # one at a time: photographs are large
        pixels[..., channel] = np.rint(kept * pixels[..., channel] + cover * colours[..., channel])
    return Image.fromarray(pixels)


def enlarge(image: Image.Image, at_least: int = 400) -> Image.Image:
    """Copy of an image with each pixel repeated by an integer factor until the longer side has `at_least` pixels."""
    scale = max(1, math.ceil(at_least / max(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def axes_height(image: Image.Image, width: float) -> float:
    """Height of the axes that `show_image` fills, in the unit of their `width`."""
    return width * min(max(image.height / image.width, FLATTEST), TALLEST)


def show_image(axes, image: Image.Image) -> None:
    """Draw an image, undistorted, into axes of its own shape; an image beyond TALLEST or FLATTEST is centred in axes of
    the limiting shape."""
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
    """Figure of per-token overlays in reading order, COLUMNS to a row, each above its token.

    shares: per token, the attention mass on the image (0..1), printed below the token as "attention on image". Raises
    ValueError for an empty strip, or if the numbers of overlays, tokens and shares differ.
    """
    if not overlays or len(overlays) != len(tokens):
        raise InputError(
            "overlays-per-token",
            f"a strip needs an image per token and at least one, but got {len(overlays)} for {len(tokens)} tokens",
        )
    if shares is not None and len(shares) != len(tokens):
        raise InputError(
            "shares-per-token", f"a strip needs one share per token, but got {len(shares)} for {len(tokens)} tokens"
        )
    columns = min(COLUMNS, len(tokens))
    rows = math.ceil(len(tokens) / columns)
    width = 1.5  # inches per overlay
    height = axes_height(overlays[0], width) + (0.27 if shares is None else 0.57)
    head = 0.35 if title else 0.05
    figure = Figure(figsize=(max(width * columns, 2.0), height * rows + head), dpi=200, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    for axes in figure.subplots(rows, columns, squeeze=False).flat[len(tokens) :]:
        axes.set_axis_off()
    for index, (drawn, token) in enumerate(zip(overlays, tokens, strict=True)):
        axes = figure.axes[index]
        show_image(axes, drawn)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        label = visible(token) if shares is None else f"{visible(token)}\nattention on image\n{shares[index]:.0%}"
        axes.set_xlabel(label, fontsize=9, labelpad=3, parse_math=False)
    return figure


def comparison(rows: Mapping[str, Sequence[Image.Image]], labels: Sequence[str], title: str = "") -> Figure:
    """Figure of overlays: a row for each name in `rows`, a column for each label, at most WIDEST to a block.

    Raises ValueError unless every row has one overlay per label.
    """
    if not rows or any(len(overlays) != len(labels) for overlays in rows.values()):
        raise ValueError(f"a comparison needs rows of {len(labels)} overlays, one per label")
    blocks = math.ceil(len(labels) / WIDEST)
    columns = math.ceil(len(labels) / blocks)
    width = 1.5  # inches per overlay
    height = axes_height(next(iter(rows.values()))[0], width) + 0.12
    size = (width * columns + 0.3, height * len(rows) * blocks + 0.25 * blocks + (0.35 if title else 0.05))
    figure = Figure(figsize=size, dpi=200, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.03)
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    panels = figure.subplots(len(rows) * blocks, columns, squeeze=False)
    for place, axes in np.ndenumerate(panels):
        block, row = divmod(place[0], len(rows))
        index = block * columns + place[1]
        if index >= len(labels):
            axes.set_axis_off()
            continue
        name = list(rows)[row]
        show_image(axes, rows[name][index])
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if row == 0:
            axes.set_title(visible(labels[index]), fontsize=9, pad=3, parse_math=False)
        if place[1] == 0:
            axes.set_ylabel(name, fontsize=8, parse_math=False)
    return figure


def _axes(grid, size, blur):
    """Weights [pixel, cell] along x and y of the image."""
    return tuple(
        _weights(pixels, resized, offset, grid.cell, cells, blur)
        for pixels, resized, offset, cells in zip(
            size or (grid.width, grid.height), grid.resized, grid.offset, (grid.cols, grid.rows), strict=True
        )
    )


def _weights(pixels, resized, offset, cell, cells, blur):
    """Weight of each cell in each pixel along one axis: float32 [pixel, cell]; rows sum to 1, or 0 outside the input.

    The centre of pixel i of n lies at (i + 1/2) * resized / n in the resized image. Integers keep the border between
    two cells exact: the numerator and the denominator below are both doubled.
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
