"""Find a word or phrase in a text: whole words, ignoring case and Unicode normal form.

Text and phrase are compared after compatibility decomposition (NFKD, Unicode Standard Annex 15) and case folding, so
that a precomposed letter equals its decomposed form and a full-width letter the ordinary one. A match must not begin or
end between two letters, digits or underscores, nor before a combining mark. Scripts that are written without blanks
between words have no such boundaries: next to one of their characters a match may begin or end anywhere but before a
combining mark.
"""

from __future__ import annotations

import re
import unicodedata

# First word of the Unicode names of characters of scripts that are written without blanks between words.
WITHOUT_BLANKS = {
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR",
}  # fmt: skip


def find_words(text: str, phrase: str, plural: bool = False) -> list[tuple[int, int]]:
    """[start, end) in characters of `text` of every occurrence of `phrase`, from left to right, without overlap.

    Blanks between the words of the phrase match any run of blanks. With `plural` an -s or -es may follow the phrase.
    """
    plain, origin = _decompose(text)
    words = r"\s+".join(re.escape(_decompose(word)[0]) for word in phrase.split())
    pattern = re.compile(words + "(?:e?s)?" * plural)
    spans, position = [], 0
    while words and (match := pattern.search(plain, position)):
        first, last = match.span()
        whole = _is_boundary(plain, first) and _is_boundary(plain, last)
        if whole:
            spans.append((origin[first], origin[last - 1] + 1))
        position = last if whole else first + 1
    return spans


def _decompose(text: str) -> tuple[str, list[int]]:
    """The text in NFKD with case folded, and for each of its characters the index in `text` that it comes from."""
    pairs = [
        (decomposed, index)
        for index, character in enumerate(text)
        for decomposed in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    ]
    start = 0
    while start < len(pairs):  # canonical order: marks of one letter are sorted by class (stable)
        end = start + 1
        while end < len(pairs) and unicodedata.combining(pairs[end][0]):
            end += 1
        pairs[start + 1 : end] = sorted(pairs[start + 1 : end], key=lambda pair: unicodedata.combining(pair[0]))
        start = end
    return "".join(character for character, _ in pairs), [index for _, index in pairs]


def _is_boundary(text: str, position: int) -> bool:
    """Whether a word may begin or end between the characters before and at `position` of a decomposed text."""
    if not 0 < position < len(text):
        return True
    before, after = text[position - 1], text[position]
    if unicodedata.category(after).startswith("M"):
        return False
    if not (_continues_word(before) and _continues_word(after)):
        return True
    return _is_without_blanks(before) or _is_without_blanks(after)


def _continues_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def _is_without_blanks(character: str) -> bool:
    return unicodedata.name(character, "").split(" ")[0] in WITHOUT_BLANKS
