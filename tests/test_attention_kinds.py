"""Windows, blocks in both directions, prefixes, soft caps and sinks: recorded weights equal eager attention's."""

import pytest
import torch
from transformers.utils import is_torchvision_available

from analysis.maps import MapChoice, MapSettings, drawable_kinds
from analysis.rollout import RolloutSettings, rollout
from models.attention import plain_attention
from models.interventions import PromptBatch
from models.rows import KeyIntervals, read_intervals, softmax_rows
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.models import picture
from tests.zoo import ATTENTION, build

pytestmark = [
    pytest.mark.numerical,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # PaliGemma's processor
]
QUESTION = "is the red circle left of the red square ?"
NEW = 24  # generated tokens, more than a window


def test_the_default_leaves_out_gradient_maps_of_attention_that_is_not_causal(capsys):
    model, processor = build("gemma3", ATTENTION["gemma3"])
    assert drawable_kinds(MapChoice(), model, processor, MapSettings()) == ("rollout",)
    assert capsys.readouterr().err.startswith("note: only rollout maps are drawn: ")
    with refused("gradients-not-causal"):
        drawable_kinds(MapChoice(maps=("gradient",)), model, processor, MapSettings())


@pytest.fixture(scope="module", params=ATTENTION)
def recorded(request):
    """(name, model, inputs, layout, trace of NEW generated tokens, their sequence)."""
    if request.param == "cohere2" and not is_torchvision_available():
        pytest.skip("Cohere2's image processor needs torchvision")
    model, processor = build(request.param, ATTENTION[request.param])
    plain = plain_attention(type(model.get_decoder()))
    model.set_attn_implementation({"text_config": plain})
    with torch.no_grad():
        inputs, layout = model.prepare(processor, [picture(90, 70)], QUESTION)
        with AttentionTrace(model) as trace:
            sequence = model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    return request.param, model, inputs, layout, trace, sequence


def eager_steps(model, inputs):
    """(weights by step and layer, tokens) of the same generation under eager attention."""
    decoder = model.get_decoder()
    model.set_attn_implementation({"text_config": "eager"})
    try:
        output = model.generate(
            **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            output_attentions=True, return_dict_in_generate=True,
        )  # fmt: skip
    finally:
        model.set_attn_implementation({"text_config": plain_attention(type(decoder))})
    return output.attentions, output.sequences


@torch.no_grad()
def test_weights_equal_eager(recorded):
    """Every prompt row and every decode row, over a cache that drops keys."""
    name, model, inputs, layout, trace, sequence = recorded
    steps, tokens = eager_steps(model, inputs)
    assert torch.equal(tokens, sequence)
    allowed = 1e-5
    for layer in range(trace.layers):
        prompt = trace.weights(layer, slice(0, layout.length))[0, :, :, : layout.length]
        assert (prompt - steps[0][layer][0]).abs().max() <= allowed
        for step in range(1, NEW):
            row = layout.length + step - 1
            ours, expected = trace.weights(layer, row)[0, :, 0, : row + 1], steps[step][layer][0, :, 0]
            assert (ours[:, -expected.shape[-1] :] - expected).abs().max() <= allowed
            assert not ours[:, : -expected.shape[-1]].any()  # keys that the cache dropped
    smallest = min(float(trace.weights(layer, slice(0, layout.length)).sum(-1).min()) for layer in range(trace.layers))
    assert smallest < 0.9 if name == "gpt_oss" else abs(smallest - 1) < 1e-5


