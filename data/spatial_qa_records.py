"""Contents of a record of a question data set: the question, its options, its gold and its images, whatever its fields
are called. `data/spatial_qa.py` describes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from data.errors import SampleError
from data.links import OUTSIDE, root_fault
from data.options import LETTERS, append, locate, parse
from data.question_images import MARKER, pictures_of, renumber, source, without_leading
from data.stated import is_missing, parsed

IDS = ("id", "idx", "question_id", "sample_id", "uid", "index")
TASKS = ("sub_task", "task", "question_type", "category", "source")
OPTIONS = ("choices", "options", "answers")
ANSWERS = ("answer", "correct_answer")
INDICES = ("correct_answer_idx", "correct_choice_idx", "answer_idx", "answer_index")  # from 0
HINTS = ("hint", "context")
DIALOGUES = ("conversations", "messages")
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
# One column per option: "A", "option_a", "choice B", "choiceC", "option1" (or from 0).
COLUMN = re.compile(r"([A-Z])|(?i:option|choice)(?:[ _-]([A-Za-z])|(?!S$)([A-Z])|[ _-]?(\d{1,2}))")
BARE_GOLD = re.compile(r"[(\[]?[A-Ha-h][)\].:]{0,2}(?:\s*[,;/&]\s*[(\[]?[A-Ha-h][)\].:]{0,2})*")
NUMBERED_LINE = re.compile(r"^[ \t]*\(?(\d{1,2})[).:]", re.MULTILINE)


class Asked(NamedTuple):
    """A record's content; the fields are those of `data.spatial_qa.Question`, `id` is "" where it has none."""

    id: str
    task: str
    prompt: str
    options: tuple[str, ...]
    answer: str
    images: tuple[Path | bytes, ...]
    notes: tuple[str, ...]


def understand(content: object, root: Path | None, folder: Path | None) -> Asked:
    """A record's content; its images' paths are followed below `root`, or beside its file in `folder`.

    Raises SampleError.
    """
    if not isinstance(content, dict):
        raise SampleError("record is not an object")
    fields = {name: value for name, value in content.items() if not is_missing(value)}
    if dialogue := next((name for name in DIALOGUES if name in fields), None):
        prompt, answer, images, notes = _turns(fields.pop(dialogue))
        fields |= {"images": images} if images else {}
        answer = answer or _text(fields, *ANSWERS)
    else:
        prompt, answer, notes = _text(fields, "prompt", "question"), _text(fields, *ANSWERS), []
    if not MARKER.sub("", prompt).strip():
        raise SampleError("no question")
    prompt = _with_hints(prompt, fields)
    options = _options(fields)
    if options and locate(prompt, options) is None:
        prompt = append(prompt, options)
    options = options or parse(prompt)
    _check_number(fields, options)
    gold = _gold(answer, _index(fields), options) if options else _open_gold(answer, fields, prompt)
    if not gold:
        raise SampleError("no answer")
    pictures = pictures_of(fields)
    prompt, options, order = _placed(prompt, options, pictures)
    images = [source(value, pictures.encoded, lambda name: _file(name, root, folder)) for value in pictures.values]
    shown = tuple(images[index] for index in order)
    return Asked(_text(fields, *IDS), _text(fields, *TASKS), prompt, options, gold, shown, (*notes, *pictures.notes))


def _placed(prompt: str, options: tuple[str, ...], pictures) -> tuple[str, tuple[str, ...], list[int]]:
    """Prompt and options with the markers of the images as they are shown, and their order. Raises SampleError."""
    spans = locate(prompt, options) if options else []
    if spans is None:
        raise SampleError("options cannot be told apart in the prompt")
    ends = [0, *(end for span in spans for end in span), len(prompt)]
    pieces, order = renumber([prompt[a:b] for a, b in zip(ends, ends[1:], strict=False)], pictures)
    texts = tuple(" ".join(text.split()) for text in pieces[1::2])
    return without_leading("".join(pieces)).strip(), texts, order


