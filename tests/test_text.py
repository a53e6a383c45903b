"""Causal language models: loaded under the same checks as the others, and prompts whose words can be found."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import models
from data.errors import MissingFileError, SampleError
from data.prompts import Prompts, gather_prompts
from models.text import is_causal, load
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.models import IDS, TEXT, picture, sharpen, word_tokenizer

pytestmark = pytest.mark.numerical
SIZES = TEXT | IDS | {"num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPT = "where is the circle in the square to the left of the blue red green circle ?"


def causal(seed=0):
    torch.manual_seed(seed)
    return sharpen(LlamaForCausalLM(LlamaConfig(**SIZES)).eval())


def save(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return str(folder)


def test_a_folder_loads_and_keeps_its_weights(tmp_path):
    stock = causal()
    model, tokenizer = load(save(tmp_path, stock))
    assert not model.training and model.config._attn_implementation == "sdpa" and model.dtype == torch.float32
    inputs, layout = model.prepare(tokenizer, [], f"  {PROMPT} ")
    assert layout.prompt == PROMPT and layout.length == inputs["input_ids"].shape[1] == 18  # <s> in front
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, layout.word("square")]) == ["square"]
    assert layout.word("circle", -1).tolist() == [16] and len(layout.image_positions) == 0
    with torch.no_grad(), AttentionTrace(model) as trace:
        ours = model(**inputs).logits
    torch.testing.assert_close(ours, stock(**inputs).logits, atol=tolerance.two_runs(), rtol=0)
    assert trace.layers == 6


def test_the_chat_template_is_applied(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ bos_token }} user : {{ messages[0]['content'] }} assistant :"
    model, tokenizer = load(save(tmp_path, causal(), tokenizer))
    inputs, layout = model.prepare(tokenizer, [], "where is it ?")
    assert layout.text == "<s> user : where is it ? assistant :" and layout.prompt_start == 11
    assert inputs["input_ids"][0].tolist().count(1) == 1  # the template's <s> alone
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with refused("template-changes-prompt"):
        model.prepare(tokenizer, [], "where ?")


def test_prompts_that_cannot_be(tmp_path):
    model, tokenizer = load(save(tmp_path, causal()))
    with refused("images-of-language-model"):
        model.prepare(tokenizer, [picture()], PROMPT)
    for text, reason in (("  ", "empty prompt"), ("what </s> is", "special token in the prompt")):
        with pytest.raises(SampleError) as caught:
            model.prepare(tokenizer, [], text)
        assert caught.value.reason == reason


def test_which_loader(tmp_path):
    assert is_causal(save(tmp_path, causal())) and is_causal("anything.GGUF") and not is_causal("tiny-llava")
    model, _ = load("tiny-llava")
    assert type(model).__module__ == "models.modeling_llava" and "tiny-llava" in models.embedded()


def test_what_is_refused(tmp_path):
    folder = save(tmp_path / "pickled", causal())
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(causal().state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    weights.unlink()
    with refused("pickled-weights"):
        load(folder)
    folder = save(tmp_path / "bare", causal())
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    with refused("unreadable-tokenizer"):
        load(folder)
    with refused("unknown-model", MissingFileError):
        load(str(tmp_path / "nowhere"))
    with refused("unknown-dtype"):
        load(save(tmp_path / "fine", causal()), dtype="float8")


def test_gguf_files(tmp_path, monkeypatch):
    with refused("no-such-file", MissingFileError):
        load(str(tmp_path / "none.gguf"))
    (tmp_path / "half.gguf").write_bytes(b"GGUF and no more")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package gguf, which is not installed: pip install gguf"):
        load(str(tmp_path / "half.gguf"))


# The prompts themselves


def test_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("\n one\ntwo \n\n\n  \nthree\n")
    prompts, unusable, _ = gather_prompts(Prompts(text=str(tmp_path / "a.txt")))
    assert [(prompt.name, prompt.text, prompt.path) for prompt in prompts] == [
        ("paragraph-0", "one\ntwo", None),
        ("paragraph-1", "three", None),
    ]
    assert unusable == [] and len(gather_prompts(Prompts(text=str(tmp_path / "a.txt"), num_samples=1))[0]) == 1


def test_pictures(tmp_path):
    for name in "abc":
        picture().save(tmp_path / f"{name}.png")
    for dataset in ("auto", "pictures"):
        flags = Prompts(data_root=str(tmp_path), dataset=dataset, prompt="what ?", num_samples=2)
        prompts, *_ = gather_prompts(flags)
        assert [(prompt.name, prompt.text, prompt.path.name) for prompt in prompts] == [
            ("a", "what ?", "a.png"),
            ("b", "what ?", "b.png"),
        ]


@pytest.mark.parametrize(
    "flags, error, reason",
    [
        ({"dataset": "pictures"}, ValueError, "data-root-needed"),
        ({"data_root": " "}, ValueError, "empty-data-root"),
        ({"data_root": ".", "text": "x"}, ValueError, "images-or-text"),
        ({"text": "none.txt"}, FileNotFoundError, "no-such-file"),
        ({"text": "{empty}"}, ValueError, "no-text"),
        ({"text": "{binary}"}, ValueError, "not-utf8"),
        ({"text": "{empty}", "prompt": "x"}, ValueError, "prompt-of-text"),
        ({"data_root": "{folder}", "dataset": "twoshapes"}, FileNotFoundError, "no-data"),
        ({"data_root": "{folder}", "num_samples": -1}, ValueError, "below-minimum"),
    ],
)
def test_wrong_flags(flags, error, reason, tmp_path):
    (tmp_path / "empty").write_text(" \n\n ")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    places = {"empty": tmp_path / "empty", "binary": tmp_path / "binary", "folder": tmp_path}
    flags = {name: value.format(**places) if isinstance(value, str) else value for name, value in flags.items()}
    with refused(reason, error):
        gather_prompts(Prompts(**flags))
