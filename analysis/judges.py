"""Verdicts on answers by one of six rules, and the figures of a table of verdicts.

Every rule takes (prediction, gold, options): the gold is the letter of the correct option, or its text if there are no
options. An answer that a rule cannot read is unparsed; it counts as wrong, and in a column of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from string import ascii_uppercase
from typing import Literal, NamedTuple

from analysis.answer_text import COLOURS, FOREIGN, NUMBERS, TABLES, UNITS, boxed, final, is_number, keys, name, phrases
from analysis.chair import ABSENT, SHAPE_NAMES, marked, named_objects, objects_of
from analysis.choices import read_option, read_part
from analysis.mentions import Options, build_options
from analysis.statistics import rate_interval
from data.errors import FlagError, InputError


@dataclass(frozen=True)
class JudgeSettings:
    """Rule that judges the answers."""

    judge: Literal["choice", "exact", "string_match", "vlmevalkit", "pope", "chair"] = "choice"
    """choice: the option that the answer settles on, by letter or text, else unparsed; open answers against the gold;
    exact: the same text, always parsed; string_match: as published; vlmevalkit: VLMEvalKit's rule, without its LLM;
    pope: POPE's rule for yes-no questions; chair: no object named that the gold does not list."""
    circular: bool = False
    """Ask each multiple-choice question once per rotation of its options; right only if all are. One whose options name
    others ("both A and B") is asked once."""


PUNCTUATION = re.compile(r"""[.?!,;:'"()\[\]{}<>/\\|=+\-_*&^%$#@`~ ]""")
YES_NO = (("yes", "no"), ("true", "false"), ("是", "否"), ("はい", "いいえ"), ("예", "아니요"))
RELATIONS = [(relation, *phrases(forms)) for relation, forms in TABLES["positions"].items()]  # ways to write each
SIDE_CLAUSE = re.compile(
    r"(?:^|(?<=[.!?]\s))(?:while|whereas)\s[^,.;\n]{1,200},|"
    r"(?:,\s?(?:while|whereas)|,?\s(?:and|but)\sthe\sother)\s(?:[^.;!?\n]|\.(?=\d)){1,300}",
    re.IGNORECASE,
)
LEAD = frozenset(  # words before the answer proper
    ["the", "my", "final", "correct", "answer", "is", "it", "this", "that", "a", "an", "there", "are", "to", "on", "in"]
)
NO_ANSWER = frozenset(["not", "no", "know", "unknown", "unclear", "unsure", "sorry", "none", "cannot", "or", "and"])
# VLMEvalKit (Duan et al., ACM MM 2024), vlmeval/utils/matching_util.py as in ms-vlmeval 0.0.20
KIT_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
KIT_FAILURE = "Failed to obtain answer via API"
KIT_REFUSALS = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer",
)  # fmt: skip


class Verdict(NamedTuple):
    """`parsed`: the rule could read the answer; `value`: the answer as read, the letter for `choice` of options."""

    correct: bool
    parsed: bool
    value: str


def string_match(prediction: str, gold: str, options: tuple[str, ...] = ()) -> Verdict:
    """The published rule (ViGoRL, Sarch et al. 2025, and its descendants): the gold's text occurs in the answer, both
    without punctuation, spaces and case. So "no" is right in "cannot", and "left" in "not left"; `choice` is strict."""
    answer, wanted = (PUNCTUATION.sub("", text.strip()).lower() for text in (prediction, _text(gold, options)))
    return Verdict(wanted in answer, bool(answer), answer)


def exact(prediction: str, gold: str, options: tuple[str, ...] = ()) -> Verdict:
    """The whole answer is the gold: the same words and numbers, whatever case, punctuation and markup. Of options the
    text, the letter, or both."""
    answer = keys(" ".join(final(prediction)))
    text = _text(gold, options)
    golds = [keys(text)] + ([[gold.lower()], keys(f"{gold}. {text}")] if options else [])
    return Verdict(bool(answer) and answer in golds, bool(answer), " ".join(answer))


def choice(prediction: str, gold: str, options: tuple[str, ...] = ()) -> Verdict:
    """The one option that the answer settles on, by letter or text (`analysis/choices.py`), is the gold. Unparsed where
    it settles on none. Without options the answer is read against the gold (`open_answer`)."""
    if not options:
        return open_answer(prediction, gold)
    index = read_option(prediction, options)
    value = "" if index is None else ascii_uppercase[index]
    return Verdict(value == gold, bool(value), value)


