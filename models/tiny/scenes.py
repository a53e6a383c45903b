"""Random scenes for training and evaluation: ShapeWorld-like pairs, corner pairs, and freely placed shapes.

A scene has shapes with their centres, an image, and the share of each patch that each shape covers. `augment` yields 48
variants of a drawn scene (mirrored, transposed, with permuted RGB channels and colour names), which is much faster than
drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data.shapes import COLOURS, SHAPES, Shape, convex_distance, coverage, draw, sample_shape

EDGE = 0.01  # minimum distance of a shape from the image border
TRIES = 200  # per shape


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    `image` is uint8 [pixel row, pixel column, 3] at the model's input size; `cover` is float32
    [shape, patch row, patch column], the share of each patch's area that the shape covers.
    """

    shapes: tuple[Shape, ...]
    image: np.ndarray
    cover: np.ndarray


@dataclass(frozen=True)
class Layout:
    """Scene before drawing: shapes, side of the image in pixels, background rgb in 0..1."""

    shapes: tuple[Shape, ...]
    side: int
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)


def overlap(first: Shape, second: Shape) -> bool:
    """True if the outline of one shape intersects the other shape."""
    for shape, other in ((first, second), (second, first)):
        for piece in other.pieces():
            if not convex_distance(piece, shape.outline(), 0).all():
                return True
    return False


def fits(shape: Shape, others: list[Shape]) -> bool:
    """True if a shape keeps EDGE from the border and overlaps no other shape."""
    left, top, right, bottom = shape.box()
    inside = min(left, top) >= EDGE and max(right, bottom) <= 1 - EDGE
    return inside and not any(overlap(shape, other) for other in others)


def random_names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Draw `count` distinct (colour, shape) pairs; two pairs share the colour in 25 % and the shape in 5 % of draws."""
    colours, shapes = rng.choice(list(COLOURS), count), rng.choice(SHAPES, count)
    if count == 2:
        shared = rng.choice(["colour", "shape", "neither"], p=[0.25, 0.05, 0.7])
        colours = rng.choice(list(COLOURS), 2, replace=False) if shared != "colour" else colours[[0, 0]]
        shapes = rng.choice(SHAPES, 2, replace=False) if shared != "shape" else shapes[[0, 0]]
    names = [(str(colour), str(shape)) for colour, shape in zip(colours, shapes, strict=True)]
    return names if len(set(names)) == count else random_names(rng, count)


def place(rng: np.random.Generator, names: list[tuple[str, str]], at: Callable, **ranges) -> list[Shape] | None:
    """Place shapes of the given names without overlap; `at(index, shapes so far)` proposes a centre. None if one does
    not fit."""
    shapes: list[Shape] = []
    for index, (colour, shape) in enumerate(names):
        for _ in range(TRIES):
            candidate = sample_shape(rng, colour, shape, centre=at(index, shapes), **ranges)
            if fits(candidate, shapes):
                shapes.append(candidate)
                break
        else:
            return None
    return shapes


def pair_centre(rng: np.random.Generator, first: Shape, far: bool) -> tuple[float, float]:
    """Draw a centre near `first` with ShapeWorld's distances: large along one axis, small or arbitrary along the other.

    `far` places it in the other half of the image, at least .3 away along the axis.
    """
    centre = np.array([first.x, first.y])
    axis, sign = rng.integers(2), rng.choice([-1, 1])
    distance = rng.uniform(0.3, 0.8) if far else min(0.09 + rng.exponential(0.25), 0.8)
    sideways = abs(rng.normal(0, 0.13)) if rng.random() < 0.65 else rng.uniform()
    if far:
        sign = 1 if centre[axis] < 0.5 else -1
        if (centre[axis] + sign * distance - 0.5) * sign < 0:
            distance = abs(centre[axis] - 0.5) + rng.uniform(0, 0.3)
    centre[axis] += sign * distance
    centre[1 - axis] += rng.choice([-1, 1]) * distance * sideways
    return float(centre[0]), float(centre[1])


def world(rng: np.random.Generator, far: bool = False) -> Layout:
    """Layout like ShapeWorld's two-shape images: 100 px, black background, any rotation."""
    count = 2 if far else int(rng.choice([2, 1, 0], p=[0.92, 0.06, 0.02]))

    def at(index: int, shapes: list[Shape]) -> tuple[float, float]:
        if index == 0:
            x, y = rng.uniform(0.07, 0.93, 2)
            return float(x), float(y)
        return pair_centre(rng, shapes[0], far)

    shapes = place(rng, random_names(rng, count), at)
    return world(rng, far) if shapes is None else Layout(tuple(shapes), 100)


def grid(rng: np.random.Generator) -> Layout:
    """Layout like corner pairs: 64 px, light background, shapes in cells (mostly corner cells) of a 3 x 3 grid."""
    side, count = 64, int(rng.choice([2, 1, 3, 0], p=[0.55, 0.3, 0.08, 0.07]))
    corners = [(0, 0), (0, 2), (2, 0), (2, 2)]
    cells = corners if rng.random() < 0.75 else [(row, col) for row in range(3) for col in range(3)]
    chosen = rng.permutation(cells)[:count]
    ground = (245 if rng.random() < 0.5 else rng.uniform(225, 255)) / 255

    def at(index: int, shapes: list[Shape]) -> tuple[float, float]:
        row, col = chosen[index] + rng.normal(0, 0.08, 2)
        return float((2 * col + 1) / 6), float((2 * row + 1) / 6)

    rotation = (0.0, 1.0) if rng.random() < 0.3 else (0.0, 0.0)
    shade = (0.0, 0.0) if rng.random() < 0.4 else (-0.4, 0.05)
    shapes = place(rng, random_names(rng, count), at, size=(6 / side, 11 / side), rotation=rotation, shade=shade)
    return grid(rng) if shapes is None else Layout(tuple(shapes), side, (ground, ground, ground))


