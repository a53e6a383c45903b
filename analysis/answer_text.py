"""Tokens of a written answer, and the vocabulary of the grammar that reads them (`analysis/answer_words.toml`).

1. `final` removes reasoning and returns the parts that state the answer; `strip_markup` removes Markdown, LaTeX, tags
   and special tokens, and a `\\boxed` becomes a token.
2. `tokenise` splits a text into words, numbers and CJK characters (Han, Kana and Hangul put no blanks between words).
   Tokens are compared by their `key`: case folded, "three", "3" and "3.0" alike, a minus in any form, contractions
   split ("isn't": is, not), spelling variants joined. `edge` is the boundary before a token.
3. `roles_of` finds the phrases of the vocabulary ("not", "the answer", "therefore"); `other_senses` finds the words
   that name no option where they stand ("the right answer", "mentioned above", "3 apples left").
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

BOX = "\ue000"  # private use: stands for the \boxed of LaTeX
CJK = "\u2e80-\u2fdf\u3005-\u3007\u3041-\u3096\u309d-\u30fa\u30fc-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
IDEOGRAPH = re.compile(f"[{CJK}]")
LETTER = rf"[^\W\d_{CJK}]"
COUNTED = "个個只隻张張辆輛把本条條朵颗顆块塊位名匹台枚人つ棵种種件座"  # Chinese and Japanese measure words
TOKEN = re.compile(
    rf"(?P<number>(?:(?<![A-Za-z\d)\]])[-\u2212\u2013+](?=[.\d]))?(?:\d+(?:[.,]\d+)*|(?<!\d)\.\d+))(?P<suffix>{LETTER}*)"
    rf"|(?P<abbreviation>\b(?:e\.g|i\.e|etc|vs|approx|cf)\b\.?)"
    rf"|(?P<word>{LETTER}[^\W_{CJK}]*(?:'{LETTER}+)*)"
    rf"|(?P<han>[一二两兩三四五六七八九十]{{1,3}}(?=[{COUNTED}])|(?<![{CJK}])[一二三四五六七八九十]{{1,3}}(?![{CJK}\w]))"
    rf"|(?P<hangul>(?:한|두|세|네|다섯|여섯|일곱|여덟|아홉|열)(?=\s?(?:개|명|마리|대|권|장)))"
    rf"|(?P<cjk>[{CJK}])"
    rf"|(?P<sign>[%\u00b0\u2713\u2714\u2705\u2611\u2717\u2718\u274c\u2716\u2192\u21d2{BOX}]|[=-]>)",
    re.IGNORECASE,
)
SIGNS = dict.fromkeys("\u2713\u2714\u2705\u2611", "correct") | dict.fromkeys("\u2717\u2718\u274c\u2716", "wrong")
SIGNS |= {"%": "percent", "\u00b0": "degree"} | dict.fromkeys(("\u2192", "\u21d2", "=>", "->"), "therefore")

THOUGHT = "think|thinking|thought|reasoning|rationale|reflection|summary|caption|scratchpad"
STATED = "answer|final_answer|conclusion|solution"
THINKING = re.compile(rf"<({THOUGHT})>.*?(?:</\1>|(?=<(?:{STATED})>)|$)", re.DOTALL | re.IGNORECASE)
END_OF_THOUGHT = re.compile(rf"^.*</(?:{THOUGHT})>", re.DOTALL | re.IGNORECASE)
ANSWER = re.compile(rf"<({STATED})>(.*?)(?:</\1>|$)", re.DOTALL | re.IGNORECASE)
BOX_TOKENS = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)
TAG = re.compile(r"<\|[^<>|\n]{1,40}\|>|</?[A-Za-z][\w-]+(?:\s[^<>\n]{0,80})?/?>|</[A-Za-z]>|<s>|<br/?>")
LETTER_TAG = re.compile(r"<([A-Za-z])>(?=[^<>]*</\1>)")
STRUCK = re.compile(r"~~[^~\n]{1,200}~~")
LATEX = re.compile(r"\\(?:[A-Za-z]+\*?|[()\[\],;:!\\ ])")
LINE_START = re.compile(r"^[ \t]*(?:[#>\u2022\u00b7\u25aa\u25cf\u25e6*+-]+[ \t]+)+", re.MULTILINE)
QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u25c1": "<", "\u25b7": ">"})
QUOTES |= str.maketrans("「」『』【】〔〕《》«»", '""""[][]""""')
BOUNDARIES = (("\n", "\n"), (".", ".!?;。；"), (":", ":="), ("-", "—"), (",", ",、"))  # edge: its characters
BRACKETS = (("(", "([{"), ("/", "/|&"))
SENTENCE = (".", "\n")  # the edges of sentences

TABLES = tomllib.loads(Path(__file__).with_name("answer_words.toml").read_text(encoding="utf-8"))
SAME = {form: key for key, forms in TABLES["spellings"].items() for form in forms.split()}


def _word_sets(texts: dict[str, str]) -> dict[str, frozenset[str]]:
    """The words of each text; "@name" includes the set of a text before, "-word" excludes a word."""
    sets: dict[str, frozenset[str]] = {}
    for name, text in texts.items():
        words = text.split()
        included = {key for word in words if word[0] == "@" for key in sets[word[1:]]}
        own = {word for word in words if word[0] not in "@-"}
        sets[name] = frozenset((included | own) - {word[1:] for word in words if word[0] == "-"})
    return sets


def phrases(text: str) -> list[str]:
    """The phrases of a text, separated by "|"; "is/was not_right" stands for "is not right" and "was not right"."""
    parts = [phrase.split() for phrase in text.replace("\n", "").split("|")]
    every = (" ".join(words) for part in parts if part for words in product(*(word.split("/") for word in part)))
    return [phrase.replace("_", " ") for phrase in every]


words = SimpleNamespace(**_word_sets(TABLES["words"]))
COLOURS, UNITS = words.colours, words.units
ORDINALS, SMALL_NAMES, TENS_NAMES, HANGUL_NAMES = (TABLES["ordered"][kind].split() for kind in TABLES["ordered"])
SMALL = {name: value for value, name in enumerate(SMALL_NAMES)}
TENS = {name: 10 * value for value, name in enumerate(TENS_NAMES, 2)}
HANGUL = {name: value for value, name in enumerate(HANGUL_NAMES, 1)}
HAN = {"两": 2, "兩": 2} | {name: value for value, name in enumerate("一二三四五六七八九", 1)}
CONTRACTED = {"'s": "is", "'re": "are", "'d": "would", "'ll": "will", "'ve": "have", "'m": "am"}


class Token(NamedTuple):
    """`text`: as written; `key`: the form that is compared; `gap`: the characters between the previous token and this
    one; `edge`: the strongest boundary in it, "\\n", ".", ":", "-", ",", "(", "/", or "" for none; `item`: True for the
    number or the letter of an entry of a list."""

    text: str
    key: str
    gap: str
    edge: str
    item: bool = False


def final(answer: str) -> list[str]:
    """The parts of an answer that state it: the contents of its answer tags, else everything outside its reasoning."""
    text = answer.translate(QUOTES)
    text = END_OF_THOUGHT.sub("", THINKING.sub("", text))
    return [part[-1] for part in ANSWER.findall(text)] or BOX_TOKENS.findall(text) or [text]


def boxed(text: str) -> str:
    """The content of the last \\boxed{} that is not empty, or the text itself without one."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth, end = 1, start
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if content := text[start : end - (depth == 0)].strip():
            return content
    return text


