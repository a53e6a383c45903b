"""Families that have no file here: recorded exactly, their words found, and refused in one sentence where they cannot."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging

import models
from analysis.rollout import rollout
from models.answer import answer
from models.trace import AttentionTrace
from models.unpatched import unexpand
from tests.models import picture
from tests.unpatched import UNPATCHED, llava_next, save, text_config

ROOT = Path(__file__).parent.parent
PROMPTS = ["is the red circle left of the Red square ?", "what is red ?"]
PICTURES = [[picture(90, 70), picture(60, 130, seed=1)], [picture(60, 90, seed=2)]]

logging.disable_progress_bar()


@pytest.fixture(scope="module", params=UNPATCHED)
def family(request, tmp_path_factory):
    """(folder as the stock classes write it, the stock class, our model, processor)."""
    folder = tmp_path_factory.mktemp(request.param)
    stock = type(save(folder, UNPATCHED[request.param]))
    with pytest.warns(UserWarning, match=f"of the family '{request.param}', whose image grid is not known") as caught:
        model, processor = models.load(str(folder))
    assert len(caught) == 1 and caught[0].filename == __file__ and "\n" not in str(caught[0].message)
    return folder, stock, model, processor


def prepared(model, processor, batch):
    """(inputs, layouts) of both prompts with three pictures, or of the first with its two."""
    if batch:
        return model.prepare(processor, PICTURES, PROMPTS)
    inputs, layout = model.prepare(processor, PICTURES[0], PROMPTS[0])
    return inputs, [layout]


@torch.no_grad()
@pytest.mark.parametrize("batch", [False, True], ids=["single", "left_padded_batch"])
def test_weights_equal_the_stock_classs_eager(family, batch):
    folder, stock, model, processor = family
    inputs, layouts = prepared(model, processor, batch)
    assert any(layout.start > 0 for layout in layouts) == batch
    options = {"max_new_tokens": 4, "do_sample": False}
    with AttentionTrace(model) as trace:
        tokens = model.generate(**inputs, **options)
    plain = stock.from_pretrained(folder).eval()
    assert torch.equal(plain.generate(**inputs, **options), tokens)
    eager = stock.from_pretrained(folder, attn_implementation={"text_config": "eager"}).eval()
    steps = eager.generate(**inputs, **options, output_attentions=True, return_dict_in_generate=True).attentions
    for layout in layouts:
        for layer in range(trace.layers):
            prefill = trace.weights(layer, range(layout.start, layout.length), samples=[layout.sample])[0]
            expected = steps[0][layer][layout.sample, :, layout.start :]
            assert (prefill[..., : layout.length] - expected).abs().max() <= 1e-5
            for step in range(1, 4):
                row = layout.length + step - 1
                ours = trace.weights(layer, row, samples=[layout.sample])[0, :, 0, : row + 1]
                assert (ours - steps[step][layer][layout.sample, :, 0]).abs().max() <= 1e-5


@pytest.mark.parametrize("batch", [False, True], ids=["single", "left_padded_batch"])
def test_every_token_knows_its_characters(family, batch):
    """Word-level tokenizers: each token that is no image's must be the very word that its offsets cut out."""
    _, _, model, processor = family
    inputs, layouts = prepared(model, processor, batch)
    for layout in layouts:
        ids = inputs["input_ids"][layout.sample].tolist()
        placeholder = processor.image_token
        for position, (first, last) in enumerate(layout.offsets[layout.start :], layout.start):
            spelled = processor.tokenizer.decode([ids[position]])
            if layout.text[first:last] != placeholder:
                assert layout.text[first:last].lower() == ("" if spelled == "<s>" else spelled)
            else:
                assert not set(spelled) & set("abcdefghijklmnopqrstuvwxyz") or spelled.startswith("<")
        assert processor.tokenizer.decode([ids[i] for i in layout.word("red")]) == "red"
    first = layouts[0]
    assert int(first.word("circle")) == int(first.word("red")) + 1
    assert int(first.word("red", 1)) == int(first.word("square")) - 1


def test_image_tokens_are_shared_out_between_the_pictures(family):
    """Also where two pictures stand side by side; alone, each has as many as in company (LLaVA-OneVision has more)."""
    folder, _, model, processor = family
    inputs, layouts = prepared(model, processor, batch=True)
    for layout in layouts:
        ids = inputs["input_ids"][layout.sample]
        marked = (ids == model.config.image_token_id).nonzero().flatten()
        assert torch.equal(layout.image_positions, marked)
        assert layout.grids == (None,) * len(layout.images)
    if model.config.model_type != "llava_onevision":
        for pictures, layout in zip(PICTURES, layouts, strict=True):
            for image, positions in zip(pictures, layout.images, strict=True):
                alone = model.prepare(processor, [image], "what ?")[1]
                assert len(alone.images[0]) == len(positions)
    assert "text_replacement_offsets" not in inputs


def test_answer_and_rollout_run(family):
    _, _, model, processor = family
    said = answer(model, processor, [picture(90, 70)], PROMPTS[0], max_new_tokens=3)
    rolled = rollout(said.trace, said.layout)
    torch.testing.assert_close(rolled.relevance.sum(-1), torch.ones(3))
    assert rolled.maps().per_token.shape == (3, 1, len(said.layout.images[0]))
    assert answer(model, processor, [], "what is red ?", max_new_tokens=1).layout.images == ()


def test_unexpand_by_hand():
    """'ab<>cd<>e' where the first <> became five characters and the second one."""
    placed = [{"span": (2, 4), "new_span": (2, 7)}, {"span": (6, 8), "new_span": (9, 10)}]
    starts = [unexpand(character, placed) for character in range(11)]
    assert starts == [0, 1, 2, 2, 2, 2, 2, 4, 5, 6, 8]
    ends = [unexpand(character, placed, end=True) for character in range(12)]
    assert ends == [0, 1, 2, 4, 4, 4, 4, 4, 5, 6, 8, 9]


def refused(folder, sentence):
    with pytest.raises(ValueError, match=sentence) as error, warnings.catch_warnings():
        warnings.simplefilter("error")
        models.load(str(folder))
    assert "\n" not in str(error.value)


def test_text_only_model_is_refused(tmp_path):
    config = transformers.LlamaConfig(**text_config())
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    refused(tmp_path, "family 'llama', which is not a model of images and text; supported are llava, qwen2_vl")


@pytest.mark.parametrize("part, kind", [("encoder", "t5"), ("image", "opt")])
def test_blip2_is_refused(tmp_path, part, kind):
    marked = {"image_token_index": 4} if part == "encoder" else {}
    transformers.Blip2Config(text_config={"model_type": kind}, **marked).save_pretrained(tmp_path)
    refused(tmp_path, "family 'blip-2', which (has an encoder and a decoder|does not mark its image tokens)")
