"""Comparison of measured geometry with the hand-written grids, and its check on further families by repainting.

python -m tests.measured         # every patched family and embedded checkpoint at SIZES
"""

import math
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

import models
from data.geometry import ImageGrid, TokenRectangles
from models.geometry import NoGeometryError, decoder_input, measure_geometry
from tests import zoo
from tests.families import FAMILIES

SIZES = [
    (14, 14), (28, 28), (30, 30), (56, 56), (14, 100), (100, 14), (28, 224), (224, 28), (55, 57), (61, 29), (181, 121),
    (121, 181), (97, 640), (640, 80), (333, 501), (501, 333), (336, 336), (1000, 999), (1280, 720), (1920, 1080),
]  # fmt: skip
REPAINTED = [(90, 70), (61, 140), (300, 200), (640, 360)]
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


def repainted(model, processor, size: tuple[int, int], tokens: int = 6) -> float:
    """Largest ratio, over some tokens, of the change of a token when all but its rectangle is repainted to its change
    when the rectangle is repainted; the rectangle is enlarged by a quarter of a cell (of the median sides of all, since
    a token at a padded border shows a sliver). Self-attention is left out."""
    width, height = size
    rectangles = measure_geometry(model, processor, width, height).rectangles
    generator = np.random.default_rng(0)
    ground, other = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    shown = rectangles.edges[rectangles.visible]
    x, y = np.median(shown[:, 2:] - shown[:, :2], 0) / 4
    ratios = []
    for token in generator.permutation(np.flatnonzero(rectangles.visible))[:tokens]:
        left, top, right, bottom = rectangles.edges[token]
        inside = np.zeros((height, width, 1), bool)
        columns = slice(max(0, math.floor(left - x)), math.ceil(right + x))
        inside[max(0, math.floor(top - y)) : math.ceil(bottom + y), columns] = True
        states = [state(model, processor, np.where(mask, other, ground), token) for mask in (False, inside, ~inside)]
        ratios.append(float((states[2] - states[0]).norm() / (states[1] - states[0]).norm()))
    return max(ratios)


@torch.no_grad()
def state(model, processor, picture: np.ndarray, token: int) -> torch.Tensor:
    """What the decoder is given of one image token, [width], without self-attention in the vision encoder."""
    inputs, layout = model.prepare(processor, [Image.fromarray(picture)], "a")
    return decoder_input(model, inputs, layout.images[0][token : token + 1])[0]


def check_families(names: list[str]) -> None:
    """Print, for further families, tokens and the largest ratio of `repainted` at REPAINTED, or why there are none."""
    print(f"{'family':24}{'tokens':>20}{'blind':>14}{'shared':>8}{'outside / inside':>18}")
    for name in names or zoo.FAMILIES:
        began = time.perf_counter()
        try:
            model, processor = zoo.build(name)
            measured = [measure_geometry(model, processor, *size) for size in REPAINTED]
        except (NoGeometryError, ImportError) as error:
            print(f"{name:24}refused: {error}", flush=True)
            continue
        worst = max(repainted(model, processor, size) for size in REPAINTED)
        tokens = "/".join(str(len(each.rectangles.edges)) for each in measured)
        blind = "/".join(str(len(each.blind)) for each in measured)
        shared = max(each.shared for each in measured)
        seconds = time.perf_counter() - began
        print(f"{name:24}{tokens:>20}{blind:>14}{shared:8.3f}{worst:18.5f}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["families"]:
        check_families(sys.argv[2:])
    else:
        compare_grids()
