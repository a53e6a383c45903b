"""Prompts that hold a control token are refused, whatever the tokenizer calls it; text in angle brackets passes."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.errors import SampleError
from models.modeling_fuyu import FuyuForCausalLM
from models.vlm import check_prompt
from tests.errors import refused


def tokenizer(*added, byte_fallback=False, special=("<|im_end|>",)):
    """A byte-level or (with `byte_fallback`) Unigram tokenizer (its vocabulary holds the bytes) and added tokens."""
    if byte_fallback:
        pieces = [("<unk>", 0.0), *((chr(code), -1.0) for code in range(32, 127)), ("▁", -1.0)]
        pieces += [(f"<0x{code:02X}>", -2.0) for code in range(256)]
        backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


QWEN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<think>")


@pytest.mark.parametrize("token", [*QWEN, "<|im_end|>"])
def test_added_tokens_are_refused(token):
    """As Qwen2.5's tokenizer lists them: none of QWEN is marked as special."""
    qwen = tokenizer(*QWEN)
    assert len(qwen.tokenize(token)) == 1
    with pytest.raises(SampleError) as caught:
        check_prompt(f"where is {token} the circle ?", qwen)
    assert caught.value.reason == "special token in the prompt"


TEXTS = ["is <b>red</b> bold ?", "a\n\n\tb", "<0x0A> is a byte", "red < blue > green |x|", "wait ..."]


@pytest.mark.parametrize("prompt", TEXTS)
def test_text_passes(prompt):
    """Markup, blanks, words and punctuation that a tokenizer adds pass; so does a byte's name that is spelt out."""
    check_prompt(prompt, tokenizer("<b>", "</b>", "\n\n", "red", "  ", "...", *QWEN))


def test_names_of_bytes_that_become_the_byte():
    unigram = tokenizer(byte_fallback=True)
    assert "<0x0A>" in unigram.tokenize("<0x0A>")
    with refused("special token in the prompt", SampleError):
        check_prompt("a <0x0A> b", unigram)


@pytest.mark.parametrize("token", ["|NEWLINE|", "<box>", "</point>", "<0x04>"])
def test_structure_of_fuyu(token):
    """Ordinary vocabulary entries that its processor and model read as row ends, boxes and the begin of the answer."""
    plain = tokenizer()
    check_prompt(f"what is {token} ?", plain)
    with refused("special token in the prompt", SampleError):
        check_prompt(f"what is {token} ?", plain, FuyuForCausalLM.control_tokens)
