"""The two edits on bare tensors against plain arithmetic; what steered generation refuses; where grids come from."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
import transformers
from PIL import Image

import models.interventions
from data.errors import SampleError, StateError
from models.attention import LISTENERS, STEERING, attach, attention
from models.gaze import NonGaussian
from models.generation import answer, answers
from models.interventions import KeyBias, LayerEdit, RowEdit, apply_edits
from models.trace import AttentionTrace
from models.unpatched import UnpatchedModel
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
HEADS, KEY_HEADS, PROMPT, WIDTH = 6, 2, 11, 5
STARTS = (0, 3)
GAZE = {"mask_type": {"type": "gaussian"}, "scanpaths": [[(0, 0)]]}


class Module(torch.nn.Module):
    """As much of an attention module as SDPA asks for."""

    is_causal, num_key_value_groups = True, HEADS // KEY_HEADS


def halve_first(weights):
    """Half of the first key's weight goes to the second key."""
    changed = weights.clone()
    changed[..., 0] /= 2
    changed[..., 1] += changed[..., 0]
    return changed


def literal(query, key, value, multipliers, first, edited, scaling):
    """One sample without padding, row by row: [row, head, width]."""
    past = key.shape[1] - query.shape[1]
    output = torch.zeros(query.shape[1], HEADS, WIDTH)
    for head in range(HEADS):
        keys, values = key[head // 3], value[head // 3]
        for row in range(query.shape[1]):
            seen = past + row + 1
            weights = torch.tensor([math.exp(scaling * float(query[head, row] @ keys[at])) for at in range(seen)])
            if (weights * multipliers[:seen]).sum() > 0:
                weights = weights * multipliers[:seen]
            weights = weights / weights.sum()
            if edited and past + row >= first:
                weights = halve_first(weights)
            output[row, head] = weights @ values[:seen]
    return output


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("edited", [(), (1,), (0, 1)], ids=["", "one_edited", "both_edited"])
@torch.no_grad()
def test_both_edits_are_plain_arithmetic(monkeypatch, padded, biased, edited):
    """A key bias with hidden keys, and edits from row 4 on, alone and together; grouped heads, small blocks."""
    monkeypatch.setattr(models.interventions, "BLOCK_ELEMENTS", 2 * HEADS * PROMPT)
    generator = torch.Generator().manual_seed(0)
    starts = STARTS if padded else (0, 0)
    multipliers = torch.rand(2, PROMPT, generator=generator)
    multipliers[1, :6] = 0  # rows 0 to 5 of this sample would keep nothing
    multipliers[0, [2, 7]] = 0
    whole = multipliers.clone()
    for sample, start in enumerate(starts):
        whole[sample, :start] = 1  # as for any key that is no image's
    bias = KeyBias.from_multipliers(whole, torch.tensor(starts)) if biased else None
    module = Module()
    edits = {sample: RowEdit(4, halve_first) for sample in edited}
    attach(module, STEERING, LayerEdit(PROMPT, starts, bias, edits))
    key, value = (torch.randn(2, KEY_HEADS, PROMPT + 2, WIDTH, generator=generator) for _ in range(2))
    for keys, rows in ((PROMPT, PROMPT), (PROMPT + 1, 1), (PROMPT + 2, 1)):
        query = 2 * torch.randn(2, HEADS, rows, WIDTH, generator=generator)
        mask = None
        if padded:
            causal = torch.arange(keys) <= torch.arange(keys - rows, keys)[:, None]
            mask = (causal & (torch.arange(keys) >= torch.tensor(starts)[:, None, None]))[:, None]
        output, _ = attention(module, query, key[:, :, :keys], value[:, :, :keys], mask, scaling=0.7)
        for sample, start in enumerate(starts):
            factors = torch.cat([multipliers[sample], torch.ones(2)]) if biased else torch.ones(PROMPT + 2)
            real = slice(start if rows > 1 else 0, None)
            expected = literal(
                query[sample, :, real],
                key[sample, :, start:keys],
                value[sample, :, start:keys],
                factors[start:keys],
                4,
                sample in edited,
                0.7,
            )
            size = 0.7 * float(query.norm(dim=-1).max() * key.norm(dim=-1).max())
            assert (output[sample, real] - expected).abs().max() <= tolerance.same_states(size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_widened_scores_carry_the_bias(dtype):
    """q' . k' is q . k + bias / scaling to float32's precision, also where the numbers themselves are halves."""
    generator = torch.Generator().manual_seed(0)
    multipliers = torch.rand(1, 9, generator=generator)
    multipliers[0, 4] = 0
    bias = KeyBias.from_multipliers(multipliers, torch.zeros(1, dtype=torch.long))
    query, key = (torch.randn(1, 1, 9, 12, generator=generator).to(dtype) for _ in range(2))
    wide_query, wide_key, wide_value = bias.widen(query, key, key, 0.25)
    assert wide_query.shape[-1] == wide_key.shape[-1] == wide_value.shape[-1] == 16
    found = wide_query[0, 0].double() @ wide_key[0, 0].double().T
    expected = query[0, 0].double() @ key[0, 0].double().T + multipliers.log().double() / 0.25
    kept = multipliers[0] > 0
    torch.testing.assert_close(found[:, kept], expected[:, kept], rtol=1e-5, atol=2e-4)
    assert found.isfinite().all() and found[:, ~kept].max() * 0.25 < -4000


def inputs_of(name, pictures=None, prompts=None):
    model, processor = (make() for make in FAMILIES[name])
    inputs, layouts = model.prepare(processor, pictures or [[picture(150, 90)]], prompts or ["what is red ?"])
    return model, inputs, layouts


@pytest.mark.parametrize("name", FAMILIES)
def test_grids_are_read_from_the_inputs(name):
    """As prepare knows them, for wide, tall and single-row pictures, several of them, and none."""
    sizes = [[(150, 90)], [(20, 170)], [(170, 20)], [(30, 30)]]
    if name != "fuyu":
        sizes += [[(90, 30), (60, 120)], []]
    pictures = [[picture(*size) for size in batch] for batch in sizes]
    model, inputs, layouts = inputs_of(name, pictures, ["what ?", "what is red ?", *["what ?"] * (len(sizes) - 2)])
    expected = [[(grid.rows, grid.cols) for grid in layout.grids] for layout in layouts]
    assert model.input_grids(inputs) == sum(expected, [])
    assert model._grids_by_sample(inputs["input_ids"], inputs) == expected
    if name == "llava":
        assert model.input_grids({"pixel_values": torch.zeros(2, 3, 70, 56)}) == [(5, 4)] * 2


@pytest.mark.parametrize(
    "mask_type, scanpaths, reason",
    [
        ({"type": "gauss"}, [[(0, 0)]], "unknown-mask-type"),
        ({"type": "gaussian", "margin": -1}, [[]], "margin"),
        ({"type": "gaussian", "target-layer": 3}, [[]], "no-such-layer"),
        (NonGaussian((0, 7)), [[]], "no-such-layer"),
        ({"type": "gaussian"}, [[(9, 0)]], "point-outside"),
        ({"type": "gaussian"}, [[(0, -1)]], "point-outside"),
        ({"type": "salient-head"}, [[(0, math.nan)]], "point-not-finite"),
        ({"type": "gaussian"}, [[(0.5, 0)]], "point-between-cells"),
        ({"type": "gaussian"}, [[(0, 0)], []], "scanpaths-per-sample"),
        ({"type": "gaussian"}, [(0, 0)], "point-form"),
        ({"type": "gaussian"}, [3], "scanpath-form"),
        ({"type": "gaussian"}, 3, "scanpaths-per-sample"),
        ({"type": "gaussian"}, None, "mask-type-without-scanpaths"),
        (None, [[(0, 0)]], "mask-type-without-scanpaths"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_bad_gaze_is_refused_before_the_model_runs(name, mask_type, scanpaths, reason):
    model, inputs, _ = inputs_of(name)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with refused(reason):
        model.generate(**inputs, mask_type=mask_type, scanpaths=scanpaths)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"num_beams": 2}, "unrecordable-setting"),
        ({"num_return_sequences": 2, "do_sample": True}, "unrecordable-setting"),
        ({"prompt_lookup_num_tokens": 2}, "unrecordable-setting"),
        ({"generation_config": transformers.GenerationConfig(num_beams=3)}, "unrecordable-setting"),
        ({"attention_mask": None}, "steering-inputs"),
        ({"past_key_values": transformers.DynamicCache()}, "steering-inputs"),
        ({"attention_mask": torch.ones(1, 1, 30, 30)}, "mask-not-left-padded"),
        ({"pixel_values": None}, "image-tokens"),
        ({"pixel_values": torch.zeros(1, 3, 70, 56)}, "image-tokens"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_the_model_runs(options, reason):
    model, inputs, _ = inputs_of("llava")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with refused(reason):
        model.generate(**inputs | options, **GAZE)


@torch.no_grad()
def test_beams_are_free_where_nothing_is_steered():
    model, inputs, _ = inputs_of("llava")
    found = model.generate(**inputs, max_new_tokens=3, num_beams=2, mask_type={"type": "gaussian"}, scanpaths=[[]])
    assert torch.equal(found, model.generate(**inputs, max_new_tokens=3, num_beams=2))


def test_right_padding_is_refused():
    pictures = [[picture()], [picture()]]
    model, inputs, _ = inputs_of("llava", pictures, ["what ?", "what is red ?"])
    inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"].flip(1), inputs["attention_mask"].flip(1)
    with refused("mask-not-left-padded"):
        model.generate(**inputs, mask_type={"type": "gaussian"}, scanpaths=[[(0, 0)], []])


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 8}, {"use_cache": False}]
)
@torch.no_grad()
def test_other_caches_are_refused(options):
    model, inputs, _ = inputs_of("llava")
    with refused("unrecordable-setting"):
        model.generate(**inputs, max_new_tokens=3, **GAZE, **options)
    assert not any(hasattr(module, STEERING) for module in model.modules())


@dataclass(frozen=True)
class Meanwhile:
    """An intervention that halves the first key's weight, and lets `work` run in another thread as it edits rows."""

    work: Callable

    def plan(self, prompt):
        def change(weights):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(self.work).result()
            return halve_first(weights)

        edits = {sample: RowEdit(0, change) for sample in range(len(prompt.starts))}
        return {0: prompt.edit_layer(row_edits=edits)}


@torch.no_grad()
def test_other_threads_are_neither_steered_nor_recorded():
    """While rows are edited, the same model runs plainly in another thread: the same operations on the same numbers."""
    model, inputs, _ = inputs_of("llava")
    plain, logits = model(**inputs).logits, []
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    with AttentionTrace(model) as alone:
        expected = model.generate(**inputs, **options, steering=Meanwhile(lambda: None))
    with AttentionTrace(model) as trace:
        steering = Meanwhile(lambda: logits.append(model(**inputs).logits))
        steered = model.generate(**inputs, **options, steering=steering)
    assert len(logits) >= 3 and all(torch.equal(each, plain) for each in logits)
    assert not torch.equal(expected.logits[0], plain[:, -1])
    assert all(map(torch.equal, steered.logits, expected.logits))
    assert torch.equal(trace.weights(2, -1), alone.weights(2, -1))
    assert not any(hasattr(module, name) for module in model.modules() for name in (LISTENERS, STEERING))


@torch.no_grad()
def test_two_threads_steer_one_model_each_for_itself():
    model, inputs, _ = inputs_of("llava")
    scanpaths = [[[(0, 0)]], [[(3, 3)]]]

    def generate(gaze):
        with AttentionTrace(model) as trace:
            model.generate(**inputs, max_new_tokens=4, mask_type={"type": "gaussian"}, scanpaths=gaze)
        return trace.weights(1, -1)

    expected = [generate(gaze) for gaze in scanpaths]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(generate, scanpaths * 10))
    assert not torch.equal(*expected)
    assert all(torch.equal(weights, expected[place % 2]) for place, weights in enumerate(found))
    assert model.config.text_config._attn_implementation == "sdpa"


