"""Visual attention redistribution: formulas by hand and in loops, settings, and where dimensions come from."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlavaConfig

from data.errors import MissingFileError
from models.methods import MethodSettings
from models.var import KNOWN, VAR, detect_sinks, read_findings, redistribute, select_heads, spikes
from tests import tolerance
from tests.errors import refused
from tests.models import llava

pytestmark = pytest.mark.numerical


def positions(*values):
    return torch.tensor(values, dtype=torch.long)


# Sinks


def test_spikes_by_hand():
    """RMS of (2, 0, 0, 0) is 1, of (3, -4, 0, 0) 2.5, of (1, 1, 1, 1) 1 and of (6, -8, 0, 0) 5."""
    hidden = torch.tensor([[2.0, 0, 0, 0], [3, -4, 0, 0], [1, 1, 1, 1], [6, -8, 0, 0]])
    assert spikes(hidden, (0, 3)).tolist() == pytest.approx([2, 1.2, 1, 1.2], abs=1e-5)
    assert spikes(hidden, (1,)).tolist() == pytest.approx([0, 1.6, 1, 1.6], abs=1e-5)  # the sign does not matter
    assert detect_sinks(hidden, (0, 1), 1.3).tolist() == [True, True, False, True]
    assert detect_sinks(hidden, (2,), 0.9).tolist() == [False, False, True, False]
    assert not detect_sinks(hidden, (0, 1, 2, 3), 2.1).any()  # at most sqrt(width)


def test_the_threshold_itself_is_no_sink():
    hidden = torch.full((1, 4), 5.0)
    value = float(spikes(hidden, (0,))[0])
    assert not detect_sinks(hidden, (0,), value).any() and detect_sinks(hidden, (0,), value - 1e-6).all()


def test_spikes_of_half_precision_and_further_axes():
    hidden = torch.randn(2, 3, 7, 64, generator=torch.Generator().manual_seed(0)) * 300  # squares beyond float16
    expected = hidden[..., [5, 9]].abs().amax(-1) / (hidden.pow(2).mean(-1) + 1e-6).sqrt()
    torch.testing.assert_close(spikes(hidden, (5, 9)), expected)
    torch.testing.assert_close(spikes(hidden.half(), (5, 9)), expected, rtol=1e-2, atol=1e-2)
    assert spikes(hidden.half(), (5, 9)).dtype == torch.float32
    assert torch.equal(spikes(torch.zeros(2, 4), (0,)), torch.zeros(2))


# Heads and rows


def test_heads_by_hand():
    """Keys: text sink 0, image 1, 2 (a sink), 3. Head 0 looks past the image, 1 at its sink, 2 at both, 3 at 3."""
    rows = [[0.9, 0.1, 0.0, 0.0], [0.1, 0.2, 0.7, 0.0], [0.5, 0.125, 0.25, 0.125], [0, 0, 0, 1]]
    weights = torch.tensor(rows)[:, None]
    image, sinks = positions(1, 2, 3), positions(0, 2)
    assert select_heads(weights, image, sinks).flatten().tolist() == [False, False, True, True]
    assert select_heads(weights, image, sinks, rho=0.8).flatten().tolist() == [False, True, True, True]
    assert select_heads(weights, image, sinks, min_image_mass=0.6).flatten().tolist() == [False, False, False, True]
    assert select_heads(weights, image, sinks, min_image_mass=0.5).flatten().tolist() == [False, False, True, True]
    assert select_heads(weights, image, sinks, rho=0, min_image_mass=0).flatten().tolist() == [True, False, False, True]
    assert not select_heads(weights, positions(), sinks).any()


def test_redistribution_by_hand():
    """Sinks 0 (text) and 2 (image) halve and free 0.05 + 0.15; image tokens 1 and 4 share it as 0.2 : 0.1."""
    weights = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
    edited = redistribute(weights, positions(1, 2, 4), positions(0, 2), p=0.5)
    assert edited.tolist() == pytest.approx([0.05, 0.2 + 0.4 / 3, 0.15, 0.3, 0.1 + 0.2 / 3])
    assert weights.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.1])  # not in place


def test_rows_that_stay_bit_for_bit():
    weights = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    image, sinks = positions(1, 2, 3), positions(0, 2)
    assert torch.equal(redistribute(weights, image, sinks, p=1.0), weights)
    assert torch.equal(redistribute(weights, image, positions(), p=0.3), weights)
    assert torch.equal(redistribute(weights, positions(2), sinks, p=0.3), weights)  # the image is one sink
    assert torch.equal(redistribute(weights, positions(), sinks, p=0.3), weights)
    blind = weights.clone()
    blind[1, :, [1, 3]] = 0  # these rows see nothing of the image beyond its sink
    edited = redistribute(blind, image, sinks, p=0.3)
    assert torch.equal(edited[1], blind[1]) and not torch.isclose(edited[0], blind[0]).all()


def test_next_to_nothing_is_no_infinity():
    weights = torch.tensor([1.0, 1e-44, 3e-44])
    edited = redistribute(weights, positions(0, 1, 2), positions(0), p=0.6)
    assert edited.tolist() == pytest.approx([0.6, 0.1, 0.3], rel=0.1)


def literal(rows, image, sinks, var):
    """The paper's three steps over rows as lists [head][row][key], looped over."""
    result = []
    for head in rows:
        result.append([])
        for row in head:
            visual = [k for k in image if k < len(row)]
            mass = sum(row[k] for k in visual)
            sunk = sum(row[k] for k in visual if k in sinks)
            others = [k for k in visual if k not in sinks]
            left = sum(row[k] for k in others)
            edited = list(row)
            if mass >= var.min_image_mass and sunk <= var.rho * mass and left > 0:
                freed = 0.0
                for k in sinks:
                    if k < len(row):
                        freed += (1 - var.p) * row[k]
                        edited[k] = var.p * row[k]
                for k in others:
                    edited[k] = row[k] + freed * row[k] / left
            result[-1].append(edited)
    return torch.tensor(result, dtype=torch.float64)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_edit_is_the_literal_loop(data):
    heads, rows, keys = (data.draw(st.integers(1, high), label) for label, high in (("h", 3), ("r", 4), ("k", 12)))
    share = st.floats(0, 1, width=32)
    some = st.lists(st.integers(0, keys + 2), unique=True).map(sorted)  # the last ones lie behind the last key
    image, sinks = data.draw(some), data.draw(some)
    var = VAR((0,), rho=data.draw(share), min_image_mass=data.draw(share), p=data.draw(share))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = 4 * torch.randn(heads, rows, keys, generator=generator)
    scores[torch.rand(heads, rows, keys, generator=generator) < 0.3] = -torch.inf
    scores[..., 0] = scores[..., 0].clamp_min(-5)
    weights = scores.softmax(-1)
    seen = [positions(*(k for k in places if k < keys)) for places in (image, sinks)]
    selected, edited = var.select(weights, *seen), var.edit(weights, positions(*image), positions(*sinks))
    assert edited.shape == weights.shape and bool((edited >= 0).all())
    torch.testing.assert_close(edited.sum(-1), torch.ones(heads, rows), atol=tolerance.sums(4 * keys), rtol=0)
    assert torch.equal(edited[~selected], weights[~selected])
    if var.p == 1:
        assert torch.equal(edited, weights)
    mass = weights[..., [k for k in image if k < keys]].sum(-1)
    sunk = weights[..., [k for k in image if k < keys and k in sinks]].sum(-1)
    near = ((mass - var.min_image_mass).abs() < 1e-5) | ((sunk - var.rho * mass).abs() < 1e-5)  # decided by rounding
    expected = literal(weights.tolist(), image, sinks, var)
    torch.testing.assert_close(edited[~near].double(), expected[~near], atol=tolerance.sums(4 * keys), rtol=0)


