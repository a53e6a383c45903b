"""Gaze masks against hand-worked grids and loops written from the formulas; row edits against plain arithmetic."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.gaze import (
    PUBLISHED_LAYERS,
    SIZES,
    Gaussian,
    NonGaussian,
    SalientHead,
    check_scanpath,
    connected_decay,
    edit_salient_heads,
    gaussian,
    gaze_similarity,
    in_cells,
    in_proportion,
    multiply_keys,
    over_keys,
    parse_mask_type,
    salient_heads,
    windows,
)
from tests.errors import refused

pytestmark = pytest.mark.numerical
GRID = (6, 8)  # rows, cols


@st.composite
def gazes(draw):
    """(rows, cols, points) with one to five points, weighted or not."""
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    weighted = draw(st.booleans())
    point = [st.integers(0, cols - 1), st.integers(0, rows - 1)]
    points = draw(st.lists(st.tuples(*point, *([st.floats(0.1, 10)] if weighted else [])), min_size=1, max_size=5))
    return rows, cols, points


def weights_of(points):
    return [point[2] if len(point) == 3 else 1.0 for point in points]


# The formulas, cell by cell


def literal_window_distance(x, y, point, rows, cols, margin):
    """Chebyshev distance to the nearest cell of the window, found by walking over the window's cells in the grid."""
    cells = [
        (i, j)
        for i in range(point[0] - margin, point[0] + margin + 1)
        for j in range(point[1] - margin, point[1] + margin + 1)
        if 0 <= i < cols and 0 <= j < rows
    ]
    return min(max(abs(x - i), abs(y - j)) for i, j in cells)


def literal_decay(rows, cols, points, margin, sigma):
    strongest = max(weights_of(points))
    mask = np.zeros((rows, cols))
    for y in range(rows):
        for x in range(cols):
            for point, weight in zip(points, weights_of(points), strict=True):
                distance = literal_window_distance(x, y, point, rows, cols, margin)
                value = 0 if distance > math.ceil(3 * sigma) else math.exp(-(distance**2) / (2 * sigma**2))
                mask[y, x] = max(mask[y, x], value * weight / strongest)
    return mask


def literal_gaussian(rows, cols, points, sigma):
    mask = np.zeros((rows, cols))
    for y in range(rows):
        for x in range(cols):
            for point, weight in zip(points, weights_of(points), strict=True):
                squared = (x - point[0]) ** 2 + (y - point[1]) ** 2
                mask[y, x] += weight * math.exp(-squared / (2 * sigma**2))
    return mask / mask.max()


@given(gazes(), st.integers(0, 3), st.sampled_from([0.5, 1.0, 1.5, 4.0]))
@settings(deadline=None)
def test_masks_are_the_formulas(gaze, margin, sigma):
    rows, cols, points = gaze
    checked = check_scanpath(points, rows, cols)
    decay = connected_decay(checked, rows, cols, margin, sigma)
    torch.testing.assert_close(decay, torch.tensor(literal_decay(rows, cols, points, margin, sigma)).float())
    bumps = gaussian(checked, rows, cols, sigma)
    torch.testing.assert_close(bumps, torch.tensor(literal_gaussian(rows, cols, points, sigma)).float())
    inside = [
        [any(literal_window_distance(x, y, p, rows, cols, margin) == 0 for p in points) for x in range(cols)]
        for y in range(rows)
    ]
    assert windows(checked, rows, cols, margin).tolist() == [[float(cell) for cell in row] for row in inside]


# Hand-worked


@pytest.mark.parametrize(
    "point, margin, opened",
    [((3, 2), 1, 9), ((3, 2), 2, 25), ((3, 2), 0, 1), ((0, 0), 1, 4), ((7, 5), 1, 4), ((7, 0), 2, 9), ((3, 0), 1, 6)],
)
def test_margin_opens_its_window_clipped_at_the_border(point, margin, opened):
    mask = windows(check_scanpath([point], *GRID), *GRID, margin)
    assert mask.shape == GRID and mask.sum() == opened and mask[point[1], point[0]] == 1