def anywhere(rng: np.random.Generator) -> Callable[[int, list[Shape]], tuple[float, float]]:
    """Return a proposal of uniform centres for `place`."""

    def at(index: int, shapes: list[Shape]) -> tuple[float, float]:
        x, y = rng.uniform(0.05, 0.95, 2)
        return float(x), float(y)

    return at


def free(rng: np.random.Generator, count: int | None = None, size: tuple[float, float] = (0.06, 0.2)) -> Layout:
    """Layout with shapes anywhere on a dark or a light background."""
    count = int(rng.choice([2, 1, 3, 0], p=[0.55, 0.3, 0.08, 0.07])) if count is None else count
    ground = rng.uniform(0, 35) / 255 if rng.random() < 0.4 else rng.uniform(200, 255) / 255
    shade = (-0.4, 0.4) if ground < 0.5 else (-0.4, 0.05)
    shapes = place(rng, random_names(rng, count), anywhere(rng), size=size, shade=shade)
    return free(rng, count, size) if shapes is None else Layout(tuple(shapes), 100, (ground, ground, ground))


def crowd(rng: np.random.Generator) -> Layout:
    """Layout with many shapes, for the stages that train on patch labels."""
    if rng.random() < 0.35:
        return free(rng, int(rng.integers(2, 6)), (0.06, 0.16))
    names = [(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))) for _ in range(rng.integers(5, 11))]
    shapes = place(rng, names, anywhere(rng))
    return crowd(rng) if shapes is None else Layout(tuple(shapes), 100)


def mixed(rng: np.random.Generator) -> Layout:
    """Layout from the mixture used for questions."""
    return (world, grid, free)[rng.choice(3, p=[0.6, 0.2, 0.2])](rng)


def far_pairs(rng: np.random.Generator) -> Layout:
    """Layout from the mixture, with ShapeWorld-like pairs in different halves of the image."""
    return world(rng, far=True) if rng.random() < 0.6 else (grid, free)[rng.choice(2)](rng)


def render(layout: Layout, side: int, patches: int) -> Scene:
    """Draw a layout at its own size and resize it to `side` pixels (bicubic, as in the image processor)."""
    image = draw(list(layout.shapes), layout.side, layout.background).resize((side, side), Image.Resampling.BICUBIC)
    cover = np.zeros((len(layout.shapes), patches, patches), np.float32)
    for index, shape in enumerate(layout.shapes):
        opacity = np.zeros((layout.side, layout.side), np.float32)
        window, opacity[window] = coverage(shape, layout.side)
        cover[index] = Image.fromarray(opacity).resize((patches, patches), Image.Resampling.BOX)
    return Scene(layout.shapes, np.asarray(image), cover)


def permute_colours(order: np.ndarray) -> dict[str, str]:
    """New name of each colour when channel `i` of the image becomes the old channel `order[i]`."""
    names = {rgb: name for name, rgb in COLOURS.items()}
    return {name: names[tuple(rgb[channel] for channel in order)] for name, rgb in COLOURS.items()}


def augment(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a random one of the 48 variants: mirror left-right, mirror top-bottom, transpose, permute the channels.

    Sizes and rotations of the shapes are not updated: no question uses them.
    """
    image, cover, shapes = scene.image, scene.cover, scene.shapes
    order = rng.permutation(3)
    renamed = permute_colours(order)
    shapes = tuple(replace(shape, colour=renamed[shape.colour]) for shape in shapes)
    image = image[..., order]
    if rng.random() < 0.5:
        image, cover = image[:, ::-1], cover[:, :, ::-1]
        shapes = tuple(replace(shape, x=1 - shape.x) for shape in shapes)
    if rng.random() < 0.5:
        image, cover = image[::-1], cover[:, ::-1]
        shapes = tuple(replace(shape, y=1 - shape.y) for shape in shapes)
    if rng.random() < 0.5:
        image, cover = image.transpose(1, 0, 2), cover.transpose(0, 2, 1)
        shapes = tuple(replace(shape, x=shape.y, y=shape.x) for shape in shapes)
    return Scene(shapes, image, cover)


class Pool:
    """Pool of drawn scenes, partly renewed at every step and augmented when sampled."""

    def __init__(self, sample: Callable, size: int, side: int, patches: int, rng: np.random.Generator) -> None:
        self.sample, self.side, self.patches, self.rng = sample, side, patches, rng
        self.scenes = [self.draw() for _ in range(size)]
        self.oldest = 0

    def draw(self) -> Scene:
        """Draw a new scene."""
        return render(self.sample(self.rng), self.side, self.patches)

    def pick(self, count: int, renew: int) -> list[Scene]:
        """Redraw the `renew` oldest scenes, then return `count` random scenes, augmented."""
        for _ in range(renew):
            self.scenes[self.oldest] = self.draw()
            self.oldest = (self.oldest + 1) % len(self.scenes)
        return [augment(self.scenes[index], self.rng) for index in self.rng.integers(len(self.scenes), size=count)]
