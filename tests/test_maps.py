"""Every map kind against a literal computation from stock eager attention, on the trained embedded models."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import models
from analysis.maps import MAPS, MapSettings, check_kinds, needs, relevance_map, uniform_rollout
from analysis.rollout import RolloutSettings, rollout_through_encoder
from data.shapes import Shape, draw
from models.attention import LISTENERS, REPLAY, STEERING
from models.gaze import Gaussian, Gaze, SalientHead
from models.generation import answers
from models.gradients import answer_gradients, score
from models.knockout import Knockout
from models.pai import PAI
from models.trace import AttentionTrace
from models.vaf import VAF
from models.var import VAR
from tests import literal_maps
from tests.models import llava, llava_processor, picture

LIMIT = 1e-4  # of a map's maximum
GENERAL = "what is in the image ?"
SETTINGS = MapSettings(general=GENERAL)
SHAPES = (Shape("red", "circle", 0.2, 0.3, 0.1, 0.1), Shape("blue", "square", 0.7, 0.6, 0.1, 0.1))
FIRST, SECOND = draw(list(SHAPES), 100), draw(list(SHAPES[::-1]), 100).resize((120, 100))
OTHER = draw([Shape("green", "triangle", 0.3, 0.7, 0.1, 0.1), Shape("yellow", "cross", 0.75, 0.3, 0.1, 0.1)], 100)
NEW_TOKENS = 3
PROMPTS = ["describe the image .", "where is the red circle ?"]


@pytest.fixture(scope="module", params=["tiny-llava", "tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-fuyu"])
def loaded(request):
    return Loaded(request.param)


@pytest.fixture(scope="module")
def tiny_llava():
    return Loaded("tiny-llava")


class Loaded:
    """A model, its processor, and the model in float64 for the literal computation."""

    def __init__(self, name):
        self.model, self.processor = models.load(name)
        self.exact = copy.deepcopy(self.model).double()

    def answers(self, images, prompts, kinds=MAPS, **options):
        """Answers of at most NEW_TOKENS tokens to a batch, with all that the kinds need."""
        wanted = needs(kinds, SETTINGS) | {"max_new_tokens": NEW_TOKENS} | options
        return answers(self.model, self.processor, images, prompts, **wanted)

    def literal(self, images, prompt, ids):
        return literal_maps.literal(self.exact, self.processor, images, prompt, ids)

    @property
    def projections(self):
        layers = [layer.self_attn for layer in self.exact.get_decoder().layers]
        return [(layer.dense if hasattr(layer, "dense") else layer.o_proj).weight.detach() for layer in layers]


def assert_literal(loaded, images, prompts):
    """All kinds of all samples, at every position, within LIMIT of the largest value of each token's map."""
    for answer, shown, prompt in zip(loaded.answers(images, prompts), images, prompts, strict=True):
        case = loaded.literal(shown, prompt, answer.ids)
        general = literal_maps.attention(loaded.literal(shown, GENERAL, answer.ids[:1]), [0])[0]
        cells = answer.layout.image_positions - answer.layout.start
        expected = {
            "attention": literal_maps.attention(case, answer.ids),
            "rollout": literal_maps.rollout(case, answer.ids),
            "rollout-corrected": literal_maps.corrected(case, answer.ids),
            "gradient": literal_maps.gradient(case, answer.ids),
            "relevance": literal_maps.relevance(case, answer.ids),
            "value": literal_maps.value(case, answer.ids, loaded.projections),
        }
        expected["contrast"] = torch.zeros_like(expected["attention"])
        other = answer.general.layout.image_positions - answer.general.layout.start
        expected["contrast"][:, cells] = expected["attention"][:, cells] / general[other]
        assert set(expected) == set(MAPS)
        for kind, values in expected.items():
            maps = MAPS[kind].draw(answer, SETTINGS)
            length = answer.layout.start + values.shape[1]  # without the later tokens of a longer answer in the batch
            assert_close(kind, maps.relevance[:, answer.layout.start : length], values)
            assert not maps.relevance[:, : answer.layout.start].any() and not maps.relevance[:, length:].any()
            assert_shapes(maps, answer)


