"""The mask of every layer and step is that of causal attention with padding on the left, or the trace refuses it."""

import pytest
import torch

from data.errors import InputError
from models.trace import AttentionTrace, is_left_padded
from tests import tolerance
from tests.errors import refused
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


def window(mask, rows):
    """The last 8 keys of each row."""
    keys = mask.shape[-1]
    return mask & torch.ones(rows, keys, dtype=torch.bool).triu(keys - rows - 7)


def window_in_decode(mask, rows):
    return mask if rows > 1 else window(mask, rows)


def ahead(mask, rows):
    """The first four tokens of the longer sample see each other, as a prefix or the tokens of an image may."""
    mask = mask.clone()
    mask[1, :, :4, :4] = True
    return mask


def one_head(mask, rows):
    """A window in one head of four."""
    return torch.cat([mask.expand(-1, 3, -1, -1), window(mask, rows)], 1)


def later(mask, rows):
    """Padding that is one token longer than in the layers before."""
    mask = mask.clone()
    mask[0, :, :, int(mask[0, 0, -1].int().argmax())] = False
    return mask


CHANGES = (window, window_in_decode, ahead, one_head, later)


@pytest.mark.parametrize("change", [*CHANGES, lambda mask, rows: None], ids=[*(c.__name__ for c in CHANGES), "no_mask"])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_the_mask_of_every_layer_is_checked(model, change, layer):
    inputs, layouts = batch(model)
    assert layouts[0].start == 0 < layouts[1].start
    hook = with_mask(model, layer, change)
    named = layer or "[01]"  # the first mask says where the padding is, and the next one differs from it
    sentence = f"mask of layer {named} is not causal with padding on the left"
    try:
        with pytest.raises(InputError, match=sentence), AttentionTrace(model):
            generate(model, inputs)
    finally:
        hook.remove()


@torch.no_grad()
def test_a_mask_is_checked_once_in_each_forward_pass(model, monkeypatch):
    """transformers gives all layers the same mask, and none where there is no padding, which needs no check."""
    checks = []

    def counted(mask, *args):
        checks.append(mask.shape[2:])
        return is_left_padded(mask, *args)

    monkeypatch.setattr("models.trace.is_left_padded", counted)
    inputs, _ = batch(model)
    length = inputs["input_ids"].shape[1]
    with AttentionTrace(model):
        generate(model, inputs)
    assert checks == [(length, length), *((1, length + step) for step in range(1, 5))]
    checks.clear()
    inputs, _ = single(model)
    with AttentionTrace(model):
        generate(model, inputs)
    assert checks == []


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
def test_attention_in_both_directions_is_refused(model):
    """Modules that were made bidirectional, as for text embeddings: SDPA then gets no mask and sees all keys."""
    inputs, _ = single(model)
    modules = [layer.self_attn for layer in model.get_decoder().layers]
    try:
        for module in modules:
            module.is_causal = False
        with refused("not-causal"), AttentionTrace(model):
            model(**inputs)
    finally:
        for module in modules:
            module.is_causal = True
