"""Lettered options in the text of a question: parsing, appending and replacing.

A list of options has two or more consecutive letters from A, each once and followed by a text:

    one option a line     "A. left", "A) left", "(A) left", "[A] left", "<A> left", "A: left", "A、左", "A．左",
                          "Option A: left", with or without a bullet; a mark may lack its sign ("B right")
    several in a line     the same marks, all of one kind, the first at the start of a line or a sentence

Lower case letters and full-width forms are accepted. The last option ends before an instruction ("Answer with ...").
A list within a line is rejected if its last text continues with another sentence or "and" joins its texts ("(a) shows a
cat and (b) a dog. Which is larger?"), unless "Options:" or "Choices:" precedes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import ascii_uppercase

from data.errors import InputError

LETTERS = ascii_uppercase
Span = tuple[int, int]

# Full-width forms and CJK brackets to ASCII, one character each, so positions are unchanged.
ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    ord(wide): plain for wide, plain in {"【": "[", "】": "]", "〔": "(", "〕": ")", "､": "、", "\u3000": " "}.items()
}
NAME = r"(?:(?:[Oo]ption|[Cc]hoice)[ \t]+)?"  # "Option A: left"
ALONE = r"(?<![A-Za-z0-9_'’.\-])"  # a letter that is not part of a word or abbreviation
BRACKETS = (("(", ")"), ("[", "]"), ("<", ">"))
SIGNS = (("", ")"), ("", "."), ("", ":"), ("", "、"))
MARKS = [
    re.compile(rf"{ALONE}\*{{0,2}}{NAME}{re.escape(left)}({letters}){re.escape(right)}\*{{0,2}}")
    for letters in ("[A-Z]", "[a-z]")
    for left, right in (*BRACKETS, *SIGNS)
    if (letters, left) != ("[a-z]", "<")  # an HTML tag
]
# A mark at the start of a line; a capital letter needs no sign.
LINE = re.compile(
    rf"^[ \t]*(?:[-*•>][ \t]+)?\*{{0,2}}{NAME}"
    r"(?:[(\[<](?P<bracketed>[A-Za-z])[)\]>]|(?P<signed>[A-Za-z])[).:、]|(?P<bare>[A-Z])(?=[ \t]))"
    r"\*{0,2}[.:)]?[ \t]*(?P<text>\S.*)"
)
HEADER = re.compile(r"\b(?:options|choices|answers|alternatives)\W{0,4}$|选项\W{0,4}$", re.IGNORECASE)
BETWEEN = re.compile(r"[\s*•>-]*")  # blank lines and bullets
INSTRUCTION = re.compile(
    r"[.?!。；;,]?\s+(?:Please|Answer|Select|Choose|Pick|Respond|Reply|Give|Output|Provide|Return|Write|Only|请)\b.*|请.*"
)
OTHER_SENTENCE = re.compile(r"[.?!][\"')\]]*\s+\S|[。？！][\"’”）]*\S")
JOINED = re.compile(r"(?:\band|[和与及])$")
SEPARATORS = " \t\n,;|/、"


def parse(prompt: str) -> tuple[str, ...]:
    """Texts of the options in a prompt, () for none; of several lists the last one."""
    text = prompt.translate(ASCII)
    lists = [spans for spans in (*_by_line(text), *_within_lines(text)) if len(spans) > 1]
    for spans in sorted(lists, key=lambda spans: (spans[0][0], len(spans)), reverse=True):
        options = tuple(" ".join(prompt[start:end].split()) for start, end in spans)
        if locate(prompt, options):
            return options
    return ()


def _by_line(text: str) -> Iterator[list[Span]]:
    """Lists with one option per line, with any marks."""
    rows: list[tuple[re.Match, int]] = []
    start = 0
    for line in text.split("\n"):
        match = LINE.match(line)
        letter = match and _letter(match).upper()
        if rows and line.strip() and letter != LETTERS[len(rows) : len(rows) + 1]:
            yield _line_spans(text, rows)
            rows = []
        if match and letter == LETTERS[len(rows) : len(rows) + 1]:
            rows.append((match, start))
        start += len(line) + 1
    yield _line_spans(text, rows)


def _letter(line: re.Match) -> str:
    return line["bracketed"] or line["signed"] or line["bare"]


def _line_spans(text: str, rows: list[tuple[re.Match, int]]) -> list[Span]:
    """Spans of the texts of lines with consecutive letters, given as (match, start of line); [] if too few marks have a
    sign, or if cases are mixed."""
    if not rows:
        return []
    signs = [match["bare"] is None for match, _ in rows]
    if not (all(signs) or signs[0] or len(rows) > 2 or _has_header(text, rows[0][1])):
        return []
    cases = {_letter(match).isupper() for match, _ in rows}
    spans = [_trimmed(text, start + match.start("text"), start + match.end()) for match, start in rows]
    return spans if len(cases) == 1 else []


def _within_lines(text: str) -> Iterator[list[Span]]:
    """Lists whose marks are all of one kind, with one or more per line."""
    for kind in MARKS:
        marks = list(kind.finditer(text))
        for number, mark in enumerate(marks):
            if mark[1].upper() == "A" and _begins(text, mark):
                yield _run(text, marks[number:])


def _begins(text: str, mark: re.Match) -> bool:
    """True if a mark is at the start of a line or a sentence; after a comma only with a bracket ("A. Smith")."""
    before = text[: mark.start()].rstrip(" \t*•>-")
    if not before or before[-1] in "\n:;?!。；":
        return True
    bracket = mark[0].rstrip("*")[-1] in ")]>"
    return (before[-1] == "." and len(before) < mark.start()) or (before[-1] in ",，" and bracket)


def _has_header(text: str, end: int) -> bool:
    """True if "Options:" or a similar header precedes a position."""
    return bool(HEADER.search(text[:end].rstrip()[-40:]))


def _run(text: str, marks: list[re.Match]) -> list[Span]:
    """Spans of the texts after consecutive letters, each up to the next letter or the end of the line."""
    spans, inside = [], False
    for index, mark in enumerate(marks):
        following = marks[index + 1] if index + 1 < len(marks) else None
        line = text.find("\n", mark.end())
        end = len(text) if line < 0 else line
        same_line = following is not None and following.start() < end
        spans.append(_trimmed(text, mark.end(), following.start() if same_line else end))
        in_turn = following is not None and following[1].upper() == LETTERS[index + 1 : index + 2]
        if same_line and not in_turn:
            return []  # letters mentioned in running text
        inside |= same_line
        if not in_turn or not (same_line or BETWEEN.fullmatch(text, end, following.start())):
            break
    if inside:
        spans[-1] = _without_instruction(text, spans[-1])
        if _is_prose(text, spans) and not _has_header(text, marks[0].start()):
            return []
    return spans if all(start < end for start, end in spans) else []


def _is_prose(text: str, spans: list[Span]) -> bool:
    texts = [text[start:end] for start, end in spans]
    return bool(OTHER_SENTENCE.search(texts[-1])) or any(JOINED.search(other) for other in texts[:-1])


def _without_instruction(text: str, span: Span) -> Span:
    start, end = span
    match = INSTRUCTION.search(text, start, end)
    return _trimmed(text, start, match.start() if match and match.start() > start else end)


def _trimmed(text: str, start: int, end: int) -> Span:
    """Span without surrounding blanks, separators and "or"."""
    part = re.sub(r"(?<=[\s,;])or$|或$", "", text[start:end].rstrip()).rstrip(SEPARATORS)
    return start + len(part) - len(part.lstrip()), start + len(part)


def locate(prompt: str, options: tuple[str, ...]) -> list[Span] | None:
    """(start, end) of the text of each option after its letter, at the last place of the prompt that has all of them in
    order; None if there is none."""
    lettered = (
        rf"{ALONE}\*{{0,2}}{NAME}[(\[<]?[{letter}{letter.lower()}](?:[)\]>.:、*]+\s*|\s+)({_spaced(text)}){_end(text)}"
        for letter, text in zip(LETTERS, options, strict=False)
    )
    matches = list(re.finditer(r"[\s,;.|/、。?*•>-]*(?:\bor\s+|或)?".join(lettered), prompt.translate(ASCII)))
    return [matches[-1].span(index + 1) for index in range(len(options))] if matches else None


def _spaced(text: str) -> str:
    return r"\s+".join(map(re.escape, text.translate(ASCII).split()))


def _end(text: str) -> str:
    """Pattern for the end of a word; "" for scripts without spaces."""
    return r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9_]$", text) else ""


def append(question: str, options: tuple[str, ...]) -> str:
    """Append options to a question, one per line in BLINK's format: "(A) left"."""
    return "\n".join([question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))])


