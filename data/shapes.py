"""Coloured shapes of all generators: vocabulary, geometry and rasteriser, as in ShapeWorld.

Lengths are fractions of ShapeWorld's world; x points right, y down. A shape is an outline in the local box [-1, 1]^2,
scaled by its half extents, rotated about the centre of that box and moved to its position. The image shows the world
with a margin of two pixels on every side (`to_pixels`), and the opacity of a shape falls to 0 over one pixel outside
its outline; both as in ShapeWorld's rasteriser, so its images are reproduced from their world models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from data.errors import InputError

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "magenta": (1.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
}
SHAPES: tuple[str, ...] = ("circle", "ellipse", "triangle", "square", "rectangle", "pentagon", "semicircle", "cross")

# height / width of the local box; for ellipses and rectangles drawn from ASPECT_RANGE
ASPECTS: dict[str, float] = {
    "circle": 1.0,
    "triangle": 3**0.5 / 2,
    "square": 1.0,
    "pentagon": (1 + np.cos(np.pi / 5)) / (2 * np.sin(2 * np.pi / 5)),
    "semicircle": 0.5,
    "cross": 1.0,
}
ASPECT_RANGE = (0.335, 0.5)
CROSS_ARM = 1 / 3  # half width of a bar
MARGIN = 2  # pixels around the world, on every side
CURVE_POINTS = 48  # at 100 px the polygon of the largest circle deviates from the curve by at most 0.03 px


def to_pixels(points: np.ndarray, side: int) -> np.ndarray:
    """World fractions -> continuous pixel coordinates of an image of `side` pixels (pixel i spans [i, i + 1))."""
    return (np.asarray(points) * side + MARGIN) * (side - 1) / (side + 2 * MARGIN) + 0.5


def to_world(pixels: np.ndarray, side: int) -> np.ndarray:
    """Continuous pixel coordinates -> world fractions; inverse of `to_pixels`."""
    return ((np.asarray(pixels) - 0.5) * (side + 2 * MARGIN) / (side - 1) - MARGIN) / side


@cache
def unit_outline(shape: str) -> np.ndarray:
    """Outline [point, 2] of `shape` in its local box [-1, 1]^2, before scaling and rotation.

    Raises ValueError for a name that is not in SHAPES.
    """
    if shape in ("circle", "ellipse"):
        turns = np.linspace(0, 1, CURVE_POINTS, endpoint=False)
        return np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], 1)
    if shape in ("square", "rectangle"):
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    if shape == "triangle":
        return np.array([(0, 1), (-1, -1), (1, -1)], float)
    if shape == "pentagon":
        turns = np.arange(5) / 5
        corners = np.stack([-np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)], 1)
        low, high = corners.min(0), corners.max(0)
        return (2 * corners - low - high) / (high - low)
    if shape == "semicircle":
        turns = np.linspace(0, 0.5, CURVE_POINTS // 2 + 1)
        return np.stack([np.cos(2 * np.pi * turns), 2 * np.sin(2 * np.pi * turns) - 1], 1)
    if shape == "cross":
        quarter = np.array([(-CROSS_ARM, -1), (CROSS_ARM, -1), (CROSS_ARM, -CROSS_ARM)])
        turn = np.array([(0, 1), (-1, 0)])  # a quarter turn of row vectors, clockwise on the screen
        return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    raise ValueError(f"unknown shape {shape!r}; known shapes: {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Shape:
    """One shape of an image. Lengths are fractions of the world; `x`, `y` are the centre of the local box, which for a
    rotated triangle, pentagon or semicircle differs from the centre of its bounding box."""

    colour: str
    shape: str
    x: float
    y: float
    width: float  # half extents of the local box (ShapeWorld's "size")
    height: float
    rotation: float = 0.0  # turns, clockwise on the screen
    shade: float = 0.0  # -1 black .. 0 the pure colour .. 1 white

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise InputError("unknown-colour", f"unknown colour {self.colour!r}; known colours: {', '.join(COLOURS)}")
        if self.shape not in SHAPES:
            raise InputError("unknown-shape", f"unknown shape {self.shape!r}; known shapes: {', '.join(SHAPES)}")

    @property
    def name(self) -> str:
        """Colour and kind, such as "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def rgb(self) -> np.ndarray:
        """Colour with its shade applied, [3] in 0..1."""
        rgb = np.array(COLOURS[self.colour])
        return rgb + self.shade * (rgb if self.shade < 0 else 1 - rgb)

    def place(self, local: np.ndarray) -> np.ndarray:
        """Points [point, 2] of the local box -> fractions of the world."""
        sine, cosine = np.sin(2 * np.pi * self.rotation), np.cos(2 * np.pi * self.rotation)
        turn = np.array([(cosine, sine), (-sine, cosine)])
        return (local * (self.width, self.height)) @ turn + (self.x, self.y)

    def outline(self) -> np.ndarray:
        """Closed polygon [point, 2] without a repeated last point."""
        return self.place(unit_outline(self.shape))

    def pieces(self) -> list[np.ndarray]:
        """Convex, clockwise polygons whose union is the shape: its outline, or the two bars of a cross."""
        if self.shape != "cross":
            return [self.outline()]
        bar = unit_outline("rectangle")
        return [self.place(bar * (CROSS_ARM, 1)), self.place(bar * (1, CROSS_ARM))]

    def box(self) -> tuple[float, float, float, float]:
        """Bounding box of the outline: left, top, right, bottom. (ShapeWorld's own boxes of rotated circles, ellipses
        and semicircles are up to a tenth of the radius off; those of the other shapes equal ours.)"""
        outline = self.outline()
        return (*map(float, outline.min(0)), *map(float, outline.max(0)))