def test_decay_by_hand():
    """One point in the corner of 6 x 8: a 2 x 2 window, rings at distance 1, 2, ..., cut behind ceil(3 sigma)."""
    mask = connected_decay(check_scanpath([(0, 0)], *GRID), *GRID, margin=1, sigma=1.0)
    ring = [1, 1, math.exp(-0.5), math.exp(-2), math.exp(-4.5), 0, 0, 0]
    torch.testing.assert_close(mask[0], torch.tensor(ring))
    torch.testing.assert_close(mask[:, 0], torch.tensor(ring[:6]))
    torch.testing.assert_close(mask.diagonal(), torch.tensor(ring[:6]))


def test_decay_reaches_ceil_of_three_sigma():
    mask = connected_decay(check_scanpath([(0, 0)], 1, 9), 1, 9, margin=0, sigma=1.5)
    assert (mask > 0).tolist() == [[True] * 6 + [False] * 3]  # ceil(4.5) = 5


def test_two_points_connect_through_the_nearest_window():
    mask = connected_decay(check_scanpath([(1, 0), (7, 0)], 1, 9), 1, 9, margin=1, sigma=1.0)
    near, far = math.exp(-0.5), math.exp(-2)
    torch.testing.assert_close(mask, torch.tensor([[1, 1, 1, near, far, near, 1, 1, 1]]))


def test_gaussian_by_hand():
    mask = gaussian(check_scanpath([(1, 0)], 2, 3), 2, 3, sigma=1.0)
    side, corner = math.exp(-0.5), math.exp(-1)
    torch.testing.assert_close(mask, torch.tensor([[side, 1, side], [corner, side, corner]]))
    twice = gaussian(check_scanpath([(0, 0), (0, 0), (4, 0)], 1, 5), 1, 5, sigma=0.5)
    assert twice[0, 4] == pytest.approx(0.5, abs=1e-6)  # a cell looked at twice counts twice


def test_weights():
    """Three times as long at the right: Gaussians and decay 1/3 at the left; windows take no notice."""
    gaze = check_scanpath([(0, 0, 200), (8, 0, 600)], 1, 9)
    assert gaussian(gaze, 1, 9, sigma=0.5)[0, 0] == pytest.approx(1 / 3)
    assert connected_decay(gaze, 1, 9, margin=0, sigma=0.5)[0].tolist()[::8] == pytest.approx([1 / 3, 1])
    assert windows(gaze, 1, 9, margin=0).tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("factor", [1e-300, 7.0, 1e300])
def test_only_ratios_of_weights_matter(factor):
    plain, scaled = (check_scanpath([(0, 0, a), (3, 1, 2 * a)], *GRID) for a in (1.0, factor))
    torch.testing.assert_close(gaussian(scaled, *GRID), gaussian(plain, *GRID))
    torch.testing.assert_close(connected_decay(scaled, *GRID), connected_decay(plain, *GRID))


def test_sigma_covers_the_same_share_of_every_grid():
    assert in_cells(4.0, 24, 24) == 4.0 and in_cells(1.5, 8, 8) == 0.5
    assert in_cells(4.0, 12, 48) == 4.0  # as many cells as 24 x 24
    assert in_cells(4.0, 8, 8, grid=None) == 4.0 and in_cells(4.0, 8, 8, grid=16) == 2.0
    large = Gaussian((0,)).mask(check_scanpath([(12, 12)], 25, 25), 25, 25)
    small = Gaussian((0,)).mask(check_scanpath([(2, 2)], 5, 5), 5, 5)
    torch.testing.assert_close(large[12, [2, 7, 12, 17, 22]], small[2])  # five times as fine


@pytest.mark.parametrize("sigma", SIZES)
@pytest.mark.parametrize("grid", [None, *SIZES])
def test_the_smallest_and_largest_sizes_make_masks(sigma, grid):
    gaze = check_scanpath([(1, 1)], *GRID)
    for method in (Gaussian((0,), sigma, grid), SalientHead((0,), margin=0, sigma=sigma, grid=grid)):
        drawn = method.draw(gaze, *GRID)
        assert drawn.isfinite().all() and drawn.min() >= 0 and drawn.max() == drawn[1, 1] == 1


# Row edits


def softmax_rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_multiplier_is_an_additive_bias():
    """softmax(z) * g, renormalised, is softmax(z + log g); zeros included."""
    scores = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    multiplier = torch.tensor([1.0, 0.25, 0.0, 1.0, 0.5])
    torch.testing.assert_close(multiply_keys(scores.softmax(-1), multiplier), (scores + multiplier.log()).softmax(-1))