def test_gaze_belongs_to_exactly_one_image():
    pictures = [[picture(), picture()], [picture()], []]
    model, inputs, _ = inputs_of("llava", pictures, ["what ?", "what is red ?", "what ?"])
    options = {"max_new_tokens": 2, "mask_type": {"type": "gaussian"}}
    with pytest.raises(ValueError, match="sample 0 has gaze and 2 images; a scanpath belongs to exactly one"):
        model.generate(**inputs, **options, scanpaths=[[(0, 0)], [], []])
    with refused("gaze-without-one-image"):
        model.generate(**inputs, **options, scanpaths=[[], [], [(0, 0)]])
    steered_alone = model.generate(**inputs, **options, scanpaths=torch.tensor([[], [], []]))
    assert torch.equal(steered_alone, model.generate(**inputs, max_new_tokens=2))
    model.generate(**inputs, **options, scanpaths=[[], [(0, 0)], []])


def test_families_without_a_grid_are_refused():
    class Unknown(UnpatchedModel, transformers.LlavaForConditionalGeneration):
        pass

    _, inputs, _ = inputs_of("llava")
    model = Unknown(llava().config).eval()
    with refused("unknown-grid"):
        model.generate(**inputs, **GAZE)


@torch.no_grad()
def test_one_steering_at_a_time():
    model, inputs, _ = inputs_of("llava")
    with apply_edits(model, {0: LayerEdit(inputs["input_ids"].shape[1], (0,))}):
        with refused("steered-already", StateError):
            model.generate(**inputs, **GAZE)
        with AttentionTrace(model) as trace:
            model(**inputs)
        assert model.config.text_config._attn_implementation != "sdpa"
        model(**inputs)
    assert model.config.text_config._attn_implementation == "sdpa" and trace.length == inputs["input_ids"].shape[1]