def open_answer(prediction: str, gold: str) -> Verdict:
    """The answer is the gold, articles aside, or states the gold and no other member of its class: yes and no, numbers
    (with their unit), spatial relations, colours. A short answer that is neither is wrong; a sentence is unparsed."""
    parts = {" ".join(keys(boxed(part))): boxed(part) for part in final(prediction)}
    text = parts.popitem()[1] if len(parts) == 1 else ""
    answer, wanted = keys(text), name(gold)
    if answer and name(text) == wanted:
        return Verdict(True, True, " ".join(answer))
    rivals = _rivals(gold, text)
    if rivals:
        members, index = rivals
        stated = read_part(text, members)
        stated = _of_main_clauses(text, members, index) if stated is None else stated
        if stated is not None:
            return Verdict(stated == index, True, " ".join(members.texts[stated]))
    sentence = answer
    answer, wanted = (list(dropwhile(LEAD.__contains__, text)) for text in (answer, wanted))
    if answer and answer == wanted:
        return Verdict(True, True, " ".join(answer))
    length = len(sentence if rivals else answer)
    short = bool(answer) and length <= len(wanted) + 1 and not set(answer) & (NO_ANSWER | set(wanted))
    return Verdict(False, short, " ".join(answer) if short else "")


def _of_main_clauses(text: str, members: Options, gold: int) -> int | None:
    """The gold, if the main clauses state it and the clauses with "while", "whereas" or "and the other" do not; else
    None. So "The near car is red, while the far one is blue" states red, and does not deny that blue is right."""
    text = text.strip()
    asides = " . ".join(SIDE_CLAUSE.findall(text))
    main = SIDE_CLAUSE.sub(" ", text)
    return gold if asides and read_part(main, members) == gold and read_part(asides, members) != gold else None


def _rivals(gold: str, answer: str) -> tuple[Options, int] | None:
    """The members of the gold's class that an answer may state, and the gold's index; None for other golds."""
    wanted = keys(gold)
    short = " ".join(key for key in wanted if key not in ("a", "an", "the", "to", "on", "at", "side", "of"))
    if wanted and is_number(wanted[0]) and len(wanted) <= 2:
        return _numbers(wanted, keys(answer)), 0
    for pair in YES_NO:
        if short in pair:
            return build_options(pair, letters=False), pair.index(short)
    for index, forms in enumerate(RELATIONS):
        if {short, " ".join(wanted)} & {" ".join(keys(form)) for form in forms}:
            return build_options([forms[0] for forms in RELATIONS], False, [forms[1:] for forms in RELATIONS]), index
    if short in COLOURS:
        colours = sorted(COLOURS)
        return build_options(colours, False, [FOREIGN.get(colour, ()) for colour in colours]), colours.index(short)
    return None


def _numbers(gold: Sequence[str], answer: Sequence[str]) -> Options:
    """The gold's number and the other numbers of an answer, with their units where the gold has one."""
    unit = gold[1] if gold[1:] and gold[1] in UNITS else ""
    written = [" ".join(gold) if unit else gold[0]]
    for key, after in pairwise([*(NUMBERS.get(key, key) for key in answer), ""]):
        if is_number(key):
            written.append(f"{key} {after if after in UNITS else unit}" if unit else key)
    numbers = list(dict.fromkeys(written))
    forms = [[gold[0]]] if unit else [FOREIGN.get(key, ()) for key in numbers]
    return build_options(numbers, letters=False, forms=forms)


def vlmevalkit(prediction: str, gold: str, options: tuple[str, ...] = ()) -> Verdict:
    """The rule that VLMEvalKit applies before it queries a language model (`can_infer`).

    By letter: 13 punctuation marks become blanks; the answer is the option whose capital is the only one among the
    words and first occurs among the last four. One of four refusals, or a "Z" without an option's letter, is the answer
    Z, which is wrong. Else by text: the only option whose text is a substring of the answer, case ignored, unless the
    answer is longer than twice all texts together. Else the kit queries a language model or, without one, draws at
    random; here the answer is unparsed. Open questions: "yes" or "no" where it is the only one among the words and the
    gold is one of them (`YOrN_Extraction`), else as `exact`."""
    if not options:
        return _kit_yes_no(prediction, gold) if gold.lower() in ("yes", "no") else exact(prediction, gold)
    letters = ascii_uppercase[: len(options)]
    value = _kit_letter(prediction, letters) or _kit_text(prediction, dict(zip(letters, options, strict=True)))
    refused = any(refusal in prediction for refusal in KIT_REFUSALS)
    return Verdict(value == gold and not refused, bool(value), value)


