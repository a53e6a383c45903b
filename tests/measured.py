"""Comparison of measured geometry with the hand-written grids, and the table of it.

python -m tests.measured         # every patched family and embedded checkpoint at SIZES
"""

import time
from dataclasses import replace

import numpy as np

import models
from data.geometry import ImageGrid, TokenRectangles
from models.geometry import measure_geometry
from tests.families import FAMILIES

SIZES = [
    (14, 14), (28, 28), (30, 30), (56, 56), (14, 100), (100, 14), (28, 224), (224, 28), (55, 57), (61, 29), (181, 121),
    (121, 181), (97, 640), (640, 80), (333, 501), (501, 333), (336, 336), (1000, 999), (1280, 720), (1920, 1080),
]  # fmt: skip
TOLERANCE, MOVED = 0.15, 0.19  # cells: of a measurement, and of a mistake that moves an edge


def cell_size(grid: ImageGrid) -> np.ndarray:
    """Width and height of a cell in original pixels, twice: the units of the four edges of a rectangle."""
    return np.array([grid.cell * grid.width / grid.resized[0], grid.cell * grid.height / grid.resized[1]] * 2)


def distance(expected: TokenRectangles, rectangles: TokenRectangles, cell: np.ndarray) -> float:
    """Largest distance between edges of the same token, in cells; of a token that is visible in one alone, its extent
    in the direction where it is smaller (a sliver at the border of a padded image)."""
    both = expected.visible & rectangles.visible
    one = expected.visible ^ rectangles.visible
    apart = np.abs(expected.edges - rectangles.edges)[both] / cell
    alone = np.where(expected.visible[:, None], expected.edges, rectangles.edges)[one] / cell
    slivers = np.minimum(alone[:, 2] - alone[:, 0], alone[:, 3] - alone[:, 1])
    return max(apart.max(initial=0), slivers.max(initial=0))


def swapped(grid: ImageGrid) -> TokenRectangles:
    """The grid's rectangles with the order of rows and columns exchanged."""
    right = grid.rectangles()
    order = np.arange(grid.rows * grid.cols).reshape(grid.rows, grid.cols).T.ravel()
    return TokenRectangles(grid.width, grid.height, right.edges[order])


def upside_down(grid: ImageGrid) -> TokenRectangles:
    """The grid's rectangles with the rows from bottom to top."""
    right = grid.rectangles()
    edges = right.edges.reshape(grid.rows, grid.cols, 4)[::-1].reshape(-1, 4)
    return TokenRectangles(grid.width, grid.height, edges)


MISTAKES = {
    "cell + 1": lambda grid: replace(grid, cell=grid.cell + 1).rectangles(),
    "crop ignored": lambda grid: replace(grid, offset=(0, 0)).rectangles(),
    "axes swapped": swapped,
    "rows upside down": upside_down,
}
"""Mistakes of a grid, as the rectangles that it would have."""


def mistakes(grid: ImageGrid) -> dict[str, TokenRectangles]:
    """Rectangles of the mistakes that move an edge of this grid by more than MOVED, by name."""
    planted = {name: plant(grid) for name, plant in MISTAKES.items()}
    right, cell = grid.rectangles(), cell_size(grid)
    return {name: wrong for name, wrong in planted.items() if distance(right, wrong, cell) > MOVED}


def compare_grids() -> None:
    """Print, for every patched family and embedded checkpoint, the largest distance from its grid at SIZES, and of
    the mistakes the smallest."""
    print(f"{'model':20}{'sizes':>6}{'distance':>10}  smallest distance of each mistake, in cells (sizes)")
    for name in [*FAMILIES, *models.embedded()]:
        model, processor = (make() for make in FAMILIES[name]) if name in FAMILIES else models.load(name)
        worst, planted, began = 0.0, {}, time.perf_counter()
        for size in SIZES:
            grid, measured = model.image_grid(processor, *size), measure_geometry(model, processor, *size).rectangles
            worst = max(worst, distance(grid.rectangles(), measured, cell_size(grid)))
            for mistake, wrong in mistakes(grid).items():
                planted.setdefault(mistake, []).append(distance(wrong, measured, cell_size(grid)))
        noticed = ", ".join(f"{mistake} {min(found):.2f} ({len(found)})" for mistake, found in planted.items())
        print(f"{name:20}{len(SIZES):6}{worst:10.3f}  {noticed}; {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    compare_grids()