@torch.no_grad()
def test_answers_of_a_batch_are_those_of_each_prompt():
    """Steered, with one sample without gaze; the one that ends at once leaves its sentence in its place."""
    model, processor = llava(), llava_processor()
    processor.tokenizer.pad_token = "<unk>"  # as some checkpoints have it; padding is no unknown word
    pictures = [[picture(100, 80)], [picture(60, 90)], [Image.new("RGB", (40, 40))]]
    prompts = ["where is the red circle ?", "what ?", "describe the dodo ."]
    scanpaths = [[(0, 1)], [], [(3, 3), (2, 3)]]
    options = {"mask_type": {"type": "gaussian"}, "max_new_tokens": 3}
    alone = [
        answer(model, processor, *each, scanpaths=[gaze], **options)
        for *each, gaze in zip(pictures, prompts, scanpaths, strict=True)
    ]
    together = answers(model, processor, pictures, prompts, scanpaths=scanpaths, **options)
    for place, (output, expected) in enumerate(zip(together, alone, strict=True)):
        assert (output.text, output.tokens, output.layout.sample) == (expected.text, expected.tokens, place)
        assert output.probabilities == pytest.approx(expected.probabilities, abs=tolerance.two_runs())
        assert output.unknown == expected.unknown == (["dodo"] if place == 2 else [])
        row = output.trace.weights(1, output.layout.length, samples=[place])[0, :, 0, output.layout.start :]
        same = expected.trace.weights(1, expected.layout.length)[0, :, 0]
        torch.testing.assert_close(row, same, atol=tolerance.two_runs(), rtol=0)
    plain = answer(model, processor, pictures[0], prompts[0], max_new_tokens=3)
    assert together[0].probabilities != pytest.approx(plain.probabilities, abs=1e-3)

    [end] = processor.tokenizer.convert_tokens_to_ids(together[1].tokens[:1])
    ended = answers(model, processor, pictures, prompts, scanpaths=scanpaths, eos_token_id=end, **options)
    assert isinstance(ended[1], SampleError) and ended[1].reason == "empty answer"
    for output, expected in zip(ended, together, strict=True):
        if not isinstance(output, SampleError):
            length = expected.tokens.index(together[1].tokens[0]) if together[1].tokens[0] in expected.tokens else 3
            assert output.tokens == expected.tokens[:length]
