"""Greedy decoding whatever a checkpoint's generation_config.json asks for, and the options that rule out recording."""

import json
import shutil

import pytest
import torch
import transformers
from transformers import RepetitionPenaltyLogitsProcessor

import evaluate
import models
from models.answering import Decoding, ModelBackend
from models.generation import answer, answers
from models.generation_settings import UNRECORDABLE, RepetitionPenalty
from models.loading import describe
from models.trace import AttentionTrace
from tests.errors import refused
from tests.models import llava, llava_processor, picture
from tests.settings import configure
from tests.shell import run

NAME, PROMPT = "tiny-qwen2.5-vl", "what colour is the shape ?"
SETTINGS = {
    "sampling": {"do_sample": True, "temperature": 3.0, "top_k": 20, "top_p": 0.9},
    "min_p": {"do_sample": True, "min_p": 0.01, "typical_p": 0.9},
    "repetition": {"repetition_penalty": 1.3},
    "ngrams": {"no_repeat_ngram_size": 1},
    "beams": {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
    "several": {"num_return_sequences": 2, "do_sample": True},
    "no_cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "quantized": {"cache_implementation": "quantized", "cache_config": {"backend": "quanto"}},
    "offloaded": {"cache_implementation": "offloaded"},
    "chunks": {"prefill_chunk_size": 8},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "stop_strings": {"stop_strings": ["a", "e"]},
    "guidance": {"guidance_scale": 1.5},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": "high"},
    "return_dict": {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True},
    "suppressed": {"suppress_tokens": list(range(20, 60)), "begin_suppress_tokens": [20]},
    "bad_words": {"bad_words_ids": [[number] for number in range(20, 60)]},
    "forced": {"forced_bos_token_id": 25, "forced_eos_token_id": 26},
    "lengths": {"min_new_tokens": 12, "max_new_tokens": 13},
    "max_time": {"max_time": 1e-9, "max_length": 5},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.25, "bias": 5.0}},
}


def folder_with(tmp_path, settings):
    """A copy of the embedded checkpoint whose generation_config.json asks for `settings`."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(models.TINY / NAME, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.fixture(scope="module")
def plain():
    model, processor = models.load(NAME, device="cpu")
    return answer(model, processor, [picture()], PROMPT, max_new_tokens=8)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_a_checkpoint_are_off_and_stated(plain, tmp_path, settings):
    """The same tokens, probabilities and recorded weights as without them: the same operations on the same numbers."""
    model, processor = models.load(str(folder_with(tmp_path, settings)), device="cpu")
    found = answer(model, processor, [picture()], PROMPT, max_new_tokens=8)
    assert (found.tokens, found.probabilities) == (plain.tokens, plain.probabilities)
    assert torch.equal(found.trace.weights(1, -1), plain.trace.weights(1, -1))
    about = describe(model)
    off = about["generation settings of the checkpoint that are off"]
    assert set(settings) - {"use_cache", "num_beams", "do_sample"} <= set(off)
    assert about["generation"]["do_sample"] is False


def test_the_likeliest_token_is_the_chosen_one(plain):
    """The page lists no token above the one that was chosen greedily."""
    for token, chance, others in zip(plain.tokens, plain.probabilities, plain.alternatives, strict=True):
        assert others[0] == (token, chance)


def test_scripts_run_with_a_checkpoint_that_asks_for_everything(tmp_path):
    together = [settings for name, settings in SETTINGS.items() if name != "forced"]  # not with suppressed tokens
    settings = {name: value for each in together for name, value in each.items()}
    folder = folder_with(tmp_path, settings)
    picture().save(tmp_path / "photo.png")
    words = ["--image", str(tmp_path / "photo.png"), "--prompt", PROMPT, "--model", str(folder), "--device", "cpu"]
    assert run("attention_rollout_qwen2.py", *words, "--out-dir", str(tmp_path / "rollout")).returncode == 0
    stated = json.loads((tmp_path / "rollout" / "settings.json").read_text())["model"]
    assert stated["generation settings of the checkpoint that are off"]["repetition_penalty"] == 1.3
    record = {"id": "1", "image": "photo.png", "question": PROMPT, "answer": "red"}
    (tmp_path / "set.jsonl").write_text(json.dumps(record) + "\n")
    options = {"dataset": str(tmp_path / "set.jsonl"), "device": "cpu", "max_new_tokens": 8}
    for model, name in ((str(folder), "asks"), (NAME, "plain")):
        config = configure(evaluate, **options, model=model, out_dir=str(tmp_path / name))
        assert evaluate.main(config) == 0
    asked, plain = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("asks", "plain"))
    assert asked == plain


REFUSED = {
    "num_beams": 2, "num_beam_groups": 2, "num_return_sequences": 2, "constraints": [object()],
    "force_words_ids": [[3]], "penalty_alpha": 0.6, "dola_layers": "high", "guidance_scale": 2.0,
    "prompt_lookup_num_tokens": 2, "assistant_model": llava, "assistant_early_exit": 1, "use_mtp": True,
    "use_cache": False, "cache_implementation": "offloaded", "past_key_values": transformers.DynamicCache(),
    "prefill_chunk_size": 4, "token_healing": True, "custom_generate": print, "output_attentions": True,
}  # fmt: skip


def test_every_unrecordable_option_is_tried():
    assert set(REFUSED) == set(UNRECORDABLE)


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_rule_out_recording_are_refused_before_the_model_runs(name):
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with refused("unrecordable-setting"), AttentionTrace(model):
        model.generate(**inputs, **{name: REFUSED[name]})


def test_repetition_penalty_is_that_of_transformers_without_padding():
    generator = torch.Generator().manual_seed(0)
    ids, scores = torch.randint(0, 30, (2, 9), generator=generator), torch.randn(2, 30, generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, scores)
    assert torch.equal(RepetitionPenalty(1.3, [0, 0])(ids, scores), expected)


def test_repetition_penalty_by_hand():
    """Tokens 1 and 3 came before; 0 is padding of the second sample alone."""
    ids = torch.tensor([[0, 1, 3, 3], [0, 0, 1, 3]])
    scores = torch.tensor([[2.0, 4.0, 1.0, -4.0]]).repeat(2, 1)
    found = RepetitionPenalty(2.0, [0, 2])(ids, scores)
    assert found.tolist() == [[1.0, 2.0, 1.0, -8.0], [2.0, 2.0, 1.0, -8.0]]
    assert scores[0].tolist() == [2.0, 4.0, 1.0, -4.0]


def test_repetition_penalty_is_the_same_alone_and_in_a_batch():
    model, processor = llava(), llava_processor()
    prompts, images = ["what ?", "what is in the red circle ?", "describe"], [[picture(seed=seed)] for seed in range(3)]
    plain = ModelBackend(model, processor, Decoding(8)).answer("abc", prompts, images)
    backend = ModelBackend(model, processor, Decoding(8, repetition_penalty=3.0))
    together = backend.answer("abc", prompts, images)
    assert together != plain
    alone = [
        backend.answer([key], [prompt], [image])[0] for key, prompt, image in zip("abc", prompts, images, strict=True)
    ]
    assert together == alone
    traced = answers(model, processor, images, prompts, max_new_tokens=8, repetition_penalty=3.0)
    assert [each.text for each in traced] == [reply.text for reply in together]
