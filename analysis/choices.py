"""The option that a written answer settles on, if it settles on one.

The stages, in the order of this file, with the answer "Not A. So it is on the right." to the options left and right:

1. Tokens (`analysis/answer_text.py`), with the boundaries between them: not, a | so, it, is, on, the, right.
2. Mentions: the words that name an option by its letter or its text: "A" (left), "right" (right). Mentions joined by
   "or", "and" or a comma form a group.
3. Denials: a mention is denied ("not left, above or below"; "A and B are wrong"; "rather than A"; "if A") or hedged
   ("could be A"). Here "A" is denied.
4. Statements: a mention that is not denied is stated outright ("the answer is B"; "B." first, or alone on a line;
   "\\boxed{B}") or in a clause that concludes ("therefore ... left"). Here "so" concludes "right".
5. Decision: the last statement after the last correction ("wait", "actually"); without a statement the one option that
   is named and not denied; else none. Here: right.

An answer between two options means none, and so does one that breaks off before it states any: reading a wrong option
is worse than reading none. The work is linear in the length of the answer.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from string import ascii_uppercase
from typing import NamedTuple

from analysis import answer_text as vocabulary
from analysis.answer_text import (
    BOX,
    CJK,
    COLOURS,
    ORDINALS,
    POSTURES,
    Token,
    back,
    final,
    in_sense,
    is_at,
    is_capital,
    is_number,
    keys,
    name,
    name_of,
    other_senses,
    relation_at,
    roles_of,
    tokenise,
    verb_of,
    words,
)  # fmt: skip

NO_OPTION = -1  # a letter beyond the last option
SENTENCE = (".", "\n")  # the boundaries of sentences
IDEOGRAPH = re.compile(f"[{CJK}]")
OPENED, CLOSED = re.compile(r"[(\[{\"'<_]$"), re.compile(r"[)\]}\"'>_]")
LABEL_END = re.compile(r"[)\].:\u3001]")
CLAIMED = (("true", "false"), ("correct", "incorrect"), ("right", "wrong"), ("yes", "no"))
AGENT = re.compile(r"(?:man|woman|person|er|or|ist|ista|ian|boy|girl)$")  # "barista": a person
REACHES = ("aside", "condition", "attention", "denial", "hedge", "contrast")  # roles that act on later mentions


class Place(NamedTuple):
    """The option `index` says that `subject` ("" for a pronoun or none; `person`: "he" or "she") does `verb` in a
    relation to the `thing`. `strict`: another option has the same relation to it, and another verb."""

    index: int
    subject: str
    person: bool
    verb: str
    thing: tuple[str, ...]
    strict: bool


class Options(NamedTuple):
    """Options to look for. `forms`: by first key the (keys, index, True for a part of the option's text) that name an
    option; `texts`: the keys of each option's text; `letters`: True if letters name options; `places`: by relation the
    options that say where something is; `claims`: the options for a true and a false claim, or ()."""

    forms: dict[str, list[tuple[tuple[str, ...], int, bool]]]
    texts: tuple[tuple[str, ...], ...]
    letters: bool
    places: dict[str, list[Place]]
    claims: tuple[int, ...]


class Mention(NamedTuple):
    """Tokens start .. end - 1 name the options `indices` (from 0, or NO_OPTION); `by`: "letter" or "text"."""

    start: int
    end: int
    indices: frozenset[int]
    by: str


class Statement(NamedTuple):
    """Tokens start .. end - 1 state the options `indices`: `outright`, or as a conclusion or the answer's first word;
    `last`: in a way that ends an argument ("final answer", "therefore", a box, the last line); `clause`: the position
    at which its conclusion begins, -1 for none."""

    start: int
    end: int
    indices: frozenset[int]
    outright: bool
    last: bool
    clause: int


@dataclass
class Passage:
    """A tokenised answer, its mentions in order, and the starts of those that are denied, refuted (denied by a "not" or
    "wrong", unlike by an "if"), and hedged. `roles`: per position the phrases that stand there."""

    tokens: list[Token]
    mentions: list[Mention]
    roles: list[dict[str, int]]
    denied: set[int] = field(default_factory=set)
    refuted: set[int] = field(default_factory=set)
    hedged: set[int] = field(default_factory=set)

    def __post_init__(self):
        """Index the mentions."""
        self.at = {mention.start: mention for mention in self.mentions}
        self.covered = {i for mention in self.mentions for i in range(mention.start, mention.end)}
        letters = [mention.start for mention in self.mentions if mention.by == "letter"]
        self.heads = [i for i in letters if self.tokens[i].edge == "\n" or i == 0]  # letters that begin a line
        self.labels = {self.tokens[i].key for i in letters if self.tokens[i + 1].edge == ":"}  # "A: .. B: .."

    def size(self, position: int, role: str) -> int:
        """Number of tokens of the longest phrase of a role that stands at a position; 0 for none."""
        return self.roles[position].get(role, 0)

    def named(self, mentions: Iterable[Mention]) -> list[Mention]:
        """The mentions that are not denied."""
        return [mention for mention in mentions if mention.start not in self.denied]

    def refute(self, mentions: Iterable[Mention]) -> None:
        """Mark mentions as denied and refuted."""
        starts = {mention.start for mention in mentions}
        self.denied |= starts
        self.refuted |= starts


def meant(answer: str, options: Sequence[str]) -> int | None:
    """Index of the option that an answer settles on; None where it settles on none, several, or a letter beyond the
    last."""
    sought = _listed(tuple(options))
    indices = {settled(part, sought) for part in final(answer)}
    return indices.pop() if len(indices) == 1 else None


def settled(text: str, options: Options) -> int | None:
    """Index of the option that one part of an answer settles on, or None: the five stages."""
    tokens = tokenise(text)
    if whole := _whole(tokens, options):
        return _single(whole)
    phrases = roles_of(tokens)
    passage = Passage(tokens, _mentions(tokens, phrases, options), phrases)
    groups = _groups(passage)
    _deny_ahead(passage)
    for position, group in enumerate(groups):
        _deny_behind(passage, group, groups[position - 1] if position else [])
    index = _decide(passage, groups, _statements(passage, groups))
    if index is None and len(options.texts) == 2:
        index = _compared(passage) if passage.mentions and not passage.denied else _other(passage)
    return None if index is None or _says_more(tokens, index, options) else index


def _single(indices: Iterable[int]) -> int | None:
    """The one index among indices; None for several, none or NO_OPTION."""
    different = set(indices)
    return different.pop() if len(different) == 1 and NO_OPTION not in different else None


def _whole(tokens: list[Token], options: Options) -> set[int]:
    """Options that a text names and says nothing else: by their text, or by a letter; in brackets it is a letter."""
    content = [token for token in tokens[:-1] if token.key != BOX]
    if options.letters and len(content) == 1 and _is_letter(content[0]):
        by_text = set() if re.search(r"[(\[{]", content[0].gap) else _called_so(content[0].key, options)
        return {_index(content[0].text, options)} | by_text
    answer = tuple(name_of(tokens))
    return {index for index, option in enumerate(options.texts) if answer and option == answer}


def _says_more(tokens: Sequence[Token], index: int, options: Options) -> bool:
    """True if the answer also holds the further words, at least two, of an option that contains this option's text:
    "turn left, then walk straight ahead" means "turn left and walk straight" rather than "turn left"."""
    shorter, spoken = set(options.texts[index]), {token.key for token in tokens}
    longer = [set(text) - shorter - words.articles - words.links for text in options.texts if shorter < set(text)]
    return bool(shorter) and any(len(further) > 1 and further <= spoken for further in longer)


# Options, and the words that name them


@lru_cache(256)
def _listed(options: tuple[str, ...]) -> Options:
    """`options_of`, kept for the next answers to the same options."""
    return options_of(options)


def options_of(texts: Sequence[str], letters: bool = True, ways: Sequence[Sequence[str]] = ()) -> Options:
    """Options by their texts; `ways`: other ways to write each of them. A part of a text names its option, too, where
    the options differ in that part alone: "left" for "on the left", "red" for "the red car", "2" for "2 m"."""
    whole = tuple(tuple(name(text)) for text in texts)
    named = [(text, index, False) for index, text in enumerate(whole) if text]
    named = [entry for entry in named if not (letters and re.fullmatch("[a-z]", "".join(entry[0])))]
    for index, others in enumerate(ways or [vocabulary.SYNONYMS.get(text.casefold(), ()) for text in texts]):
        named += [(tuple(keys(text)), index, False) for text in others]
    named += [(text, index, False) for text, index in _prepositions(whole)]
    for short in _shortened(whole):
        unique = [text if short.count(text) == 1 and text not in whole else () for text in short]
        named += [(text, index, True) for index, text in enumerate(unique) if text]
    forms = defaultdict(list)
    for entry in named:
        forms[entry[0][0]].append(entry)
    claims = [tuple(whole.index((key,)) for key in pair if (key,) in whole) for pair in CLAIMED]
    claims = [pair for pair in claims if len(pair) == 2]
    return Options(dict(forms), whole, letters, _places(texts), claims[0] if len(claims) == 1 else ())


def _prepositions(texts: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], int]]:
    """(other way to write it, index) of each text that is a relation and nothing else, if no other text means it:
    "underneath" for "under", "on top of" for "on"."""
    if ("left",) in texts or ("right",) in texts:
        return []  # there "the cup under the lamp" tells which cup
    ways = [relation for relation in vocabulary.WAYS if sum(text in relation for text in texts) == 1]
    pairs = [(way, texts.index(text)) for relation in ways for text in texts if text in relation for way in relation]
    return [(way, index) for way, index in pairs if way not in texts and not (set(way) <= words.unspecific)]


def _shortened(texts: Sequence[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """Shorter forms of all texts: by their direction, by the word in which they differ, without a pronoun, by the "yes"
    or "no" before them, and with the verb in the present tense."""
    cores = [tuple(key for key in text if key not in words.around) for text in texts]
    yield [core if core and set(core) <= words.directions else text for core, text in zip(cores, texts, strict=True)]
    columns = [column for column in zip(*texts, strict=False) if len(set(column)) > 1]
    if len({len(text) for text in texts}) == 1 and len(columns) == 1:
        kinds = (words.directions, COLOURS, {key for key in columns[0] if is_number(key)})
        yield [(key,) for key in columns[0] if any(set(columns[0]) <= kind for kind in kinds)]
    yield [text[1:] if len(text) > 2 and text[0] in words.subjects else text for text in texts]
    if all(text[:1] in (("yes",), ("no",)) for text in texts):
        yield [text[:1] for text in texts]
    yield from ([_present(text, ending) for text in texts] for ending in ("s", "es"))


def _present(text: tuple[str, ...], ending: str) -> tuple[str, ...]:
    """A text with the verb before its object in the present tense: "rides a bike" for "[is] riding a bike"."""
    verb = next((i for i, key in enumerate(text[:-1]) if key.endswith("ing") and verb_of(key)), None)
    if verb == 0 or (verb and text[verb - 1] == "is"):
        return (*text[: max(verb - 1, 0)], verb_of(text[verb]) + ending, *text[verb + 1 :])
    return text


def _places(texts: Sequence[str]) -> dict[str, list[Place]]:
    """By relation: the options that say where something is."""
    places = [pair for index, text in enumerate(texts) for pair in _place(index, tokenise(text))]
    counts = Counter((relation, *place[1:3], place.thing) for relation, place in places)
    table = defaultdict(list)
    for relation, place in places:
        strict = counts[(relation, *place[1:3], place.thing)] > 1
        table[relation].append(place._replace(strict=strict))
    return dict(table)


def _place(index: int, tokens: Sequence[Token]) -> Iterator[tuple[str, Place]]:
    """The relation and the place that an option's text names, if it names one: "[He is sitting] behind the counter"."""
    start = next((i for i in range(len(tokens) - 1) if relation_at(tokens, i)[1]), len(tokens) - 1)
    relation, size = relation_at(tokens, start)
    thing = tuple(token.key for token in tokens[start + size : -1] if token.key not in words.articles)
    before = [token.key for token in tokens[:start]]
    if not thing or set(thing) & words.directions or "not" in before:
        return
    verb = next((verb_of(key) for key in before[-1:] if key in POSTURES or key.endswith("ing")), "")
    end = next((i for i, key in enumerate(before) if key in words.copulas), len(before) - bool(verb))
    subjects = [key for key in before[:end] if key not in words.articles]
    subject = "" if not subjects or subjects[-1] in words.subjects else subjects[-1]
    yield relation, Place(index, subject, subjects[-1:] in (["he"], ["she"]), verb, thing, False)


# Mentions


def _mentions(tokens: Sequence[Token], phrases: Sequence[dict[str, int]], options: Options) -> list[Mention]:
    """Every place that names an option, in order; a name inside a longer one ("left" in "top left") is no name."""
    every = [*_by_text(tokens, phrases, options), *_by_place(tokens, options), *_by_claim(tokens, options)]
    every += _by_letter(tokens, options) if options.letters else ()
    kept: list[Mention] = []
    end = -1
    for mention in sorted(every, key=lambda mention: (mention.start, -mention.end)):
        if kept and mention[:2] == kept[-1][:2]:
            kept[-1] = kept[-1]._replace(indices=kept[-1].indices | mention.indices)
        elif mention.end > end:
            kept.append(mention)
            end = mention.end
    return _without_lists(tokens, kept, len(options.texts))


def _without_lists(tokens: Sequence[Token], mentions: list[Mention], count: int) -> list[Mention]:
    """The mentions without repetitions of the whole list of options, "(A) left (B) right", which choose none."""
    kept, start = [], 0
    orders = [[({i}, by) for i in range(count) for by in ("letter", "text")], [({i}, "text") for i in range(count)]]
    while start < len(mentions):
        for order in orders[: 1 + (count > 2)]:
            run = mentions[start : start + len(order)]
            gaps = (tokens[one.end : other.start] for one, other in pairwise(run))
            if [one[2:] for one in run] == order and all(token.key in words.links for gap in gaps for token in gap):
                start += len(run)
                break
        else:
            kept.append(mentions[start])
            start += 1
    return kept


def _by_text(tokens: Sequence[Token], phrases: Sequence[dict[str, int]], options: Options) -> Iterator[Mention]:
    """The mentions of options by their text, part of it, or another way to write it."""
    blocked = other_senses(tokens)
    zero = next((index for text, index, _ in options.forms.get("0", ()) if len(text) == 1), None)
    for start, token in enumerate(tokens[:-1]):
        for text, index, part in options.forms.get(token.key, ()):
            end = start + len(text)
            alone = text in vocabulary.ALONE or (text in vocabulary.ALONE_FORMS and text not in options.texts)
            if not is_at(text, tokens, start) or (alone and not _alone(tokens, start, end)):
                continue
            if text[1:2] == ("is",) and len(text) > 3 and _follows_preposition(tokens, start):
                continue  # "the dog next to the car is behind the tree" says nothing of the car
            if len(text) > 1 or (start not in blocked and in_sense(tokens, start, part)):
                yield Mention(start, end, frozenset((index,)), "text")
        if zero is not None and (size := phrases[start].get("zero")) and tokens[start + size].key not in words.not_zero:
            yield Mention(start, start + size, frozenset((zero,)), "text")


def _alone(tokens: Sequence[Token], start: int, end: int) -> bool:
    """True if tokens answer by themselves, as the 是 of "是的，..." does and that of "它是" does not."""
    starts = start == 0 or tokens[start].edge not in ("", "/", "(")
    return starts and bool(tokens[end].edge or tokens[end].key in words.alone_endings)


def _by_place(tokens: Sequence[Token], options: Options) -> Iterator[Mention]:
    """The options that say where something is, in other words: "stands behind the old counter", "beside it"."""
    end = 0
    for start in range(len(tokens) - 1 if options.places else 0):
        relation, size = relation_at(tokens, start)
        if start < end or not size:
            continue
        end = start + size
        places = options.places.get(relation, ())
        ends = [_thing_end(tokens, end, place.thing) for place in places]
        if not any(ends) and tokens[end].key in words.themselves and not tokens[end].edge:
            ends = _pronoun_ends(tokens, end, places)
        for place, stop in zip(places, ends, strict=True):
            if stop and _does(tokens, start, place) and not _is_inverted(tokens, start, stop):
                yield Mention(start, stop, frozenset((place.index,)), "text")


def _thing_end(tokens: Sequence[Token], start: int, thing: tuple[str, ...]) -> int:
    """The position after a thing that is named at a position, up to four words before it aside; 0 where it is not."""
    for position in range(start, min(start + 5, len(tokens) - 1)):
        if tokens[position].edge or tokens[position].key in words.conjunctions | words.copulas:
            return 0
        if is_at(thing, tokens, position):
            return position + len(thing)
    return 0


def _pronoun_ends(tokens: Sequence[Token], start: int, places: Sequence[Place]) -> list[int]:
    """For each place the position after the "it" at a position, if its thing is the last one named before; else 0."""
    before = [token.key for token in tokens[max(0, start - 40) : start]][::-1]
    last = [before.index(place.thing[-1]) if place.thing[-1] in before else len(before) for place in places]
    nearest = min(last, default=0)
    return [start + 1 if distance == nearest < len(before) else 0 for distance in last]


def _is_inverted(tokens: Sequence[Token], start: int, end: int) -> bool:
    """True if a place begins a clause about another thing: "in front of it there is ..", "behind it stands .."."""
    begins = start == 0 or tokens[start].edge or tokens[start - 1].key in ("and", "but", "while", "with")
    behind = tokens[end]
    other = behind.key in ("there", "is", "are", "was", "were") or behind.key in POSTURES
    return bool(begins) and (other or behind.edge == ",") and (not behind.edge or tokens[end + 1].key in words.articles)


def _does(tokens: Sequence[Token], start: int, place: Place) -> bool:
    """True if the clause before a position is about a place's subject, and its verb is none but the place's."""
    near = [token.key for token in tokens[max(0, start - 4) : start]]
    verbs, postures = {verb_of(key) for key in near}, {POSTURES[key] for key in near if key in POSTURES}
    known = place.verb in POSTURES.values()
    if place.verb and (postures - {place.verb} or ((place.strict or not known) and place.verb not in verbs)):
        return False
    clause = _clause_before(tokens, start)
    if place.person:
        return any(tokens[i].key in words.persons or AGENT.search(tokens[i].key) for i in clause)
    if place.subject and _modifies(tokens, start, place.subject):
        return False
    named = [i for i in clause if tokens[i].key == place.subject or tokens[i].key in words.subjects]
    return not place.subject or any(not _follows_preposition(tokens, i) for i in named)


def _modifies(tokens: Sequence[Token], start: int, subject: str) -> bool:
    """True if a place belongs to another noun than the subject: "the dog looks at the cat on the sofa"."""
    for i in range(start - 1, max(0, start - 4), -1):
        if tokens[i].key in words.articles:
            return tokens[start - 1].key != subject and i < start - 1 and tokens[i - 1].key not in words.placing
        if tokens[i].edge or tokens[i].key in words.copulas or verb_of(tokens[i].key):
            return False
    return False


def _clause_before(tokens: Sequence[Token], start: int) -> list[int]:
    """The positions before a position in its clause, as far back as a noun phrase after a comma or "and" begins it."""
    clause, position = [], start
    while position > max(0, start - 30) and tokens[position].edge not in SENTENCE:
        if position < start and tokens[position].key in words.relatives:
            return [position - 1] if position and tokens[position + 1].key not in words.articles else clause
        boundary = tokens[position].edge or tokens[position].key in words.conjunctions | words.explains | {"but"}
        if boundary and any(tokens[i].key in words.articles | words.subjects for i in clause):
            break
        position -= 1
        clause.append(position)
    return clause


def _follows_preposition(tokens: Sequence[Token], position: int) -> bool:
    """True if a noun belongs to a preposition before it, as the car does in "next to the red car"."""
    for i in range(position, max(0, position - 3), -1):
        if tokens[i].edge or tokens[i].key in words.articles or tokens[i - 1].key in words.copulas:
            return not tokens[i].edge and tokens[i - 1].key in words.prepositions
        if tokens[i - 1].key in words.prepositions:
            return True
    return False


def _by_claim(tokens: Sequence[Token], options: Options) -> Iterator[Mention]:
    """The option that a verdict on a claim names: "The statement '..' is not correct" is "False", or "No"."""
    for position, token in enumerate(tokens[:-1] if options.claims else ()):
        if token.key not in words.true | words.false or token.edge:
            continue
        start, behind = back(tokens, position, words.adverbs | {"not"}), tokens[position + 1]
        denials = sum(token.key == "not" for token in tokens[start:position])
        truth = (token.key in words.true) ^ (denials % 2)
        ends = behind.edge or behind.key in words.explains or behind.key in ("as", "for", "given", "based", "according")
        if start > 1 and ends and not tokens[start].edge and _is_claim(tokens, start - 1, options):
            yield Mention(start, position + 1, frozenset((options.claims[not truth],)), "text")


def _is_claim(tokens: Sequence[Token], copula: int, options: Options) -> bool:
    """True if the subject of a copula at a position is a claim: "this claim", "the statement that ..", "that"."""
    if tokens[copula].key not in ("is", "was", "are", "seems", "appears"):
        return False
    before, quoted = tokens[copula - 1].key, '"' in tokens[copula].gap or "'" in tokens[copula].gap
    if before in words.claims or (before in ("that", "this", "it") and options.texts[options.claims[0]] != ("yes",)):
        return True
    for position in range(copula - 2, max(-1, copula - 40), -1):
        if tokens[position].key in words.claims:
            return quoted or tokens[position + 1].key in ("that", "about")
    return False


def _is_letter(token: Token) -> bool:
    """True for one ASCII letter."""
    return re.fullmatch("[A-Za-z]", token.text) is not None


def _index(letter: str, options: Options) -> int:
    """The index of the option that a letter names, or NO_OPTION."""
    index = ascii_uppercase.index(letter.upper())
    return index if index < len(options.texts) else NO_OPTION


def _called_so(key: str, options: Options) -> set[int]:
    """Options whose whole text is one letter."""
    return {index for index, text in enumerate(options.texts) if text == (key,)}


def _by_letter(tokens: Sequence[Token], options: Options) -> Iterator[Mention]:
    """The mentions of options by their letter or their number in the list."""
    things: set[int] = set()  # positions of letters that name things: "points A and B"
    for position, token in enumerate(tokens[:-1]):
        if not _is_letter(token):
            yield from _by_ordinal(tokens, position, options)
            continue
        index, behind = _index(token.text, options), tokens[position + 1]
        marked = OPENED.search(token.gap[-1:]) is not None and CLOSED.match(behind.gap) is not None
        own = options.texts[index] if index != NO_OPTION else ()
        named = own and is_at(own, tokens, position + 1)
        leading = (position == 0 or "\n" in token.gap or named) and LABEL_END.match(behind.gap) is not None
        if marked or leading:
            if index == NO_OPTION and not token.text.isupper():  # the s of "shape(s)"
                continue
        elif not (_is_called if token.text.islower() else _is_name)(tokens, position, things, options):
            continue
        if not (leading or (marked and token.gap[-1] in "([{")):
            yield Mention(position, position + 1, frozenset({index} | _called_so(token.key, options)), "letter")
        else:
            same = own == (behind.key,) and _is_letter(behind) and not behind.edge
            yield Mention(position, position + 1 + same, frozenset((index,)), "letter")


def _is_called(tokens: Sequence[Token], position: int, *_) -> bool:
    """True if a small letter is called one, "option b" or "the answer is b", where a clause ends, or fills a line."""
    start, behind = position - 1, tokens[position + 1]
    if (position == 0 or tokens[position].edge == "\n") and (behind.edge == "\n" or not behind.key):
        return True
    start -= tokens[start].key == "is"
    return start >= 0 and tokens[start].key in words.called and bool(behind.edge)


def _is_name(tokens: Sequence[Token], position: int, things: set[int], options: Options) -> bool:
    """True if a capital without brackets names an option: no article, no "I", no name of a thing ("car B"), which is
    added to `things`."""
    token, before, behind = tokens[position], tokens[position - 1], tokens[position + 1]
    hyphened = token.gap == "-" or re.match(r"-\S?$|\+", behind.gap) is not None
    no_option = _index(token.text, options) == NO_OPTION and not behind.edge
    if hyphened or no_option or (token.text == "I" and len(options.texts) < 9) or before.key in words.things:
        return False
    named = behind.edge or is_capital(behind) or IDEOGRAPH.match(behind.text) or behind.key in words.letter_behind
    if token.text in "AI" and behind.gap.isspace() and not named:
        return False
    names = any(len(key) == 1 and key.isalpha() for text in options.texts for key in text)  # "A is closer"
    if names and not behind.edge and behind.key in words.copulas and tokens[position + 2].key not in words.calls:
        return False
    chained = position - 1 if token.edge in (",", "/") else position - 2 if before.key in words.conjunctions else -1
    labelled = before.key in words.labelled or (not behind.edge and behind.key in words.labelled)
    free = token.edge or not position or is_capital(before) or IDEOGRAPH.match(before.text[-1:])
    free = free or before.key in words.letter_before or before.key.endswith("ly")
    free = free or (before.key == "than" and tokens[position - 2].key in ("rather", "other"))
    if chained in things or labelled or not free:
        things.add(position)
        return False
    return True


def _by_ordinal(tokens: Sequence[Token], position: int, options: Options) -> Iterator[Mention]:
    """The option that "the second option", "the last choice" or "option 2" names, unless another one's text counts."""
    key, behind, count = tokens[position].key, tokens[position + 1], len(options.texts)
    if key in (*ORDINALS, "last") and behind.key in ("option", "choice", "answer"):
        index, word = (count - 1 if key == "last" else ORDINALS.index(key)), key
    elif key in ("option", "choice") and behind.key in "123456789"[:count]:
        index, word = int(behind.key or 0) - 1, behind.key
    else:
        return
    if not behind.edge and not any(word in text for other, text in enumerate(options.texts) if other != index):
        yield Mention(position, position + 2, frozenset((index if 0 <= index < count else NO_OPTION,)), "letter")


def _groups(passage: Passage) -> list[list[Mention]]:
    """The mentions in runs that belong together: a letter and its text, "A or B", "A, B and C"."""
    groups: list[list[Mention]] = []
    for mention in passage.mentions:
        if groups and _joined(passage.tokens, groups[-1][-1], mention):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def _joined(tokens: Sequence[Token], one: Mention, other: Mention) -> bool:
    """True if two mentions in a row belong together: "(A) left", "A or B", "A, B and C"."""
    if other.start - one.end > 8:
        return False
    between = {token.key for token in tokens[one.end : other.start]}
    edges = {token.edge for token in tokens[one.end : other.start + 1]} - {""}
    conjunction = bool(between & words.conjunctions)
    if not conjunction and one.by == "letter" and other.by == "text":
        if between <= words.fillers and edges <= {".", ":", "-", "(", ",", "/"}:
            return one.indices == other.indices or edges != {"."} or not between or tokens[one.start].item
        says = tokens[one.end].edge == ":" and tokens[other.end].edge in SENTENCE  # "A: it is on the right."
        return says and edges == {":"} and not between & words.explains
    counted = is_number(tokens[one.start].key) and is_number(tokens[other.start].key)
    if not between <= words.links | {"not"} or (counted and edges == {"("} and one.indices != other.indices):
        return False
    if not conjunction and one.by == "text" and other.by == "letter":
        return edges <= {"(", "-", "/"} or (edges == {","} and one.indices == other.indices)
    listed = conjunction or edges & {",", "/"} or other.start == one.end
    return bool(listed) and edges <= {",", "/", "("} and (conjunction or one.by == other.by)


# Denials, conditions and hedges


def _deny_ahead(passage: Passage) -> None:
    """Mark the mentions in the reach of a denial, a condition or a hedge that stands before them.

    A reach ends with its sentence, at a contrast ("but"), at a colon or dash that does not follow its word at once, and
    at a comma unless a list goes on after it."""
    tokens, reach, asked = passage.tokens, Reach(), _questions(passage.tokens)
    position, latest, item = 0, None, None  # `item`: the letter that begins the line as an entry of a list
    while position < len(tokens) - 1:
        token = tokens[position]
        reach.cross(passage, position)
        if latest and token.edge and (size := passage.size(position, "that_is_wrong")):
            passage.refute([latest, item or latest])
            position += size
            continue
        item = None if "\n" in token.gap else item
        if mention := passage.at.get(position):
            latest = mention
            item = mention if token.item else item
            reason = reach.hedge == "reason" and mention.by == "letter"
            if reach.kind or reason or asked.get(position) == "answered":
                reach.named = True
                passage.denied.add(position)
                if reach.kind in ("denial", "aside"):
                    passage.refuted.add(position)
            elif reach.hedge or position in asked:
                passage.hedged.add(position)
            if token.key not in ("neither", "none"):
                position = mention.end
                continue
        if size := passage.size(position, "neutral"):
            position += size
            continue
        role, size = _role(passage, position)
        position += max(size, 1)
        reach.enter(role, token.key, position)


@dataclass
class Reach:
    """The kind of denial that a position stands in, "" for none; `named`: it denied a mention; `start`: the position
    after its word; `hedge`: "hedge" ("could be"), "reason" ("because") or ""; `condition`: the sentence holds an "if".
    A reason hedges the texts that it names and denies the letters."""

    kind: str = ""
    named: bool = False
    start: int = -1
    hedge: str = ""
    condition: bool = False

    def cross(self, passage: Passage, position: int) -> None:
        """Pass the boundary before a position."""
        edge = passage.tokens[position].edge
        if edge in SENTENCE:
            self.__init__()
        elif edge in (":", "-", ","):
            self.hedge = ""
            if edge == ",":
                stays = (self.named or self.kind == "aside") and _list_goes_on(passage, position, self.kind)
            else:
                stays = self.start == position
            self.kind = self.kind if stays else ""

    def enter(self, role: str, key: str, position: int) -> None:
        """Pass a phrase of a role, or the word `key` without one, that ends before a position."""
        if role == "contrast":
            self.__init__(hedge="reason" if key in words.reasons else "")
        elif role == "denial" and self.kind and key in ("anything", "everything"):
            self.kind = ""  # "cannot be anything but left"
        elif role == "hedge":
            self.hedge = "hedge"
        elif role:
            self.kind, self.named, self.start = role, False, position
            self.condition = self.condition or role == "condition"
        elif self.condition and key in ("would", "could", "might"):
            self.kind = "condition"
        elif self.kind == "attention" and key in words.copulas:
            self.kind = ""


def _role(passage: Passage, position: int) -> tuple[str, int]:
    """What the words at a position do to the mentions after them, and how many words they are."""
    token, behind = passage.tokens[position], passage.tokens[position + 1]
    starts = position == 0 or bool(token.edge)
    if token.key == "no" and not behind.edge and not (token.edge in SENTENCE and behind.key in words.follows_no):
        return "denial", 1
    if starts and token.key in ("wrong", "incorrect", "false") and behind.edge in ("", ":", "("):
        return "denial", 1
    there = [(size, role) for role, size in passage.roles[position].items() if role in REACHES]
    return max(there, key=lambda pair: pair[0])[::-1] if there else ("", 0)


def _questions(tokens: Sequence[Token]) -> dict[int, str]:
    """Positions in sentences that end in a question mark: "answered" where more text follows, else "open"."""
    asked, question = {}, ""
    for position in range(len(tokens) - 2, -1, -1):
        closing = tokens[position + 1]
        if closing.edge in SENTENCE:
            last, before = tokens[position].key, tokens[position - 1].key
            tag = (last in words.tagged and before == "not") or (last == "right" and tokens[position].edge == ",")
            question = "" if "?" not in closing.gap or tag else "answered" if closing.key else "open"
        if question:
            asked[position] = question
    return asked


def _list_goes_on(passage: Passage, position: int, kind: str) -> bool:
    """Whether the comma before a position is one of a denied list: options follow, with a conjunction or (of "not", not
    of "unlike") several, and no verb after them. So "not left, right" means right."""
    tokens, conjunction, nor, count = passage.tokens, False, False, 0
    for _ in range(26):
        start = position
        while tokens[start].key in words.links and start not in passage.at:
            conjunction = conjunction or tokens[start].key in words.conjunctions
            nor = nor or tokens[start].key == "nor"
            start += 1
        if start not in passage.at:
            break
        position, count = passage.at[start].end, count + 1
    verb = not (nor or tokens[position].edge) and tokens[position].key in words.verbs
    return not verb and (conjunction and count > 0 or kind != "aside" and count > 1)


def _deny_behind(passage: Passage, group: list[Mention], before: list[Mention]) -> None:
    """Mark the mentions of a group that the words after it deny: "A and B are wrong", "A: no", "左ではなく"."""
    tokens, end = passage.tokens, group[-1].end
    last = group[-2:] if len(group) > 1 and group[-2].indices == group[-1].indices else group[-1:]
    likewise = group[0].start > 1 and passage.size(group[0].start - 2, "likewise")
    if likewise and before and before[-1].start in passage.refuted:
        passage.refute(group)
    elif _verdict(passage, "no", end) or (not tokens[end].edge and passage.size(end, "refuted")):
        passage.refute(last)
    elif tokens[end].key in ("if", "otherwise") and not tokens[end].edge and not passage.size(end, "neutral"):
        passage.denied.update(mention.start for mention in last)
    else:
        start = end
        while tokens[start].key in words.predicate and tokens[start].edge in ("", "," if start == end else ""):
            start += 1
        verb = next((token.key for token in tokens[end:start] if token.key in words.copulas), "")
        refuting = not tokens[start].edge and passage.size(start, "refuting")
        if verb and not tokens[start].edge and passage.size(start, "hedging"):
            passage.hedged.update(mention.start for mention in last)
        if verb and refuting and not passage.size(start, "neutral") and not passage.size(end, "neutral"):
            passage.refute(last if verb in words.singular else group)


def _verdict(passage: Passage, role: str, end: int) -> bool:
    """Whether a "yes" or "no" (the role) follows a mention as a verdict on it: "A: no", "B (correct)"."""
    tokens, size = passage.tokens, passage.size(end, role)
    apart = tokens[end].edge or tokens[end].key not in ("no", "yes")
    if not size or end in passage.at or tokens[end].edge == "\n" or not apart:
        return False
    return bool(tokens[end + size].edge or passage.size(end + size, "subordinate"))


# Statements


def _statements(passage: Passage, groups: list[list[Mention]]) -> list[Statement]:
    """What the answer states outright or concludes, in order; what one clause concludes is one statement."""
    cues, clauses, statements, parts = _cues(passage), _conclusions(passage), [], 0
    for group in groups:
        named = passage.named(group)
        if not named or group[0].start < parts or any(mention.start in passage.hedged for mention in named):
            continue
        start, end = group[0].start, group[-1].end
        parts = _parts_end(passage.tokens, end)
        clause, concluding = clauses.get(start, (-1, False))
        outright, last = _cue_before(passage, cues, start) or (_confirmed(passage, end), False)
        if not outright:
            outright, last = _by_position(passage, group) or (None, False)
        if outright is None and clause < 0:
            continue
        indices = frozenset(index for mention in named for index in mention.indices)
        statement = Statement(start, end, indices, bool(outright), last or concluding, clause)
        if statements and clause >= 0 and not outright and statements[-1][3:] == statement[3:]:
            statement = statement._replace(start=statements[-1].start, indices=indices | statements.pop().indices)
        statements.append(statement)
    return statements


def _conclusions(passage: Passage) -> dict[int, tuple[int, bool]]:
    """For each position in a clause after "therefore" and the like: where the clause begins, and whether its word ends
    an argument, unlike "so"."""
    tokens, clause, clauses, position = passage.tokens, None, {}, 0
    while position < len(tokens) - 1:
        token = tokens[position]
        starts = position == 0 or bool(token.edge) or tokens[position - 1].key in ("and", "but")
        if token.edge in SENTENCE:
            clause = None
        elif token.edge == ":" and is_number(tokens[position - 1].key):
            clause = None  # "altogether 16: 10 adults and 6 children"
        makes = position > 0 and tokens[position - 1].key in ("making", "giving", "makes") and not token.edge
        if ("=" in token.gap or makes) and is_number(token.key):
            clause = (position, False)
        size = 0
        if position not in passage.covered and not (size := passage.size(position, "neutral")):
            size = passage.size(position, "conclusion") or _apposition(passage, position)
            if size and (starts or token.key not in ("so", "thus", "hence")):
                clause = (position, passage.size(position, "final") > 0)
            elif clause and passage.size(position, "subordinate"):
                clause = None
        if clause:
            clauses[position] = clause
        position += max(size, 1)
    return clauses


def _apposition(passage: Passage, position: int) -> int:
    """Number of words of an "i.e." or "that is," at a position, if the option named after it repeats the numbers of
    those before it in the sentence, unlike "-30 degrees, i.e. 30 degrees clockwise"; 0 for others."""
    tokens, size = passage.tokens, passage.size(position, "apposition")
    token, behind = tokens[position], tokens[position + size]
    pointing = size == 2 and token.key in ("that", "which") and behind.edge != "," and not is_number(behind.key)
    if not size or pointing or not (token.edge or token.key == "i.e."):
        return 0
    begin = next((i for i in range(position, 0, -1) if tokens[i].edge in SENTENCE), 0)
    before = {i for i in passage.covered if begin <= i < position}
    following = next((one for one in passage.mentions if one.start >= position), None)
    if following is None:
        return 0
    repeated = {token.key for token in tokens[following.start : following.end]}
    return size if {tokens[i].key for i in before if is_number(tokens[i].key)} <= repeated else 0


def _cues(passage: Passage) -> dict[int, tuple[str, bool]]:
    """For each position after the cue of a statement: the cue's role, and whether it is called final."""
    cues = {}
    for position, token in enumerate(passage.tokens[:-1]):
        if position in passage.covered:
            continue
        if token.key == BOX:
            cues[position + 1] = ("box", True)
        for role in ("strict_noun", "noun", "verb"):
            if size := passage.size(position, role):
                cues[position + size] = (role, position > 0 and passage.size(position - 1, "final") > 0)
    return cues


def _cue_before(passage: Passage, cues: dict[int, tuple[str, bool]], start: int) -> tuple[bool, bool] | None:
    """(True, whether it is called final) if a cue states the mention at a position: "answer: A", "I choose A", "the
    answer [to it] is [that the circle is on the] left"; else None."""
    tokens, weight, linked, position = passage.tokens, 0, False, start
    while position > 0 and weight <= 12 and start - position <= 30:
        edge, before = tokens[position].edge, tokens[position - 1]
        linked = linked or edge in (":", "-")
        if cue := cues.get(position):
            role, last = cue
            direct = weight == 0 and edge != "." and edge != ","
            if (direct and role in ("box", "verb", "noun")) or (linked and role in ("noun", "strict_noun")):
                return True, last
            if role == "verb" and weight <= 8 and edge != "\n" and before.key in ("conclude", "say", "guess"):
                return True, last
        explains = before.key in words.explains or passage.size(position - 1, "no_object")
        if edge in (".", "\n", ",") or position - 1 in passage.covered or explains:
            return None
        linked = linked or before.key in words.copulas
        weight += before.key not in words.weightless
        position -= 1
    return None


def _confirmed(passage: Passage, end: int) -> bool | None:
    """True if the words after a mention call it the answer: "B is correct", "B: yes", "B 正确"; else None."""
    tokens, start = passage.tokens, end
    if _verdict(passage, "yes", end) or _totals(passage, end):
        return True
    while tokens[start].key in words.predicate and not tokens[start].edge:
        start += 1
    size = 0 if tokens[start].edge else passage.size(start, "confirming")
    ideograph = IDEOGRAPH.match(tokens[start].text) is not None
    if not size or start in passage.at or (start == end and not ideograph):
        return None
    follower = tokens[start + size]
    ends = follower.edge or follower.key in words.confirmed or passage.size(start + size, "subordinate")
    return True if ends or ideograph else None


def _totals(passage: Passage, end: int) -> bool:
    """True if the number before a position is called a total: "12 wheels in total"."""
    tokens = passage.tokens
    if not is_number(tokens[end - 1].key):
        return False
    if _parts_end(tokens, end):
        return True
    for position in range(end, min(end + 4, len(tokens) - 1)):
        if tokens[position].edge or position in passage.covered or tokens[position].key in words.conjunctions:
            return False
        if any(is_at(total, tokens, position) for total in vocabulary.TOTALS):
            return True
    return False


def _parts_end(tokens: Sequence[Token], end: int) -> int:
    """The position after the parts that the number before a position is the sum of, "5 in total: 2 red and 3 blue"; 0
    where no several numbers after it sum to it."""
    listed, parts, last = "", [], 0
    if not is_number(tokens[end - 1].key):
        return 0
    for position, token in enumerate(tokens[end : end + 50], end):
        if token.edge in SENTENCE or (token.edge == "," and not listed) or (listed == "(" and ")" in token.gap):
            break
        listed = listed or token.edge * (token.edge in (":", "(", "-"))
        if is_number(token.key):
            if not listed:
                return 0
            parts.append(float(token.key))
            last = position + 1
    return last if len(parts) > 1 and sum(parts) == float(tokens[end - 1].key) else 0


def _by_position(passage: Passage, group: list[Mention]) -> tuple[bool, bool] | None:
    """(outright, last) if a group is stated by its place: alone on a line, or first in the answer; else None."""
    tokens, start, end = passage.tokens, group[0].start, group[-1].end
    begin, trail = start, end
    while begin > 0 and tokens[begin].edge not in (".", "\n") and tokens[begin - 1].key in words.light:
        begin -= 1
    if (begin > 0 and "\n" not in tokens[begin].gap) or tokens[begin].key == "#":
        return None
    letters = tokens[start].key.isalpha() and tokens[start].item
    if letters and any(token.item and token.key.isalpha() for token in tokens[end : end + 200]):
        return None  # the first entries of a list that goes through the options
    while tokens[trail].key in words.trail and not tokens[trail].edge:
        trail += 1
    if "\n" in tokens[trail].gap or not tokens[trail].key:
        return True, False
    edge = tokens[end].edge
    if (end in passage.at and passage.at[end].by == "letter") or (edge == ":" and len(passage.labels) > 1):
        return None  # "A. B. C.", "A: ... B: ..."
    if passage.heads == [start] and edge in (".", ":", ",", "-"):
        return True, False
    if begin > 0 or (tokens[start].item and not letters):
        return None
    different = {index for mention in group for index in mention.indices}
    if any(mention.by == "letter" for mention in group) and (edge or len(different) < len(group)):
        return True, False
    answers = group[0].by == "text" and tokens[start].key in words.answers
    return (False, False) if edge == "." or (answers and edge in (",", "(", "-", ":")) else None


# The decision


def _decide(passage: Passage, groups: list[list[Mention]], statements: list[Statement]) -> int | None:
    """The index of the option that the statements, else the mentions, settle on; None for none."""
    tail = _tail(passage)
    if tail is None:
        return None
    outright = [statement for statement in statements if statement.outright and statement.start >= tail]
    others = [statement for statement in statements if not statement.outright and statement.start >= tail]
    if any(len(one.indices) > 1 and passage.tokens[one.start - 1].key == "both" for one in outright if one.start):
        return None  # "both A and C are correct: it is on the desk, and next to the lamp"
    if outright:
        return _last_of(passage, outright, [one for one in others if one.start > outright[-1].start and one.last])
    if others:
        answered = passage.tokens[others[-1].start].key in words.answers  # "no. ... yes"
        behind = [one for one in passage.named(passage.mentions) if answered and one.start >= others[-1].end]
        agrees = all(one.indices == others[-1].indices for one in behind)
        return _last_of(passage, others, []) if agrees else None
    if _is_cut(passage):
        return None
    named = [mention for mention in passage.named(_without_disjunctions(passage, groups)) if mention.start >= tail]
    plain = [mention for mention in named if mention.start not in passage.hedged] or named
    denials = [] if tail else [one for one in passage.mentions if one.start in passage.refuted]
    refuted = {index for one in denials for index in one.indices}
    kept = [one for one in plain if not one.indices <= refuted]
    index = _single(index for one in kept for index in one.indices if index not in refuted)
    if kept and len(kept) < len(plain) and kept[-1].start < denials[-1].start:
        index = None  # "left here, right there; not left" leaves it open
    index = _ranked_first(passage, plain) if index is None else index
    revised = {index for statement in statements if statement.outright for index in statement.indices}
    if revised and index is not None and index not in revised and plain[0].by == "text":
        between = passage.tokens[tail : plain[0].start]  # what follows a statement and a "wait" may only explain
        return index if all(token.key in words.correcting for token in between) else None
    return index


def _ranked_first(passage: Passage, mentions: list[Mention]) -> int | None:
    """The option that superlatives of one kind name, if any: "the object nearest to the sofa is the table"."""
    tokens, indices = passage.tokens, set()
    if len({token.key for token in tokens} & words.superlatives) != 1:
        return None
    for mention in mentions:
        key, before = tokens[mention.start].key, back(tokens, mention.start, words.fillers) - 1
        if mention.end - mention.start == 1 and (key in COLOURS | words.directions or is_number(key)):
            continue  # describes a thing, is not ranked
        if before >= 0 and tokens[before].key in ("is", "are", "was"):
            ranked = _ranks(passage, range(before, max(0, before - 12), -1))
        else:
            copula = tokens[mention.end].key in ("is", "are", "was") and not tokens[mention.end].edge
            ranked = copula and _ranks(passage, range(mention.end + 1, min(mention.end + 5, len(tokens) - 1)))
        indices.update(mention.indices if ranked else ())
    return _single(indices)


def _ranks(passage: Passage, positions: Iterable[int]) -> bool:
    """True if a superlative stands at positions of one clause, before any that names an option or denies."""
    for position in positions:
        token = passage.tokens[position]
        if position in passage.covered or token.key in words.superlatives:
            return position not in passage.covered
        if token.edge or token.key in words.conjunctions | {"not"}:
            return False
    return False


def _compared(passage: Passage) -> int | None:
    """The subject of an answer that is one comparison of the two options, "the chair is closer than the table [since
    ..]", as the adjective of such an answer is the question's; else None."""
    tokens, mentions = passage.tokens, passage.mentions
    if len(mentions) < 2 or any(token.edge in SENTENCE for token in tokens[1:-1]):
        return None
    subject, object_ = mentions[:2]
    leads = all(token.key in words.fillers for token in tokens[: subject.start])
    between = [token.key for token in tokens[subject.end : object_.start] if token.key not in words.articles]
    if not leads or between[-1:] != ["than"] or not words.compared & set(between) or subject.indices == object_.indices:
        return None
    if any(token.edge for token in tokens[subject.start + 1 : object_.end]) or set(between) & {"not", "no", "or", "if"}:
        return None
    behind = object_.end
    behind += tokens[behind].key in words.copulas and not tokens[behind].edge  # "than the table is"
    reason = passage.size(behind, "subordinate") or tokens[behind].key in words.explains or tokens[behind].key == "as"
    ends = behind == len(tokens) - 1 or (reason and tokens[behind].key not in ("if", "whether", "although", "though"))
    return _single(subject.indices) if ends and subject.by == object_.by == "text" else None


def _other(passage: Passage) -> int | None:
    """The second of two options where the answer refutes the first and says "the other one"; else None."""
    tokens, mentions = passage.tokens, passage.mentions
    refuted = _single(index for mention in mentions for index in mention.indices)
    if refuted is None or any(mention.start not in passage.refuted for mention in mentions):
        return None
    for start in range(mentions[-1].end, len(tokens) - 1):
        phrases = [phrase for phrase in vocabulary.OTHER_OPTION if is_at(phrase, tokens, start)]
        if any(tokens[start + len(phrase)].edge in SENTENCE for phrase in phrases):
            return 1 - refuted if tokens[back(tokens, start, words.weightless | {"answer"})].edge else None
    return None


def _without_disjunctions(passage: Passage, groups: list[list[Mention]]) -> list[Mention]:
    """The mentions without those "A or B" of which the last group takes one: "A or B? I am torn. B"."""
    if not groups or len(groups[-1]) > 1:
        return passage.mentions
    chosen, kept = groups[-1][0].indices, []
    for group in groups:
        between = {token.key for token in passage.tokens[group[0].end : group[-1].start]}
        offered = frozenset(index for mention in group for index in mention.indices)
        if not (between & words.disjunctions and chosen < offered):
            kept += group
    return kept


def _tail(passage: Passage) -> int | None:
    """Start of the part after the last correction; None where a correction takes back what stands before it, or may do
    so, and names no option instead."""
    tokens, tail = passage.tokens, 0
    last = max((mention.start for mention in passage.named(passage.mentions)), default=-1)
    affirmed = max((i for i, token in enumerate(tokens) if token.key in words.affirmed), default=-1)
    for position, token in enumerate(tokens[:-1]):
        retracts = passage.size(position, "retraction")
        size = retracts or passage.size(position, "correction")
        people_wait = token.key == "wait" and not (token.edge or tokens[position + 1].edge or position == 0)
        if not size or position in passage.covered or people_wait:
            continue
        behind = position + size
        if last >= behind:
            tail = position
        elif last >= 0 and (retracts or (tokens[behind].key and affirmed < behind)):
            return None
    return tail


def _last_of(passage: Passage, statements: list[Statement], later: list[Statement]) -> int | None:
    """What the last of some statements means; None where it contradicts one right before it and is not called the last,
    where a later conclusion contradicts it, or where its letter is refuted after it."""
    last = statements[-1]
    others = [one for one in statements if not last.indices <= one.indices]
    if others and not last.last:
        between = passage.tokens[others[-1].end : last.start]
        if sum(token.edge in SENTENCE for token in between) < 2:
            return None
    if any(one.indices != last.indices and len(one.indices) == 1 for one in later):
        return None
    behind = [one for one in passage.mentions if one.start >= last.end and one.indices == last.indices]
    if behind and all(one.start in passage.refuted and one.by == "letter" for one in behind):
        return None
    return _single(last.indices)


def _is_cut(passage: Passage) -> bool:
    """Whether the answer breaks off in the middle of a sentence, as at a limit of tokens."""
    tokens = passage.tokens
    if len(tokens) < 6 or len(tokens) - 2 in passage.covered:
        return False
    end = tokens[-1].gap.strip(" \"')*_")
    open_ended = tokens[-2].text in words.open_ended and tokens[-3].key not in words.tagged  # unlike "yes, it is"
    return (not end and open_ended) or end.endswith((",", ":", "(", "-"))
