"""Which rows stand for a word: in pieces, twice, in the plural, in the answer, or not at all."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analysis.words import find_word, rows_of_words, why_missing, word_rows
from data.errors import SampleError
from models.generation import ForcedAnswer, decode_answer
from models.layout import TokenLayout
from tests.errors import refused


def layout(prompt="where is the red rectangle ?", pieces=("rect", "angle"), image=3, padding=2):
    """A left-padded prompt behind an image of some cells; "rectangle" is several tokens."""
    text = f"user : <image> {prompt} assistant :"
    offsets, start = [(0, 0)] * padding, 0
    for word in text.split():
        start = text.index(word, start)
        parts = pieces if word == "".join(pieces) else [word] * (image if word == "<image>" else 1)
        for part in parts:
            end = start + len(part)
            offsets.append((start, end))
            start = start if word == "<image>" else end
        start = offsets[-1][1]
    return TokenLayout(
        sample=0, start=padding, length=len(offsets), text=text, prompt=prompt, prompt_start=text.index(prompt),
        offsets=tuple(offsets), images=(),
    )  # fmt: skip


def output(*tokens):
    """An answer of these tokens; "##" glues a piece to the one before."""
    text, offsets = "", []
    for token in tokens:
        text += "" if token.startswith("##") or not text else " "
        offsets.append((len(text), len(text) + len(token.removeprefix("##"))))
        text += token.removeprefix("##")
    return ForcedAnswer(text, tuple(range(len(tokens))), tuple(offsets))


def characters():
    """A real byte-level tokenizer without merges: every character is a token, a space comes with its byte."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_words_of_several_tokens():
    """Positions: 2 of padding, user : <image> x 3, where is the red rect angle ? assistant :"""
    assert word_rows(layout(), output("left"), "rectangle") == [11, 12]
    assert word_rows(layout(), output("left"), "red rectangle") == [10, 11, 12]


def test_answer_counts_with_the_rows_that_predicted_it():
    """The prompt has 16 positions; row 15 predicts the first token of the answer, which is read in row 16."""
    assert layout().length == 16
    assert word_rows(layout(), output("left"), "left") == [15]
    assert word_rows(layout(), output("left"), "left", rows="query") == [16]
    answer = output("a", "blue", "tri", "##angle", "above")
    assert word_rows(layout(), answer, "blue triangle") == [16, 17, 18]
    assert word_rows(layout(), answer, "blue triangle", rows="query") == [17, 18, 19]


def test_word_that_occurs_twice():
    """In prompt and answer: the prompt's counts unless the answer's is asked for. In one of them: the first."""
    answer = output("the", "red", "rect", "##angle", "is", "left", ".")
    assert word_rows(layout(), answer, "red rectangle") == [10, 11, 12]
    assert word_rows(layout(), answer, "red rectangle", prefer="answer") == [16, 17, 18]
    assert word_rows(layout(), answer, "left", prefer="prompt") == word_rows(layout(), answer, "left", prefer="answer")
    twice = layout("the red rectangle : red rectangle ?")
    assert word_rows(twice, output("left"), "red rectangle") == [8, 9, 10]


def test_shape_in_the_plural():
    assert word_rows(layout("red rectangles ?", pieces=("rect", "angles")), output("yes"), "red rectangle") == [7, 8, 9]
    assert find_word("two crosses .", "cross") == (4, 11)
    assert find_word("Red   Circles", "red circle") == (0, 13)


def test_parts_of_words_are_no_words():
    for text in ("crossing", "across", "leftover", "bright", "infrared circle"):
        for word in ("cross", "left", "right", "red circle"):
            assert find_word(text, word) is None


def test_missing_word_has_no_rows_and_a_reason():
    words = {"first": "red rectangle", "relation": "left", "second": "blue cross"}
    found = rows_of_words(layout(), output("left"), words, "predicting", "prompt")
    assert found == {"first": [10, 11, 12], "relation": [15], "second": []}
    assert rows_of_words(layout(), output("right"), words, "predicting", "prompt")["relation"] == []
    assert why_missing("second") == "second shape is neither in prompt nor answer"
    with pytest.raises(SampleError, match="none of 'blue cross' is in the prompt") as error:
        rows_of_words(layout(), output("left"), {"second": "blue cross"}, "predicting", "prompt")
    assert error.value.reason == "no word is in prompt or answer"
    found = rows_of_words(layout(), output("left"), {"relation": "left", "first": "rectangle"}, "query", "prompt")
    assert found == {"relation": [16], "first": [11, 12]}


def test_unknown_choices_are_told():
    with refused("unknown-choice"):
        word_rows(layout(), output("left"), "left", rows="both")
    with refused("unknown-choice"):
        word_rows(layout(), output("left"), "left", prefer="image")


def test_answer_is_spelt_by_its_tokens():
    """One token per character, and a space in front that the answer loses: its token stands for nothing."""
    tokenizer = characters()
    answer = decode_answer(tokenizer, tokenizer.encode(" above it"))
    assert answer.text == "above it" and answer.offsets[0] == (0, 0) and len(answer.ids) == 9
    assert "".join(answer.text[slice(*span)] for span in answer.offsets) == "above it"
    assert word_rows(layout(), answer, "above") == [16, 17, 18, 19, 20]
