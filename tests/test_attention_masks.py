"""The mask of every layer and step is read: its intervals are what is recorded, and other masks are refused."""

import pytest
import torch

from models import rows
from models.trace import AttentionTrace
from tests import tolerance
from tests.models import llava, llava_processor, picture

PROMPTS = ["where is the red circle ?", "describe the image ."]


@pytest.fixture(scope="module")
def model():
    return llava()


def single(model):
    return model.prepare(llava_processor(), [picture()], PROMPTS[0])


def batch(model):
    return model.prepare(llava_processor(), [[picture(seed=1)], [picture(60, 90, seed=2)]], PROMPTS)


def generate(model, inputs):
    return model.generate(**inputs, max_new_tokens=5, do_sample=False)


def with_mask(model, layer: int, change):
    """Hook after which a layer attends under `change(mask)`, where `mask` is the one that it was given."""
    module = model.get_decoder().layers[layer].self_attn

    def hook(module, args, kwargs):
        return args, kwargs | {"attention_mask": change(kwargs["attention_mask"], kwargs["hidden_states"].shape[1])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def keep_mask(kept: list):
    """A change that appends the mask to a list and leaves it as it is."""
    return lambda mask, rows: kept.append(mask) or mask


def window(mask, rows):
    """The last 8 keys of each row."""
    keys = mask.shape[-1]
    return mask & torch.ones(rows, keys, dtype=torch.bool).triu(keys - rows - 7)


def window_in_decode(mask, rows):
    return mask if rows > 1 else window(mask, rows)


def ahead(mask, rows):
    """The first four tokens of the longer sample see each other, as a prefix or the tokens of an image may."""
    mask = mask.clone()
    mask[0, :, :4, :4] = rows > 1
    return mask


def one_head(mask, rows):
    """A window in one head of four."""
    return torch.cat([mask.expand(-1, 3, -1, -1), window(mask, rows)], 1)


def later(mask, rows):
    """Padding that is one token longer than in the layers before."""
    mask = mask.clone()
    mask[0, :, :, int(mask[0, 0, -1].int().argmax())] = False
    return mask


def holes(mask, rows):
    """Every second key is left out."""
    mask = mask.clone()
    mask[..., 1::2] = False
    return mask


def no_mask(mask, rows):
    return None


@pytest.mark.parametrize("change", [window, window_in_decode, ahead], ids=lambda change: change.__name__)
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_intervals_of_every_layer_are_recorded(model, change, layer):
    """Weights are positive where the layer's own mask is true, and 0 elsewhere, in every row of prompt and answer."""
    inputs, layouts = batch(model)
    assert layouts[0].start == 0 < layouts[1].start
    masks = {0: [], 2: []}
    hooks = [with_mask(model, layer, change)]
    hooks += [with_mask(model, place, keep_mask(kept)) for place, kept in masks.items()]
    try:
        with AttentionTrace(model) as trace:
            generate(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert trace.start.tolist() == [layout.start for layout in layouts]
    for place, (prompt, *steps) in masks.items():
        for layout in layouts:
            real = range(layout.start, trace.prompt_length)
            weights = trace.weights(place, real, samples=[layout.sample])[0]
            seen = prompt[layout.sample, 0, layout.start :]
            assert torch.equal(weights[..., : trace.prompt_length] > 0, seen.expand(4, -1, -1))
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
            for row, step in enumerate(steps, trace.prompt_length):
                weights = trace.weights(place, row, samples=[layout.sample])[0, :, 0, : row + 1]
                assert torch.equal(weights > 0, step[layout.sample, 0].expand(4, -1))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (one_head, "mask of layer {} differs between heads"),
        (holes, "mask of layer {} has holes"),
        (later, "mask of layer {} hides a token from itself"),
        (no_mask, "mask of layer {} hides a token from itself"),
    ],
    ids=["one_head", "holes", "later", "no_mask"],
)
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_other_masks_are_refused(model, change, sentence, layer):
    inputs, _ = batch(model)
    hook = with_mask(model, layer, change)
    named = layer or "[01]"  # the first mask says where the padding is, and the next one differs from it
    try:
        with pytest.raises(ValueError, match=sentence.format(named)), AttentionTrace(model):
            generate(model, inputs)
    finally:
        hook.remove()


@torch.no_grad()
def test_a_mask_is_read_once_in_each_forward_pass(model, monkeypatch):
    """transformers gives all layers the same mask, and none where there is no padding, which needs no reading."""
    shapes = []
    ends = rows._ends
    monkeypatch.setattr(rows, "_ends", lambda mask: shapes.append(mask.shape[1:]) or ends(mask))
    inputs, _ = batch(model)
    length = inputs["input_ids"].shape[1]
    with AttentionTrace(model):
        generate(model, inputs)
    assert shapes == [(length, length), *((1, length + step) for step in range(1, 5))]
    shapes.clear()
    inputs, _ = single(model)
    with AttentionTrace(model):
        generate(model, inputs)
    assert shapes == []


@torch.no_grad()
def test_one_mask_for_all_samples(model):
    """A causal 4-D mask of the caller's, of one sample and one head, holds for the whole batch."""
    inputs, _ = single(model)
    ids = inputs["input_ids"].repeat(2, 1)
    images = inputs["pixel_values"].repeat(2, 1, 1, 1)
    causal = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with AttentionTrace(model) as trace:
        model(input_ids=ids, pixel_values=images, attention_mask=causal)
    with AttentionTrace(model) as plain:
        model(**inputs)
    assert trace.start.tolist() == [0, 0]
    for layer in range(3):
        both = plain.weights(layer, slice(None)).repeat(2, 1, 1, 1)
        torch.testing.assert_close(trace.weights(layer, slice(None)), both, atol=tolerance.two_runs(), rtol=0)


@torch.no_grad()
def test_attention_in_both_directions(model):
    """Modules that were made bidirectional, as for text embeddings: SDPA then gets no mask and every row all keys."""
    inputs, _ = single(model)
    modules = [layer.self_attn for layer in model.get_decoder().layers]
    try:
        for module in modules:
            module.is_causal = False
        with AttentionTrace(model) as trace:
            model(**inputs)
    finally:
        for module in modules:
            module.is_causal = True
    for layer in range(3):
        assert (trace.weights(layer, slice(None)) > 0).all()