def _turns(turns: object) -> tuple[str, str, list, list[str]]:
    """The first turn of the human, the first answer to it, the images that the turn itself holds, and notes on the
    turns that are left out."""
    turns = parsed(turns)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise SampleError("conversations are no list of turns")
    contents: dict[str, list] = {"human": [], "gpt": [], "system": []}
    for turn in turns:
        role = turn.get("from") or turn.get("role")
        role = ROLES.get(role.lower()) if isinstance(role, str) else None
        if role and (role != "gpt" or contents["human"]):
            contents[role].append(turn.get("value") or turn.get("content"))
    asked, images = _content(next(iter(contents["human"]), None))
    answer, _ = _content(next(iter(contents["gpt"]), None))
    left_out = {"system turn is not shown": contents["system"], "later turns are not asked": contents["human"][1:]}
    return asked, answer, images, [note for note, turns in left_out.items() if turns]


def _content(content: object) -> tuple[str, list]:
    """Text and images of a turn; of a list of parts the texts, with a marker for each image."""
    if content is None or isinstance(content, str):
        return _written(content or ""), []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise SampleError("a field is not text")
    texts, images = [], []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            texts.append(_written(part.get("text")))
        elif kind in ("image", "image_url"):
            texts.append("<image>")
            value = next((part[name] for name in ("image", "image_url", "url", "path") if part.get(name)), None)
            images += [value.get("url", value) if isinstance(value, dict) else value] if value else []
        else:
            raise SampleError("a turn holds something else than text and images")
    return " ".join(texts).strip(), images


def _with_hints(prompt: str, fields: dict) -> str:
    """The prompt after the hint that belongs to it, as MMBench asks it."""
    hints = [hint for name in HINTS if name in fields and (hint := _text(fields, name)) not in prompt]
    return "\n".join([*hints, prompt])


def _text(fields: dict, *names: str) -> str:
    """The first of some fields as text, numbers written out; "" where there is none."""
    value = next((fields[name] for name in names if fields.get(name) is not None), "")
    return _written(value)