def strip_markup(text: str) -> str:
    """The text without markup: compatibility forms of characters, straight quotes, BOX for \\boxed."""
    text = unicodedata.normalize("NFKC", text.translate(QUOTES)).translate(QUOTES)
    text = TAG.sub(lambda tag: "\n" if tag[0].startswith("<br") else " ", LETTER_TAG.sub(" ", STRUCK.sub(" ", text)))
    text = re.sub(r"\\n(?=[A-Z(\d\s])", "\n", text)
    text = re.sub(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:boxed|fbox)\b", BOX, text).replace("\\%", "%")
    text = LINE_START.sub("", LATEX.sub(" ", text))
    return re.sub(r"[*`$]|__", "", text).strip()


# Tokens


def tokenise(text: str) -> list[Token]:
    """Tokens of a text, and one with an empty key after the last, whose gap is the end of the text."""
    text, tokens, end = strip_markup(text), [], 0
    for match in TOKEN.finditer(text):
        gap, kind = text[end : match.start()], match.lastgroup
        end = match.end()
        if kind in ("number", "suffix"):
            parts = _number_parts(match["number"], match["suffix"])
        elif kind == "word":
            parts = _word_parts(match[0])
        elif kind in ("han", "hangul"):
            parts = [(match[0], str(_han(match[0]) if kind == "han" else HANGUL[match[0]]))]
        else:
            parts = [(match[0], SIGNS.get(match[0], SAME.get(match[0], match[0].casefold())))]
        _append(tokens, parts, gap)
    tokens.append(Token("", "", text[end:], edge(text[end:]) or "."))
    return _with_items(tokens)