def test_a_row_that_keeps_no_key_stays():
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    assert multiply_keys(weights, torch.tensor([0.0, 0.0, 1.0])).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]


def test_keys_outside_the_image_are_kept():
    mask = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    multiplier = over_keys(mask, torch.tensor([2, 3, 5, 6]), 8)
    torch.testing.assert_close(multiplier, torch.tensor([1, 1, 0.1, 0.2, 1, 0.3, 0.4, 1]))


def test_salient_heads_by_hand():
    """Keys: word, cell, cell. Only the first cell is looked at, so sim is the share of it in the image mass."""
    image, mask = torch.tensor([1, 2]), torch.tensor([[1.0, 0.0]])
    rows = torch.tensor([[0.2, 0.4, 0.4], [0.0, 0.8, 0.2], [0.5, 0.1, 0.4], [1.0, 0.0, 0.0]])[:, None]  # 4 heads
    torch.testing.assert_close(gaze_similarity(rows, image, mask), torch.tensor([[0.5], [0.8], [0.2], [0.0]]))
    # relative to 0.8: 0.625, 1, 0.25, 0
    assert salient_heads(rows, image, mask, tau=0.6, heads=8).flatten().tolist() == [True, True, False, False]
    assert salient_heads(rows, image, mask, tau=0.6, heads=1).flatten().tolist() == [False, True, False, False]
    assert salient_heads(rows, image, mask, tau=0.625, heads=8).flatten().tolist() == [False, True, False, False]
    edited = edit_salient_heads(rows, image, mask, tau=0.6, heads=8)
    torch.testing.assert_close(edited[:2, 0], torch.tensor([[1 / 3, 2 / 3, 0.0], [0.0, 1.0, 0.0]]))
    assert torch.equal(edited[2:], rows[2:])


def test_no_head_follows_a_gaze_that_none_sees():
    rows = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.0, 0.5]])[:, None]
    image, mask = torch.tensor([1, 2]), torch.tensor([[1.0, 0.0]])
    assert not salient_heads(rows, image, mask, tau=0.0).any()
    assert torch.equal(edit_salient_heads(rows, image, mask, tau=0.0), rows)


def test_a_head_without_image_mass_is_not_salient():
    """Head 0 has an image mass of 6e-18, all of it on the gazed cell; head 1 has 0.5, of which 0.4."""
    rows = torch.tensor([[1.0, 6e-18, 0.0], [0.5, 0.4, 0.1]])[:, None]
    image, mask = torch.tensor([1, 2]), torch.tensor([[1.0, 0.0]])
    assert gaze_similarity(rows, image, mask).flatten().tolist() == pytest.approx([6e-9, 0.8])
    assert salient_heads(rows, image, mask, heads=1).flatten().tolist() == [False, True]
    assert salient_heads(rows, image, mask, heads=8).flatten().tolist() == [False, True]
    rows[1, 0] = torch.tensor([1.0, 0.0, 0.0])
    rows[0, 0, 1] = 6e-20
    assert not salient_heads(rows, image, mask).any()  # nor where it is the largest of its layer


def test_a_row_that_keeps_next_to_nothing_sums_to_one():
    """The published code divides by a sum of at least 1e-6, so that such a row no longer sums to 1."""
    edited = multiply_keys(torch.tensor([1.0, 2e-8, 6e-8]), torch.tensor([0.0, 1.0, 1.0]))
    assert edited.tolist() == pytest.approx([0, 0.25, 0.75])


def test_of_equal_heads_the_first_are_taken():
    rows = torch.full((4, 1, 3), 1 / 3)
    chosen = salient_heads(rows, torch.tensor([1, 2]), torch.tensor([[1.0, 0.0]]), heads=2)
    assert chosen.flatten().tolist() == [True, True, False, False]


