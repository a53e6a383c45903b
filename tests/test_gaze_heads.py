"""Heads and gaze: similarity worked by hand, heads that were planted to follow the gaze, and the control."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import models.gaze
from analysis.gaze_heads import (
    LIFT_SHARE,
    MIN_IMAGE_MASS,
    MIN_IMAGES,
    Inside,
    Settings,
    attention_inside,
    best_threshold,
    carries_over,
    find_followers,
    mean_heads,
    propose,
    rank_correlation,
    relative,
    score,
    select,
)
from analysis.statistics import REAL, halves, known_mean, mean_interval
from data.errors import SampleError
from models.gaze import check_scanpath, connected_decay, gaze_similarity, salient_heads
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
LAYERS, HEADS, SIDE = 3, 4, 6
PLANTED = {(1, 2), (1, 3), (2, 0)}


class PlantedTrace:
    """A trace whose attention is given: `matrices` [layer, head, query, key], one sample."""

    def __init__(self, matrices, prompt_length):
        self.matrices, self.prompt_length = matrices, prompt_length
        self.layers, self.length = matrices.shape[0], matrices.shape[2]
        self.start = torch.zeros(1, dtype=torch.long)

    def device(self, layer):
        return torch.device("cpu")

    def weights(self, layer, queries, samples):
        return self.matrices[layer][None, :, list(queries)]


def planted_layout(length, cells):
    return SimpleNamespace(sample=0, start=0, length=length, images=(torch.tensor(cells),) if cells else ())


def test_two_tokens_by_hand():
    """Image at 0, 1, 2; a word; two answer tokens, the first predicted by the word's row 3, the second by row 4.

    Head 0 looks with .2, .2, .1, then .4, .2, .1: with G = 1, .5, 0 that is (.2 + .1 + .4 + .1) of (.5 + .7), .8/1.2.
    Head 1 looks at the image in the second row only, at cell 2 where G is 0. Head 2 never looks.
    """
    rows = torch.zeros(1, 3, 5, 5)
    rows[0, 0, 3] = torch.tensor([0.2, 0.2, 0.1, 0.5, 0])
    rows[0, 0, 4] = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.2])
    rows[0, 1, 3, 3] = 1
    rows[0, 1, 4, 2:4] = 0.5
    rows[0, 2, 3:, 3] = 1
    found = attention_inside(PlantedTrace(rows, 4), planted_layout(4, [0, 1, 2]), [[[1, 0.5, 0]], [[0, 0, 1]]])
    np.testing.assert_allclose(found.image_mass, [[0.6, 0.25, 0]], atol=1e-6)  # a mean over the rows
    np.testing.assert_allclose(found.similarity[0], [[0.8 / 1.2, 0, np.nan]], atol=1e-6)
    np.testing.assert_allclose(found.similarity[1], [[0.2 / 1.2, 1, np.nan]], atol=1e-6)
    np.testing.assert_allclose(found.share, [0.4 / 0.85, 0.35 / 0.85], atol=1e-6)
    one = attention_inside(PlantedTrace(rows, 4), planted_layout(4, [0, 1, 2]), [[[1, 0.5, 0]]], tokens=1)
    np.testing.assert_allclose(one.similarity[0], [[0.3 / 0.5, np.nan, np.nan]], atol=1e-6)
    read = attention_inside(PlantedTrace(rows, 4), planted_layout(4, [0, 1, 2]), [[[1, 0.5, 0]]], rows="query")
    np.testing.assert_allclose(read.similarity[0], [[0.5 / 0.7, 0, np.nan]], atol=1e-6)


def test_what_cannot_be_measured():
    trace = PlantedTrace(torch.eye(4).expand(1, 1, 4, 4), 4)
    with refused("no image", SampleError):
        attention_inside(trace, planted_layout(4, []), [torch.ones(1, 1)])
    with refused("mask-size"):
        attention_inside(trace, planted_layout(4, [0, 1, 2]), [torch.ones(2, 2)])
    with refused("no query row", SampleError):
        attention_inside(trace, planted_layout(4, [0, 1, 2]), [torch.ones(3, 1)], rows="query")
    nobody = attention_inside(trace, planted_layout(4, [0, 1]), [torch.ones(1, 2)])
    assert np.isnan(nobody.share).all() and np.isnan(nobody.similarity).all()


def test_similarity_of_a_head_without_image_mass_is_undefined():
    """An image mass of 6e-18 is rounding, not attention; the least mass is that of the salient-head method."""
    found = Inside(np.array([[6e-18, 0.5]]), np.array([[[6e-18, 0.4]]]))
    np.testing.assert_allclose(found.similarity, [[[np.nan, 0.8]]])
    assert MIN_IMAGE_MASS == models.gaze.MIN_IMAGE_MASS


def test_of_a_model_it_is_what_the_method_itself_measures():
    """For one generated token, against `models.gaze.gaze_similarity` on the trace's own row; two in a padded batch."""
    model, processor = llava(), llava_processor()
    inputs, layouts = model.prepare(
        processor, [[picture()], [picture(seed=1)]], ["what ?", "where is the red circle ?"]
    )
    with AttentionTrace(model) as trace:
        model.generate(**inputs, max_new_tokens=3)
    gaze = connected_decay(check_scanpath([(1, 2)], 4, 4), 4, 4, margin=0, sigma=0.7)
    for layout in layouts:
        found = attention_inside(trace, layout, [gaze], tokens=1)
        for layer in range(trace.layers):
            row = trace.weights(layer, [trace.prompt_length - 1], samples=[layout.sample])[0]
            expected = gaze_similarity(row, layout.image_positions, gaze)[:, 0]
            np.testing.assert_allclose(found.similarity[0, layer], expected, atol=tolerance.sums(16))
            image_mass = row[:, 0, layout.image_positions].sum(-1)
            np.testing.assert_allclose(found.image_mass[layer], image_mass, atol=tolerance.sums(16))


