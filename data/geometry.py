"""Mapping between image tokens and pixels of the original image: a list of rectangles, or a grid of cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class TokenRectangles:
    """Rectangles of the image tokens of one image of width x height original pixels, in the order of the tokens.

    `edges` float64 [token, 4] holds left, top, right, bottom in original pixels, x to the right and y down from the
    outer edge of the top left pixel, inside the image; NaN for a token that shows no pixel (a line break, padding).
    Rectangles may overlap, as those of tiles and of a thumbnail.
    """

    width: int
    height: int
    edges: np.ndarray = field(repr=False)

    @property
    def visible(self) -> np.ndarray:
        """Mask of the tokens that show pixels, bool [token]."""
        return ~np.isnan(self.edges[:, 0])


@dataclass(frozen=True)
class ImageGrid:
    """Image tokens of one image as a grid of cells, with the mapping to original pixels.

    A processor resizes the image (`width` x `height`, original pixels) to `resized` and passes a window of rows x cols
    square cells to the model, each `cell` resized pixels wide. The window's top left corner is at `offset` in the
    resized image: positive for a centre crop, negative for padding, else (0, 0). x points right and y down, in pixels
    from the outer edge of the top left pixel; rows and columns count from 0.
    """

    rows: int
    cols: int
    width: int
    height: int
    cell: int
    resized: tuple[float, float]
    offset: tuple[float, float] = (0, 0)

    def rect(self, row: int, col: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of a cell in original pixels; may extend beyond a padded image."""
        x_scale, y_scale = self.width / self.resized[0], self.height / self.resized[1]
        left, top = self.offset[0] + col * self.cell, self.offset[1] + row * self.cell
        return left * x_scale, top * y_scale, (left + self.cell) * x_scale, (top + self.cell) * y_scale

    def cell_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(row, col) of the cell that contains the point (x, y) in original pixels; None outside grid or image."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            return None
        col = math.floor((x * self.resized[0] / self.width - self.offset[0]) / self.cell)
        row = math.floor((y * self.resized[1] / self.height - self.offset[1]) / self.cell)
        return (row, col) if 0 <= row < self.rows and 0 <= col < self.cols else None

    def rectangles(self) -> TokenRectangles:
        """The cells' rectangles in raster order, cut to the image; NaN for a cell outside of it."""
        edges = np.array([self.rect(row, col) for row in range(self.rows) for col in range(self.cols)], np.float64)
        edges = edges.clip(0, np.array([self.width, self.height] * 2))
        edges[(edges[:, 2:] <= edges[:, :2]).any(1)] = np.nan
        return TokenRectangles(self.width, self.height, edges)
