"""The option that a written answer settles on, if it settles on one.

The stages, with the answer "Not A. So it is on the right." to the options left and right:

1. Tokens (`analysis/answer_text.py`), with the boundaries between them: not, a | so, it, is, on, the, right.
2. Mentions (`analysis/mentions.py`): the words that name an option by its letter or its text: "A" (left), "right"
   (right). Mentions joined by "or", "and" or a comma form a group.
3. Denials: a mention is denied ("not left, above or below"; "A and B are wrong"; "rather than A"; "if A") or hedged
   ("could be A"). Here "A" is denied.
4. Statements: a mention that is not denied is stated outright ("the answer is B"; "B." first, or alone on a line;
   "\\boxed{B}") or in a clause that concludes ("therefore ... left"). Here "so" concludes "right".
5. Decision: the last statement after the last correction ("wait", "actually"); without a statement the one option that
   is named and not denied; else none. Here: right.

`read_part` runs the stages; the functions follow in their order.
An answer between two options means none, and so does one that breaks off before it states any: reading a wrong option
is worse than reading none. The work is linear in the length of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from analysis.answer_text import (
    BOX,
    COLOURS,
    IDEOGRAPH,
    OTHER_OPTION,
    SENTENCE,
    TOTALS,
    Token,
    ahead,
    back,
    final,
    is_at,
    is_number,
    roles_of,
    tokenise,
    words,
)  # fmt: skip
from analysis.mentions import NO_OPTION, Mention, Options, build_options, find_mentions, match_whole

REACHES = ("aside", "condition", "attention", "denial", "hedge", "contrast")  # roles that act on later mentions


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

    def undenied(self, mentions: Iterable[Mention]) -> list[Mention]:
        """The mentions that are not denied."""
        return [mention for mention in mentions if mention.start not in self.denied]

    def refute(self, mentions: Iterable[Mention]) -> None:
        """Mark mentions as denied and refuted."""
        starts = {mention.start for mention in mentions}
        self.denied |= starts
        self.refuted |= starts


def read_option(answer: str, options: Sequence[str]) -> int | None:
    """Index of the option that an answer settles on; None where it settles on none, several, or a letter beyond the
    last."""
    sought = _cached_options(tuple(options))
    indices = {read_part(part, sought) for part in final(answer)}
    return indices.pop() if len(indices) == 1 else None


@lru_cache(256)
def _cached_options(options: tuple[str, ...]) -> Options:
    """`build_options`, kept for the next answers to the same options."""
    return build_options(options)


def read_part(text: str, options: Options) -> int | None:
    """Index of the option that one part of an answer settles on, or None."""
    tokens = tokenise(text)
    if whole := match_whole(tokens, options):
        return _single(whole)
    roles = roles_of(tokens)
    passage = Passage(tokens, find_mentions(tokens, roles, options), roles)
    groups = _group_mentions(passage)
    _deny_following(passage)
    for position, group in enumerate(groups):
        _deny_preceding(passage, group, groups[position - 1] if position else [])
    index = _decide(passage, groups, _find_statements(passage, groups))
    if index is None and len(options.texts) == 2:
        index = _pick_compared(passage) if passage.mentions and not passage.denied else _pick_other(passage)
    return None if index is None or _continues(tokens, index, options) else index


def _single(indices: Iterable[int]) -> int | None:
    """The one index among indices; None for several, none or NO_OPTION."""
    different = set(indices)
    return different.pop() if len(different) == 1 and NO_OPTION not in different else None


def _continues(tokens: Sequence[Token], index: int, options: Options) -> bool:
    """True if the answer also holds the further words, at least two, of an option that contains this option's text:
    "turn left, then walk straight ahead" means "turn left and walk straight" rather than "turn left"."""
    shorter, present = set(options.texts[index]), {token.key for token in tokens}
    longer = [set(text) - shorter - words.articles - words.links for text in options.texts if shorter < set(text)]
    return bool(shorter) and any(len(further) > 1 and further <= present for further in longer)


# Groups of mentions


def _group_mentions(passage: Passage) -> list[list[Mention]]:
    """The mentions in runs that belong together: a letter and its text, "A or B", "A, B and C"."""
    groups: list[list[Mention]] = []
    for mention in passage.mentions:
        if groups and _belong_together(passage.tokens, groups[-1][-1], mention):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def _belong_together(tokens: Sequence[Token], one: Mention, other: Mention) -> bool:
    """True if two mentions in a row belong together: "(A) left", "A or B", "A, B and C"."""
    if other.start - one.end > 8:
        return False
    between = {token.key for token in tokens[one.end : other.start]}
    edges = {token.edge for token in tokens[one.end : other.start + 1]} - {""}
    conjunction = bool(between & words.conjunctions)
    if not conjunction and one.by == "letter" and other.by == "text":
        if between <= words.fillers and edges <= {".", ":", "-", "(", ",", "/"}:
            return one.indices == other.indices or edges != {"."} or not between or tokens[one.start].item
        labelled = tokens[one.end].edge == ":" and tokens[other.end].edge in SENTENCE  # "A: it is on the right."
        return labelled and edges == {":"} and not between & words.explains
    counted = is_number(tokens[one.start].key) and is_number(tokens[other.start].key)
    if not between <= words.links | {"not"} or (counted and edges == {"("} and one.indices != other.indices):
        return False
    if not conjunction and one.by == "text" and other.by == "letter":
        return edges <= {"(", "-", "/"} or (edges == {","} and one.indices == other.indices)
    listed = conjunction or edges & {",", "/"} or other.start == one.end
    return bool(listed) and edges <= {",", "/", "("} and (conjunction or one.by == other.by)


# Denials, conditions and hedges


def _deny_following(passage: Passage) -> None:
    """Mark the mentions in the reach of a denial, a condition or a hedge that stands before them.

    A reach ends with its sentence, at a contrast ("but"), at a colon or dash that does not follow its word at once, and
    at a comma unless a list goes on after it."""
    tokens, reach, questions = passage.tokens, Reach(), _find_questions(passage.tokens)
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
            if reach.kind or reason or questions.get(position) == "answered":
                reach.named = True
                passage.denied.add(position)
                if reach.kind in ("denial", "aside"):
                    passage.refuted.add(position)
            elif reach.hedge or position in questions:
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
                stays = (self.named or self.kind == "aside") and _continues_list(passage, position, self.kind)
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
    """(role, number of words) of the phrase at a position that acts on the mentions after it; ("", 0) for none."""
    token, after = passage.tokens[position], passage.tokens[position + 1]
    starts = position == 0 or bool(token.edge)
    if token.key == "no" and not after.edge and not (token.edge in SENTENCE and after.key in words.follows_no):
        return "denial", 1
    if starts and token.key in ("wrong", "incorrect", "false") and after.edge in ("", ":", "("):
        return "denial", 1
    there = [(size, role) for role, size in passage.roles[position].items() if role in REACHES]
    return max(there, key=lambda pair: pair[0])[::-1] if there else ("", 0)


def _find_questions(tokens: Sequence[Token]) -> dict[int, str]:
    """Positions in sentences that end in a question mark: "answered" where more text follows, else "open"."""
    questions, question = {}, ""
    for position in range(len(tokens) - 2, -1, -1):
        closing = tokens[position + 1]
        if closing.edge in SENTENCE:
            last, before = tokens[position].key, tokens[position - 1].key
            tag = (last in words.tagged and before == "not") or (last == "right" and tokens[position].edge == ",")
            question = "" if "?" not in closing.gap or tag else "answered" if closing.key else "open"
        if question:
            questions[position] = question
    return questions


def _continues_list(passage: Passage, position: int, kind: str) -> bool:
    """True if the comma before a position is one of a denied list: options follow, with a conjunction or (of "not", not
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


def _deny_preceding(passage: Passage, group: list[Mention], before: list[Mention]) -> None:
    """Mark the mentions of a group that the words after it deny: "A and B are wrong", "A: no", "左ではなく"."""
    tokens, end = passage.tokens, group[-1].end
    last = group[-2:] if len(group) > 1 and group[-2].indices == group[-1].indices else group[-1:]
    likewise = group[0].start > 1 and passage.size(group[0].start - 2, "likewise")
    if likewise and before and before[-1].start in passage.refuted:
        passage.refute(group)
    elif _is_verdict(passage, "no", end) or (not tokens[end].edge and passage.size(end, "refuted")):
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


def _is_verdict(passage: Passage, role: str, end: int) -> bool:
    """True if a "yes" or "no" (the role) follows a mention as a verdict on it: "A: no", "B (correct)"."""
    tokens, size = passage.tokens, passage.size(end, role)
    apart = tokens[end].edge or tokens[end].key not in ("no", "yes")
    if not size or end in passage.at or tokens[end].edge == "\n" or not apart:
        return False
    return bool(tokens[end + size].edge or passage.size(end + size, "subordinate"))


# Statements


def _find_statements(passage: Passage, groups: list[list[Mention]]) -> list[Statement]:
    """The statements of an answer in order, outright or as a conclusion; the conclusions of one clause are one."""
    cues, clauses, statements, parts = _find_cues(passage), _find_conclusions(passage), [], 0
    for group in groups:
        named = passage.undenied(group)
        if not named or group[0].start < parts or any(mention.start in passage.hedged for mention in named):
            continue
        start, end = group[0].start, group[-1].end
        parts = _parts_end(passage.tokens, end)
        clause, concluding = clauses.get(start, (-1, False))
        outright, last = _cue_before(passage, cues, start) or (_is_confirmed(passage, end), False)
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


def _find_conclusions(passage: Passage) -> dict[int, tuple[int, bool]]:
    """For each position in a clause after "therefore" and the like: the start of the clause, and True if its word
    ends an argument, unlike "so"."""
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
    """Number of words of an "i.e." or "that is," at a position that repeats what precedes it; 0 for others. After an
    "i.e." an option repeats the numbers before it in the sentence, unlike "-30 degrees, i.e. 30 degrees clockwise"."""
    tokens, size = passage.tokens, passage.size(position, "apposition")
    token, after = tokens[position], tokens[position + size]
    if size and token.key in ("that", "which"):
        counts = is_number(after.key) and (position == 0 or token.edge in SENTENCE)  # "That's 5 people."
        return size if size > 2 or after.edge == "," or counts else 0
    if not size or not (token.edge or token.key == "i.e."):
        return 0
    begin = next((i for i in range(position, 0, -1) if tokens[i].edge in SENTENCE), 0)
    before = {i for i in passage.covered if begin <= i < position}
    following = next((one for one in passage.mentions if one.start >= position), None)
    if following is None:
        return 0
    repeated = {token.key for token in tokens[following.start : following.end]}
    return size if {tokens[i].key for i in before if is_number(tokens[i].key)} <= repeated else 0


def _find_cues(passage: Passage) -> dict[int, tuple[str, bool]]:
    """For each position after the cue of a statement: the cue's role, and True if it is called final."""
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
    """(True, True if it is called final) if a cue states the mention at a position: "answer: A", "I choose A", "the
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


def _is_confirmed(passage: Passage, end: int) -> bool | None:
    """True if the words after a mention call it the answer: "B is correct", "B: yes", "B 正确"; else None."""
    tokens = passage.tokens
    if _is_verdict(passage, "yes", end) or _is_total(passage, end):
        return True
    start = ahead(tokens, end, words.predicate)
    size = 0 if tokens[start].edge else passage.size(start, "confirming")
    ideograph = IDEOGRAPH.match(tokens[start].text) is not None
    if not size or start in passage.at or (start == end and not ideograph):
        return None
    follower = tokens[start + size]
    ends = follower.edge or follower.key in words.confirmed or passage.size(start + size, "subordinate")
    return True if ends or ideograph else None


def _is_total(passage: Passage, end: int) -> bool:
    """True if the number before a position is called a total: "12 wheels in total"."""
    tokens = passage.tokens
    if not is_number(tokens[end - 1].key):
        return False
    if _parts_end(tokens, end):
        return True
    for position in range(end, min(end + 4, len(tokens) - 1)):
        if tokens[position].edge or position in passage.covered or tokens[position].key in words.conjunctions:
            return False
        if any(is_at(total, tokens, position) for total in TOTALS):
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
    """(outright, last) if the position of a group states it: alone on a line, or first in the answer; else None."""
    tokens, start, end = passage.tokens, group[0].start, group[-1].end
    begin = start
    while begin > 0 and tokens[begin].edge not in SENTENCE and tokens[begin - 1].key in words.light:
        begin -= 1
    if (begin > 0 and "\n" not in tokens[begin].gap) or tokens[begin].key == "#":
        return None
    letters = tokens[start].key.isalpha() and tokens[start].item
    if letters and any(token.item and token.key.isalpha() for token in tokens[end : end + 200]):
        return None  # the first entries of a list that goes through the options
    trail = tokens[ahead(tokens, end, words.trail)]
    if "\n" in trail.gap or not trail.key:
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
    tail = _start_after_correction(passage)
    if tail is None:
        return None
    outright = [statement for statement in statements if statement.outright and statement.start >= tail]
    others = [statement for statement in statements if not statement.outright and statement.start >= tail]
    if any(len(one.indices) > 1 and passage.tokens[one.start - 1].key == "both" for one in outright if one.start):
        return None  # "both A and C are correct: it is on the desk, and next to the lamp"
    if outright:
        return _pick_last(passage, outright, [one for one in others if one.start > outright[-1].start and one.last])
    if others:
        answered = passage.tokens[others[-1].start].key in words.answers  # "no. ... yes"
        after = [one for one in passage.undenied(passage.mentions) if answered and one.start >= others[-1].end]
        agrees = all(one.indices == others[-1].indices for one in after)
        return _pick_last(passage, others, []) if agrees else None
    if _is_cut(passage):
        return None
    named = [mention for mention in passage.undenied(_without_disjunctions(passage, groups)) if mention.start >= tail]
    plain = [mention for mention in named if mention.start not in passage.hedged] or named
    denials = [] if tail else [one for one in passage.mentions if one.start in passage.refuted]
    refuted = {index for one in denials for index in one.indices}
    kept = [one for one in plain if not one.indices <= refuted]
    index = _single(index for one in kept for index in one.indices if index not in refuted)
    if kept and len(kept) < len(plain) and kept[-1].start < denials[-1].start:
        index = None  # "left here, right there; not left" leaves it open
    index = _pick_superlative(passage, plain) if index is None else index
    revised = {index for statement in statements if statement.outright for index in statement.indices}
    if revised and index is not None and index not in revised and plain[0].by == "text":
        between = passage.tokens[tail : plain[0].start]  # what follows a statement and a "wait" may only explain
        return index if all(token.key in words.correcting for token in between) else None
    return index


def _pick_superlative(passage: Passage, mentions: list[Mention]) -> int | None:
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
    """True if the positions hold a superlative before a boundary, an option, a conjunction or a "not"."""
    for position in positions:
        token = passage.tokens[position]
        if position in passage.covered or token.key in words.superlatives:
            return position not in passage.covered
        if token.edge or token.key in words.conjunctions | {"not"}:
            return False
    return False


def _pick_compared(passage: Passage) -> int | None:
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
    after = object_.end
    after += tokens[after].key in words.copulas and not tokens[after].edge  # "than the table is"
    reason = passage.size(after, "subordinate") or tokens[after].key in words.explains or tokens[after].key == "as"
    ends = after == len(tokens) - 1 or (reason and tokens[after].key not in ("if", "whether", "although", "though"))
    return _single(subject.indices) if ends and subject.by == object_.by == "text" else None


def _pick_other(passage: Passage) -> int | None:
    """The second of two options where the answer refutes the first and states "the other one"; else None."""
    tokens, mentions = passage.tokens, passage.mentions
    refuted = _single(index for mention in mentions for index in mention.indices)
    if refuted is None or any(mention.start not in passage.refuted for mention in mentions):
        return None
    for start in range(mentions[-1].end, len(tokens) - 1):
        ends = [start + len(form) for form in OTHER_OPTION if is_at(form, tokens, start)]
        if any(tokens[end].edge in SENTENCE for end in ends):
            return 1 - refuted if tokens[back(tokens, start, words.weightless | {"answer"})].edge else None
    return None


def _without_disjunctions(passage: Passage, groups: list[list[Mention]]) -> list[Mention]:
    """The mentions without the groups "A or B" of which the last group states one: "A or B? I am torn. B"."""
    if not groups or len(groups[-1]) > 1:
        return passage.mentions
    chosen, kept = groups[-1][0].indices, []
    for group in groups:
        between = {token.key for token in passage.tokens[group[0].end : group[-1].start]}
        offered = frozenset(index for mention in group for index in mention.indices)
        if not (between & words.disjunctions and chosen < offered):
            kept += group
    return kept


def _start_after_correction(passage: Passage) -> int | None:
    """Start of the part after the last correction; None where a correction takes back what stands before it, or may do
    so, and names no option instead."""
    tokens, tail = passage.tokens, 0
    last = max((mention.start for mention in passage.undenied(passage.mentions)), default=-1)
    affirmed = max((i for i, token in enumerate(tokens) if token.key in words.affirmed), default=-1)
    for position, token in enumerate(tokens[:-1]):
        retracts = passage.size(position, "retraction")
        size = retracts or passage.size(position, "correction")
        people_wait = token.key == "wait" and not (token.edge or tokens[position + 1].edge or position == 0)
        if not size or position in passage.covered or people_wait:
            continue
        after = position + size
        if last >= after:
            tail = position
        elif last >= 0 and (retracts or (tokens[after].key and affirmed < after)):
            return None
    return tail


def _pick_last(passage: Passage, statements: list[Statement], later: list[Statement]) -> int | None:
    """The option of the last of some statements; None where it contradicts one right before it and does not end an
    argument, where a later conclusion contradicts it, or where its letter is refuted after it."""
    last = statements[-1]
    others = [one for one in statements if not last.indices <= one.indices]
    if others and not last.last:
        between = passage.tokens[others[-1].end : last.start]
        if sum(token.edge in SENTENCE for token in between) < 2:
            return None
    if any(one.indices != last.indices and len(one.indices) == 1 for one in later):
        return None
    after = [one for one in passage.mentions if one.start >= last.end and one.indices == last.indices]
    if after and all(one.start in passage.refuted and one.by == "letter" for one in after):
        return None
    return _single(last.indices)


def _is_cut(passage: Passage) -> bool:
    """True if the answer breaks off in the middle of a sentence, as at a limit of tokens."""
    tokens = passage.tokens
    if len(tokens) < 6 or len(tokens) - 2 in passage.covered:
        return False
    end = tokens[-1].gap.strip(" \"')*_")
    open_ended = tokens[-2].text in words.open_ended and tokens[-3].key not in words.tagged  # unlike "yes, it is"
    return (not end and open_ended) or end.endswith((",", ":", "(", "-"))
