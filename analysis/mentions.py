"""Options of a question, and the places of an answer that name them (mentions).

An option is named by its letter ("B", "(b)", "option 2"), by its text or the part of it in which the options differ, by
another way to write it, by the place that it describes ("beside it"), or by a verdict on a claim ("not correct").
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from string import ascii_uppercase
from typing import NamedTuple

from analysis.answer_text import (
    ALONE,
    ALONE_FORMS,
    BOX,
    COLOURS,
    IDEOGRAPH,
    ORDINALS,
    POSTURES,
    RELATION_FORMS,
    SENTENCE,
    SYNONYMS,
    Token,
    back,
    in_sense,
    is_at,
    is_capital,
    is_number,
    keys,
    name,
    name_of,
    other_senses,
    relation_at,
    tokenise,
    verb_of,
    words,
)  # fmt: skip

NO_OPTION = -1  # a letter beyond the last option
CLAIMED = (("true", "false"), ("correct", "incorrect"), ("right", "wrong"), ("yes", "no"))
AGENT = re.compile(r"(?:man|woman|person|er|or|ist|ista|ian|boy|girl)$")  # "barista": a person
OPENED, CLOSED = re.compile(r"[(\[{\"'<_]$"), re.compile(r"[)\]}\"'>_]")
LABEL_END = re.compile(r"[)\].:\u3001]")


class Place(NamedTuple):
    """The option `index` states that `subject` ("" for a pronoun or none; `person`: "he" or "she") does `verb` in a
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
    options that state a place; `claims`: the options for a true and a false claim, or ()."""

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


# Options, and the forms that name them


def build_options(texts: Sequence[str], letters: bool = True, forms: Sequence[Sequence[str]] = ()) -> Options:
    """Options by their texts; `forms`: other ways to write each of them. A part of a text names its option, too, where
    the options differ in that part alone: "left" for "on the left", "red" for "the red car", "2" for "2 m"."""
    whole = tuple(tuple(name(text)) for text in texts)
    named = [(text, index, False) for index, text in enumerate(whole) if text]
    named = [entry for entry in named if not (letters and re.fullmatch("[a-z]", "".join(entry[0])))]
    for index, others in enumerate(forms or [SYNONYMS.get(text.casefold(), ()) for text in texts]):
        named += [(tuple(keys(text)), index, False) for text in others]
    named += [(text, index, False) for text, index in _prepositions(whole)]
    for short in _shortened(whole):
        unique = [text if short.count(text) == 1 and text not in whole else () for text in short]
        named += [(text, index, True) for index, text in enumerate(unique) if text]
    by_first_key = defaultdict(list)
    for entry in named:
        by_first_key[entry[0][0]].append(entry)
    claims = [tuple(whole.index((key,)) for key in pair if (key,) in whole) for pair in CLAIMED]
    claims = [pair for pair in claims if len(pair) == 2]
    return Options(dict(by_first_key), whole, letters, _places(texts), claims[0] if len(claims) == 1 else ())


def _prepositions(texts: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], int]]:
    """(other way to write it, index) of each text that is a relation and nothing else, if no other text means it:
    "underneath" for "under", "on top of" for "on"."""
    if ("left",) in texts or ("right",) in texts:
        return []  # there "the cup under the lamp" is a description of the cup
    forms = [relation for relation in RELATION_FORMS if sum(text in relation for text in texts) == 1]
    pairs = [(form, texts.index(text)) for relation in forms for text in texts if text in relation for form in relation]
    return [(form, index) for form, index in pairs if form not in texts and not (set(form) <= words.unspecific)]


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
    """By relation: the options that state a place."""
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


def match_whole(tokens: list[Token], options: Options) -> set[int]:
    """Options that are the whole of a text, by their text or by a letter; in brackets it is a letter."""
    content = [token for token in tokens[:-1] if token.key != BOX]
    if options.letters and len(content) == 1 and _is_letter(content[0]):
        by_text = set() if re.search(r"[(\[{]", content[0].gap) else _options_called(content[0].key, options)
        return {_index(content[0].text, options)} | by_text
    answer = tuple(name_of(tokens))
    return {index for index, option in enumerate(options.texts) if answer and option == answer}


def find_mentions(tokens: Sequence[Token], phrases: Sequence[dict[str, int]], options: Options) -> list[Mention]:
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
            alone = text in ALONE or (text in ALONE_FORMS and text not in options.texts)
            if not is_at(text, tokens, start) or (alone and not _answers_alone(tokens, start, end)):
                continue
            if text[1:2] == ("is",) and len(text) > 3 and _follows_preposition(tokens, start):
                continue  # "the dog next to the car is behind the tree" is no statement on the car
            if len(text) > 1 or (start not in blocked and in_sense(tokens, start, part)):
                yield Mention(start, end, frozenset((index,)), "text")
        if zero is not None and (size := phrases[start].get("zero")) and tokens[start + size].key not in words.not_zero:
            yield Mention(start, start + size, frozenset((zero,)), "text")


def _answers_alone(tokens: Sequence[Token], start: int, end: int) -> bool:
    """True if tokens answer by themselves, as the 是 of "是的，..." does and that of "它是" does not."""
    starts = start == 0 or tokens[start].edge not in ("", "/", "(")
    return starts and bool(tokens[end].edge or tokens[end].key in words.alone_endings)


def _by_place(tokens: Sequence[Token], options: Options) -> Iterator[Mention]:
    """The mentions of options that state a place, in other words: "stands behind the old counter", "beside it"."""
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
            if stop and _fits_clause(tokens, start, place) and not _is_inverted(tokens, start, stop):
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
    after = tokens[end]
    other = after.key in ("there", "is", "are", "was", "were") or after.key in POSTURES
    return bool(begins) and (other or after.edge == ",") and (not after.edge or tokens[end + 1].key in words.articles)


def _fits_clause(tokens: Sequence[Token], start: int, place: Place) -> bool:
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
        start, after = back(tokens, position, words.adverbs | {"not"}), tokens[position + 1]
        denials = sum(token.key == "not" for token in tokens[start:position])
        truth = (token.key in words.true) ^ (denials % 2)
        ends = after.edge or after.key in words.explains or after.key in ("as", "for", "given", "based", "according")
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


def _options_called(key: str, options: Options) -> set[int]:
    """Options whose whole text is one letter."""
    return {index for index, text in enumerate(options.texts) if text == (key,)}


def _by_letter(tokens: Sequence[Token], options: Options) -> Iterator[Mention]:
    """The mentions of options by their letter or their number in the list."""
    things: set[int] = set()  # positions of letters that name things: "points A and B"
    for position, token in enumerate(tokens[:-1]):
        if not _is_letter(token):
            yield from _by_ordinal(tokens, position, options)
            continue
        index, after = _index(token.text, options), tokens[position + 1]
        marked = OPENED.search(token.gap[-1:]) is not None and CLOSED.match(after.gap) is not None
        own = options.texts[index] if index != NO_OPTION else ()
        named = own and is_at(own, tokens, position + 1)
        leading = (position == 0 or "\n" in token.gap or named) and LABEL_END.match(after.gap) is not None
        if marked or leading:
            if index == NO_OPTION and not token.text.isupper():  # the s of "shape(s)"
                continue
        elif not (_is_called if token.text.islower() else _is_name)(tokens, position, things, options):
            continue
        if not (leading or (marked and token.gap[-1] in "([{")):
            yield Mention(position, position + 1, frozenset({index} | _options_called(token.key, options)), "letter")
        else:
            same = own == (after.key,) and _is_letter(after) and not after.edge
            yield Mention(position, position + 1 + same, frozenset((index,)), "letter")


def _is_called(tokens: Sequence[Token], position: int, *_) -> bool:
    """True if a small letter is called one, "option b" or "the answer is b", where a clause ends, or fills a line."""
    start, after = position - 1, tokens[position + 1]
    if (position == 0 or tokens[position].edge == "\n") and (after.edge == "\n" or not after.key):
        return True
    start -= tokens[start].key == "is"
    return start >= 0 and tokens[start].key in words.called and bool(after.edge)


def _is_name(tokens: Sequence[Token], position: int, things: set[int], options: Options) -> bool:
    """True if a capital without brackets names an option: no article, no "I", no name of a thing ("car B"), which is
    added to `things`."""
    token, before, after = tokens[position], tokens[position - 1], tokens[position + 1]
    hyphened = token.gap == "-" or re.match(r"-\S?$|\+", after.gap) is not None
    no_option = _index(token.text, options) == NO_OPTION and not after.edge
    if hyphened or no_option or (token.text == "I" and len(options.texts) < 9) or before.key in words.things:
        return False
    named = after.edge or is_capital(after) or IDEOGRAPH.match(after.text) or after.key in words.letter_behind
    if token.text in "AI" and after.gap.isspace() and not named:
        return False
    names = any(len(key) == 1 and key.isalpha() for text in options.texts for key in text)  # "A is closer"
    if names and not after.edge and after.key in words.copulas and tokens[position + 2].key not in words.calls:
        return False
    chained = position - 1 if token.edge in (",", "/") else position - 2 if before.key in words.conjunctions else -1
    labelled = before.key in words.labelled or (not after.edge and after.key in words.labelled)
    free = token.edge or not position or is_capital(before) or IDEOGRAPH.match(before.text[-1:])
    free = free or before.key in words.letter_before or before.key.endswith("ly")
    free = free or (before.key == "than" and tokens[position - 2].key in ("rather", "other"))
    if chained in things or labelled or not free:
        things.add(position)
        return False
    return True


def _by_ordinal(tokens: Sequence[Token], position: int, options: Options) -> Iterator[Mention]:
    """The option that "the second option", "the last choice" or "option 2" names, unless another one's text counts."""
    key, after, count = tokens[position].key, tokens[position + 1], len(options.texts)
    if key in (*ORDINALS, "last") and after.key in ("option", "choice", "answer"):
        index, word = (count - 1 if key == "last" else ORDINALS.index(key)), key
    elif key in ("option", "choice") and after.key in "123456789"[:count]:
        index, word = int(after.key or 0) - 1, after.key
    else:
        return
    if not after.edge and not any(word in text for other, text in enumerate(options.texts) if other != index):
        yield Mention(position, position + 2, frozenset((index if 0 <= index < count else NO_OPTION,)), "letter")