def test_further_leading_axes():
    var = VAR((0,))
    weights = torch.rand(2, 3, 4, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    image, sinks = positions(1, 2, 3, 4), positions(0, 3)
    whole = var.edit(weights, image, sinks)
    torch.testing.assert_close(whole, torch.stack([var.edit(each, image, sinks) for each in weights]))
    assert not torch.equal(whole, weights)


# Settings


def test_published_settings():
    var = VAR((2533, 1415))
    assert (var.tau, var.rho, var.min_image_mass, var.p) == (20, 0.5, 0.2, 0.6)
    assert var.layers(32) == range(2, 31) and VAR((0,), spare_last_layer=False).layers(4) == range(2, 4)
    assert not var.neutral and VAR((0,), p=1).neutral
    with pytest.raises(FrozenInstanceError):
        var.p = 0.5


def test_flags_reach_the_settings_of_published_code():
    flags = MethodSettings(method="var", var_dimensions=(3,), var_threshold=2.0)
    config = llava().config
    paper = flags.method_settings(config)
    assert not paper.skip_without_visual_sinks and paper.prompt_rows == "after-image"
    published = replace(flags, var_skip_without_visual_sinks=True, var_prompt_rows="all").method_settings(config)
    assert published.skip_without_visual_sinks and published.prompt_rows == "all"


def test_sinks_are_positions():
    hidden = torch.ones(5, 16)
    hidden[[1, 4], 7] = 100
    assert VAR((7, 3), tau=3).sinks(hidden).tolist() == [1, 4]
    assert VAR((3,), tau=3).sinks(hidden).dtype == torch.long and len(VAR((3,), tau=3).sinks(hidden)) == 0


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ({"p": 1.2}, "not-a-share"),
        ({"p": math.nan}, "not-a-share"),
        ({"rho": -0.1}, "not-a-share"),
        ({"min_image_mass": 2}, "not-a-share"),
        ({"tau": 0}, "tau"),
        ({"tau": math.inf}, "tau"),
        ({"first_layer": -1}, "first-layer"),
        ({"prompt_rows": "image"}, "unknown-rows"),
        ({"dimensions": ()}, "dimensions-form"),
        ({"dimensions": (3, -1)}, "dimensions-form"),
        ({"dimensions": (1.5,)}, "dimensions-form"),
        ({"dimensions": 7}, "dimensions-form"),
    ],
)
def test_settings_out_of_range(wrong, reason):
    with refused(reason):
        VAR(**{"dimensions": (1,), **wrong})