def test_relative_to_the_layers_largest():
    found = relative(np.array([[0.2, 0.4], [0, 0], [np.nan, 0.5], [np.nan, np.nan]]))
    np.testing.assert_array_equal(found, [[0.5, 1], [0, 0], [np.nan, 1], [np.nan, np.nan]])


def test_means_leave_out_what_is_undefined():
    values = np.array([[[1.0, 2.0]], [[3.0, np.nan]], [[8.0, np.nan]]])
    found, alone = mean_heads(values, REAL), mean_interval([1.0, 3.0, 8.0])
    assert found["n"].tolist() == [[3, 1]] and found["mean"].tolist() == [[4, 2]]
    assert found["deviation"][0, 0] == pytest.approx(np.sqrt(13))  # (9 + 1 + 16) / 2
    assert (found["low"][0, 0], found["high"][0, 0]) == (alone["low"], alone["high"])
    assert np.isnan(found["deviation"][0, 1]) and np.isnan(found["low"][0, 1])


def planted_images(count, rng):
    """Similarities [image, layer, head] with the own and with another image's gaze, and attention on the image.

    The PLANTED heads put four fifths of their attention where the gaze is, the others spread theirs at random; head
    (2, 0) hardly looks at the image at all. Three answer rows a picture, through `attention_inside`.
    """
    cells = SIDE * SIDE
    points = [[tuple(rng.integers(SIDE, size=2).tolist())] for _ in range(count)]
    masks = [connected_decay(check_scanpath(p, SIDE, SIDE), SIDE, SIDE, margin=0, sigma=0.7) for p in points]
    own, shuffled, image_mass = [], [], []
    for index in range(count):
        matrices = torch.zeros(LAYERS, HEADS, cells + 3, cells + 3)
        for layer, head in np.ndindex(LAYERS, HEADS):
            looks = 0.01 if (layer, head) == (2, 0) else 0.6
            for row in range(cells, cells + 3):
                spread = torch.from_numpy(rng.dirichlet(np.full(cells, 0.3)))
                if (layer, head) in PLANTED:
                    gaze = masks[index].flatten().double()
                    spread = 0.8 * gaze / gaze.sum() + 0.2 * spread
                matrices[layer, head, row, :cells] = looks * spread
                matrices[layer, head, row, row] = 1 - looks
        trace, layout = PlantedTrace(matrices, cells + 1), planted_layout(cells + 1, list(range(cells)))
        found = attention_inside(trace, layout, [masks[index], masks[index - 1]])
        own.append(found.similarity[0])
        shuffled.append(found.similarity[1])
        image_mass.append(found.image_mass)
    return np.stack(own), np.stack(shuffled), np.stack(image_mass), torch.stack(masks).numpy()