@torch.no_grad()
def test_rollout_equals_full_matrices(recorded):
    """The product of whole matrices, (A + I) / 2 per layer; what no position receives is the share of the sinks."""
    name, _, _, layout, trace, _ = recorded
    product = torch.eye(trace.length)
    for layer in range(trace.layers):
        weights = trace.weights(layer, slice(None))[0].mean(0)
        product = (weights + torch.eye(trace.length)) / 2 @ product
    rolled = rollout(trace, layout, RolloutSettings(residual=0.5, lowest=0))
    expected = product[trace.prompt_length - 1 :]
    torch.testing.assert_close(rolled.relevance, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(rolled.nowhere, 1 - expected.sum(1), atol=1e-6, rtol=0)
    assert rolled.nowhere.max() > 1e-3 if name == "gpt_oss" else (rolled.nowhere.abs() < 1e-5).all()


class EveryLayer:
    """An intervention that attaches an empty edit to the given layers."""

    def __init__(self, layers):
        self.layers = layers

    def plan(self, prompt: PromptBatch):
        return {layer: prompt.edit_layer() for layer in self.layers}


REFUSED = {
    "gemma3": "layer 0 of .* attends in a sliding window, whose cache drops keys that steering needs",
    "gemma4": "layer 0 of .* attends in a sliding window",
    "mistral": "layer 0 of .* attends in a sliding window",
    "cohere2": "layer 0 of .* attends in a sliding window",
    "paligemma": "attends in a window or in both directions, and steering needs causal attention to all keys",
    "paligemma2": "layer 0 of .* attends in a sliding window",
    "gpt_oss": "layer 0 of .* attends in a sliding window",
}


@torch.no_grad()
def test_steering_is_refused(recorded):
    name, model, inputs, _, _, sequence = recorded
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    with pytest.raises(ValueError, match=REFUSED[name]):
        model.generate(**inputs, steering=EveryLayer([0]), **options)
    full = {"gpt_oss": "attends with a sink logit", "paligemma2": "attends with a soft cap"}
    if name in full:
        with pytest.raises(ValueError, match=full[name]):
            model.generate(**inputs, steering=EveryLayer([1]), **options)
    assert torch.equal(model.generate(**inputs, **options), sequence[:, : inputs["input_ids"].shape[1] + 2])


def mask_of(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(cell) for cell in row] for row in rows], dtype=torch.bool)[None, None]


def test_intervals_by_hand():
    """Five positions, the first of them padding: a window of two keys; the last two rows attend to each other."""
    found = read_intervals(mask_of("00000", "01000", "01100", "00111", "00011"), 5, 5, True)
    assert found.first.tolist() == [[0, 1, 1, 2, 3]] and found.last.tolist() == [[-1, 1, 2, 4, 4]]
    assert found.start.tolist() == [1] and not found.causal
    assert read_intervals(mask_of("000", "010", "011"), 3, 3, True).causal
    for causal, last in [(True, [0, 1, 2]), (False, [2, 2, 2])]:
        found = read_intervals(None, 3, 3, causal)
        assert found.first.tolist() == [[0, 0, 0]] and found.last.tolist() == [last]
    assert read_intervals(None, 1, 4, True).last.tolist() == [[3]]


def test_masks_without_intervals_are_refused():
    with pytest.raises(ValueError, match=r"has holes \(row 2 of sample 0 skips keys"):
        read_intervals(mask_of("100", "110", "101"), 3, 3, True)
    two = torch.cat([mask_of("100", "110", "111"), mask_of("100", "110", "011")], 1)
    with pytest.raises(ValueError, match="differs between heads"):
        read_intervals(two, 3, 3, True)
    with pytest.raises(ValueError, match=r"is torch.float32 of \(3, 3\), not of true and false for 3 x 3"):
        read_intervals(two.float(), 3, 3, True)


def test_softmax_rows_by_the_formula():
    """Cap, window and sink against the formula written out for every row and key."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(4, 3, 8, generator=generator), torch.randn(2, 6, 8, generator=generator)
    first, last, sinks = torch.tensor([2, 3, 3]), torch.tensor([3, 3, 5]), torch.randn(4, generator=generator)
    found = softmax_rows(query, key, 0.5, last, first=first, softcap=2.0, sinks=sinks)
    for head in range(4):
        for row in range(3):
            score = 2.0 * torch.tanh(0.5 * key[head // 2] @ query[head, row] / 2.0)
            exponential = score.exp() * ((torch.arange(6) >= first[row]) & (torch.arange(6) <= last[row]))
            expected = exponential / (exponential.sum() + sinks[head].exp())
            torch.testing.assert_close(found[head, row], expected, atol=tolerance.sums(8), rtol=1e-5)


def test_intervals_of_a_sample():
    intervals = KeyIntervals(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    first, last = intervals.of(3, torch.tensor([1]))  # one row of intervals for all samples
    assert first.tolist() == [1] and last.tolist() == [1]