def test_settings_against_the_model():
    VAR((63,), tau=7.9).check(width=64, layers=3)
    with refused("no-such-dimension"):
        VAR((64,), tau=7).check(64, 3)
    with pytest.raises(ValueError, match="tau is 20, which no token can pass.*at most 8.0 in a model 64 wide"):
        VAR((1,)).check(64, 3)
    with refused("no-such-layer"):
        VAR((1,), tau=7, first_layer=3).check(64, 3)


# Where the dimensions come from


def of(text, name="some/model"):
    """A model as far as its config goes: LLaVA around the given text config."""
    config = LlavaConfig(text_config=text)
    config.name_or_path = name
    return SimpleNamespace(config=config)


def llama(name, width=4096, layers=32, key_heads=32):
    config = LlamaConfig(hidden_size=width, num_hidden_layers=layers, num_key_value_heads=key_heads)
    config._name_or_path = name
    return config


def test_known_language_models():
    var = VAR.for_model(of(llama("lmsys/vicuna-7b-v1.5")), p=0.4)
    assert var.dimensions == (2533, 1415) and (var.tau, var.p) == (20, 0.4)
    assert var.source == "LLaMA-2-7B, recognised by the name 'lmsys/vicuna-7b-v1.5' and its sizes"
    large = llama("", width=5120, layers=40, key_heads=40)
    assert VAR.for_model(of(large, "/data/llava-1.5-13b-hf")).dimensions == (2100, 4743)
    plain = SimpleNamespace(config=llama("meta-llama/Llama-2-7b-hf"))
    assert VAR.for_model(plain).dimensions == KNOWN["LLaMA-2-7B"].dimensions


@pytest.mark.parametrize(
    "config, alike",
    [
        (llama("lmsys/vicuna-7b-v1.3"), True),  # LLaMA-1
        (llama("meta-llama/Meta-Llama-3-8B", key_heads=8), False),
        (llama("lmsys/vicuna-7b-v1.5", width=5120, layers=40, key_heads=40), True),
        (llama("lmsys/vicuna-7b-v1.5", layers=16), False),
    ],
)
def test_unknown_language_models(config, alike):
    command = "python find_sink_dimensions_simple.py --model some/model --data-root DATA --output sinks.json"
    with refused("unknown-sinks") as caught:
        VAR.for_model(of(config))
    assert f"`{command}`, then give the file sinks.json, or the dimensions themselves" in str(caught.value)
    assert ("its sizes are those" in str(caught.value)) == alike


def test_sizes_alone_are_not_believed():
    with refused("unknown-sinks"):
        VAR.for_model(of(llama("")))


FOUND = {"model": "some/model", "recommended_dimensions": [5, 9], "tau": 6.5, "hidden_dim": 64, "num_layers": 6}