def keys(text: str) -> list[str]:
    """The keys of a text's tokens, \\boxed left out."""
    return [token.key for token in tokenise(text)[:-1] if token.key != BOX]


def name(text: str) -> list[str]:
    """The keys of a text without an article before it; the A of "A is closer", "A, B" and "(A) blue" is none."""
    return name_of(tokenise(text))


def name_of(tokens: list[Token]) -> list[str]:
    """`name` of a text's tokens."""
    article = len(tokens) > 2 and tokens[0].key in ("a", "an", "the") and tokens[1].gap.isspace() and not tokens[0].edge
    named = article and (tokens[1].key in ("is", "was", "and", "or", "has") or len(tokens[1].key) == 1)
    return [token.key for token in tokens[article and not named : -1] if token.key != BOX]


def is_number(key: str) -> bool:
    """True for the key of a number."""
    return re.fullmatch(r"-?\d+(?:\.\d+)?", key) is not None


def is_capital(token: Token) -> bool:
    """True for one ASCII capital."""
    return re.fullmatch("[A-Z]", token.text) is not None


@lru_cache(4096)
def edge(gap: str) -> str:
    """The strongest boundary among the characters between two tokens, "" for blanks, quotes and hyphens."""
    for boundary, characters in BOUNDARIES:
        if any(character in gap for character in characters):
            return boundary
    if re.search(r"\s[-\u2013]+\s|--", gap):
        return "-"
    return next((sign for sign, characters in BRACKETS if any(character in gap for character in characters)), "")


def _append(tokens: list[Token], parts: list[tuple[str, str]], gap: str) -> None:
    """Add the parts of one word; joins "twenty-one" and "minus 3"; "upper left" is "top left"."""
    last = tokens[-1] if tokens else None
    if last and last.text.casefold() in TENS and gap in ("-", " ") and 0 < SMALL.get(parts[0][0].casefold(), 0) < 10:
        value = TENS[last.text.casefold()] + SMALL[parts[0][0].casefold()]
        tokens[-1] = last._replace(text=f"{last.text}{gap}{parts[0][0]}", key=str(value))
        return
    signed = last and last.key in ("minus", "negative") and gap.isspace() and parts[0][1][:1].isdecimal()
    if signed and not is_number(tokens[-2].key if len(tokens) > 1 else ""):  # "5 minus 3" computes
        tokens[-1] = last._replace(text=f"{last.text}{gap}{parts[0][0]}", key="-" + parts[0][1])
        parts, gap = parts[1:], ""
    if last and last.key in ("upper", "lower") and not edge(gap) and parts and parts[0][1] in ("left", "right"):
        tokens[-1] = last._replace(key={"upper": "top", "lower": "bottom"}[last.key])
    for number, (text, key) in enumerate(parts):
        between = "" if number else gap
        tokens.append(Token(text, key, between, edge(between)))