def assert_close(kind, ours, expected):
    error = (ours - expected).abs().amax(1) / expected.abs().amax(1)
    assert error.max() <= LIMIT, f"{kind}: {error.tolist()}"


def assert_shapes(maps, answer):
    start, tokens = 0, len(answer.ids)
    for image, (positions, grid) in enumerate(zip(answer.layout.images, answer.layout.grids, strict=True)):
        of_image = maps.maps(image)
        shape = (tokens, grid.rows, grid.cols)
        assert of_image.per_token.shape == shape and (of_image.per_token >= 0).all()
        assert np.array_equal(of_image.mean, of_image.per_token.mean(0))
        assert np.array_equal(of_image.max, of_image.per_token.max(0))
        if getattr(maps, "heads", None) is not None:
            heads = maps.heads[..., start : start + len(positions)]
            assert heads.shape[1:3] == (answer.trace.layers, answer.trace.heads)
            mean = heads.clamp(min=0).mean((1, 2)).view(shape)
            torch.testing.assert_close(mean, torch.from_numpy(of_image.per_token))
        start += len(positions)


def test_single(loaded):
    assert_literal(loaded, [[FIRST]], PROMPTS[:1])


@pytest.mark.numerical
def test_left_padded_batch(loaded):
    assert_literal(loaded, [[FIRST], [SECOND]], PROMPTS)


def test_two_images(loaded):
    if loaded.model.config.model_type == "fuyu":
        pytest.skip("Fuyu takes one image")
    assert_literal(loaded, [[FIRST, OTHER]], PROMPTS[:1])


def test_order_of_the_relevance_product_is_visible(tiny_llava):
    """R + R Abar, the wrong order, is another map on a trained model (on a random one the two are nearly equal)."""
    prompt = "what colour is the square ?"
    [answer] = tiny_llava.answers([[SECOND]], [prompt])
    case = tiny_llava.literal([SECOND], prompt, answer.ids)
    r = torch.eye(case.attentions[0].shape[-1], dtype=torch.float64)
    for a, g in zip(case.attentions, case.gradients(0, answer.ids[0]), strict=True):
        r = r + r @ (a * g).clamp(min=0).mean(0)
    maps = relevance_map(answer, SETTINGS, tokens=[0])
    cells = answer.layout.image_positions
    ours, wrong = maps.relevance[0, cells], r[case.first, cells]
    assert (ours / ours.sum() - wrong / wrong.sum()).abs().sum() / 2 > 0.3


INTERVENTIONS = {
    "gaussian": Gaze(Gaussian(layers=(1, 2)), [[(3, 4)], []]),
    "salient-head": Gaze(SalientHead(layers=(1, 2), heads=2), [[(3, 4)], [(5, 5)]]),
    "var": VAR((121, 30), tau=3.0, first_layer=1),
    "knockout": Knockout(("last", "generated"), layers=(1, 2)),
    "pai": PAI(alpha=1.0, gamma=1.0, first_layer=1),
    "vaf": VAF(enhance=1.5, layers=(1, 2)),
}


def edited_attention(edits, sample, start):
    """Eager attention of one sample with the edits [layer] of a batch, in which its first position is `start`."""

    def attend(module, query, key, value, mask, scaling, **options):
        edit, places = edits[module.layer_idx], torch.arange(query.shape[2])
        scores = query[0] @ key[0].transpose(1, 2) * scaling
        if edit is not None and sample in edit.score_edits:
            scores = edit.score_edits[sample].edit(scores.clone(), places)
        if edit is not None and edit.bias is not None:
            scores = scores + edit.bias.for_rows(sample, start, places, len(places))
        weights = scores.masked_fill(places > places[:, None], float("-inf")).softmax(-1)
        if edit is not None and sample in edit.row_edits:
            first = edit.row_edits[sample].first
            changed = edit.row_edits[sample].change(weights[:, first:].float()).double()
            weights = torch.cat([weights[:, :first], changed], 1)
        weights = weights[None]
        return (weights @ value).transpose(1, 2), weights

    return attend


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_gradient_of_a_steered_model(tiny_llava, name, monkeypatch):
    """The same edits in a full eager pass, differentiated with respect to the edited weights."""
    images = [[FIRST], [SECOND]]
    plain = tiny_llava.answers(images, PROMPTS, kinds=["gradient"])
    steered = tiny_llava.answers(images, PROMPTS, kinds=["gradient"], steering=INTERVENTIONS[name])
    trace, effects = steered[0].trace, []
    edits = [trace._recorded[layer].edit for layer in range(trace.layers)]
    assert any(edit is not None for edit in edits)
    for answer, before, shown, prompt in zip(steered, plain, images, PROMPTS, strict=True):
        attend = edited_attention(edits, answer.layout.sample, answer.layout.start)
        monkeypatch.setattr("transformers.models.llama.modeling_llama.eager_attention_forward", attend)
        expected = literal_maps.gradient(tiny_llava.literal(shown, prompt, answer.ids), answer.ids)
        ours, length = MAPS["gradient"].draw(answer, SETTINGS).relevance, answer.layout.start + expected.shape[1]
        assert_close(name, ours[:, answer.layout.start : length], expected)
        unsteered = MAPS["gradient"].draw(before, SETTINGS).relevance
        effects.append(float((ours[0] - unsteered[0]).abs().max() / unsteered[0].max()))
    assert max(effects) > 100 * LIMIT


