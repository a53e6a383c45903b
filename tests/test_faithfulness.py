"""Insertion and deletion on curves worked by hand, and on the embedded model with maps whose worth is known."""

import numpy as np
import pytest

import models
from analysis.faithfulness import (
    RANDOM,
    area,
    curve_figure,
    curves,
    hidden_cells,
    mass_and_gain_figure,
    ranking,
    score_sample,
    shift,
    stack,
    summarise,
)
from analysis.metrics import cell_weights
from data import twoshapes
from data.images import hide_cells, median_colour, model_window, read_image
from models.generation import generate_answer, log_probabilities
from tests.errors import refused

SHAPE = (4, 5)


def test_ranking_goes_from_the_highest_and_ties_are_random():
    rng = np.random.default_rng(0)
    assert ranking(np.array([[0.1, 0.4], [0.3, 0.2]]), rng).tolist() == [1, 2, 3, 0]
    orders = [ranking(np.array([[1, 1, 5], [1, 1, 1]]), rng).tolist() for _ in range(50)]
    assert {order[0] for order in orders} == {2} and len({order[1] for order in orders}) == 5
    with refused("map-not-finite"):
        ranking(np.array([[1.0, np.nan]]), rng)


def test_cells_are_hidden_and_shown_in_equal_steps():
    order = np.array([3, 0, 1, 2])
    hidden = hidden_cells(order, (2, 2), "deletion", steps=2)
    assert hidden.astype(int).tolist() == [[[0, 0], [0, 0]], [[1, 0], [0, 1]], [[1, 1], [1, 1]]]
    assert (hidden_cells(order, (2, 2), "insertion", steps=2) == ~hidden).all()
    counts = hidden_cells(np.arange(144), (12, 12), "deletion").sum((1, 2))
    assert counts.tolist() == [0, 14, 29, 43, 58, 72, 86, 101, 115, 130, 144]


def test_area_is_the_mean_over_the_share_of_cells():
    assert area(np.array([0.0, -1.0])) == -0.5
    assert area(np.array([0.0, 0.0, -4.0, -4.0, -4.0])) == pytest.approx(-(0 + 2 + 4 + 4) / 4)


def test_curves_of_an_answer_that_rests_on_two_cells():
    """Each of two cells, when hidden, costs a nat. In the right order they go first; in the reverse, last."""
    gains = []

    def score(hidden):
        gains.append(len(hidden))
        return -hidden.reshape(len(hidden), -1)[:, [7, 12]].sum(1).astype(float)

    best = np.array([7, 12, *(cell for cell in range(20) if cell not in (7, 12))])
    found = curves({"best": best, "worst": best[::-1]}, SHAPE, score, steps=10)
    np.testing.assert_array_equal(found["best"].deletion, [0, *[-2] * 10])
    np.testing.assert_array_equal(found["best"].insertion, [-2, *[0] * 10])
    np.testing.assert_array_equal(found["worst"].deletion, [*[0] * 10, -2])
    np.testing.assert_array_equal(found["worst"].insertion, [*[-2] * 10, 0])
    assert gains == [20]  # once: 11 of each, where deletion of one order is insertion of its reverse


def test_gains_are_above_zero_where_the_map_is_right():
    """Ten pictures, the answer rests on one cell each. Its map gains; the map of the other cells loses."""
    found = []
    for number in range(10):
        rng = np.random.default_rng(number)
        cell = int(rng.integers(20))
        box = (np.arange(20) == cell).reshape(SHAPE).astype(float)

        def score(hidden, cell=cell):
            return -5.0 * hidden.reshape(len(hidden), -1)[:, cell]

        maps = {"right": box, "wrong": 1 - box}
        found.append(score_sample(f"sample-{number}", maps, {"right": box, "wrong": box}, score, rng))
    summary = summarise(found, seed=0)
    assert set(summary) == {"right", "wrong", RANDOM} and "looks" not in summary[RANDOM]
    assert summary["right"]["deletion"]["mean"] == pytest.approx(-5 * 0.95)
    assert summary["right"]["insertion"]["mean"] == pytest.approx(-5 * 0.05)
    assert summary["right"]["looks"]["mean"] == pytest.approx(1 - 1 / 20)
    assert summary["wrong"]["looks"]["mean"] == pytest.approx(-1 / 20)
    for gain in ("insertion_gain", "deletion_gain", "insertion_gain_random", "deletion_gain_random"):
        assert summary["right"][gain]["low"] > 0 and summary["right"][gain]["p"] < 0.01
        assert summary["right"][gain]["p"] <= summary["right"][gain]["q"] < 0.02
        assert summary["wrong"][gain]["high"] < 0 and summary["wrong"][gain]["n"] == 10
    chance = {way: summary[RANDOM][way]["mean"] for way in ("insertion", "deletion")}
    assert summary["right"]["insertion_gain_random"]["mean"] == pytest.approx(-0.25 - chance["insertion"])
    assert summary["right"]["deletion_gain_random"]["mean"] == pytest.approx(chance["deletion"] + 4.75)
    shifted = {way: np.mean([each.baseline("right", way, "shifted") for each in found]) for way in chance}
    assert summary["right"]["insertion_gain"]["mean"] == pytest.approx(-0.25 - shifted["insertion"])
    assert summary["right"]["deletion_gain"]["mean"] == pytest.approx(shifted["deletion"] + 4.75)