@pytest.fixture(scope="module")
def planted():
    return planted_images(60, np.random.default_rng(0))


def test_planted_heads_are_found_and_the_control_is_at_chance(planted):
    own, shuffled, _, masks = planted
    chance = masks.mean()
    followers = find_followers(own - shuffled)
    assert {tuple(at) for at in np.argwhere(followers).tolist()} == PLANTED
    expected = 0.8 * (masks**2).sum((1, 2)) / masks.sum((1, 2)) + 0.2 * masks.mean((1, 2))
    np.testing.assert_allclose(own.mean(0)[followers], expected.mean(), atol=0.01)
    assert shuffled.mean(0)[~followers].mean() == pytest.approx(chance, abs=0.02)
    assert own.mean(0)[~followers].mean() == pytest.approx(chance, abs=0.02)
    assert shuffled.mean(0)[followers].max() < chance + 0.1
    assert not find_followers(shuffled - np.roll(shuffled, 1, axis=0)).any()


def test_one_of_many_heads_must_be_surer_than_one_alone():
    """Lifts 0 and 0.6 in turn in ten images: t = 3, above 2.26 (9 degrees, 95 %) and below 3.69 (95 % of ten heads)."""
    lift = np.zeros((10, 2, 5))
    lift[:, 0, 0] = 0.5
    lift[::2, 1, 3] = 0.6
    assert mean_heads(lift, REAL)["low"][1, 3] > 0 and lift[:, 1, 3].mean() > LIFT_SHARE * lift[:, 0, 0].mean()
    assert np.argwhere(find_followers(lift)).tolist() == [[0, 0]]
    assert find_followers(lift[:, 1:, 3:4]).all()


def test_proposal_takes_the_layers_of_heads_that_look_and_carries_over(planted):
    own, shuffled, image_mass, _ = planted
    first, second = halves(len(own), np.random.default_rng(0))
    proposal = propose(own[first], shuffled[first], image_mass[first])
    assert proposal.settings.layers == (1,)  # the follower of layer 2 hardly looks at the image
    assert proposal.settings.heads == 2 and 0 < proposal.settings.tau < 0.9
    assert "3 of 12 heads follow the gaze" in proposal.reason and "2 of them spend at least 10%" in proposal.reason
    lift = known_mean(own[first] - shuffled[first])
    found = carries_over(proposal, own[second], shuffled[second], lift, seed=0)
    assert found["followers"] == {"first_half": 3, "second_half": 3, "both": 3}
    assert found["followers_taken"]["mean"] == 1 and found["others_taken"]["mean"] < 0.1
    assert found["gaze"]["lift"]["low"] > 0.25 and found["gaze"]["similarity"]["mean"] > 0.4
    assert found["gaze"]["heads"]["mean"] == pytest.approx(2, abs=0.2) and found["gaze"]["lift"]["n"] == 30
    assert found["rank_correlation"]["low"] > 0


