"""Activations that are NaN or infinite: the sample is refused with the first layer, and no figure counts it.

The planted cause: in float16 the word "red" overflows in the MLP of decoder layer 1. Its embedding has the direction of
all ones, on which gate and up projection of that layer add up: 64 x 64 x 96 x 0.5 = 196,608 > 65,504.
"""

import json

import pytest
import torch

from data.errors import SampleError
from models.answering import Decoding, ModelBackend
from models.generation import answer, answers, decode_answer, log_probabilities, read_text
from tests.models import llava, llava_processor, picture
from tests.runs import table
from tests.shell import run

SENTENCE = (
    "the activations are not finite in float16, first in the output of decoder layer 1 of 3; use --dtype bfloat16 or "
    "float32"
)
WORDS = ("green", "red", "blue")
FINE, OVERFLOWS = "where is the green circle ?", "where is the red circle ?"


@torch.no_grad()
def overflowing():
    model, processor = llava(), llava_processor()
    decoder = model.get_decoder()
    decoder.embed_tokens.weight[processor.tokenizer.convert_tokens_to_ids("red")] = 1000.0
    mlp = decoder.layers[1].mlp
    mlp.gate_proj.weight.fill_(1.0)
    mlp.up_proj.weight.fill_(1.0)
    mlp.down_proj.weight.fill_(0.5)
    return model, processor


@pytest.fixture(scope="module")
def half():
    model, processor = overflowing()
    return model.half(), processor


def error_of(call):
    with pytest.raises(SampleError) as error:
        call()
    return error.value


def test_generation_names_the_layer(half):
    model, processor = half
    assert answer(model, processor, [picture()], FINE, max_new_tokens=2).tokens
    error = error_of(lambda: answer(model, processor, [picture()], OVERFLOWS, max_new_tokens=2))
    assert (error.reason, str(error)) == ("activations not finite", SENTENCE)
    assert answer(model, processor, [picture()], FINE, max_new_tokens=2).tokens  # nothing is left attached


def test_padding_is_not_blamed(half):
    """In a batch with a longer prompt, the padded rows count neither for nor against a sample."""
    model, processor = half
    images = [[picture()], [picture()]]
    assert len(answers(model, processor, images, [FINE, "what ?"], max_new_tokens=2)) == 2
    error = error_of(lambda: answers(model, processor, images, [OVERFLOWS, "what ?"], max_new_tokens=2))
    assert str(error) == SENTENCE


def test_single_precision_holds_the_same_numbers():
    model, processor = overflowing()
    assert answer(model, processor, [picture()], OVERFLOWS, max_new_tokens=2).tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_from_nan_is_refused(half, temperature):
    model, processor = half
    asked = ModelBackend(model, processor, Decoding(max_new_tokens=2, temperature=temperature))
    assert len(asked.answer(["a"], [FINE], [[picture()]])) == 1
    assert str(error_of(lambda: asked.answer(["a"], [OVERFLOWS], [[picture()]]))) == SENTENCE


def test_reading_and_scoring_are_refused(half):
    model, processor = half
    read_text(model, processor, FINE)
    assert str(error_of(lambda: read_text(model, processor, OVERFLOWS))) == SENTENCE
    words = decode_answer(processor.tokenizer, processor.tokenizer("left")["input_ids"])
    assert log_probabilities(model, processor, [picture()], FINE, words, 1).isfinite().all()
    assert str(error_of(lambda: log_probabilities(model, processor, [picture()], OVERFLOWS, words, 1))) == SENTENCE


def test_an_embedding_and_a_later_step_are_named():
    model, processor = llava(), llava_processor()
    with torch.no_grad():
        model.get_decoder().embed_tokens.weight[processor.tokenizer.convert_tokens_to_ids("red")] = torch.inf
    error = error_of(lambda: answer(model, processor, [picture()], OVERFLOWS, max_new_tokens=2))
    assert "in float32, first in the embeddings of the prompt; float32 has the widest range" in str(error)
    token = processor.tokenizer.convert_tokens_to_ids("square")  # made the first of the answer; the prompt lacks it
    inputs, _ = model.prepare(processor, [picture()], FINE)
    with torch.no_grad():
        model.lm_head.weight[token] = 10 * model.base_model(**inputs).last_hidden_state[0, -1]
        model.get_decoder().embed_tokens.weight[token] = torch.nan
    error = error_of(lambda: answer(model, processor, [picture()], FINE, max_new_tokens=2))
    assert "first in a row of a generated token, or under steering" in str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    for part in overflowing():
        part.save_pretrained(folder)
    return folder


def test_accuracy_is_of_finite_answers_alone(folder, tmp_path):
    picture().save(tmp_path / "a.png")
    asked = [{"id": word, "question": f"what is {word} ?", "answer": "circle", "image": "a.png"} for word in WORDS]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    flags = ["--dataset", tmp_path / "asked.jsonl", "--data-root", tmp_path, "--dtype", "float16", "--model", folder]
    ended = run("evaluate.py", *flags, "--out-dir", tmp_path / "out", "--max-new-tokens", 2)
    assert ended.returncode == 0 and "failed: 1 activations not finite" in ended.stdout, ended.stderr
    assert f"failed red: {SENTENCE}" in ended.stderr
    overall = json.loads((tmp_path / "out" / "summary.json").read_text())["overall"]
    assert overall["n"] == 2
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked[1]))
    ended = run("evaluate.py", *flags, "--out-dir", tmp_path / "none", "--max-new-tokens", 2)
    assert ended.returncode == 1 and json.loads((tmp_path / "none" / "summary.json").read_text())["overall"]["n"] == 0
    assert "%" not in ended.stdout, ended.stdout


def test_a_sample_that_overflows_is_a_counted_skip(folder, tmp_path):
    picture().save(tmp_path / "a.png")
    flags = ["--image", tmp_path / "a.png", "--dtype", "float16", "--model", folder, "--max-new-tokens", 2]
    ended = run("attention_rollout_llava.py", *flags, "--prompt", OVERFLOWS, "--out-dir", tmp_path / "out")
    assert ended.returncode == 1 and "skipped: activations not finite (1)" in ended.stdout, ended.stderr
    assert table(tmp_path / "out")[0]["skipped"] == "activations not finite"