def test_relevance_under_steering_is_refused(tiny_llava):
    with pytest.raises(ValueError, match="cannot be recorded under steering"):
        tiny_llava.answers([[FIRST], [SECOND]], PROMPTS, steering=INTERVENTIONS["gaussian"])


def test_score_by_hand():
    """Logits 0, 1, 3: the odds of the last are e^3 / (1 + e)."""
    logits, id = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([2])
    e = np.e
    assert score(logits, id).item() == pytest.approx(3 - np.log(1 + e), rel=1e-6)
    assert score(logits, id, "log-probability").item() == pytest.approx(3 - np.log(1 + e + e**3), rel=1e-6)
    assert score(logits, id, "logit").item() == 3
    with pytest.raises(ValueError, match="the score 'odds' is unknown; choose log-odds"):
        score(logits, id, "odds")


@pytest.mark.parametrize("drop_first", [False, True])
def test_uniform_rollout_is_the_product_of_uniform_matrices(drop_first):
    size, layers, settings = 9, 4, RolloutSettings(residual=0.3, drop_first=drop_first)
    matrix = torch.ones(size, size).tril()
    if drop_first:
        matrix[1:, 0] = 0
    matrix /= matrix.sum(1, keepdim=True)
    product = torch.matrix_power(0.7 * matrix + 0.3 * torch.eye(size), layers)
    torch.testing.assert_close(uniform_rollout([8, 5], layers, settings), product[[8, 5]])


def test_layers_heads_rows_and_encoder(tiny_llava):
    [answer] = tiny_llava.answers([[FIRST]], PROMPTS[:1], encoder=True)
    whole = MAPS["gradient"].draw(answer, SETTINGS)
    few = MAPS["gradient"].draw(answer, replace(SETTINGS, map_layers="2,3", map_heads=(1,)))
    assert torch.equal(few.heads, whole.heads[:, 2:4, 1:2])
    assert few.composed == {"map_layers": "2,3", "map_heads": "1", "score": "log-odds"}
    query = replace(SETTINGS, rollout=RolloutSettings(rows="query"))
    later = MAPS["attention"].draw(answer, query)
    assert torch.equal(later.relevance, MAPS["attention"].draw(answer, SETTINGS).relevance[1:])
    spread = rollout_through_encoder(whole, answer.encoder).per_token
    np.testing.assert_allclose(spread.sum((1, 2)), whole.per_token.sum((1, 2)), rtol=1e-4)
    assert np.abs(spread - whole.per_token).max() > 0.01 * whole.per_token.max()
    for kind in ("gradient", "relevance"):
        with pytest.raises(ValueError, match=f"a {kind} map has no query rows"):
            MAPS[kind].draw(answer, query)