def _number_parts(number: str, suffix: str) -> list[tuple[str, str]]:
    """(text, key) of a number, and of the unit written with it."""
    unit = SAME.get(suffix.casefold(), suffix.casefold())
    if suffix.casefold() in ("st", "nd", "rd", "th") and number.isdecimal() and 0 < int(number[:9]) <= len(ORDINALS):
        return [(number + suffix, ORDINALS[int(number) - 1])]
    if suffix and unit not in UNITS:  # "3D" is no number
        return [(number + suffix, (number + suffix).casefold())]
    return [(number, _number(number)), (suffix, unit)][: 2 if suffix else 1]


def _number(written: str) -> str:
    """One form of a number: "1,000", "1000.0" and "+1000" are "1000"; "\u22123" is "-3"; "1,5" is "1.5"."""
    sign = "-" if written[0] in "-\u2212\u2013" else ""
    digits = unicodedata.normalize("NFKC", written).lstrip("-\u2212\u2013+")
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    elif re.fullmatch(r"\d+,\d+", digits):
        digits = digits.replace(",", ".")
    whole, point, rest = digits.partition(".")
    rest = rest.rstrip("0") if "." not in rest and "," not in digits else rest
    value = (whole.lstrip("0") or "0") + (point + rest if rest else "")
    return value if value == "0" else sign + value


def _han(written: str) -> int:
    """The value of a number below 100 in Han characters."""
    tens, ten, ones = written.rpartition("十")
    return (HAN.get(tens, 1) * 10 if ten else 0) + HAN.get(ones, 0)


def _word_parts(word: str) -> list[tuple[str, str]]:
    """(text, key) of a word, in two parts for a contraction."""
    folded = word.casefold()
    if folded in SMALL or folded in TENS:
        return [(word, str({**SMALL, **TENS}[folded]))]
    if folded.endswith("n't") or folded in ("cannot", "dont", "doesnt", "isnt", "cant"):
        stem = {"ca": "can", "wo": "will", "sha": "shall", "cann": "can"}.get(folded[:-3], folded[:-3])
        stem = folded[:-2] if folded in ("dont", "doesnt", "isnt") else "can" if folded == "cant" else stem
        return [(stem, stem), (word[-3:], "not")]
    stem, apostrophe, ending = folded.partition("'")
    if apostrophe + ending in CONTRACTED and stem in words.pronouns:
        return [(word[: len(stem)], stem), (word[len(stem) :], "us" if stem == "let" else CONTRACTED["'" + ending])]
    if apostrophe + ending == "'s" and len(stem) > 1:
        return [(word[:-2], SAME.get(stem, stem))]
    return [(word, SAME.get(folded, folded))]


def _with_items(tokens: list[Token]) -> list[Token]:
    """Mark the numbers at sentence starts and the letters at line starts that count 1, 2, .. or A, B, ..; a number of
    such a list gets the key "#". A "1." alone may be a list's or the answer: it is marked and keeps its key."""
    runs: dict[str, list[int]] = {"1": [], "a": []}
    for position, token in enumerate(tokens[:-1]):
        follower = tokens[position + 1]
        first = position == 0 or "\n" in token.gap or tokens[position - 1].key in ("option", "choice")
        first = first or (token.edge in (".", ":") and token.key.isdecimal())
        if not (first and follower.key and follower.edge != "\n" and re.match(r"[)\]]?[.):、]", follower.gap)):
            continue
        for start, run in runs.items():
            expected = chr(ord(start) + len(run)) if start == "a" else str(1 + len(run))
            if token.key == expected:
                run.append(position)
    for start, run in runs.items():
        for position in run if start == "1" or len(run) > 1 else ():
            key = "#" if start == "1" and len(run) > 1 else tokens[position].key
            tokens[position] = tokens[position]._replace(item=True, key=key)
    return tokens


# Phrases of the vocabulary


def keyed(text: str) -> list[tuple[str, ...]]:
    """The keys of each phrase of a text."""
    return [tuple(keys(phrase)) for phrase in phrases(text)]