def test_no_proposal_where_nothing_follows_or_little_was_seen(planted):
    own, shuffled, image_mass, _ = planted
    nothing = propose(shuffled, np.roll(shuffled, 1, axis=0), image_mass)
    assert nothing.settings is None and "no head that looks at the image follows" in nothing.reason
    for count in (0, MIN_IMAGES - 1):
        few = propose(own[:count], shuffled[:count], image_mass[:count])
        assert few.settings is None and not few.followers.any()
        assert few.reason.startswith("too few images: ") and few.reason.endswith("so give at least 20")
    blind = propose(own, shuffled, np.full_like(image_mass, 0.05))
    assert blind.settings is None and blind.followers.sum() == 3


def test_selecting_the_largest_gains_nothing_without_a_lift(planted):
    """The best of many heads is near any gaze; measured the same way on both sides, the lift is still none."""
    _, shuffled, _, masks = planted
    found = score(Settings((0, 1, 2), 0.5, 1), shuffled, np.roll(shuffled, 1, axis=0))
    assert found["similarity"]["mean"] > 1.5 * masks.mean()
    assert found["lift"]["low"] < 0 < found["lift"]["high"]


def test_selection_is_that_of_the_method():
    """Against `models.gaze.salient_heads` on rows whose image attention is the whole row."""
    rng = np.random.default_rng(2)
    mask = torch.rand(1, 9, generator=torch.Generator().manual_seed(0))
    weights = torch.from_numpy(rng.dirichlet(np.full(9, 0.5), size=(20, 2, 5, 1))).float()
    similarity = gaze_similarity(weights, torch.arange(9), mask)[..., 0].double().numpy()
    expected = salient_heads(weights, torch.arange(9), mask, tau=0.6, heads=2)[..., 0].numpy()
    expected[:, 0] = False
    np.testing.assert_array_equal(select(similarity, Settings((1,), 0.6, 2)), expected)
    assert expected.sum(-1)[:, 1].min() > 0 and expected.sum(-1).max() == 2


def test_threshold_is_the_lowest_that_tells_apart_as_well_as_any():
    high, low = np.full((10, 2), 0.9), np.full((10, 3), 0.3)
    assert best_threshold(high, low) == pytest.approx((0.3, 1, 0))
    assert best_threshold(high, np.empty((10, 0))) == (0.0, 1.0, 0.0)
    mixed = np.where(np.arange(20)[:, None] < 10, 0.9, 0.2) * np.ones((20, 2))  # half of the images, all of their heads
    tau, kept, passed = best_threshold(mixed, np.full((20, 3), 0.5))
    assert (tau, kept, passed) == (pytest.approx(0.5), 0.5, 0)


def test_halves_share_nothing():
    first, second = halves(11, np.random.default_rng(3))
    assert len(first) == 5 and len(second) == 6 and sorted([*first, *second]) == list(range(11))


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 5)), rng.random((30, 2, 5))
    found = rank_correlation(first, second, seed=0)
    assert found["correlation"] == pytest.approx(stats.spearmanr(first.ravel(), second.mean(0).ravel()).statistic)
    assert found["low"] < found["correlation"] < found["high"] and found["n"] == 30
    assert rank_correlation(first, np.stack([first] * 4), seed=0)["low"] == pytest.approx(1)


def test_undefined_heads_are_never_taken_and_do_not_spoil_the_others():
    image_mass = np.array([[0.5, 0.0]])
    inside = Inside(image_mass, np.array([[[0.4, 0.0]], [[0.1, 0.0]]]))
    own, shuffled = inside.similarity[:1].repeat(12, 0), inside.similarity[1:].repeat(12, 0)
    assert find_followers(own - shuffled).tolist() == [[True, False]]
    proposal = propose(own, shuffled, image_mass[None].repeat(12, 0))
    assert proposal.settings.layers == (0,) and proposal.settings.heads == 1
    assert not select(own, proposal.settings)[..., 1].any()
    assert score(proposal.settings, own, shuffled)["lift"]["mean"] == pytest.approx(0.6)