def _written(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SampleError("a field is not text")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold and no text file can
        raise SampleError("text is not valid Unicode") from error
    return text


def _options(fields: dict) -> tuple[str, ...]:
    """Texts of the options that a record states, in a list or a column each; () where it states none."""
    listed, columns = _listed(fields), _columns(fields)
    if listed and columns and listed != columns:
        raise SampleError("options are stated twice and differ")
    return listed or columns


def _listed(fields: dict) -> tuple[str, ...]:
    stated = parsed(next((fields[name] for name in OPTIONS if name in fields), []))
    if isinstance(stated, dict):
        stated = _in_turn(stated, {name: str(name).strip() for name in stated})
    if isinstance(stated, str):
        stated = list(parse(stated)) or stated
    if not isinstance(stated, list):
        raise SampleError("options are no list")
    return _texts(stated)


def _columns(fields: dict) -> tuple[str, ...]:
    """Texts in columns with the letters or the numbers of the options, which end at the first empty one."""
    labels = {name: match[match.lastindex] for name in fields if (match := COLUMN.fullmatch(name))}
    known = LETTERS[:10] if "A" in labels else ""  # a later letter alone, or one without A, is another column
    while known and known[-1] in labels and len(known) < len(LETTERS):
        known = LETTERS[: len(known) + 1]
    labels = {name: label for name, label in labels.items() if len(name) > 1 or name in known}
    return _texts(_in_turn(fields, labels)) if labels else ()


def _in_turn(fields: dict, labels: dict[object, str]) -> list:
    """Values of the fields with these labels, letters from A or numbers from 0 or 1, in turn; empty ones are left out
    at the end. Raises SampleError for a gap."""
    values = {label.upper(): fields[name] for name, label in labels.items() if not is_missing(fields[name])}
    if len({label.upper() for label in labels.values()}) < len(labels):
        raise SampleError("options are stated twice")
    first = "0" if "0" in values else "1"
    names = [LETTERS, [str(int(first) + number) for number in range(len(LETTERS))]][not values.keys() & set(LETTERS)]
    if set(values) != set(names[: len(values)]):
        raise SampleError("an option is empty")
    return [values[name] for name in names[: len(values)]]


def _texts(stated: list) -> tuple[str, ...]:
    """Stated options as text, without letters of their own. Raises SampleError."""
    if len(stated) > len(LETTERS):
        raise SampleError("more than 26 options")
    options = tuple(" ".join(_written(text).split()) for text in stated)
    lettered = [re.fullmatch(rf"\(?{letter}[).:] *(.*)", text) for letter, text in zip(LETTERS, options, strict=False)]
    if all(lettered):
        options = tuple(match[1] for match in lettered)
    if not all(options):
        raise SampleError("an option is empty")
    if len(options) == 1:
        raise SampleError("only one option")
    return options


def _index(fields: dict) -> object:
    """The stated index of the right option, a number where it is written as one."""
    index = next((fields[name] for name in INDICES if name in fields), None)
    if isinstance(index, float) and index.is_integer():
        return int(index)
    return int(index) if isinstance(index, str) and index.strip().isdecimal() else index


def _open_gold(answer: str, fields: dict, prompt: str) -> str:
    """The gold of a question without options. Raises SampleError for one that can only mean an option."""
    if BARE_GOLD.fullmatch(answer):
        raise SampleError("gold is a letter and no options are known")
    if not answer and _index(fields) is not None:
        raise SampleError("gold is an index and no options are known")
    numbers = NUMBERED_LINE.findall(prompt)
    if len(numbers) > 1 and answer.strip("(). ") in numbers:
        raise SampleError("gold is the number of a line and no lettered options are known")
    return answer


def _gold(answer: str, index: object, options: tuple[str, ...]) -> str:
    """The letter of the right option, stated by an answer, an index from 0, or both; "" where by neither."""
    named = meant(answer, options)
    if index is not None:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(options):
            raise SampleError("index of the gold is no option")
        if answer and index not in named:
            raise SampleError("gold and its index disagree")
        named = {index}
    if answer and len(named) != 1:
        absent = "gold is a number that is no option's text" if answer.isdecimal() else "gold is no option"
        raise SampleError("gold is more than one option" if named else absent)
    return LETTERS[named.pop()] if named else ""


def _check_number(fields: dict, options: tuple[str, ...]) -> None:
    """Raises SampleError for a gold that is a number, by its type, and as a text another option than as an index."""
    gold = next((fields[name] for name in ANSWERS if name in fields), None)
    if not isinstance(gold, int) or not 0 <= gold < len(options):
        return
    if str(gold) in options and options[gold] != str(gold):
        raise SampleError("gold is a number that may be a text or an index")


def meant(answer: str, options: tuple[str, ...]) -> set[int]:
    """Indices of the options that a gold may stand for: "(B)", "B." and "b" by letter, "left" by text, "B. left" by
    both. More than one where letter and text differ, or where two options have the same text."""
    stated = re.fullmatch(r"\(?([A-Za-z])[).:]+\s*(.*)|([A-Za-z])", answer, re.DOTALL)
    texts = {index for index, option in enumerate(options) if _plain(option) == _plain(answer)}
    if not stated:
        return texts
    letter, text = (stated[1] or stated[3]).upper(), stated[2] or ""
    index = LETTERS.index(letter)
    fits = index < len(options) and (not text or _plain(text) == _plain(options[index]))
    by_letter = {index} if fits else set()
    return by_letter if stated[1] and by_letter else texts | by_letter


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")


def _file(name: str, root: Path | None, folder: Path | None) -> Path:
    """The file of that name below the root, below its spatial_reasoning/ (as published), or beside the records."""
    if root is None:
        raise SampleError("picture missing")
    places = (root, root / "spatial_reasoning", *([folder] if folder and folder.is_relative_to(root) else []))
    try:
        paths = [place / name for place in places]
        faults = [OUTSIDE if Path(name).is_absolute() else root_fault(path, root) for path in paths]
        found = next((path.resolve() for path in paths if path.is_file()), None)
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, a loop of links
        raise SampleError("picture path is no path") from error
    if any(faults):
        raise SampleError(f"picture {max(faults)}")
    if found is None:
        raise SampleError("picture missing")
    return found
