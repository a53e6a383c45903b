"""Tokens of a written answer: words, numbers and CJK characters, with the punctuation between them.

Markup is removed first (Markdown, LaTeX, tags, special tokens); a `\\boxed` becomes a token. Tokens are compared by
their `key`: case folded, "three", "3" and "3.0" alike, a minus in any form, contractions split ("isn't": is, not),
spelling variants joined. Han, Kana and Hangul characters are tokens by themselves, since these scripts put no blanks
between words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

BOX = "\ue000"  # private use: stands for the \boxed of LaTeX
CJK = "\u2e80-\u2fdf\u3005-\u3007\u3041-\u3096\u309d-\u30fa\u30fc-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
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



def _names(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.split()


SMALL_NAMES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
SMALL = {name: value for value, name in enumerate(_names(SMALL_NAMES))}
TENS_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = {name: 10 * value for value, name in enumerate(_names(TENS_NAMES), 2)}
HAN = {"两": 2, "兩": 2} | {name: value for value, name in enumerate("一二三四五六七八九", 1)}
HANGUL = {name: value for value, name in enumerate(_names("한 두 세 네 다섯 여섯 일곱 여덟 아홉 열"), 1)}
ORDINALS = _names("first second third fourth fifth sixth seventh eighth ninth tenth")
COLOUR_NAMES = "red blue green yellow orange purple pink brown black white gray cyan magenta violet golden silver beige"
COLOURS = frozenset(_names(COLOUR_NAMES))
UNITS = frozenset(_names("m cm km mm ft inch degree percent kg g px"))
SAME = {  # key of each spelling
    **dict.fromkeys(("meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
    **dict.fromkeys(("kilometer", "kilometers", "kilometre", "kilometres"), "km"),
    **dict.fromkeys(("millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
    **dict.fromkeys(("foot", "feet"), "ft"), "inches": "inch", "degrees": "degree", "deg": "degree", "pixels": "px",
    "grey": "gray", "centre": "center", "colour": "color", "coloured": "colored",
    **dict.fromkeys(("yeah", "yep", "yup"), "yes"), **dict.fromkeys(("nope", "nah"), "no"),
    **dict.fromkeys(("leftward", "leftwards", "lefthand"), "left"),
    **dict.fromkeys(("rightward", "rightwards", "righthand"), "right"), "米": "m",
}  # fmt: skip
CONTRACTED = {"'s": "is", "'re": "are", "'d": "would", "'ll": "will", "'ve": "have", "'m": "am"}
PRONOUNS = frozenset(_names("it that there this what here he she which who where i we you they let"))

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
QUOTES |= str.maketrans("「」『』【】〔〕《》«»", "\"\"\"\"[][]\"\"\"\"")


class Token(NamedTuple):
    """`text`: as written; `key`: what is compared; `gap`: the characters between the previous token and this one;
    `edge`: the strongest boundary in it, "\\n", ".", ":", "-", ",", "(", "/", or "" for none; `item`: the number or
    the letter in front of an entry of a list."""

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
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\s*\{", text)]):
        depth, end = 1, start
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if content := text[start : end - (depth == 0)].strip():
            return content
    return text


def plain(text: str) -> str:
    """The text without markup: compatibility forms of characters, straight quotes, BOX for \\boxed."""
    text = unicodedata.normalize("NFKC", text.translate(QUOTES)).translate(QUOTES)
    text = TAG.sub(lambda tag: "\n" if tag[0].startswith("<br") else " ", LETTER_TAG.sub(" ", STRUCK.sub(" ", text)))
    text = re.sub(r"\\n(?=[A-Z(\d\s])", "\n", text)
    text = re.sub(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:boxed|fbox)\b", BOX, text).replace("\\%", "%")
    text = LINE_START.sub("", LATEX.sub(" ", text))
    return re.sub(r"[*`$]|__", "", text).strip()


def tokenise(text: str) -> list[Token]:
    """Tokens of a text, and one with an empty key after the last, whose gap is the end of the text."""
    text, tokens, end = plain(text), [], 0
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


@lru_cache(4096)
def edge(gap: str) -> str:
    """The strongest boundary among the characters between two tokens, "" for blanks, quotes and hyphens."""
    for boundary, characters in (("\n", "\n"), (".", ".!?;。；"), (":", ":="), ("-", "—"), (",", ",、")):
        if any(character in gap for character in characters):
            return boundary
    if re.search(r"\s[-\u2013]+\s|--", gap):
        return "-"
    return next((sign for sign, characters in (("(", "([{"), ("/", "/|&")) if any(c in gap for c in characters)), "")


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
    if apostrophe + ending in CONTRACTED and stem in PRONOUNS:
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