def _kit_letter(answer: str, letters: str) -> str:
    """The letter that the kit's rule by letter infers, "Z" for a refusal, "" for none."""
    if KIT_FAILURE in answer:
        return ""
    if any(refusal in answer for refusal in KIT_REFUSALS):
        return "Z"
    words = answer.translate(KIT_BLANKS).split()
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - 4:
        return named[0]
    return "Z" if not named and "Z" in words else ""


def _kit_text(answer: str, options: dict[str, str]) -> str:
    """The letter of the only option whose text occurs in the answer, "" for none."""
    if len(answer) > 2 * sum(map(len, options.values())):
        return ""
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else ""


def _kit_yes_no(answer: str, gold: str) -> Verdict:
    """The kit's verdict on a yes-no question without options."""
    words = set(PUNCTUATION.sub(" ", answer.lower()).split())
    value = "".join(word for word in ("yes", "no") if word in words)
    return Verdict(value == gold.lower(), value in ("yes", "no"), value if value in ("yes", "no") else "")


def pope(prediction: str, gold: str, options: tuple[str, ...] = ()) -> Verdict:
    """POPE's published rule (Li et al. 2023): the answer is "no" if its first sentence holds the word no or not, else
    "yes"; so any other answer says yes, and none is unparsed."""
    words = prediction.split(".")[0].replace(",", "").split()
    value = "no" if {"No", "no", "not"} & set(words) else "yes"
    return Verdict(value == gold, True, value)


def chair(prediction: str, gold: str, options: tuple[str, ...] = ()) -> Verdict:
    """The caption names an object, and none that the gold, objects of two shapes separated by commas, does not list
    (`analysis.chair`). Unparsed where it names none."""
    named = named_objects(prediction, SHAPE_NAMES)
    value = marked(named, objects_of(gold))
    return Verdict(bool(named) and ABSENT not in value, bool(named), value)


def check_golds(judge: str, golds: Iterable[str]) -> None:
    """Raise ValueError for a gold that a rule for one kind of question cannot read."""
    if judge == "pope":
        needed, wrong = "yes or no", [gold for gold in golds if gold not in ("yes", "no")]
    elif judge == "chair":
        needed = "coloured shapes such as 'red circle, blue cross'"
        wrong = [gold for gold in golds if not set(objects_of(gold)) <= set(SHAPE_NAMES)]
    else:
        return
    if wrong:
        raise FlagError(
            "--judge",
            "judge-golds",
            f"--judge {judge} needs golds of {needed}, and a record has {wrong[0]!r}; choose another judge",
        )


JUDGES: dict[str, Callable[[str, str, tuple[str, ...]], Verdict]] = {
    "string_match": string_match,
    "exact": exact,
    "choice": choice,
    "vlmevalkit": vlmevalkit,
    "pope": pope,
    "chair": chair,
}


def _text(gold: str, options: tuple[str, ...]) -> str:
    """The text of the gold: of its option, or the gold itself."""
    return options[ascii_uppercase.index(gold)] if options else gold


def summarise(rows: Iterable[dict]) -> dict:
    """{"overall": figures, "tasks": {task: figures}} of rows that hold task, correct, parsed and failed; tasks by name.

    figures: {"accuracy", "low", "high", "correct", "n", "unparsed", "failed"}, with Wilson's 95 % interval. Unparsed
    answers are wrong; failed rows, which have no answer, are not in n. accuracy, low and high are None where n is 0.
    """
    rows = list(rows)
    tasks = sorted({row["task"] for row in rows})
    return {
        "overall": _figures(rows),
        "tasks": {task: _figures([row for row in rows if row["task"] == task]) for task in tasks},
    }


def _figures(rows: list[dict]) -> dict:
    """The figures of some rows, as `summarise` describes them."""
    answered = [row for row in rows if not row["failed"]]
    accuracy = rate_interval(row["correct"] for row in answered)
    return {
        "accuracy": accuracy["rate"],
        "low": accuracy["low"],
        "high": accuracy["high"],
        "correct": accuracy["count"],
        "n": accuracy["n"],
        "unparsed": sum(not row["parsed"] for row in answered),
        "failed": len(rows) - len(answered),
    }


def circular(rows: Sequence[dict]) -> dict:
    """The rows of all rotations of one question as one row: the first, with correct and parsed only if all are. It has
    failed where any has; then with the first failure. Raises ValueError for no rows."""
    if not rows:
        raise InputError("no-rows", "no rows: give those of all rotations of one question")
    return {
        **rows[0],
        "correct": all(row["correct"] for row in rows),
        "parsed": all(row["parsed"] for row in rows),
        "failed": next((row["failed"] for row in rows if row["failed"]), rows[0]["failed"]),
    }
