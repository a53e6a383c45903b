"""Attention rows of a word in the prompt or in the answer, and layer numbers from a --layers flag.

A word of the prompt has the rows of its own tokens. A token of the answer has two rows: the row that predicted it (one
position earlier; for the first token the last position of the prompt), and the row in which it is the query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from data.errors import InputError, SampleError
from models.layout import find_words

NAMES = {"first": "first shape", "relation": "relation", "second": "second shape"}


def find_word(text: str, word: str) -> tuple[int, int] | None:
    """Character span [start, end) of the first occurrence of a word or phrase, in the singular or with -s or -es.

    Matches whole words, ignoring case and Unicode normal form (`models.layout`). None if the text lacks the word.
    """
    spans = find_words(text, word, plural=True)
    return spans[0] if spans else None


def word_rows(layout, answer, word: str, rows: str = "predicting", prefer: str = "prompt") -> list[int]:
    """Sequence positions of the rows of a word; empty if both prompt and answer lack it.

    layout: `TokenLayout` of the prompt. spoken: the answer after the prompt, with `text` and `offsets` (characters of
    each token). rows: "predicting" or "query", for a word of the answer. prefer: "prompt" or "answer", used if both
    hold the word; its first occurrence counts.
    """
    check_choices(rows, prefer)
    rows_by = {"prompt": _in_prompt(layout, word), "answer": _in_answer(layout, answer, word, rows)}
    return rows_by[prefer] or rows_by["answer" if prefer == "prompt" else "prompt"]


def rows_of_words(layout, answer, words: Mapping[str, str], rows: str, prefer: str) -> dict[str, list[int]]:
    """`word_rows` of several words by name, empty for a missing word. Raises SampleError if all are missing."""
    rows_by = {name: word_rows(layout, answer, word, rows, prefer) for name, word in words.items()}
    if not any(rows_by.values()):
        raise SampleError(
            "no word is in prompt or answer",
            f"none of {', '.join(map(repr, words.values()))} is in the prompt {layout.prompt!r} or in the answer"
            f" {answer.text!r}",
        )
    return rows_by


def why_missing(name: str) -> str:
    """Reason under which a missing word is counted."""
    return f"{NAMES[name]} is neither in prompt nor answer"


def check_choices(rows: str, prefer: str) -> None:
    """Raise ValueError for an unknown convention or preference."""
    for value, known in ((rows, ("predicting", "query")), (prefer, ("prompt", "answer"))):
        if value not in known:
            raise InputError("unknown-choice", f"{value!r} is unknown; choose {known[0]!r} or {known[1]!r}")


def _in_prompt(layout, word: str) -> list[int]:
    span = find_word(layout.prompt, word)
    return layout.positions(*span).tolist() if span else []


def _in_answer(layout, answer, word: str, rows: str) -> list[int]:
    span = find_word(answer.text, word)
    if not span:
        return []
    first = layout.length - (rows == "predicting")
    return [first + i for i, (a, b) in enumerate(answer.offsets) if a < span[1] and b > span[0]]


THIRDS = ("first_third", "mid_third", "last_third")
MODES = "all, first_third, mid_third, last_third, last_K such as last_4, or numbers from 0 such as 3,7,12"


def check_layers(mode: str) -> None:
    """Raise ValueError for a mode that is invalid for every model, before a model is loaded."""
    if mode != "all" and mode not in THIRDS and not re.fullmatch(r"last_0*[1-9]\d*|\d+(,\d+)*", _plain(mode)):
        raise InputError("unknown-layers", f"layers {mode!r} is unknown; give {MODES}")


def select_layers(mode: str, layers: int) -> tuple[int, ...]:
    """Layers of a mode in a model of `layers` layers: unique 0-based numbers in rising order.

    all | first_third | mid_third | last_third | last_K | numbers with commas. The thirds split all layers as evenly as
    possible. Raises ValueError for an unknown mode, and for layer numbers outside the model.
    """
    check_layers(mode)
    if mode == "all":
        return tuple(range(layers))
    if mode in THIRDS:
        third = THIRDS.index(mode)
        chosen = tuple(range(round(third * layers / 3), round((third + 1) * layers / 3)))
        if not chosen:
            raise InputError("no-such-third", f"{layers} layers have no {mode}; give {MODES}")
        return chosen
    mode = _plain(mode)
    if mode.startswith("last_"):
        count = int(mode.removeprefix("last_"))
        if count > layers:
            raise InputError("too-many-layers", f"layers {mode!r} are more than the {layers} that the model has")
        return tuple(range(layers - count, layers))
    chosen = sorted({int(number) for number in mode.split(",")})
    if chosen[-1] >= layers:
        raise InputError("no-such-layer", f"layer {chosen[-1]} does not exist; the model has {layers}, counted from 0")
    return tuple(chosen)


def _plain(mode: str) -> str:
    return mode.replace(" ", "")
