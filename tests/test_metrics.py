"""Every metric against cases worked by hand: perfect maps, far ones, even ones, empty ones, and scipy's own figures."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis import metrics
from data.geometry import ImageGrid
from tests.errors import refused

BOX = np.zeros((4, 6))
BOX[1:3, 0:2] = 1
"""Rows 1 and 2, columns 0 and 1: its centre of mass is (1.5, 0.5)."""
BACKGROUND = 1 - BOX
WITH_BOX = [
    metrics.distance, metrics.topk_iou, metrics.soft_iou, metrics.wasserstein_x, metrics.wasserstein_y, metrics.mass,
    metrics.pointing, lambda maps, box: metrics.entity_background(maps, box, BACKGROUND),
]  # fmt: skip


def at(*cells, shape=(4, 6)):
    """A map with the given weights: (row, col) or (row, col, weight)."""
    made = np.zeros(shape)
    for row, col, *weight in cells:
        made[row, col] = weight[0] if weight else 1
    return made


def grid(**changed):
    plain = {"rows": 3, "cols": 4, "width": 40, "height": 30, "cell": 10, "resized": (40, 30)}
    return ImageGrid(**plain | changed)


def test_box_becomes_cells_by_area():
    """From (5, 10) to (20, 18): half of column 0 and all of column 1, and eight tenths of row 1."""
    found = metrics.cell_weights((5, 10, 20, 18), grid())
    np.testing.assert_allclose(found, [[0, 0, 0, 0], [0.4, 0.8, 0, 0], [0, 0, 0, 0]])
    assert found.sum() * 100 == pytest.approx(15 * 8)  # a cell has 100 pixels


def test_box_smaller_than_a_cell_and_box_without_area():
    np.testing.assert_allclose(metrics.cell_weights((12, 2, 17, 6), grid()), at((0, 1, 0.2), shape=(3, 4)))
    assert not metrics.cell_weights((12, 2, 12, 6), grid()).any()
    with refused("box-order"):
        metrics.cell_weights((17, 2, 12, 6), grid())


def test_box_goes_through_resize_and_crop():
    """80 x 30 pixels shown at half size, 40 x 15, of which a window of 20 x 10 from (10, 2): a cell of 10 resized
    pixels is 20 of the original, and the columns begin at 20 and 40, the row at 4."""
    visible = grid(rows=1, cols=2, width=80, height=30, resized=(40, 15), offset=(10, 2))
    np.testing.assert_allclose(metrics.cell_weights((30, 4, 45, 14), visible), [[0.5 * 0.5, 0.25 * 0.5]])
    assert not metrics.cell_weights((0, 0, 20, 30), visible).any()  # cropped away


def test_distance_of_centres():
    assert metrics.distance(at((1, 0), (2, 1)), BOX) == 0  # another map with the same centre
    assert metrics.distance(at((1, 4), (2, 4)), BOX) == 3.5  # (1.5, 4) against (1.5, 0.5)
    assert metrics.distance(at((0, 0, 3), (0, 4, 1)), BOX) == pytest.approx(math.hypot(1.5, 0.5))  # centre (0, 1)


def test_topk_iou():
    """The box has four cells. Two of the four highest in it: 2 of 6 cells in common."""
    assert metrics.topk_iou(7 * BOX, BOX) == 1
    assert metrics.topk_iou(at((1, 0, 9), (2, 1, 8), (0, 5, 7), (3, 5, 6), (3, 4, 5)), BOX) == pytest.approx(2 / 6)
    assert metrics.topk_iou(BACKGROUND, BOX) == 0


def test_topk_iou_of_ties_prefers_no_order():
    """All 24 cells tie for 4 places: each is in by 1/6; 4/6 in common of 4 + 20/6."""
    even = metrics.topk_iou(np.ones((4, 6)), BOX)
    assert even == pytest.approx((4 / 6) / (4 + 20 / 6))
    assert metrics.topk_iou(np.ones((4, 6)), BOX[::-1, ::-1]) == even
    lower = at(*((1, col) for col in range(2)), *((3, col, 0.5) for col in range(4)))
    assert metrics.topk_iou(lower, BOX) == pytest.approx(2 / 6)  # four cells tie for the other two places, none in it


def test_topk_iou_of_a_box_in_parts_of_cells():
    """2.6 cells are 3: the fullest three. A box under half a cell is one cell."""
    box = at((0, 0, 1), (0, 1, 0.9), (0, 2, 0.7))
    assert metrics.topk_iou(box, box) == 1
    assert metrics.topk_iou(at((0, 0), (0, 1), (1, 1)), box) == pytest.approx(2 / 4)
    assert metrics.topk_iou(at((2, 2)), at((2, 2, 0.3))) == 1


def test_soft_iou_of_a_perfect_map_is_one():
    """Published: 0.008 on 121 patches, a distribution against a mask of ones."""
    perfect = np.zeros((11, 11))
    perfect[4, 4] = 1
    assert metrics.soft_iou(perfect * 3, perfect) == 1
    assert metrics.soft_iou(BOX * 0.1, BOX) == pytest.approx(1)
    assert metrics.soft_iou(BACKGROUND, BOX) == 0
    # Half of the map in one of the four cells: .25 in common; larger of the two .5 + .25 * 3 + .5
    assert metrics.soft_iou(at((1, 0), (3, 5)), BOX) == pytest.approx(0.25 / 1.75)


def test_wasserstein_along_x_and_y():
    assert metrics.wasserstein_x(at((0, 5)), BOX) == pytest.approx(4.5)  # half from column 0, half from column 1
    assert metrics.wasserstein_y(at((0, 5)), BOX) == pytest.approx(1.5)
    assert metrics.wasserstein_x(at((0, 0), (3, 1)), BOX) == 0  # the same columns, other rows
    assert metrics.wasserstein_y(at((0, 0), (3, 1)), BOX) == pytest.approx(1)


def test_wasserstein_is_scipys_for_every_head():
    rng = np.random.default_rng(0)
    maps, box = rng.random((3, 2, 4, 6)), rng.random((4, 6))
    for name, axis, places in (("x", 0, np.arange(6)), ("y", 1, np.arange(4))):
        found = getattr(metrics, f"wasserstein_{name}")(maps, box)
        for head in np.ndindex(3, 2):
            theirs = stats.wasserstein_distance(places, places, maps[head].sum(axis), box.sum(axis))
            assert found[head] == pytest.approx(theirs)


def test_relation_lies_between_the_shapes():
    """Shapes in columns 0 and 4 of 6: what lies behind one and before the other are 1, 2, 3 and half of each."""
    first, second = at((1, 0)), at((2, 4))
    axis, between = metrics.relation_distribution(first, second, "left")
    assert axis == "x"
    np.testing.assert_allclose(between, np.array([0.5, 1, 1, 1, 0.5, 0]) / 4)
    np.testing.assert_array_equal(metrics.relation_distribution(second, first, "right")[1], between)
    axis, between = metrics.relation_distribution(first, second, "above")
    assert axis == "y"
    np.testing.assert_allclose(between, [0, 0.5, 0.5, 0])
    np.testing.assert_array_equal(metrics.relation_distribution(second, first, "below")[1], between)


def test_relation_that_the_boxes_contradict_is_nowhere():
    for relation in ("right", "below"):
        assert np.isnan(metrics.relation_distribution(at((1, 0)), at((2, 4)), relation)[1]).all()
    with refused("unknown-relation"):
        metrics.relation_distribution(BOX, BOX, "beside")


def test_wasserstein_from_the_relation():
    """Between columns 0 and 4 its mean is column 2. All attention there: 1/8 from 2 away on each side, 1/4 from 1."""
    between = metrics.relation_distribution(at((1, 0)), at((2, 4)), "left")
    assert metrics.wasserstein_relation(at((0, 2)), *between) == pytest.approx(2 * (2 / 8 + 1 / 4))
    assert metrics.wasserstein_relation(at((3, 5)), *between) == pytest.approx(3)  # all of it to the left
    spread = np.tile(between[1], (4, 1))
    assert metrics.wasserstein_relation(spread, *between) == pytest.approx(0)
    with refused("relation-size"):
        metrics.wasserstein_relation(BOX, "x", np.ones(4))


def test_mass():
    assert metrics.mass(at((1, 0, 3), (0, 5, 1)), BOX) == 0.75
    assert metrics.mass(np.ones((4, 6)), BOX) == pytest.approx(4 / 24)
    assert metrics.mass(at((1, 0)), at((1, 0, 0.25))) == 0.25  # the cell lies in it by a quarter


def test_entity_against_background():
    """The box has 4 cells, the background 20. Three times as dense: r = 3, r / (1 + r) = .75."""
    assert metrics.entity_background(3 * BOX + BACKGROUND, BOX, BACKGROUND) == pytest.approx(0.75)
    assert metrics.entity_background(np.ones((4, 6)), BOX, BACKGROUND) == pytest.approx(0.5)
    assert metrics.entity_background(BOX, BOX, BACKGROUND) == 1
    other = at((0, 5))  # attention on the other shape is not on the background
    assert np.isnan(metrics.entity_background(other, BOX, BACKGROUND - other))
    assert metrics.entity_background(BOX + 100 * other, BOX, BACKGROUND - other) == 1
    assert np.isnan(metrics.entity_background(BOX, BOX, np.zeros((4, 6))))


def test_dispersion():
    assert metrics.dispersion(at((2, 3))) == 0
    assert metrics.dispersion(at((0, 1), (0, 5))) == 2
    assert metrics.dispersion(at((0, 0), (0, 5), (3, 0), (3, 5))) == pytest.approx(math.hypot(1.5, 2.5))


def test_entropy():
    assert metrics.entropy(at((2, 3))) == 0 and not np.signbit(metrics.entropy(at((2, 3))))
    assert metrics.entropy(np.ones((4, 4))) == pytest.approx(4)
    assert metrics.entropy(at((0, 0, 2), (0, 1), (0, 2))) == pytest.approx(1.5)


def test_pointing():
    assert metrics.pointing(at((2, 1, 5), (0, 5, 4)), BOX) == 1
    assert metrics.pointing(at((2, 1, 4), (0, 5, 5)), BOX) == 0
    assert metrics.pointing(np.ones((4, 6)), BOX) == pytest.approx(4 / 24)
    half, less = at((1, 1, 0.5), (1, 2, 1)), at((1, 1, 0.4), (1, 2, 1))
    assert (metrics.pointing(at((1, 1)), half), metrics.pointing(at((1, 1)), less)) == (1, 0)
    small = at((1, 1, 0.3), (1, 2, 0.2))  # no cell lies in it by half: the fullest one counts
    assert (metrics.pointing(at((1, 1)), small), metrics.pointing(at((1, 2)), small)) == (1, 0)


def test_all_heads_in_one_call_are_the_heads_one_by_one():
    maps = np.random.default_rng(1).random((5, 3, 4, 6))
    between = metrics.relation_distribution(at((1, 0)), at((2, 4)), "left")
    measures = [lambda each, one=one: one(each, BOX) for one in WITH_BOX]
    measures += [metrics.dispersion, metrics.entropy, lambda each: metrics.wasserstein_relation(each, *between)]
    for measure in measures:
        found = measure(maps)
        assert found.shape == (5, 3) and np.isfinite(found).all()
        np.testing.assert_allclose(found, [[measure(head) for head in layer] for layer in maps])
        np.testing.assert_allclose(measure(1000 * maps), found)  # any scale


def test_empty_maps_and_boxes_that_the_crop_removed_are_not_known():
    maps = np.stack([BOX, np.zeros((4, 6))])
    for measure in WITH_BOX:
        found = measure(maps, BOX)
        assert np.isfinite(found[0]) and np.isnan(found[1])
        assert np.isnan(measure(BOX, np.zeros((4, 6))))
    for measure in (metrics.dispersion, metrics.entropy):
        assert np.isnan(measure(maps)).tolist() == [False, True]


def test_what_is_no_map_is_told():
    for wrong in (-BOX, BOX * np.nan, np.where(BOX, np.inf, 0), np.ones(6)):
        with refused("map-values"):
            metrics.entropy(wrong)
    with refused("grids-differ"):
        metrics.mass(BOX, BOX.T)
