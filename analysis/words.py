"""Attention rows of a word in the prompt or in the answer.

A word of the prompt is read in its own tokens' rows. A word of the answer has two: the row that predicted each token
(which lies one position earlier, the last of the prompt for the first token), and the row in which the token is read.

Which layers an analysis averages over: the words that a --layers flag takes, turned into layer numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from data.errors import SampleError
from models.layout import find_words

NAMES = {"first": "first shape", "relation": "relation", "second": "second shape"}


def find_word(text: str, word: str) -> tuple[int, int] | None:
    """[start, end) of the characters of a word or phrase, in the singular or with -s or -es: its first occurrence.

    Whole words, ignoring case and Unicode normal form (`models.layout`). None if the text does not hold it.
    """
    spans = find_words(text, word, plural=True)
    return spans[0] if spans else None


def word_rows(layout, spoken, word: str, rows: str = "predicting", prefer: str = "prompt") -> list[int]:
    """Sequence positions of the rows that stand for a word; empty if neither prompt nor answer holds it.

    layout: `TokenLayout` of the prompt. spoken: the answer, with `text` and `offsets` (characters of each token), which
    follows the prompt. `rows`, for a word of the answer: "predicting" or "query". `prefer` says which counts where
    "prompt" and "answer" both hold the word; in either, its first occurrence.
    """
    check_choices(rows, prefer)
    found = {"prompt": _in_prompt(layout, word), "answer": _in_answer(layout, spoken, word, rows)}
    return found[prefer] or found["answer" if prefer == "prompt" else "prompt"]


def rows_of_words(layout, spoken, words: Mapping[str, str], rows: str, prefer: str) -> dict[str, list[int]]:
    """`word_rows` of each of some words by name, empty for one that is missing. Raises SampleError where all are."""
    found = {name: word_rows(layout, spoken, word, rows, prefer) for name, word in words.items()}
    if not any(found.values()):
        raise SampleError(
            "no word is in prompt or answer",
            f"none of {', '.join(map(repr, words.values()))} is in the prompt {layout.prompt!r} or in the answer"
            f" {spoken.text!r}",
        )
    return found


def why_missing(name: str) -> str:
    """Under what a missing word is counted."""
    return f"{NAMES[name]} is neither in prompt nor answer"


def check_choices(rows: str, prefer: str) -> None:
    """Raises ValueError for an unknown convention or preference."""
    for value, known in ((rows, ("predicting", "query")), (prefer, ("prompt", "answer"))):
        if value not in known:
            raise ValueError(f"{value!r} is unknown; choose {known[0]!r} or {known[1]!r}")


def _in_prompt(layout, word: str) -> list[int]:
    span = find_word(layout.prompt, word)
    return layout.positions(*span).tolist() if span else []


def _in_answer(layout, spoken, word: str, rows: str) -> list[int]:
    span = find_word(spoken.text, word)
    if not span:
        return []
    first = layout.length - (rows == "predicting")
    return [first + i for i, (a, b) in enumerate(spoken.offsets) if a < span[1] and b > span[0]]


THIRDS = ("first_third", "mid_third", "last_third")
MODES = "all, first_third, mid_third, last_third, last_K such as last_4, or numbers from 0 such as 3,7,12"


def check_layers(mode: str) -> None:
    """Raises ValueError for a mode that fits no model at all, which can be known before one is loaded."""
    if mode != "all" and mode not in THIRDS and not re.fullmatch(r"last_0*[1-9]\d*|\d+(,\d+)*", _plain(mode)):
        raise ValueError(f"layers {mode!r} is unknown; give {MODES}")


def select_layers(mode: str, layers: int) -> tuple[int, ...]:
    """The layers that a mode stands for in a model of so many: numbers from 0, each once, rising.

    all | first_third | mid_third | last_third | last_K | numbers with commas. The thirds share out all layers, as
    evenly as they go. Raises ValueError for an unknown mode, and for layers that the model does not have.
    """
    check_layers(mode)
    if mode == "all":
        return tuple(range(layers))
    if mode in THIRDS:
        third = THIRDS.index(mode)
        found = tuple(range(round(third * layers / 3), round((third + 1) * layers / 3)))
        if not found:
            raise ValueError(f"{layers} layers have no {mode}; give {MODES}")
        return found
    mode = _plain(mode)
    if mode.startswith("last_"):
        count = int(mode.removeprefix("last_"))
        if count > layers:
            raise ValueError(f"layers {mode!r} are more than the {layers} that the model has")
        return tuple(range(layers - count, layers))
    found = sorted({int(number) for number in mode.split(",")})
    if found[-1] >= layers:
        raise ValueError(f"layer {found[-1]} does not exist; the model has {layers}, counted from 0")
    return tuple(found)


def _plain(mode: str) -> str:
    return mode.replace(" ", "")