def literal_edit(weights, image, mask, tau, heads):
    """Row by row and head by head, in plain Python."""
    edited = weights.double().clone()
    flat = mask.flatten().double()
    for row in range(weights.shape[1]):
        similarity = []
        for head in range(weights.shape[0]):
            seen = [float(weights[head, row, key]) for key in image]
            inside = sum(w * float(g) for w, g in zip(seen, flat, strict=True))
            similarity.append(inside / sum(seen) if sum(seen) > 0 else 0.0)
        relative = [s / max(similarity) if max(similarity) > 0 else 0.0 for s in similarity]
        order = sorted(range(len(relative)), key=lambda head: (-relative[head], head))
        for head in order[:heads]:
            if relative[head] > tau:
                for key, g in zip(image.tolist(), flat, strict=True):
                    edited[head, row, key] *= g
                edited[head, row] /= edited[head, row].sum()
    return edited.float()


@given(gazes(), st.integers(0, 4), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 1000))
@settings(deadline=None)
def test_row_edit_is_the_formula(gaze, heads, tau, seed):
    rows, cols, points = gaze
    mask = connected_decay(check_scanpath(points, rows, cols), rows, cols, 1, 0.5)
    image = torch.randperm(rows * cols + 5, generator=torch.Generator().manual_seed(seed))[: rows * cols].sort().values
    weights = softmax_rows(4, 3, rows * cols + 5, seed=seed)
    edited = edit_salient_heads(weights, image, mask, tau, heads)
    torch.testing.assert_close(edited, literal_edit(weights, image, mask, tau, heads))
    torch.testing.assert_close(edited.sum(-1), torch.ones(4, 3))
    batch = edit_salient_heads(torch.stack([weights, weights.flip(0)]), image, mask, tau, heads)
    torch.testing.assert_close(batch[0], edited)  # further axes in front are samples


# Neutral


def test_neutral_settings_give_no_mask():
    gaze = check_scanpath([(1, 1)], *GRID)
    everything = [
        Gaussian(()), NonGaussian(()), SalientHead(()), SalientHead((0,), heads=0), SalientHead((0,), tau=1.0)
    ]  # fmt: skip
    for method in everything:
        assert method.neutral and method.mask(gaze, *GRID) is None
    for method in (Gaussian((0,)), NonGaussian((0,)), SalientHead((0,))):
        assert not method.neutral
        assert method.mask(gaze, *GRID) is not None and method.mask(None, *GRID) is None
    for method in (NonGaussian((0,), margin=8), SalientHead((0,), margin=8)):  # the window is the whole picture
        assert method.mask(gaze, *GRID) is None


def test_settings_reach_the_masks():
    gaze = check_scanpath([(1, 1), (6, 4)], *GRID)
    assert torch.equal(NonGaussian((0,), 2).mask(gaze, *GRID), windows(gaze, *GRID, 2))
    assert torch.equal(Gaussian((0,), 2.0, None).mask(gaze, *GRID), gaussian(gaze, *GRID, 2.0))
    scaled = connected_decay(gaze, *GRID, 0, 1.5 * math.sqrt(48) / 24)
    method = SalientHead((0,), heads=2, tau=0.2, margin=0)
    assert torch.equal(method.mask(gaze, *GRID), scaled)
    weights, image = softmax_rows(4, 2, 50), torch.arange(1, 49)
    assert torch.equal(method.edit(weights, image, scaled), edit_salient_heads(weights, image, scaled, 0.2, 2))
    assert not torch.equal(method.edit(weights, image, scaled), weights)


# Input


@pytest.mark.parametrize("empty", [None, [], (), np.zeros((0, 2)), torch.zeros(0, 2)])
def test_empty_scanpath_is_no_mask(empty):
    assert check_scanpath(empty, *GRID) is None


@pytest.mark.parametrize(
    "points", [[(7, 5), (0, 0)], [[7.0, 5.0], [0, 0]], np.array([(7, 5), (0, 0)]), torch.tensor([(7, 5), (0, 0)])]
)
def test_scanpaths_come_in_many_forms(points):
    gaze = check_scanpath(points, *GRID)
    assert gaze.cells.tolist() == [[7, 5], [0, 0]] and gaze.weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    "points, reason",
    [
        (
            [(0, 0), (8, 5)],
            "point-outside",
        ),
        ([(5, 6)], "point-outside"),  # inside only with x and y exchanged
        ([(-1, 0)], "point-outside"),
        ([(0, math.nan)], "point-not-finite"),
        ([(math.inf, 0)], "point-not-finite"),
        ([(1.5, 2)], "point-between-cells"),
        ([(1,)], "point-length"),
        ([(1, 1), (1, 1, 2)], "point-length"),
        ([(1, 1, 0)], "point-weight"),
        ([(1, 1, -2)], "point-weight"),
        ([(1, 1, math.nan)], "point-not-finite"),
        ([("1", "1")], "point-form"),
        ([(10**400, 1)], "point-form"),
        ((3, 4), "point-form"),  # the list of samples was forgotten
        (5, "scanpath-form"),
        ([None], "point-form"),
    ],
)
def test_bad_scanpaths_get_a_clear_sentence(points, reason):
    with refused(reason):
        check_scanpath(points, *GRID, sample=3)


