"""The rasteriser against ShapeWorld's own pictures, and its geometry against values worked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.shapes import COLOURS, SHAPES, Shape, draw, mask, sample_shape, to_pixels, to_world
from tests.errors import refused

REAL = Path(__file__).resolve().parents[2] / "shared/data/spatial_twoshapes/agreement/relational"


def shape_of(entity: dict) -> Shape:
    size = entity["shape"]["size"]
    return Shape(
        entity["color"]["name"],
        entity["shape"]["name"],
        entity["center"]["x"],
        entity["center"]["y"],
        size["x"],
        size["y"],
        entity["rotation"],
        entity["color"]["shade"],
    )


@pytest.fixture(scope="module")
def real_worlds() -> list[tuple[list[dict], np.ndarray]]:
    if not REAL.is_dir():
        pytest.skip(f"no real ShapeWorld pictures at {REAL}")
    worlds = []
    for shard in sorted(REAL.iterdir()):
        for index, world in enumerate(json.loads((shard / "world_model.json").read_text())):
            picture = np.asarray(Image.open(shard / f"world-{index}.png").convert("RGB"))
            worlds.append((world["entities"], picture.astype(int)))
    return worlds


def test_real_pictures_are_reproduced_from_their_world_models(real_worlds):
    equal = []
    for entities, picture in real_worlds:
        drawn = np.asarray(draw([shape_of(entity) for entity in entities], 100)).astype(int)
        equal.append((np.abs(drawn - picture).max(-1) <= 2).mean())
    assert np.mean(equal) > 0.995  # of all pixels; a shape covers about 3 %
    assert np.min(equal) > 0.99


def test_boxes_of_straight_shapes_are_the_world_models(real_worlds):
    for entity in (entity for entities, _ in real_worlds for entity in entities):
        if entity["shape"]["name"] not in ("circle", "ellipse", "semicircle"):  # ShapeWorld's own are off there
            low, high = entity["bounding_box"]["topleft"], entity["bounding_box"]["bottomright"]
            assert shape_of(entity).box() == pytest.approx((low["x"], low["y"], high["x"], high["y"]), abs=1e-9)


def test_outline_of_a_square_turned_by_an_eighth():
    square = Shape("red", "square", 0.5, 0.4, 0.1, 0.1, rotation=0.125)
    reach = 0.1 * 2**0.5
    assert square.box() == pytest.approx((0.5 - reach, 0.4 - reach, 0.5 + reach, 0.4 + reach))


def test_rotation_is_clockwise_on_the_screen():
    corners = Shape("red", "triangle", 0.5, 0.5, 0.1, 0.1, rotation=0.25).outline()
    assert corners[0] == pytest.approx((0.4, 0.5))  # the apex points down, then a quarter turn sends it left


@pytest.mark.parametrize(
    ("shape", "area"),  # of the local box, whose area is 4
    [("circle", np.pi), ("square", 4), ("triangle", 2), ("semicircle", np.pi), ("cross", 20 / 9)],
)
def test_mask_has_the_area_of_the_shape(shape, area):
    covered = mask(Shape("blue", shape, 0.5, 0.5, 0.3, 0.3, rotation=0.1), 200).sum()
    scale = (200 * 199 / 204) ** 2  # pixels per unit of the world, squared: the margin shrinks it
    # a pixel counts up to half a pixel outside the outline, hence a little more than the area
    assert area * 0.09 * scale < covered < area * 0.09 * scale * 1.04


def test_draw_paints_colour_shade_and_order():
    below = Shape("red", "square", 0.5, 0.5, 0.3, 0.3)
    above = Shape("blue", "square", 0.5, 0.5, 0.1, 0.1, shade=0.5)
    pixels = np.asarray(draw([below, above], 100, background=(1.0, 1.0, 1.0)))
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert tuple(pixels[30, 30]) == (255, 0, 0)
    assert tuple(pixels[50, 50]) == (127, 127, 255)
    assert Shape("gray", "circle", 0.5, 0.5, 0.1, 0.1, shade=-0.4).rgb == pytest.approx((0.3, 0.3, 0.3))


def test_a_shape_outside_the_picture_draws_nothing():
    assert not mask(Shape("red", "circle", 1.5, 0.5, 0.1, 0.1), 64).any()


def test_pixels_and_world_fractions_undo_each_other():
    assert to_pixels(np.array([0.5, 0.5]), 100) == pytest.approx((50, 50))
    points = np.array([(0.1, 0.9), (0.0, 1.0)])
    assert to_world(to_pixels(points, 64), 64) == pytest.approx(points)


def test_sample_shape_repeats_and_stays_in_range():
    first = [sample_shape(np.random.default_rng(3)) for _ in range(2)]
    assert first[0] == first[1]
    rng = np.random.default_rng(0)
    shapes = [sample_shape(rng) for _ in range(300)]
    assert {shape.colour for shape in shapes} == set(COLOURS) and {shape.shape for shape in shapes} == set(SHAPES)
    assert all(0.05 <= shape.width <= 0.125 for shape in shapes)


@pytest.mark.parametrize(
    ("colour", "shape", "reason"), [("pink", "circle", "unknown-colour"), ("red", "star", "unknown-shape")]
)
def test_unknown_names_are_refused_with_the_known_ones(colour, shape, reason):
    with refused(reason):
        Shape(colour, shape, 0.5, 0.5, 0.1, 0.1)