def rewrite(prompt: str, options: tuple[str, ...], replacement: tuple[str, ...]) -> str:
    """Replace the texts of the options in a prompt. Raises ValueError if the prompt does not contain `options`."""
    spans = locate(prompt, options)
    if spans is None:
        raise InputError("options-not-in-prompt", f"the prompt does not show its options {options}: {prompt!r}")
    for (start, end), text in reversed(list(zip(spans, replacement, strict=True))):
        prompt = prompt[:start] + text + prompt[end:]
    return prompt


LETTER = r"[(\[]?(?<![A-Za-z0-9])([A-Z])(?![A-Za-z0-9'])[)\]]?"
TWO_LETTERS = re.compile(rf"{LETTER}\s*(?:,\s*(?:and|or|nor)?|\b(?:and|or|nor)\b|[&/+和与及或、])\s*{LETTER}")
CALLED = re.compile(
    r"\b(?:options?|choices?|answers?|both|neither|either|only|not|same as)"
    rf"\s+{LETTER}(?=\W*$|,|\s+(?:is|are|and|or)\b)"
    rf"|选项\s*{LETTER}|^\W*{LETTER}\s+only\W*$",
    re.IGNORECASE,
)
ABOVE = re.compile(
    r"\b(?:all|none|both|neither|any|either|each|one|some|two|more)\s+(?:of\s+(?:the\s+)?|the\s+)?"
    r"(?:above|preceding|previous|below|following)(?:\s+(?:options?|choices?|answers?|statements?|ones?))?"
    r"(?:\s+(?:is|are)\s+\w+)?\W*$|^\W*(?:以上|上述|前述)",
    re.IGNORECASE,
)


def names_others(options: tuple[str, ...]) -> bool:
    """True if an option refers to others by letter ("both A and B") or position ("none of the above"), so that the
    options cannot be reordered. Letters after the last option are not references."""
    letters = LETTERS[: len(options)]
    for option in (text.translate(ASCII) for text in options):
        pairs = [match.groups() for match in TWO_LETTERS.finditer(option)]
        named = [next(filter(None, match.groups())) for match in CALLED.finditer(option)]
        if ABOVE.search(option) or any(set(pair) <= set(letters) for pair in pairs) or set(named) & set(letters):
            return True
    return False
