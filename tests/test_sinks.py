"""Sink dimensions: planted ones are found, exactly; the statistics in loops; agreement worked by hand."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.sinks import (
    Contrast,
    KindCounts,
    Profile,
    SinkSearch,
    Spikes,
    agreement,
    attention_received,
    compare,
    count_sample,
    edited_layers,
    highest,
    magnitudes,
    most_attended,
    random_sets,
    summarise_kinds,
    top_count,
    verdict,
    watch,
)
from data.errors import SampleError
from models import trace as trace_module
from models.attention import decoder_layers, prefill, residual_stream
from models.trace import AttentionTrace
from models.var import spikes
from tests import literal_var, tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
WIDTH = 64


def layout(images=(), start=0, length=0):
    positions = torch.tensor(images, dtype=torch.long)
    return SimpleNamespace(image_positions=positions, start=start, length=length)


# Who is watched


def test_image_tokens_are_seen_from_behind_all_images():
    watched = watch(layout([*range(3, 9), *range(11, 17)], start=1, length=20))
    assert watched.candidates.tolist() == [*range(3, 9), *range(11, 17)] and (watched.first, watched.last) == (17, 20)


def test_the_first_half_of_a_text_is_seen_from_the_second():
    watched = watch(layout(start=2, length=23))  # 21 tokens: 11 and 10
    assert watched.candidates.tolist() == list(range(2, 13)) and (watched.first, watched.last) == (13, 23)


@pytest.mark.parametrize("short", [layout(range(9), length=20), layout(range(20), length=20), layout(length=18)])
def test_too_short(short):
    with pytest.raises(SampleError, match="at least 10") as caught:
        watch(short)
    assert caught.value.reason == "prompt too short"


@pytest.mark.parametrize("elements", [1, 700, 10**6])
def test_attention_received_is_that_of_whole_matrices(elements, monkeypatch):
    """Against the eager model's matrices, for the padded sample of a batch, in blocks of any size."""
    model, processor = llava(), llava_processor()
    prompts = ["where is the red circle ?", "what is in the green square to the left of the blue circle ?"]
    inputs, layouts = model.prepare(processor, [[picture()], [picture(60, 90, seed=1)]], prompts)
    monkeypatch.setitem(trace_module.BLOCK_ELEMENTS, "cpu", elements)
    monkeypatch.setattr(trace_module, "BLOCK_ROWS", 1)
    with torch.no_grad(), AttentionTrace(model) as trace:
        prefill(model, inputs)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        matrices = model(**inputs, output_attentions=True).attentions
    for sample, where in enumerate(layouts):
        watched = watch(where)
        received = attention_received(trace, watched, sample)
        for layer, matrix in enumerate(matrices):
            rows = matrix[sample, :, watched.first : watched.last]
            expected = rows[..., where.image_positions].mean((0, 1))
            torch.testing.assert_close(received[layer], expected, atol=tolerance.two_runs(), rtol=0)
    assert layouts[0].start > 0


# The residual stream


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_stream_is_what_enters_each_layer(family):
    model, processor = (make() for make in FAMILIES[family])
    inputs, _ = model.prepare(processor, [picture()], "where is the red circle ?")
    seen = []
    with torch.no_grad():
        expected = list(model(**inputs, output_hidden_states=True).hidden_states)
        if family == "qwen3_vl":  # transformers' are what leaves the layer before; what deepstack adds then is left out
            made = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
            for layer, features in enumerate(made.deepstack_features, 1):
                expected[layer] = expected[layer].clone()
                expected[layer][inputs["input_ids"] == model.config.image_token_id] += features
        with residual_stream(model, lambda layer, hidden: seen.append((layer, hidden))):
            prefill(model, inputs)
        assert [layer for layer, _ in seen] == list(range(len(decoder_layers(model))))
        for layer, hidden in seen:
            torch.testing.assert_close(hidden, expected[layer], atol=1e-5, rtol=0)
        seen.clear()
        with residual_stream(model, lambda layer, hidden: seen.append(hidden.shape[1])):
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
    length, layers = inputs["input_ids"].shape[1], len(decoder_layers(model))
    assert seen == [length] * layers + [1] * 2 * layers


