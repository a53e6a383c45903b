"""Geometry of image tokens: cells of the model's grid in pixels of the original image, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageGrid:
    """The image tokens of one picture as a grid of cells, and the way from a cell to original pixels and back.

    A processor resizes the picture (`width` x `height`, original pixels) to `resized` and hands the model a window of
    rows x cols square cells, each `cell` resized pixels wide, whose top left corner lies at `offset` in the resized
    picture: positive where a centre crop cuts, negative where padding was added, (0, 0) where neither happens.
    x goes to the right and y down, in pixels from the outer edge of the top left pixel; rows and columns count from 0.
    """

    rows: int
    cols: int
    width: int
    height: int
    cell: int
    resized: tuple[float, float]
    offset: tuple[float, float] = (0, 0)

    def rect(self, row: int, col: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of a cell in original pixels; may stick out of a padded picture."""
        x_scale, y_scale = self.width / self.resized[0], self.height / self.resized[1]
        left, top = self.offset[0] + col * self.cell, self.offset[1] + row * self.cell
        return left * x_scale, top * y_scale, (left + self.cell) * x_scale, (top + self.cell) * y_scale

    def cell_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(row, col) of the cell that covers the point (x, y) in original pixels; None where the model sees nothing."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            return None
        col = math.floor((x * self.resized[0] / self.width - self.offset[0]) / self.cell)
        row = math.floor((y * self.resized[1] / self.height - self.offset[1]) / self.cell)
        return (row, col) if 0 <= row < self.rows and 0 <= col < self.cols else None
