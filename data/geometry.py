"""Mapping between the grid of image tokens and pixels of the original image."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
