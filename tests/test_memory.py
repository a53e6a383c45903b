"""Arithmetic of memory against the real tensors of loaded models, and the note on a prompt that may not fit."""

import pytest
import torch

import models
import models.memory
from models.answering import Decoding, ModelBackend
from models.generation import answer
from models.memory import Decoder, check_fits, needed, parts
from models.trace import AttentionTrace
from tests.models import llava, llava_processor, picture


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl", "tiny-fuyu"])
@torch.no_grad()
def test_sizes_of_a_loaded_model_are_those_of_its_tensors(name):
    model, processor = models.load(name, device="cpu")
    inputs, layout = model.prepare(processor, [picture()], "what is red ?")
    part = parts(Decoder.of(model), layout.length, "cpu")
    with AttentionTrace(model) as trace:
        cache = model(**inputs, use_cache=True).past_key_values
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == part["keys and values"]
    assert sum(trace._recorded[layer].prompt.nbytes for layer in range(trace.layers)) == part["recorded queries"]
    assert sum(parameter.nbytes for parameter in model.parameters()) == part["weights"]


def test_need_by_hand():
    """2 layers, 4 heads of 8 over 2 key heads, 32 wide, 64 inside, 4 bytes, 100 tokens."""
    decoder = Decoder(1000, 2, 4, 2, 8, 32, 64, number=4)
    cache, activations, queries = 2 * 2 * 2 * 8 * 4 * 100, 3 * (64 + 32) * 4 * 100, 2 * 4 * 8 * 4 * 100
    rollout = 2 * 4 * 2**20 + 4 * 2 * 8 * 100
    assert needed(decoder, 100, "cpu", recorded=False) == cache + activations
    assert needed(decoder, 100, "cpu") == needed(decoder, 100, "cpu", offload=True) == cache + rollout + queries
    gpu = 2 * 4 * 2**26 + 4 * 2 * 8 * 100
    assert needed(decoder, 100, "cuda") == cache + gpu + queries
    assert needed(decoder, 100, "cuda", offload=True) == cache + gpu


def test_a_prompt_that_may_not_fit_is_named_before_it_is_answered(monkeypatch):
    model, processor = llava(), llava_processor()
    need = needed(Decoder.of(model), 30, "cpu")
    monkeypatch.setattr(models.memory, "free_bytes", lambda device: need)
    check_fits(model, 1, 30)
    with pytest.warns(UserWarning, match="a prompt of 31 tokens may not fit: it needs about 0.0 GB above the weights"):
        check_fits(model, 1, 31)
    with pytest.warns(UserWarning, match="a batch of 2 prompts of 30 tokens may not fit"):
        check_fits(model, 2, 30)
    monkeypatch.setattr(models.memory, "free_bytes", lambda device: 0)
    with pytest.warns(UserWarning, match=r"0.0 GB are free on cpu .*--max-pixels"):
        answer(model, processor, [picture()], "what ?", max_new_tokens=2)
    with pytest.warns(UserWarning, match="a batch of 2 prompts"):
        ModelBackend(model, processor, Decoding(2)).answer("ab", ["what ?"] * 2, [[picture()]] * 2)