def small():
    return of(llama("", width=64, layers=6, key_heads=4))


def written(folder, **changes):
    path = folder / "sinks.json"
    path.write_text(json.dumps(FOUND | changes))
    return path


def test_a_file_of_the_finder(tmp_path):
    path = written(tmp_path)
    var = VAR.for_model(small(), file=path)
    assert (var.dimensions, var.tau) == ((5, 9), 6.5) and var.source == f"{path}, found on some/model"
    assert VAR.for_model(small(), file=path, tau=3).tau == 3
    with pytest.warns(UserWarning, match="holds sink dimensions of 'other/thing', and the model is 'some/model'"):
        VAR.for_model(small(), file=written(tmp_path, model="other/thing"))
    assert VAR.for_model(small(), file=written(tmp_path, model="/elsewhere/Model")).dimensions == (5, 9)


def test_a_file_of_the_published_finder(tmp_path):
    (tmp_path / "sinks.json").write_text(json.dumps({name: FOUND[name] for name in FOUND if name != "tau"}))
    assert VAR.for_model(small(), file=tmp_path / "sinks.json", tau=7).tau == 7
    with refused("tau-too-high"):
        VAR.for_model(small(), file=tmp_path / "sinks.json")


def test_a_file_that_does_not_say_of_which_model(tmp_path):
    path = tmp_path / "sinks.json"
    path.write_text('{"recommended_dimensions": [5, 9]}')
    with pytest.warns(
        UserWarning, match="does not state model, hidden_dim, num_layers, so its sink dimensions may not .* of 'some/"
    ):
        var = VAR.for_model(small(), file=path, tau=7)
    assert var.dimensions == (5, 9) and var.source == str(path)
    with pytest.warns(UserWarning, match="does not state hidden_dim, so"):
        VAR.for_model(small(), file=written(tmp_path, hidden_dim=None))
    with refused("sinks-of-another-model"):
        VAR.for_model(small(), file=written(tmp_path, model=None, hidden_dim=None, num_layers=7))


WRONG_TYPES = {
    "tau is 'high'": {"tau": "high"},
    "tau is nan": {"tau": math.nan},
    "tau is -3": {"tau": -3},
    "tau is True": {"tau": True},
    "it holds no list recommended_dimensions": {"recommended_dimensions": 3},
    "it holds no list recommended_dimensions$": {"recommended_dimensions": None},
    r"sink dimensions are \['a'\]": {"recommended_dimensions": ["a"]},
    r"sink dimensions are \[-1\]": {"recommended_dimensions": [-1]},
    "model is 3": {"model": 3},
    "hidden_dim is '64'": {"hidden_dim": "64"},
    "num_layers is 6.0": {"num_layers": 6.0},
}


@pytest.mark.parametrize("sentence, wrong", WRONG_TYPES.items(), ids=range(len(WRONG_TYPES)))
def test_wrong_types_in_a_file_are_told_with_its_name(tmp_path, sentence, wrong):
    with refused("not-a-sink-file"):
        read_findings(written(tmp_path, **wrong))


def test_files_that_do_not_fit(tmp_path):
    with refused("no-such-file", MissingFileError):
        VAR.for_model(small(), file=tmp_path / "none.json")
    with refused("sinks-of-another-model"):
        VAR.for_model(small(), file=written(tmp_path, hidden_dim=128))
    with pytest.raises(ValueError, match="recommends no sink dimension for some/model .nothing spikes."):
        VAR.for_model(small(), file=written(tmp_path, recommended_dimensions=[], tau=None, reason="nothing spikes"))
    with refused("no-recommended-dimension"):
        VAR.for_model(small(), file=written(tmp_path, recommended_dimensions=[], tau=None, model=None))
    for text in ("{", "[]", '{"model": "x"}', "[" * 100_000):
        (tmp_path / "sinks.json").write_text(text)
        with refused("not-a-sink-file"):
            VAR.for_model(small(), file=tmp_path / "sinks.json")
    with refused("dimensions-and-file"):
        VAR.for_model(small(), dimensions=(1,), file=tmp_path / "sinks.json")


def test_given_dimensions_are_checked_against_the_model():
    assert VAR.for_model(small(), dimensions=[5, 9, 5], tau=7).dimensions == (5, 9)
    with refused("no-such-dimension"):
        VAR.for_model(small(), dimensions=[64], tau=7)