def test_mask_types():
    assert parse_mask_type({"type": "gaussian", "margin": 1, "target-layer": None}, 4, 4) == Gaussian((0, 1, 2, 3))
    assert parse_mask_type({"type": "non-gaussian", "margin": 2, "target-layer": 3}, 4, 4) == NonGaussian((3,), 2)
    assert parse_mask_type({"type": "non-gaussian"}, 2, 4) == NonGaussian((0, 1), 1)
    assert parse_mask_type({"type": "gaussian", "target-layer": [3, 0, 3]}, 4, 4) == Gaussian((0, 3))
    assert parse_mask_type({"type": "gaussian", "target-layer": np.arange(2)}, 4, 4) == Gaussian((0, 1))
    assert parse_mask_type({"type": "gaussian", "target-layer": np.int64(2)}, 4, 4) == Gaussian((2,))
    assert parse_mask_type({"type": "gaussian", "target-layer": []}, 4, 4).neutral
    llava = parse_mask_type({"type": "salient-head", "margin": 1, "target-layer": None}, 32, 32)
    assert llava == SalientHead(tuple(range(19, 27)), heads=8, tau=0.5232, margin=1, sigma=1.5)
    assert parse_mask_type({"type": "salient-head", "target-layer": 0}, 8, 2) == SalientHead((0,), heads=1)


@pytest.mark.parametrize("depth, layers", [(32, range(19, 27)), (8, [5, 6]), (28, range(17, 24)), (2, [1]), (1, [0])])
def test_published_layers_in_proportion(depth, layers):
    assert in_proportion(PUBLISHED_LAYERS, depth) == tuple(layers)


@pytest.mark.parametrize(
    "mask_type, reason",
    [
        ({"type": "gauss"}, "unknown-mask-type"),
        ({"margin": 1}, "unknown-mask-type"),
        ({"type": ["gaussian"]}, "unknown-mask-type"),
        ("gaussian", "mask-type-form"),
        ({"type": "gaussian", "target_layer": 1}, "mask-type-key"),
        ({"type": "non-gaussian", "margin": -1}, "margin"),
        ({"type": "gaussian", "margin": -1}, "margin"),
        ({"type": "non-gaussian", "margin": 1.5}, "margin"),
        ({"type": "non-gaussian", "margin": True}, "margin"),
        ({"type": "gaussian", "target-layer": 4}, "no-such-layer"),
        ({"type": "gaussian", "target-layer": [0, -1]}, "no-such-layer"),
        ({"type": "gaussian", "target-layer": "all"}, "target-layer-form"),
        ({"type": "gaussian", "target-layer": 1.0}, "target-layer-form"),
        ({"type": "gaussian", "target-layer": True}, "target-layer-form"),
    ],
)
def test_bad_mask_types_get_a_clear_sentence(mask_type, reason):
    with refused(reason):
        parse_mask_type(mask_type, 4, 4)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: Gaussian((0,), sigma=0), "sigma"),
        (lambda: Gaussian((0,), sigma=math.nan), "sigma"),
        (lambda: Gaussian((0,), sigma=1e-170), "sigma"),
        (lambda: SalientHead((0,), sigma=1e200), "sigma"),
        (lambda: Gaussian((0,), grid=-1), "sigma"),
        (lambda: SalientHead((0,), sigma=-1.0), "sigma"),
        (lambda: SalientHead((0,), heads=-1), "heads"),
        (lambda: SalientHead((0,), tau=math.nan), "tau"),
        (lambda: SalientHead((0,), margin=-1), "margin"),
    ],
)
def test_bad_settings_get_a_clear_sentence(make, reason):
    with refused(reason):
        make()