def test_residual_stream_leaves_no_hook():
    model = llava()
    with pytest.raises(ZeroDivisionError), residual_stream(model, lambda layer, hidden: 1 / 0):
        model.model.language_model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(model))


# What sets the attended tokens apart


def literal(received, magnitude, count):
    """top, gap, above and high of one layer, looped over; received [token], magnitude [token][dimension]."""
    order = sorted(range(len(received)), key=lambda token: -received[token])
    most, rest = order[:count], order[count:]
    total = sum(received[token] for token in most)
    found = []
    for dimension in range(len(magnitude[0])):
        top = sum(received[token] / total * magnitude[token][dimension] for token in most)
        others = [magnitude[token][dimension] for token in rest]
        above = sum(other < top for other in others) / len(others)
        high = next(other for other in sorted(others) if sum(o <= other for o in others) >= 0.9 * len(others))
        found.append((top, top - sum(others) / len(others), above, high))
    return torch.tensor(found).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_magnitudes_are_those_of_which_var_takes_the_largest(dtype):
    """Of random rows from the smallest to those whose squares are beyond float16, and of a row of zeros."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, WIDTH, generator=generator) * torch.logspace(-4, 3, 40)[:, None]
    rows = torch.cat([rows, torch.zeros(1, WIDTH)]).to(dtype)
    found = magnitudes(rows)
    assert found.shape == rows.shape and found.dtype == torch.float32
    for dimensions in ((5,), (0, 63), tuple(torch.randperm(WIDTH, generator=generator)[:9].tolist()), range(WIDTH)):
        torch.testing.assert_close(found[:, list(dimensions)].amax(-1), spikes(rows, tuple(dimensions)))


def test_contrast_is_the_literal_loop():
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(1, 40, 16, generator=generator) for _ in range(3)]
    candidates = torch.arange(4, 34)
    received = torch.rand(3, 30, generator=generator)
    contrast = Contrast(received, candidates, 0.1)
    for layer, each in enumerate(hidden):
        before = each.clone()
        contrast.see(layer, each)
        assert torch.equal(each, before)
        rows = each[0, candidates]
        magnitude = rows.abs() / rows.pow(2).mean(-1, keepdim=True).sqrt()
        expected = literal(received[layer].tolist(), magnitude.tolist(), 3)
        torch.testing.assert_close(torch.from_numpy(contrast.statistics[:, layer]), expected, atol=1e-4, rtol=0)
        half = Contrast(received, candidates, 0.1)
        half.received, half.most = received[layer : layer + 1], contrast.most[layer : layer + 1]
        half.see(0, 300 * each.half())  # squares beyond float16
        torch.testing.assert_close(torch.from_numpy(half.statistics[:2, 0]), expected[:2], atol=1e-2, rtol=0)
    share = np.mean([row.topk(3).values.sum() / row.sum() for row in received])
    assert contrast.top_share == pytest.approx(share, abs=tolerance.sums(30))


def test_top_count():
    assert [top_count(n, 0.1) for n in (10, 19, 20, 576)] == [1, 1, 2, 57]
    assert top_count(10, 0.01) == 1 and top_count(2, 0.9) == 1


def profile(layers, width=WIDTH, **spiking):
    """Statistics of a model in which d5=[2, 3] says that dimension 5 stands out in layers 2 and 3."""
    top, gap, above = np.ones((layers, width)), np.zeros((layers, width)), np.full((layers, width), 0.5)
    for name, places in spiking.items():
        dimension = int(name[1:])
        top[places, dimension], gap[places, dimension], above[places, dimension] = 6, 5, 1
    return Profile(top, gap, above, top - gap)


def test_consistent_dimensions_by_hand():
    """Of ten layers eight are counted and a quarter is two; the spikes of layers 0 and 1 do not count."""
    found = profile(10, d3=[0, 1, 2], d5=[2, 9], d7=[0, 4, 5, 6]).consistent()
    assert found == [
        {"dim": 7, "frequency": 3, "avg_score": 5.0},
        {"dim": 5, "frequency": 2, "avg_score": 5.0},
    ]
    deep = profile(22, d5=range(2, 7), d7=range(8, 12)).consistent()
    assert [each["dim"] for each in deep] == [5]  # five of twenty layers
    assert profile(3, d5=[2]).consistent()[0]["frequency"] == 1 and profile(4, d5=[2]).consistent() == []
    assert profile(2, d5=[0, 1]).consistent() == []


def test_a_spike_is_a_third_of_the_width_and_above_the_rest():
    """20 of a model 4096 wide is 2.5 of one 64 wide."""
    made = profile(4, d1=[2, 3], d2=[2, 3], d3=[2, 3], d4=[2, 3])
    made.top[:, 1], made.top[:, 2] = 2.51, 2.49
    made.above[:, 3] = 0.89
    assert sorted(each["dim"] for each in made.consistent()) == [1, 4]
    made = profile(4, width=256, d1=[2, 3], d2=[2, 3])
    made.top[:, 1], made.top[:, 2] = 5.01, 4.99
    assert [each["dim"] for each in made.consistent()] == [1]


def test_tau_lies_between_the_attended_tokens_and_the_rest():
    made = profile(4, d5=[2, 3], d6=[3])
    made.top[3, 6], made.high[3, 6] = 7, 4  # layer 2: 6 and 1; layer 3: 7 and 4
    assert made.tau([5, 6]) == 4.5 and made.tau([5]) == 3.5 and made.tau([]) is None


def test_per_layer_top():
    made = profile(3, d5=[2], d9=[1])
    made.gap[2, 9] = 2
    top = made.per_layer_top(2)
    assert list(top) == ["layer_0", "layer_1", "layer_2"] and top["layer_1"][0] == {"dim": 9, "score": 5.0}
    assert top["layer_2"] == [{"dim": 5, "score": 5.0}, {"dim": 9, "score": 2.0}]


def sample(made):
    return np.stack([made.top, made.gap, made.above, made.high]).astype(np.float32)


def search(*profiles):
    made = SinkSearch()
    for each in profiles:
        made.add(sample(each))
    return made


def test_recommended_is_what_both_halves_show():
    first, second = profile(6, d5=[2, 3, 4], d8=[2, 3, 4, 5]), profile(6, d5=[2, 3, 4], d8=[2, 3, 4, 5])
    second.above[:, 8] = 0.85  # not enough by itself, and enough in the mean of both
    found = search(first, second, first, second).findings()
    assert [each["dim"] for each in found["consistent_dimensions"]] == [8, 5]
    assert found["halves"] == [[8, 5], [5]] and found["recommended_dimensions"] == [5]
    assert (found["num_samples"], found["num_layers"], found["hidden_dim"], found["tau"]) == (4, 6, WIDTH, 3.5)
    none = search(profile(6, d5=[2, 3, 4]), second, profile(6), second).findings()
    assert none["recommended_dimensions"] == [] and none["tau"] is None


def test_at_most_two_are_recommended_and_none_of_one_sample():
    made = profile(6, d5=[2, 3, 4, 5], d6=[2, 3], d7=[2, 3, 4])
    found = search(made, made).findings()
    assert found["recommended_dimensions"] == [5, 7] and "first 2 are recommended" in found["reason"]
    alone = search(made).findings()
    assert alone["recommended_dimensions"] == [] and alone["tau"] is None and "one sample alone" in alone["reason"]
    once = search(profile(6, d5=[3]), profile(6, d5=[3])).findings()["reason"]
    assert "5 in layer 3, reaches 6.0, and a spike is 2.5 in a model 64 wide" in once
    assert "no dimension is larger" in search(profile(6), profile(6)).findings()["reason"]
    assert "no layer behind the first 2" in search(profile(2), profile(2)).findings()["reason"]
    with refused("no-sample"):
        search().profile()


# Planted sinks


@contextmanager
def planted(model, dimensions, tokens, value=1000.0, everywhere=()):
    """From layer 1 on, adds `value` to the dimensions at the tokens, and to `everywhere` at every token."""

    def plant(module, args):
        hidden = args[0].clone()
        for token in tokens:
            hidden[:, token, list(dimensions)] += value
        hidden[:, :, list(everywhere)] += value / 10
        return (hidden, *args[1:])

    handle = decoder_layers(model)[1].register_forward_pre_hook(plant)
    try:
        yield
    finally:
        handle.remove()


def find(model, processor, prompts, tokens=None, dimensions=(), everywhere=()):
    """What the finder says of prompts about pictures; `tokens` are the places among the image tokens that are sinks."""
    made = SinkSearch()
    for seed, prompt in enumerate(prompts):
        inputs, where = model.prepare(processor, [picture(seed=seed)], prompt)
        watched = watch(where)
        places = [] if tokens is None else where.image_positions[tokens].tolist()
        with planted(model, dimensions, places, everywhere=everywhere):
            with AttentionTrace(model) as trace:
                prefill(model, inputs)
            contrast = Contrast(attention_received(trace, watched), watched.candidates, 0.2)
            with residual_stream(model, contrast.see):
                prefill(model, inputs)
        made.add(contrast.statistics)
    return made.findings()


PROMPTS = ["where is the red circle ?", "what is in the square ?", "is the blue circle to the left of the square ?"]


@pytest.mark.parametrize("dimensions, tokens", [((7,), [3]), ((21, 40), [3, 11]), ((0, 63), [0, 8, 15])])
def test_planted_sinks_are_found_exactly(dimensions, tokens):
    found = find(llava(layers=8), llava_processor(), PROMPTS, tokens, dimensions)
    assert sorted(found["recommended_dimensions"]) == list(dimensions), found["reason"]
    assert sorted(each["dim"] for each in found["consistent_dimensions"]) == list(dimensions)
    assert 2 < found["tau"] < math.sqrt(WIDTH / len(dimensions))


def test_a_dimension_that_is_large_everywhere_is_no_sink():
    found = find(llava(layers=8), llava_processor(), PROMPTS, [3, 11], (21, 40), everywhere=(5,))
    assert sorted(found["recommended_dimensions"]) == [21, 40]
    only = find(llava(layers=8), llava_processor(), PROMPTS, everywhere=(5,))
    assert only["recommended_dimensions"] == [], only


def test_no_sinks_no_recommendation():
    found = find(llava(layers=8), llava_processor(), PROMPTS)
    assert found["recommended_dimensions"] == [] and found["consistent_dimensions"] == [] and found["tau"] is None
    assert found["reason"].startswith("no dimension ")


# Agreement with the attention received


def test_spikes_are_those_of_var():
    hidden = [torch.randn(1, 20, WIDTH, generator=torch.Generator().manual_seed(layer)) for layer in range(3)]
    candidates, sets = torch.arange(4, 18), np.array([[5, 9], [0, 63]])
    made = Spikes(candidates, sets)
    for layer, each in enumerate(hidden):
        made.see(layer, each)
    for place, dimensions in enumerate(sets.tolist()):
        expected = torch.stack([spikes(each[0, candidates], tuple(dimensions)) for each in hidden])
        np.testing.assert_allclose(made.values[place], expected, atol=1e-6)


def test_precision_and_recall_by_hand():
    """Two layers, four tokens: detected 0 1 | 3, wanted 1 | 3."""
    detected = np.array([[True, True, False, False], [False, False, False, True]])
    wanted = np.array([[False, True, False, False], [False, False, False, True]])
    counts = compare(detected, wanted)
    assert counts.precision() == pytest.approx(2 / 3) and counts.recall() == 1
    assert counts.precision(slice(0, 1)) == 0.5 and counts.precision(slice(1, 2)) == 1
    nothing = compare(~detected & ~detected & detected, wanted)
    assert nothing.precision() is None and nothing.recall() == 0


def test_the_highest_by_layer():
    values = np.array([[0.1, 0.5, 0.5, 0.2], [3, 1, 2, 0]])
    assert highest(values, np.array([1, 2])).tolist() == [[False, True, False, False], [True, False, True, False]]
    assert highest(np.tile([1.0, 1, 0], (1, 20)), np.array([3])).nonzero()[1].tolist() == [0, 1, 3]
    assert most_attended(np.arange(20.0)[None], 0.1).nonzero()[1].tolist() == [18, 19]


def test_random_sets_are_others():
    sets = random_sets(8, (1, 5), 50, np.random.default_rng(0))
    assert sets.shape == (51, 2) and sets[0].tolist() == [1, 5]
    assert not np.isin(sets[1:], [1, 5]).any() and (sets[1:, 0] != sets[1:, 1]).all()
    assert np.array_equal(sets, random_sets(8, (1, 5), 50, np.random.default_rng(0)))
    with refused("too-few-dimensions"):
        random_sets(3, (0, 1), 5, np.random.default_rng(0))


@pytest.mark.parametrize(
    "precision, recall, expected",
    [(0.51, 0.31, "good"), (0.5, 0.9, "fair"), (0.9, 0.3, "fair"), (0.3, 0.9, "poor"), (None, 0, "poor")],
)
def test_verdict(precision, recall, expected):
    assert verdict(precision, recall) == expected


def test_summary_of_planted_agreement():
    """Five layers, of which 2 and 3 are edited. Sample 0 detects its wanted tokens there, sample 1 nothing."""
    received = np.tile(np.arange(20.0), (5, 1))
    values = np.zeros((2, 2, 5, 20))  # sample, set, layer, token: the given dimensions, then random ones
    values[0, 0, 2:4, 18:] = 6
    values[:, 0, :2] = 6  # in the first layers every token is detected, and no such layer counts
    values[:, 1, :, :2] = 1
    samples = [count_sample(spikes, received, 5, (2.0, 7.0), 0.1) for spikes in values]
    assert samples[0].own.detected.tolist() == [20, 20, 2, 2, 0]
    summary = agreement(samples, (2.0, 7.0))
    assert summary["precision"]["mean"] == 1 and summary["precision"]["n"] == 1
    assert summary["recall"]["mean"] == 0.5 and summary["recall"]["n"] == 2
    assert summary["detected"] == 1 and summary["chance"] == 0.1 and summary["verdict"] == "good"
    assert summary["random_same_tau"]["precision"]["mean"] is None
    assert summary["random_same_count"]["precision"]["mean"] == 0
    assert [each["detected"] for each in summary["by_tau"]] == [1, 0]
    assert [each["precision"]["mean"] for each in summary["by_layer"]] == [0.1, 0.1, 1, 1, None]
    assert edited_layers(5) == slice(2, 4)
    with refused("too-few-layers"):
        edited_layers(3)


@torch.no_grad()
def test_sinks_are_counted_by_kind():
    """Two cells from layers 1 and 1 on, the first token in every layer, a word behind the image in layer 2."""
    model, processor = llava(), llava_processor()
    inputs, layout = model.prepare(processor, [picture(150, 90)], "what is red ?")
    image = layout.image_positions.tolist()
    planted = {(0, 0, 0): 40, (1, 0, image[0]): 7, (1, 0, image[5]): 40, (2, 0, image[-1] + 2): 7}
    counts = KindCounts(layout, lambda magnitude: (magnitude[:, list(literal_var.SPIKES)] > 5).any(1))
    with literal_var.planted(model, planted), residual_stream(model, counts.see):
        prefill(model, inputs)
    assert counts.values.tolist() == [[0, 2, 2], [1, 1, 2]]


def test_kinds_by_hand():
    """Two prompts of five layers, of which VAR edits the third and the fourth."""
    first, second = [[0, 0, 2, 0, 9], [1, 1, 1, 1, 1]], [[0, 0, 4, 0, 9], [1, 1, 0, 2, 1]]
    kinds = summarise_kinds([np.array(first), np.array(second)])
    assert (kinds["visual"]["mean"], kinds["text"]["mean"], kinds["visual"]["n"]) == (1.5, 1, 2)
    assert kinds["layers_without_visual"] == [3] and kinds["by_layer"][2] == {"visual": 3, "text": 0.5}