def _by_first_key(named: Iterable[tuple[str, Iterable[tuple[str, ...]]]]) -> dict[str, list[tuple[tuple, str]]]:
    """First key: (keys of a phrase, its name), the longest first."""
    table = defaultdict(list)
    for label, every in named:
        for phrase in dict.fromkeys(every):
            table[phrase[0]].append((phrase, label))
    return {key: sorted(entries, key=lambda entry: -len(entry[0])) for key, entries in table.items()}


def _senses() -> dict[str, list[tuple[tuple[str, ...], int, bool]]]:
    """First key: (keys of a phrase, position of the word in brackets, True if a noun phrase restores its sense)."""
    table = defaultdict(list)
    for phrase in phrases(TABLES["other"]["senses"]):
        tokens = tokenise(phrase)
        target = next(position for position, token in enumerate(tokens) if "[" in token.gap)
        table[tokens[0].key].append((tuple(token.key for token in tokens[:-1]), target, phrase.endswith("!")))
    return dict(table)


LEXICON = _by_first_key((role, keyed(text)) for role, text in TABLES["phrases"].items())
RELATION_FORMS = [keyed(forms) for forms in TABLES["other"]["relations"].strip().split("\n")]
RELATIONS = _by_first_key((" ".join(forms[0]), forms) for forms in RELATION_FORMS)
SENSES = _senses()
POSTURES = {form: verb for verb, forms in TABLES["postures"].items() for form in forms.split()}
ALONE, ALONE_FORMS = keyed(TABLES["other"]["alone"]), keyed(TABLES["other"]["alone_forms"])
OTHER_OPTION, TOTALS = keyed(TABLES["other"]["other_option"]), keyed(TABLES["other"]["totals"])
SYNONYMS = {key: forms.split("|") for key, forms in TABLES["synonyms"].items()}
NUMBERS = {form: number for number, forms in TABLES["numbers"].items() for form in keys(forms)}
FOREIGN = {key: forms.split() for key, forms in (TABLES["colours"] | TABLES["numbers"]).items()}
NO_ROLES: dict[str, int] = {}


def is_at(phrase: Sequence[str], tokens: Sequence[Token], start: int) -> bool:
    """True if the keys of a phrase stand at a position, without a boundary between them."""
    if start + len(phrase) >= len(tokens) or tokens[start].key != phrase[0]:
        return False
    for offset in range(1, len(phrase)):
        token = tokens[start + offset]
        if token.key != phrase[offset] or token.edge:
            return False
    return True


def relation_at(tokens: Sequence[Token], start: int) -> tuple[str, int]:
    """The relation that stands at a position and the number of its tokens, of the longest; ("", 0) for none."""
    forms = RELATIONS.get(tokens[start].key, ())
    return next(((label, len(form)) for form, label in forms if is_at(form, tokens, start)), ("", 0))


def roles_of(tokens: Sequence[Token]) -> list[dict[str, int]]:
    """For each position the roles of the phrases that stand there, each with the number of tokens of its longest."""
    every = []
    for start, token in enumerate(tokens):
        there = NO_ROLES
        for phrase, role in LEXICON.get(token.key, ()):
            if role not in there and is_at(phrase, tokens, start):
                there = {**there, role: len(phrase)}
        every.append(there)
    return every


def verb_of(key: str) -> str:
    """The verb of an inflected form: "sit" for "seated", "rid" for "rides" and "riding"; "" for other words."""
    if key in POSTURES or not re.fullmatch(r"\w{2,}(?:ing|ed|s)", key):
        return POSTURES.get(key, "")
    return re.sub(r"(\w)\1$", r"\1", re.sub(r"(?:ing|es|ed|s)$", "", key))


# Words in another sense


def other_senses(tokens: Sequence[Token]) -> set[int]:
    """Positions of words that mean no direction where they stand: "the right answer", "mentioned above", "right?"."""
    blocked = set()
    for start, token in enumerate(tokens[:-1]):
        for phrase, target, restored in SENSES.get(token.key, ()):
            if is_at(phrase, tokens, start):
                follower = tokens[start + len(phrase)]
                noun = restored and not follower.edge and follower.key in words.noun_ahead
                backed = target == 0 and start and not token.edge and tokens[start - 1].key in words.backed
                blocked.update(() if noun or backed else (start + target,))
        first = start == 0 or token.edge in SENTENCE
        blocks = token.key in ORDINALS and first and tokens[start + 1].edge == ","  # "First, I look at .."
        blocks = blocks or (token.key == "left" and _means_remaining(tokens, start))
        if blocks or (token.key == "right" and _means_correct(tokens, start)):
            blocked.add(start)
    return blocked


