"""Tokens of a written answer: words, numbers and CJK characters, with the punctuation between them.

Markup is removed first (Markdown, LaTeX, tags, special tokens); a `\boxed` becomes a token. Tokens are compared by
their `key`: case folded, "three", "3" and "3.0" alike, a minus in any form, contractions split ("isn't": is, not),
spelling variants joined. Han, Kana and Hangul characters are tokens by themselves, since these scripts put no blanks
between words.

Vocabulary of the grammar that reads written answers (`analysis/choices.py`): word sets, and phrases by their role.

English first, then the other languages that vision-language models answer in. A new word or phrase goes into its table.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
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


def _words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


# Single words
FILLERS = _words(  # change no sense between a cue and the option that it names
    "# the a an option options choice choices letter both either to on in at its very der die das la le el il o"
)
ADVERBS = _words(
    "most likely probably clearly definitely indeed certainly obviously surely simply also just only really actually"
    " then therefore thus hence maybe perhaps possibly all so ok okay well sure yes hmm 的 应 该 應 該 最 可 能 就 都"
    " 也"
)
CONJUNCTIONS = _words("or and nor then oder und ou et y o и или 或 和 与 與 か と 와 과")
DISJUNCTIONS = _words("or oder ou или 或 か")
COPULAS = _words(
    "is are was were be being been seems seem looks look appears appear would should must will might may can could"
    " has have do does did remains as that should ist lautet est es é è это là adalah هي هو है 是 为 為 は が 은 는"
    " 이 가 을 를 と"
)
SINGULAR = _words("is was has does seems looks appears")
VERBS = COPULAS - _words("that as と 이 가") | _words("lie lies stands stand fit fits matches match shows show")
LIGHT = FILLERS | ADVERBS
LINKS = FILLERS | CONJUNCTIONS
PREDICATE = COPULAS | ADVERBS
WEIGHTLESS = PREDICATE | FILLERS | _words("it this there i think believe would is one with of")
EXPLAINS = _words("because since as while whereas which although though where if whether")
LETTER_BEFORE = PREDICATE | CONJUNCTIONS | _words(  # a capital after these is an option's letter
    "like answer answers ans option options choice choices letter select selected selecting choose choosing chose"
    " chosen pick picked picking say neither either both not with for said think believe guess suppose denotes prefer"
    " suggests indicates supports matches favors means leaves leaving get gives if whether but yet too because since"
    " while when although unlike except without eliminate eliminated eliminating exclude excluded excluding out final"
    " correct on of still it i never cannot against ruling reflection inspection towards toward la der die das"
    " sondern sino aber pero mais c'est"
)
LETTER_BEHIND = _words(  # A and I are words, too: letters where these follow
    "or and nor if is are was but because since as seems looks would should must cannot can which otherwise while"
    " correct wrong incorrect appears fits matches could might"
)
CALLING = PREDICATE | {"not"}  # between a letter and "right"
CALLS = _words("correct right the wrong incorrect best true false my")  # "A is ..."
CALLED = _words("option choice letter answer ans")  # "option b"
THINGS = _words("grade class type score rating")  # "Grade: B"
LABELLED = _words("点 點 图 圖 像 体 體 框 区 區 域 类 類 级 級 型 组 組 号 號 车 車 球")  # "A点"
NUMBERED = _words(  # "step 1"
    "step steps image images picture figure fig photo frame view option choice question point object panel page line"
    " row column camera scene room level part phase case item table number x y label"
)
ONE_BEFORE = _words(
    "is are only just exactly has have contains shows see count total with had counted 有 只 是 共 answer"
)
DIRECTIONS = _words(
    "left right top bottom above below front back behind middle center up down 左 右 왼 오 른 上 下 前 后 後"
)
AROUND = FILLERS | _words("of it is from side hand part located 在 图 圖 像 的 边 邊 侧 側 方 面 部 手 쪽 中 画 裏")
BACKED = _words(  # "the right above it"
    "to the top bottom far upper lower its my your his her their left middle center most 到"
)
NOUN_AHEAD = _words("the a an it its this that these those them him her his their one another all both")
FOLLOWS_NO = _words("it its there this that these those they he she the i we you is not because since as")
NOT_ZERO = _words("doubt question way need reason")  # "there is no doubt"
OPEN_ENDED = _words(  # end no sentence
    "the a an of to on in at is are and or with from by as that which than for its it we i this be has near between"
    " nor but"
)
TAGGED = _words("it they he she that there we you")  # "isn't it?"
TRAIL = _words("side hand of the image picture photo one")
CONFIRMED = _words("answer choice option one here match description the")
REASONS = _words("because since 因 由 weil parce")
AFFIRMED = _words("yes correct right confirmed indeed still stands same")
CORRECTING = LIGHT | _words("wait actually no hmm sorry correction i meant rather it is yes oh hold on oops")
AFTER_RIGHT = _words("so the let now then i first")  # "Right, so ..."
ANSWERS = _words("yes no true false 是 否 不 对 oui non ja nein sí sì sim não")
ALONE = {tuple(word) for word in ("是", "否", "对", "不", "不是", "是的", "没有")}  # answers only by themselves
ALONE |= {tuple(word) for word in ("はい", "いいえ", "예", "네", "아니요", "아니오", "아뇨")}
ALONE |= {(word,) for word in ("non", "não", "nee", "ja", "sim", "да", "нет", "نعم", "لا")}
ALONE_FORMS = {(character,) for character in "上下前赤青白黒緑紫红蓝绿黑黄"}  # unless an option's text
ALONE_ENDINGS = _words("的 입 で")
SYNONYMS = {"是": ("是的", "对"), "否": ("不是", "不", "没有")}
SYNONYMS |= {
    "yes": ("oui", "sí", "sì", "ja", "sim", "да", "はい", "예", "네", "نعم", "是", "是的", "对"),
    "no": ("non", "nein", "não", "nee", "нет", "いいえ", "아니요", "아니오", "아뇨", "لا", "否", "不是", "没有"),
}
STEPS = UNITS | _words("steps step times blocks squares cells units pixels places positions")  # "two steps left"

# English words in other languages, without those that mean something else in English
FOREIGN_COLOURS = {
    "red": "rouge rouges rojo roja rojos rojas rot rote roter rotes roten"
    " rosso rossa rossi rosse vermelho vermelha",
    "blue": "bleu bleue bleus bleues azul azules azuis blau blaue blauer blaues blauen blu azzurro azzurra",
    "green": "vert verte verts vertes verde verdes verdi grün grüne grüner grünes grünen",
    "yellow": "jaune jaunes amarillo amarilla gelb gelbe gelber gelbes gelben giallo gialla amarelo amarela",
    "orange": "naranja arancione laranja",
    "purple": "morado morada lila roxo roxa",
    "pink": "rosa",
    "brown": "brun brune marrón marrone marrom braun braune brauner braunes braunen castanho castanha",
    "black": "noir noire noirs noires negro negra negros negras schwarz schwarze schwarzer schwarzes schwarzen nero"
    " nera preto preta",
    "white": "blanc blanche blancs blanches blanco blanca weiß weiss weiße weißer"
    " weißes bianco bianca branco branca",
    "gray": "gris grise grises grau graue grauer graues grigio grigia cinza",
}
FOREIGN_NUMBERS = {  # without the articles that mean one
    "2": "deux dos zwei due dois duas", "3": "trois tres drei tre três", "4": "quatre cuatro vier quattro quatro",
    "5": "cinq cinco fünf cinque", "6": "seis sechs sei", "7": "sept siete sieben sette sete",
    "8": "huit ocho acht otto oito", "9": "neuf nueve neun nove", "10": "diez zehn dieci dez",
}  # fmt: skip
DISTANT_COLOURS = {
    "red": "красный красная красное красные красного красной 红色 紅色 红 赤 赤い 赤色 赤です 빨간 빨강 أحمر حمراء",
    "blue": "синий синяя синее синие синего синей голубой голубая 蓝色 藍色 蓝 青"
    " 青い 青色 青です 파란 파랑 أزرق زرقاء",
    "green": "зелёный зеленый зелёная зеленая зелёное зеленое зелёные зеленые 绿色 綠色 绿 緑"
    " 緑色 緑です 초록 녹색 أخضر خضراء",
    "yellow": "жёлтый желтый жёлтая желтая жёлтое желтое жёлтые желтые 黄色 黃色 黄 黄色い 노란 노랑 أصفر صفراء",
    "orange": "оранжевый оранжевая оранжевое 橙色 オレンジ 주황 برتقالي برتقالية",
    "purple": "фиолетовый фиолетовая фиолетовое 紫色 紫 보라 بنفسجي بنفسجية",
    "pink": "розовый розовая розовое 粉色 粉红色 ピンク 분홍 وردي وردية",
    "brown": "коричневый коричневая коричневое 棕色 褐色 茶色 갈색 بني بنية",
    "black": "чёрный черный чёрная черная чёрное черное чёрные черные 黑色 黑 黒 黒い"
    " 黒色 黒です 검은 검정 أسود سوداء",
    "white": "белый белая белое белые 白色 白 白い 白です 흰색 하얀 أبيض بيضاء",
    "gray": "серый серая серое серые 灰色 회색 رمادي رمادية",
}
DISTANT_NUMBERS = {
    "2": "два две двое اثنان اثنين",
    "3": "три трое ثلاثة ثلاث",
    "4": "четыре четверо أربعة أربع",
    "5": "пять خمسة خمس",
    "6": "шесть ستة ست",
    "7": "семь سبعة سبع",
    "8": "восемь ثمانية ثماني",
    "9": "девять تسعة تسع",
    "10": "десять عشرة عشر",
}
FOREIGN_COLOURS = {key: f"{ways} {DISTANT_COLOURS[key]}" for key, ways in FOREIGN_COLOURS.items()}
FOREIGN_NUMBERS = {key: f"{ways} {DISTANT_NUMBERS[key]}" for key, ways in FOREIGN_NUMBERS.items()}
FOREIGN = {english: tuple(ways.split()) for english, ways in (FOREIGN_COLOURS | FOREIGN_NUMBERS).items()}
NUMBERS = {way: number for number, ways in FOREIGN_NUMBERS.items() for way in keys(ways)}

# Places: "The man is standing behind the counter"
RELATED = (  # the ways to write each relation between two things
    "behind|in back of|at the back of", "in front of|at the front of", "on|on top of|atop|upon",
    "under|below|beneath|underneath", "above|over", "next to|beside|alongside|adjacent to", "near|close to",
    "in|inside|within|inside of", "outside|outside of", "between|in between", "against", "around", "at", "along",
    "across from|opposite", "far from|far away from", "facing", "facing away from", "away from",
    "left of|to the left of|on the left of|on the left side of|to the left side of",
    "right of|to the right of|on the right of|on the right side of|to the right side of",
)  # fmt: skip
WAYS = [[tuple(keys(way)) for way in ways.split("|")] for ways in RELATED]
UNSPECIFIC = _words("on in at over around against")  # prepositions with many other uses: name no option for another
PREPOSITIONS = _words("of to in on at by with from for behind under above over near beside between around inside below")
PLACING = _words("on in under behind beside inside near above below of to against")  # "on the floor under the table"
ARTICLES = _words("the a an his her its their this that these those my your our")
SUBJECTS, RELATIVES = _words("it he she they"), _words("who which that")
THEMSELVES = _words("it them")  # a thing that was named before: "beside it"
PERSONS = _words("he she who man woman boy girl person child kid guy lady gentleman baby adult teenager someone chef")
AGENT = re.compile(r"(?:man|woman|person|er|or|ist|ista|ian|boy|girl)$")
POSTURES = {
    **dict.fromkeys(("sitting", "sits", "sit", "seated", "sat"), "sit"),
    **dict.fromkeys(("standing", "stands", "stand", "stood"), "stand"),
    **dict.fromkeys(("lying", "lies", "lie", "lay", "laying"), "lie"),
    **dict.fromkeys(("kneeling", "kneels", "kneel"), "kneel"), **dict.fromkeys(("hanging", "hangs", "hung"), "hang"),
    **dict.fromkeys(("walking", "walks"), "walk"), **dict.fromkeys(("running", "runs"), "run"),
    **dict.fromkeys(("jumping", "jumps"), "jump"),
}  # fmt: skip

# Claims: "The statement is not correct"
CLAIMS = _words("statement claim sentence description caption assertion proposition premise hypothesis assumption")
TRUE, FALSE = _words("true correct accurate right valid"), _words("false incorrect wrong inaccurate untrue invalid")
CLAIMED = (("true", "false"), ("correct", "incorrect"), ("right", "wrong"), ("yes", "no"))

SUPERLATIVES = _words(
    "nearest closest farthest furthest largest smallest biggest tallest shortest longest highest lowest leftmost"
    " rightmost brightest darkest heaviest lightest oldest youngest widest topmost bottommost"
)
COMPARED = _words(
    "closer nearer farther further larger bigger smaller taller shorter higher lower longer wider"
)
OTHER = [tuple(keys(text)) for text in ("the other one", "the other option", "the other choice", "the other answer",
         "the other", "the opposite", "the opposite one", "the other side", "the opposite side")]  # fmt: skip
TOTALS = (("in", "total"), ("altogether",), ("in", "all"), ("all", "together"), ("combined",), ("total",))

CONCLUDES = ("means", "indicates", "suggests", "shows that", "implies", "confirms", "leads to the conclusion")
THAT_IS = [f"{subject} {verb}" for subject in ("that", "this", "it", "which") for verb in ("is", "was", "would be")]
WRONG = ("wrong", "incorrect", "false", "not correct", "not right", "not true", "not the case", "impossible")
ROLES = {  # phrases, separated by "|", by what they do
    # to the mentions after them
    "denial": "not|never|neither|nor|non|hardly|rule out|rules out|ruled out|ruling out|eliminate|eliminates|eliminated"
    "|eliminating|exclude|excludes|excluded|excluding|discard|reject|dismiss|none|nothing|nobody|unlikely|impossible"
    "|doubt|lacks|lack|opposite of|far from|fails to|contrary to|without|anything but|everything but"
    "|anything other than|wrong answer|wrong answers|wrong option|wrong options|incorrect answer|incorrect answers"
    "|incorrect option|incorrect options|nicht|kein|keine|weder|ne|pas|nunca|jamais|não|niet|geen|не|ни|không|bukan"
    "|tidak|不是|不在|并非|並非|不能|没有|沒有|不可能|排除|不选|不選|非|无法|無法|不会|不會|不应|不|没|沒|既不|也不",
    "aside": "rather than|instead of|other than|unlike|except|except for|as opposed to|opposed to|apart from|besides"
    "|而不是|除了|除|不同于|au lieu de|anstatt|statt|en lugar de|en vez de",
    "condition": "if|unless|whether|suppose|supposing|assuming|assume|in case|otherwise|如果|假如|是否|要是|若|もし"
    "|만약|wenn|falls|ob|если|would have chosen|would have said|would have been|would have picked|would have answered"
    "|would have to be",
    "attention": "look at|looking at|looked at|look to|look for|looking for|focus on|focusing on|examine|examining"
    "|consider|considering|check|checking|compare|comparing|analyze|analyse|analyzing|analysing|inspect|inspecting"
    "|start with|starting with|start from|starting from|begin with|beginning with|start at|zoom in on|turn to|scan"
    "|scanning|evaluate|evaluating|assess|between|distinguish|determining|to determine|to find|to identify|to see"
    "|to locate|to figure out|to answer|to understand|to decide|to know|to count|to tell",
    "hedge": "could|might|may|at first|at first glance|initially|first glance|possibly|tempting|plausible|first thought"
    "|可能|也许|かも",
    "contrast": "but|however|yet|instead|rather|so|thus|hence|therefore|because|since|as it|although|though|while"
    "|whereas|which leaves|leaving|we get|only|sondern|aber|sino|pero|mais|mas|ma|но|而是|而|但|但是|tapi|tetapi"
    "|melainkan|leaves|因为|由于|weil|parce",
    "neutral": "no doubt|no question|without doubt|without a doubt|without question|not only|not just|nothing but"
    "|none other than|no other than|if i had to|if i have to|if forced|if i must|if any|if i am not mistaken"
    "|not wrong|not incorrect|not false|so far|so that|so many|so much|even so|i have to correct|as well as"
    "|not sure but|look like|looks like|only if|have to say|have to choose|have to go with|going to say|非常|除非"
    "|不过|不仅|不但|无疑|毫无疑问|不错|无论|不难|is not it|are not they|does not it|is not that|is not there"
    "|was not it|do not they|is not he|is not she",
    # to the mention before them
    "refuting": "not|never|wrong|incorrect|false|unlikely|impossible|excluded|eliminated|ruled out|be excluded"
    "|be eliminated|be ruled out|be discarded|out|invalid|inaccurate|mistaken|untrue|implausible|both wrong"
    "|both incorrect|all wrong|falsch|nicht|incorrecta|incorrecto|错|錯|错误|錯誤|不对|不對|不正确|違|間違|誤|틀|아니"
    "|ではな|じゃな|でな|不是|不符|不成立|아닙",
    "refuted": "ではな|じゃな|でな|では|可以排除|被排除|不对|不對|不正确|不正確|错误|錯誤|不符|不成立|이아니|가아니"
    "|은아니|는아니|은틀|는틀|都不|均不|都错|不是答案|不是正确|n'est pas|は違|は誤|は間違|是错|是錯|이아닙|가아닙"
    "|은아닙|는아닙|이아닌|가아닌",
    "hedging": "possible|plausible|tempting|close|conceivable|a possibility|an alternative|second best",
    "no": "no|wrong|incorrect|false|not correct|not right|not true|not the answer|not the case|not possible"
    "|this is wrong|this is incorrect|this is not|this is false|that is wrong",
    "yes": "yes|correct|true|right|this is correct|this is right|this is true|that is correct|this matches|this fits"
    "|this is the case|this is the answer|this matches the image|in total|altogether|in all",
    "confirming": "correct|right|best|the correct|the right|the best|the most likely|most likely|likely|more likely"
    "|the answer|my answer|the correct answer|the right answer|the most accurate|the most appropriate|accurate|true"
    "|the one|my choice|it|the best choice|the best answer|the best option|the only|正确|正確|对的|正解|正しい|정답"
    "|맞|richtig|correcte|correcta|correta|better|a better fit|the better choice",
    "that is wrong": "|".join(f"{that} {wrong}" for that in THAT_IS for wrong in WRONG),
    "likewise": "so is|so are|as is|as are|likewise",
    # to the sentence: statements
    "noun": "answer|ans|conclusion|output|prediction|guess|verdict|antwort|lösung|réponse|respuesta|resposta|risposta"
    "|ответ|antwoord|odpowiedź|cevap|jawaban|jawabannya|đáp án|答案|答え|正解|解答|回答|答|結論|结论|정답|답|الإجابة"
    "|الجواب|उत्तर",
    "strict noun": "choice|option|solution|response|result|selection|match|correct one|best one|correct|选项|選項"
    "|選択肢|total|count|number|sum",
    "verb": "choose|choosing|chose|have chosen|pick|picking|select|selecting|selected|go with|going with|went with"
    "|opt for|opting for|vote for|settle on|settling on|stick with|sticking with|i say|would say|will say|would guess"
    "|i meant|which leaves|leaves us with|conclude|most likely|more likely|best guess is|选|選|选择|選擇|应选|選ぶ"
    "|wähle|nehme|choisis|elijo|escolho|scelgo|выбираю|chọn|pilih|i mean|lean towards|lean toward|leaning towards"
    "|leaning toward",
    "no object": "based|depends|depend|between|from|among|found|one of|given|for each|according|following|below",
    "conclusion": "therefore|thus|hence|so|consequently|accordingly|in conclusion|to conclude|in summary|overall"
    "|in short|ultimately|as a result|this means|it follows|we can conclude|in total|altogether|total of|for a total"
    "|因此|所以|故|因而|综上|总之|由此可见|よって|したがって|従って|따라서|그러므로|daher|deshalb|donc|por lo tanto"
    "|portanto|quindi|поэтому|значит|which makes|that makes|making a total|makes a total|adding up to|add up to"
    "|adds up to|equals|sum to|sums to|giving a total|gives a total|bringing the total to|totals|totaling|totalling"
    "|" + "|".join(f"{that} {verb}" for that in ("this", "that", "which") for verb in CONCLUDES),
    "apposition": "i.e.|that is|that is to say|which is to say|in other words|namely|meaning",
    "final": "final|finally|therefore|thus|hence|in conclusion|overall|最终|最終|因此|所以|综上|したがって|よって"
    "|따라서",
    "subordinate": "because|since|while|whereas|which|although|though|where|given|due to|as the|因为|由于|なぜなら|weil"
    "|porque|parce",
    # to the answer before them: corrections, the second kind takes it back
    "correction": "wait|actually|correction|hmm|hold on|on second thought|let me double|let me check|let me recheck"
    "|let me re|let me look|let me correct|let me verify|looking again|look again|upon closer|upon further"
    "|upon second|on closer|no wait|oops|sorry|rather it|after checking|after rechecking|等等|等一下|更正|纠正|仔细看"
    "|实际上|待って|訂正|잠깐|다시|i mean",
    "retraction": "i made a mistake|i was wrong|my mistake|scratch that|to correct this|to correct that"
    "|to correct myself|i apologize|that is wrong|that was wrong|this is wrong|that is not right|that is not correct"
    "|that is incorrect|i mixed|i misread|i meant|不对|我错了|我弄错",
    "zero": "there are no|there is no|i see no|i can see no|there are not any|contains no|has no|shows no",
}
SENSES = (  # the word in brackets is no option where the phrase stands; "!": unless a noun phrase follows
    "said [above]!|wrote [above]!|got it [right]|get it [right]|is that [right]|am i [right]|i am [right]"
    "|[right] track|[right] answer|[right] answers|absolutely [right]|totally [right]|completely [right]"
    "|exactly [right]|quite [right]|are you [right]|[right] option|[right] choice|[right] response|[right] solution"
    "|[right] conclusion|you are [right]|that is [right]|this is [right]|all [right]|[right] above|[right] below"
    "|[right] under|[right] beneath|[right] next to|[right] beside|[right] behind|[right] in front|[right] on top"
    "|[right] between|[right] near|[right] now|[right] here|[right] there|[right] away|[right] after|[right] before"
    "|[right] in the middle|[right] over|[right] in the center|[right] triangle|[right] angle|[right] or wrong"
    "|[right] angles|[right] angled|half [true]|partly [true]|partially [true]|partly [correct]|partially [correct]"
    "|[correct] answer|[correct] option|[correct] choice|[incorrect] answer|[incorrect] option|[correct] one"
    "|[true] or false|true or [false]|[due] to|is [left] on|are [left] on|was [left] on|were [left] on|been [left] on"
    "|is [left] for|are [left] for|is [left] standing|are [left] standing|been [left]|nothing [left]"
    "|[left] behind|[left] unattended|[left] empty|[left] open|[left] alone|[left] out"
    "|anything [left]|someone [left]|somebody [left]|who [left]|[left] the|[left] his|[left] her|[left] their"
    "|[left] is|[left] are|is [left] inside|are [left] inside|how many are [left]"
    "|option [left]|options [left]|choice [left]|choices [left]|nothing is [left]|what is [left]|[left] over"
    "|[left] with|are [left] with|the [above]|of the [above]|as [above]|see [above]|see [below]|mentioned [above]!"
    "|shown [above]!|stated [above]!|described [above]!|listed [above]!|given [above]!|provided [above]!"
    "|explained [above]!|discussed [above]!|noted [above]!|seen [above]!|outlined [above]!|image [above]!"
    "|picture [above]!|photo [above]!|figure [above]!|question [above]!|options [above]!|choices [above]!"
    "|analysis [above]!|reasoning [above]!|text [above]!|description [above]!|[above] all|mentioned [below]!"
    "|shown [below]!|listed [below]!|given [below]!|explained [below]!|described [below]!|image [below]!"
    "|picture [below]!|options [below]!|question [below]!|[above] mentioned|[below] is my|[below] is the|[below] are"
    "|[first] of all|at [first]|go [back]|going [back]|look [back]|looking [back]|[back] up|look [up]|sum [up]"
    "|zoom [in]|break [down]|breaking [down]|narrow [down]|turn [out]|turns [out]|rule [out]|ruled [out]|point [out]"
    "|based [on]|focus [on]|[in] the image|[in] the picture|[in] the photo|[in] the scene|[in] this image"
    "|[on] the image|[in] front|[in] fact|[in] conclusion|[in] summary|[in] order|[in] this case|[on] the left"
    "|[on] the right|[on] top|depends [on]|以[上]|如[上]|[上]述|[上]图|以[下]|如[下]|一[下]|以[前]|之[前]|目[前]"
    "|[左]右|左[右]|图[上]|图片[上]|图像[上]|画面[上]|[后]来|然[后]|最[后]"
)


def _lexicon() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """First key: (keys of a phrase, its role), the longest first."""
    table = defaultdict(list)
    for role, text in ROLES.items():
        for phrase in {tuple(keys(phrase)) for phrase in text.split("|")}:
            table[phrase[0]].append((phrase, role))
    return {key: sorted(entries, key=lambda entry: -len(entry[0])) for key, entries in table.items()}


def _senses() -> dict[str, list[tuple[tuple[str, ...], int, bool]]]:
    """First key: (keys of a phrase, position of the word in brackets, whether a noun phrase restores its sense)."""
    table = defaultdict(list)
    for phrase in SENSES.split("|"):
        tokens = tokenise(phrase)
        target = next(position for position, token in enumerate(tokens) if "[" in token.gap)
        table[tokens[0].key].append((tuple(token.key for token in tokens[:-1]), target, phrase.endswith("!")))
    return dict(table)


def _relations() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """First key: (keys of a way to write a relation, the relation's first way), the longest first."""
    table = defaultdict(list)
    for ways in RELATED:
        for way in (tuple(keys(way)) for way in ways.split("|")):
            table[way[0]].append((way, ways.split("|")[0]))
    return {key: sorted(entries, key=lambda entry: -len(entry[0])) for key, entries in table.items()}


def action(key: str) -> str:
    """The verb of an inflected form: "sit" for "seated", "rid" for "rides" and "riding"; "" for other words."""
    if key in POSTURES or not re.fullmatch(r"\w{2,}(?:ing|ed|s)", key):
        return POSTURES.get(key, "")
    return re.sub(r"(\w)\1$", r"\1", re.sub(r"(?:ing|es|ed|s)$", "", key))


LEXICON, OTHER_SENSES, RELATIONS = _lexicon(), _senses(), _relations()
NO_ROLES: dict[str, int] = {}


def stands(phrase: Sequence[str], tokens: Sequence[Token], start: int) -> bool:
    """Whether the keys of a phrase, the first of which stands at a position, stand there without a boundary."""
    if start + len(phrase) >= len(tokens):
        return False
    for offset in range(1, len(phrase)):
        token = tokens[start + offset]
        if token.key != phrase[offset] or token.edge:
            return False
    return True


def relation(tokens: Sequence[Token], start: int) -> tuple[str, int]:
    """The relation that stands at a position and the number of its tokens, of the longest; ("", 0) for none."""
    for way, named in RELATIONS.get(tokens[start].key, ()):
        if stands(way, tokens, start):
            return named, len(way)
    return "", 0


def roles(tokens: Sequence[Token]) -> list[dict[str, int]]:
    """For each position the roles of the phrases that stand there, each with the number of tokens of its longest."""
    every, follower = [], ""
    for start in range(len(tokens) - 1, -1, -1):
        there = NO_ROLES
        for phrase, role in LEXICON.get(tokens[start].key, ()):
            other = len(phrase) > 1 and phrase[1] != follower
            if not other and role not in there and stands(phrase, tokens, start):
                there = {**there, role: len(phrase)}
        every.append(there)
        follower = tokens[start].key
    return every[::-1]
