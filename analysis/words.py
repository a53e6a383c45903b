"""Which attention rows stand for a word, in the prompt or in the answer.

A word of the prompt is read in its own tokens' rows. A word of the answer has two: the row that predicted each token
(which lies one position earlier, the last of the prompt for the first token), and the row in which the token is read.
"""

from __future__ import annotations

from collections.abc import Mapping

from data.errors import SampleError
from models.word_search import find_words

NAMES = {"first": "first shape", "relation": "relation", "second": "second shape"}


def find_word(text: str, word: str) -> tuple[int, int] | None:
    """[start, end) of the characters of a word or phrase, in the singular or with -s or -es: its first occurrence.

    Whole words, ignoring case and Unicode normal form (`models.word_search`). None if the text does not hold it.
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