def test_a_shifted_map_is_the_same_map_elsewhere():
    cells, rng = np.arange(20).reshape(SHAPE), np.random.default_rng(0)
    places = set()
    for _ in range(200):
        moved = shift(cells, rng)
        row, col = np.argwhere(moved == 0)[0]
        places.add((row, col))
        np.testing.assert_array_equal(np.roll(moved, (-row, -col), (0, 1)), cells)
    assert len(places) == 19 and (0, 0) not in places
    assert shift(np.ones((1, 1)), rng).tolist() == [[1]]


def test_figures_show_what_can_be_told_apart():
    """The true boxes have no point under "looks at it", and two curves of six have bands."""
    rng, words = np.random.default_rng(0), ("first", "relation", "second", "boxes")
    maps = {word: rng.random(SHAPE) for word in words}
    found = [score_sample(str(number), maps, maps, lambda hidden: -hidden.sum((1, 2)), rng) for number in range(3)]
    looks, *uses = mass_and_gain_figure(summarise(found, seed=0)).axes
    assert len(looks.containers) == 3 and [len(axes.containers) for axes in uses] == [8, 8]
    for axes in curve_figure(stack(found)).axes:
        assert len(axes.lines) == 6 and len(axes.collections) == 2


def test_a_map_that_is_not_there_is_left_out_alone():
    """Its figures rest on the other samples, and what is known of other maps stays."""
    rng = np.random.default_rng(0)
    box, missing = rng.random(SHAPE), np.full(SHAPE, np.nan)
    boxes = {"first": box, "second": box}

    def score(hidden):
        return -hidden.sum((1, 2))

    found = [
        score_sample(name, {"first": box, "second": second}, boxes, score, rng)
        for name, second in (("whole", box), ("half", missing))
    ]
    summary = summarise(found, seed=0)
    assert [summary["first"][key]["n"] for key in ("looks", "deletion", "insertion_gain")] == [2, 2, 2]
    for key in ("looks", "deletion", "insertion_gain", "deletion_gain_random"):
        assert (summary["second"][key]["n"], summary["second"][key]["skipped"]) == (1, 1)


def blob(shape, rng):
    """A Gaussian about a random place, two cells wide: as smooth as a model's map, and knows nothing."""
    down, across = (np.exp(-(((np.arange(side) - rng.uniform(0, side)) / 2) ** 2) / 2) for side in shape)
    return np.outer(down, across)


@pytest.fixture(scope="module")
def gains(tmp_path_factory):
    """16 pictures, each asked whether its first shape is there: what cells are worth to the embedded model's answer."""
    root = tmp_path_factory.mktemp("asked") / "set"
    twoshapes.generate(root, 16, seed=11)
    model, processor = models.load("tiny-llava")
    found = []
    for number, pair in enumerate(twoshapes.read(root)[0]):
        image, rng = read_image(pair.image_path), np.random.default_rng(number)
        grid = model.image_grid(processor, *image.size)
        prompt = f"is there a {pair.first.colour} {pair.first.shape} ?"
        forced = generate_answer(model, processor, image, prompt, 8)
        window, colour = model_window(image, grid), median_colour(image)
        assert colour == (0, 0, 0)  # the ground of these images
        box, other = (cell_weights(shape.box, grid) for shape in (pair.first, pair.second))

        def score(hidden, window=window, colour=colour, prompt=prompt, forced=forced):
            shown = [hide_cells(window, cells, colour) for cells in hidden]
            return log_probabilities(model, processor, shown, prompt, forced, batch_size=32).numpy()

        maps = {"perfect": box, "random map": rng.random(box.shape), "blob": blob(box.shape, rng), "other": other}
        found.append(score_sample(pair.id, maps, dict.fromkeys(maps, box), score, rng, steps=4))
    return summarise(found, seed=0)


GAINS = ("insertion_gain", "deletion_gain")
GAINS_OVER_RANDOM = ("insertion_gain_random", "deletion_gain_random")


def test_perfect_map_beats_random_order_on_the_embedded_model(gains):
    for gain in GAINS + GAINS_OVER_RANDOM:
        figure = gains["perfect"][gain]
        assert figure["n"] == 16 and figure["low"] > 0.5 and figure["p"] < 0.001


def test_random_map_does_not(gains):
    for gain in GAINS + GAINS_OVER_RANDOM:
        figure = gains["random map"][gain]
        assert figure["n"] == 16 and figure["low"] < 0 < figure["high"] and figure["p"] > 0.05


def test_random_blob_beats_random_order_but_not_itself_elsewhere(gains):
    """Why the map shifted is the baseline: a patch anywhere hides more of a picture than cells all over it."""
    assert gains["blob"]["deletion_gain_random"]["low"] > 0
    for gain in GAINS:
        assert gains["blob"][gain]["low"] < 0 < gains["blob"][gain]["high"]


def test_map_of_the_other_shape_uses_less_than_that_of_the_shape_asked_for(gains):
    """Looking is not using: the other shape's box is as well drawn, and the answer does not rest on it."""
    for gain in GAINS:
        assert gains["other"][gain]["high"] < gains["perfect"][gain]["low"]
    assert gains["other"]["looks"]["mean"] < 0.2 < gains["perfect"]["looks"]["mean"]