def test_groups_of_tokens_give_the_same(tiny_llava, monkeypatch):
    [answer] = tiny_llava.answers([[FIRST]], PROMPTS[:1])
    whole = {kind: MAPS[kind].draw(answer, SETTINGS).relevance for kind in ("gradient", "relevance")}
    monkeypatch.setattr("models.gradients.CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("analysis.maps.GROUP", 2)
    for kind, relevance in whole.items():
        assert_close(kind, MAPS[kind].draw(answer, SETTINGS).relevance, relevance)


def test_the_model_is_whole_afterwards(tiny_llava):
    """Flags of parameters, listeners and the attention function are restored; an open trace does not hear a replay."""
    model = tiny_llava.model
    [answer] = tiny_llava.answers([[FIRST]], PROMPTS[:1])
    first = next(model.parameters())
    first.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad(), AttentionTrace(model, gradients="all") as trace:
        inputs, _ = model.prepare(tiny_llava.processor, [FIRST], PROMPTS[0])
        model(**inputs)
        for kind in ("gradient", "relevance"):
            MAPS[kind].draw(answer, SETTINGS)
        assert model.get_decoder().config._attn_implementation == "sightline"
    assert trace.length == trace.prompt_length == len(trace.inputs.states(3, 0))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    first.requires_grad_(True)
    assert model.get_decoder().config._attn_implementation == "sdpa"
    names = (LISTENERS, STEERING, REPLAY)
    assert not any(hasattr(module, name) for module in model.modules() for name in names)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_quadratic_is_kept():
    """Layer inputs grow with T, or with the answer alone."""
    model, processor = llava(), llava_processor()
    for gradients in ("answer", "all"):
        sizes = []
        for words in (40, 80):
            inputs, _ = model.prepare(processor, [picture()], " ".join(["red"] * words))
            with torch.no_grad(), AttentionTrace(model, gradients=gradients) as trace:
                model(**inputs)
            states = [each for layer in trace.inputs._states.values() for each in layer]
            sizes.append(sum(each.untyped_storage().nbytes() // 4 for each in states))
        assert sizes == ([64, 64] if gradients == "answer" else [3 * 64 * sizes[0] // 192, sizes[0] + 3 * 64 * 40])


def test_a_decoder_that_cannot_be_replayed_is_refused(tiny_llava):
    [answer] = tiny_llava.answers([[FIRST]], PROMPTS[:1])
    inputs = answer.trace.inputs
    inputs._rotary = [tuple(torch.ones_like(part) for part in parts) for parts in inputs._rotary]
    with pytest.raises(ValueError, match="layer 0 replayed other keys than it recorded"):
        list(answer_gradients(answer.trace, 0, answer.ids))


def test_needs_and_refusals(tiny_llava):
    assert needs(["rollout", "attention"], SETTINGS) == {}
    assert needs(["gradient", "value"], SETTINGS) == {"rows": [-1], "gradients": "answer", "values": True}
    assert needs(["relevance", "gradient"], SETTINGS)["gradients"] == "all"
    every = {"rows": [-1], "gradients": "all", "general": GENERAL}
    assert needs(["gradient", "relevance", "contrast"], SETTINGS) == every
    with pytest.raises(ValueError, match="map kind 'saliency' is unknown; choose from attention, rollout"):
        check_kinds(["saliency"], "predicting")
    with pytest.raises(ValueError, match="a gradient map has no query rows, .* use --rows predicting"):
        needs(["gradient"], MapSettings(rollout=RolloutSettings(rows="query")))
    for wrong, sentence in (
        ({"score": "odds"}, "--score 'odds' is unknown"),
        ({"map_layers": "some"}, "layers 'some' is unknown"),
        ({"map_heads": (-1,)}, "--map-heads holds -1"),
        ({"general": " "}, "--general is empty"),
    ):
        with pytest.raises(ValueError, match=sentence):
            MapSettings(**wrong)
    [answer] = tiny_llava.answers([[FIRST]], PROMPTS[:1], kinds=["rollout"])
    for kind, sentence in (
        ("gradient", "holds no layer inputs; record with AttentionTrace"),
        ("relevance", "holds no layer inputs"),
        ("value", "holds no values"),
        ("contrast", "has no general prompt"),
    ):
        with pytest.raises(ValueError, match=sentence):
            MAPS[kind].draw(answer, SETTINGS)
    with pytest.raises(IndexError, match="head 9 does not exist"):
        MAPS["attention"].draw(answer, replace(SETTINGS, map_heads=(9,)))
    with pytest.raises(ValueError, match="gradients='some' is unknown"):
        AttentionTrace(tiny_llava.model, gradients="some")