def _means_remaining(tokens: Sequence[Token], position: int) -> bool:
    """True if the "left" at a position means that things remain or went away: "3 red apples left", "has left"."""
    before, after = tokens[position - 1], tokens[position + 1]
    if tokens[position].edge or after.key in ("of", "and", "or", "side", "hand", "to"):
        return False
    if before.key in ("has", "have", "had") or (
        before.key in ("are", "were") and tokens[position - 2].key in ("that", "which")
    ):
        return True
    counted = [i for i in range(max(1, position - 4), position) if tokens[i].key == "only" or _counts(tokens, i)]
    if not counted or before.key in words.backed | words.steps | words.prepositions:
        return False
    between = {token.key for token in tokens[counted[-1] + 1 : position]}
    return bool(between) and between.isdisjoint(words.prepositions | words.moving)


def _counts(tokens: Sequence[Token], position: int) -> bool:
    """True for a number other than the "one" of "the one left"; "only one" and "there is one" count."""
    token, before = tokens[position], tokens[position - 1]
    return is_number(token.key) and (token.text != "one" or before.key in ("only", "just", "is"))


def _means_correct(tokens: Sequence[Token], position: int) -> bool:
    """True if the "right" at a position means "correct": "B is right", ", right?", "Right, so .."."""
    token, after = tokens[position], tokens[position + 1]
    if token.edge == "," and "?" in after.gap:
        return True
    if position == 0 and after.edge == ",":
        return after.key in words.after_right
    start = back(tokens, position, words.calling)
    named = 0 < start < position and is_capital(tokens[start - 1])
    return named and not tokens[start].edge and after.key not in ("of", "side")


def back(tokens: Sequence[Token], end: int, keys: frozenset[str]) -> int:
    """Start of the words of a set that stand before a position without a boundary, 30 at most; the position itself if
    there are none."""
    start = end
    while start > max(0, end - 30) and not tokens[start].edge and tokens[start - 1].key in keys:
        start -= 1
    return start


def ahead(tokens: Sequence[Token], start: int, keys: frozenset[str]) -> int:
    """End of the words of a set that stand at a position without a boundary; the position itself if there are none."""
    while tokens[start].key in keys and not tokens[start].edge:
        start += 1
    return start


def in_sense(tokens: Sequence[Token], position: int, part: bool) -> bool:
    """True if one word at a position can answer, unlike the "no" of "no car" or a number that labels or computes.
    `part`: the word is a part of the option's text, "2" for "2 m"."""
    token, before, after = tokens[position], tokens[position - 1], tokens[position + 1]
    if token.key == "no":
        starts = position == 0 or token.edge in (".", "\n", ":")
        return bool(after.edge) or after.key in (words.follows_no if starts else ("or", "and"))
    if not is_number(token.key):
        return True
    apart = (position == 0 or token.edge not in ("", ",")) and after.edge
    counted = before.key in words.one_before and after.key != "of"
    if token.text.casefold() in ("one", "一") and not (apart or counted or after.key == "or"):
        return False
    if before.key in ("than", "least") or after.key == "x" or (after.gap == "-" and not is_number(after.key)):
        return False
    if (token.edge in ("", "(") and before.key in words.numbered) or (part and not after.edge and after.key in UNITS):
        return False
    for neighbour, gap in ((before, token.gap), (after, after.gap)):
        joined = (gap == ":" or gap.strip() in ("/", "-", "\u2013", ",", "x")) and is_number(neighbour.key)
        if joined or re.search(r"[+\u00d7\u00f7<>]", gap):
            return False
    return "=" not in after.gap