def sample_shape(
    rng: np.random.Generator,
    colour: str | None = None,
    shape: str | None = None,
    size: tuple[float, float] = (0.05, 0.125),
    rotation: tuple[float, float] = (0.0, 1.0),
    shade: tuple[float, float] = (-0.4, 0.4),
    centre: tuple[float, float] = (0.5, 0.5),
) -> Shape:
    """Draw a shape with size, aspect, rotation and shade uniform in the given ranges, at `centre`.

    Colour and kind are random if None. The default ranges were measured on ShapeWorld's two-shape images.
    """
    colour = colour or str(rng.choice(list(COLOURS)))
    shape = shape or str(rng.choice(SHAPES))
    width = rng.uniform(*size)
    aspect = ASPECTS.get(shape) or rng.uniform(*ASPECT_RANGE)
    return Shape(colour, shape, *centre, width, width * aspect, rng.uniform(*rotation), rng.uniform(*shade))


def convex_distance(polygon: np.ndarray, points: np.ndarray, reach: float) -> np.ndarray:
    """Distance [point] of `points` [point, 2] to a convex, clockwise polygon [corner, 2]: 0 inside, exact up to
    `reach`, at least `reach` beyond."""
    edge = np.roll(polygon, -1, 0) - polygon
    normal = np.stack([edge[:, 1], -edge[:, 0]], 1) / np.linalg.norm(edge, axis=1, keepdims=True)
    distance = np.maximum((points @ normal.T - (polygon * normal).sum(1)).max(1), 0)
    near = np.flatnonzero((distance > 0) & (distance < reach))  # rounded corners: nearest point of any edge
    to_point = points[near, None] - polygon
    along = np.clip((to_point * edge).sum(-1) / (edge**2).sum(-1), 0, 1)
    distance[near] = np.sqrt(((to_point - along[..., None] * edge) ** 2).sum(-1).min(-1))
    return distance


def coverage(shape: Shape, side: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Window (rows, columns) of `shape` in an image of `side` pixels, and its opacity there, 0..1."""
    outline = shape.outline()
    low = np.clip(np.floor(to_pixels(outline.min(0), side)).astype(int) - 1, 0, side)
    high = np.clip(np.ceil(to_pixels(outline.max(0), side)).astype(int) + 1, 0, side)
    columns, rows = np.arange(low[0], high[0]), np.arange(low[1], high[1])
    pixels = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    points = to_world(pixels + 0.5, side)
    distance = np.min([convex_distance(piece, points, 1 / side) for piece in shape.pieces()], 0) * side
    window = slice(low[1], high[1]), slice(low[0], high[0])
    return window, np.clip(1 - distance, 0, 1).reshape(len(rows), len(columns))


def draw(shapes: list[Shape], side: int, background: tuple[float, float, float] = (0, 0, 0)) -> Image.Image:
    """Draw an RGB image, side x side; later shapes cover earlier ones. `background` is rgb in 0..1."""
    pixels = np.empty((side, side, 3))
    pixels[:] = background
    for shape in shapes:
        window, opacity = coverage(shape, side)
        pixels[window] += opacity[..., None] * (shape.rgb - pixels[window])
    return Image.fromarray((pixels * 255).astype(np.uint8))


def mask(shape: Shape, side: int) -> np.ndarray:
    """Mask of the pixels that `shape` covers by more than half, bool [side, side]."""
    covered = np.zeros((side, side), bool)
    window, opacity = coverage(shape, side)
    covered[window] = opacity > 0.5
    return covered
