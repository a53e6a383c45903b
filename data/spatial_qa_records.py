"""Question, options, gold answer and images of a record, under the field names of several data sets.

`data/spatial_qa.py` describes the fields. Images come from numbered fields (image_1, image2, img_0, ...) in numeric
order, else from the first of FIELDS; a field has one image or a list, also a list as text ("['a.png', 'b.png']"). An
image is a path, bytes as in parquet ({"bytes": ..., "path": ...}), "data:image/png;base64,..." or base64.

Image markers are `<image>`, `<image 1>`, `<image_1>`, `<image1>`, `<img1>` and `<|image_1|>`. A number refers to the
field of that number, or to that image of the list, from 1 (from 0 if `<image 0>` occurs); markers without a number
refer to the images in order.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.errors import SampleError
from data.folders import OUTSIDE, root_fault
from data.images import suffixes
from data.options import LETTERS, append, locate, parse
from data.spatial_qa_files import as_list, is_missing, parsed

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


class Content(NamedTuple):
    """Content of a record, with the fields of `data.spatial_qa.Question`; `id` is "" for none."""

    id: str
    task: str
    prompt: str
    options: tuple[str, ...]
    answer: str
    images: tuple[Path | bytes, ...]
    notes: tuple[str, ...]


def understand(content: object, root: Path | None, folder: Path | None) -> Content:
    """Extract the content of a record; image paths are below `root`, or in the `folder` of the record's file.

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
    held = image_fields(fields)
    prompt, options, order = _placed(prompt, options, held)
    images = [source(value, held.encoded, lambda name: _file(name, root, folder)) for value in held.values]
    shown = tuple(images[index] for index in order)
    return Content(_text(fields, *IDS), _text(fields, *TASKS), prompt, options, gold, shown, (*notes, *held.notes))


def _placed(prompt: str, options: tuple[str, ...], held: ImageFields) -> tuple[str, tuple[str, ...], list[int]]:
    """Prompt and options with renumbered image markers, and the order of the images. Raises SampleError."""
    spans = locate(prompt, options) if options else []
    if spans is None:
        raise SampleError("options cannot be told apart in the prompt")
    ends = [0, *(end for span in spans for end in span), len(prompt)]
    pieces, order = renumber([prompt[a:b] for a, b in zip(ends, ends[1:], strict=False)], held)
    texts = tuple(" ".join(text.split()) for text in pieces[1::2])
    return without_leading("".join(pieces)).strip(), texts, order


def _turns(turns: object) -> tuple[str, str, list, list[str]]:
    """First human turn, its first answer, the images inside the turn, and notes on the omitted turns."""
    turns = parsed(turns)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise SampleError("conversations are no list of turns")
    contents: dict[str, list] = {"human": [], "gpt": [], "system": []}
    for turn in turns:
        role = turn.get("from") or turn.get("role")
        role = ROLES.get(role.lower()) if isinstance(role, str) else None
        if role and (role != "gpt" or contents["human"]):
            contents[role].append(turn.get("value") or turn.get("content"))
    question, images = _content(next(iter(contents["human"]), None))
    answer, _ = _content(next(iter(contents["gpt"]), None))
    left_out = {"system turn is not shown": contents["system"], "later turns are not asked": contents["human"][1:]}
    return question, answer, images, [note for note, turns in left_out.items() if turns]


def _content(content: object) -> tuple[str, list]:
    """Text and images of a turn; for a list of parts the joined texts, with a marker per image."""
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
    """Prepend the hint of a record to the prompt, as in MMBench."""
    hints = [hint for name in HINTS if name in fields and (hint := _text(fields, name)) not in prompt]
    return "\n".join([*hints, prompt])


def _text(fields: dict, *names: str) -> str:
    """First existing field as text, numbers converted; "" for none."""
    value = next((fields[name] for name in names if fields.get(name) is not None), "")
    return _written(value)


def _written(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SampleError("a field is not text")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can contain but a text file cannot
        raise SampleError("text is not valid Unicode") from error
    return text


def _options(fields: dict) -> tuple[str, ...]:
    """Texts of the options in a list or in one column each; () for none."""
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
    """Texts in columns named by letter or number, up to the first empty one."""
    labels = {name: match[match.lastindex] for name in fields if (match := COLUMN.fullmatch(name))}
    known = LETTERS[:10] if "A" in labels else ""  # other single letters, or letters without A, are unrelated columns
    while known and known[-1] in labels and len(known) < len(LETTERS):
        known = LETTERS[: len(known) + 1]
    labels = {name: label for name, label in labels.items() if len(name) > 1 or name in known}
    return _texts(_in_turn(fields, labels)) if labels else ()


def _in_turn(fields: dict, labels: dict[object, str]) -> list:
    """Values of the fields with these labels (letters from A, or numbers from 0 or 1) in order, up to the last
    non-empty one. Raises SampleError for a gap."""
    values = {label.upper(): fields[name] for name, label in labels.items() if not is_missing(fields[name])}
    if len({label.upper() for label in labels.values()}) < len(labels):
        raise SampleError("options are stated twice")
    first = "0" if "0" in values else "1"
    names = [LETTERS, [str(int(first) + number) for number in range(len(LETTERS))]][not values.keys() & set(LETTERS)]
    if set(values) != set(names[: len(values)]):
        raise SampleError("an option is empty")
    return [values[name] for name in names[: len(values)]]


def _texts(stated: list) -> tuple[str, ...]:
    """Options as text, without their letters. Raises SampleError."""
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
    """Stated index of the correct option, converted to int if it is a number as text."""
    index = next((fields[name] for name in INDICES if name in fields), None)
    if isinstance(index, float) and index.is_integer():
        return int(index)
    return int(index) if isinstance(index, str) and index.strip().isdecimal() else index


def _open_gold(answer: str, fields: dict, prompt: str) -> str:
    """Gold answer of a question without options. Raises SampleError for one that can only refer to an option."""
    if BARE_GOLD.fullmatch(answer):
        raise SampleError("gold is a letter and no options are known")
    if not answer and _index(fields) is not None:
        raise SampleError("gold is an index and no options are known")
    numbers = NUMBERED_LINE.findall(prompt)
    if len(numbers) > 1 and answer.strip("(). ") in numbers:
        raise SampleError("gold is the number of a line and no lettered options are known")
    return answer


def _gold(answer: str, index: object, options: tuple[str, ...]) -> str:
    """Letter of the correct option, from an answer, an index from 0, or both; "" for neither."""
    candidates = meant(answer, options)
    if index is not None:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(options):
            raise SampleError("index of the gold is no option")
        if answer and index not in candidates:
            raise SampleError("gold and its index disagree")
        candidates = {index}
    if answer and len(candidates) != 1:
        absent = "gold is a number that is no option's text" if answer.isdecimal() else "gold is no option"
        raise SampleError("gold is more than one option" if candidates else absent)
    return LETTERS[candidates.pop()] if candidates else ""


def _check_number(fields: dict, options: tuple[str, ...]) -> None:
    """Raise SampleError for a gold of type int that, as a text, is another option than as an index."""
    gold = next((fields[name] for name in ANSWERS if name in fields), None)
    if not isinstance(gold, int) or not 0 <= gold < len(options):
        return
    if str(gold) in options and options[gold] != str(gold):
        raise SampleError("gold is a number that may be a text or an index")


def meant(answer: str, options: tuple[str, ...]) -> set[int]:
    """Indices of the options that match a gold answer: "(B)", "B." and "b" by letter, "left" by text, or both.

    More than one index if letter and text differ, or if two options have the same text.
    """
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
    """File of that name below the root, below its spatial_reasoning/ (as published), or in the records' folder."""
    if root is None:
        raise SampleError("image missing")
    places = (root, root / "spatial_reasoning", *([folder] if folder and folder.is_relative_to(root) else []))
    try:
        paths = [place / name for place in places]
        faults = [OUTSIDE if Path(name).is_absolute() else root_fault(path, root) for path in paths]
        file = next((path.resolve() for path in paths if path.is_file()), None)
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, a loop of links
        raise SampleError("image path is no path") from error
    if any(faults):
        raise SampleError(f"image {max(faults)}")
    if file is None:
        raise SampleError("image missing")
    return file


FIELDS = ("image", "images", "image_bytes", "image_path", "image_paths", "img_path")
PATHS = {"image_path": "image", "image_paths": "images", "img_path": "image"}  # path -> image field
NUMBERED = re.compile(r"(?:image|img)[ _-]?(\d+)", re.IGNORECASE)
IMAGE_NAME = re.compile(r"image|img|picture|photo", re.IGNORECASE)
MARKER = re.compile(r"<\|?(?:image|img)[ _-]?(\d*)\|?>", re.IGNORECASE)
LEADING = re.compile(r"(?:\s*<image \d+>)+\s*")
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
# First base64 characters of JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF and JPEG 2000 files.
BASE64 = re.compile(r"(?:/9j/|iVBOR|R0lGOD|UklGR|Qk|SUkq|TU0A|AAAA)[A-Za-z0-9+/\s]+={0,2}\s*")
SHORT = 64  # characters; a shorter text is a path


class ImageFields(NamedTuple):
    """Raw images of a record.

    numbers: those of their fields, None for a list. encoded: texts are base64. notes: images of the record that are not
    part of the prompt.
    """

    values: list
    numbers: list[int] | None
    encoded: bool
    notes: tuple[str, ...]


def image_fields(fields: dict) -> ImageFields:
    """Images in a record's fields. Raises SampleError for none."""
    numbered = sorted((int(match[1]), name) for name in fields if (match := NUMBERED.fullmatch(name)))
    numbered = [(number, name) for number, name in numbered if not is_absent(fields[name])]
    if len({number for number, _ in numbered}) < len(numbered):
        raise SampleError("two image fields have the same number")
    if numbered:
        names = [name for _, name in numbered]
        values, numbers = [fields[name] for name in names], [number for number, _ in numbered]
    else:
        name = next((name for name in FIELDS if name in fields and not is_absent(fields[name])), None)
        if name is None:
            raise SampleError("no image")
        values = [value for value in as_list(fields[name]) if not is_absent(value)]
        names, numbers = [name], None
    return ImageFields(values, numbers, names == ["image_bytes"], _unshown(fields, names, values))


def is_absent(value: object) -> bool:
    """True for a field without image: missing, an empty text or list, or a struct without content."""
    if isinstance(value, dict):
        return all(is_absent(part) for part in value.values())
    return is_missing(value) or value in ([], b"", "[]")


def _unshown(fields: dict, used: list[str], shown: list) -> tuple[str, ...]:
    """Note for each other field with an image that is not in `shown`."""
    others = (name for name in fields if name not in used and PATHS.get(name) not in used)
    return tuple(
        f"image in field {name!r} is not shown"
        for name in others
        if any(_is_image(name, value) and value not in shown for value in as_list(fields[name]))
    )


def _is_image(name: str, value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes | str)
    if not isinstance(value, str):
        return isinstance(value, bytes)
    path = IMAGE_NAME.search(name) and Path(value[-100:]).suffix.lower() in suffixes()
    return bool(path or DATA_URL.match(value) or (len(value) > SHORT and BASE64.fullmatch(value)))


def renumber(texts: list[str], held: ImageFields) -> tuple[list[str], list[int]]:
    """Pieces of a text with renumbered markers (`<image 1>` is the first image of the prompt), and the order of images.

    The order, as indices into the record's images, is that of the markers if they refer to each image once, else that
    of the record. Raises SampleError for a marker without image, and for markers both with and without numbers.
    """
    marked = [number for text in texts for number in MARKER.findall(text)]
    if "" in marked and any(marked):
        raise SampleError("image markers with and without numbers")
    count = len(held.values)
    first = 0 if "0" in marked else 1
    labels = held.numbers or list(range(first, first + count))
    numbers = labels[: len(marked)] if "" in marked else [int(number) for number in marked]
    if not set(numbers) <= set(labels) or len(numbers) < len(marked):
        raise SampleError("an image marker names no image")
    indices = [labels.index(number) for number in numbers]
    order = indices if sorted(indices) == list(range(count)) else list(range(count))
    places = (f"<image {order.index(index) + 1}>" for index in indices)
    return [MARKER.sub(lambda _: next(places), text) for text in texts], order


def without_leading(prompt: str) -> str:
    """Remove leading markers if they list all images in order and no other marker follows."""
    leading = LEADING.match(prompt)
    if leading is None or MARKER.search(prompt, leading.end()):
        return prompt
    numbers = [int(number) for number in MARKER.findall(leading[0])]
    return prompt[leading.end() :] if numbers == list(range(1, len(numbers) + 1)) else prompt


def source(value: object, encoded: bool, find: Callable[[str], Path]) -> Path | bytes:
    """File of an image, located by `find`, or its encoded bytes; `encoded`: a text is base64, not a path.

    Raises SampleError.
    """
    if isinstance(value, dict):
        encoded = value.get("bytes") is not None
        value = value["bytes"] if encoded else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise SampleError("an image is neither path nor bytes")
    header = DATA_URL.match(value)
    if encoded or header or (len(value) > SHORT and BASE64.fullmatch(value)):
        try:
            return base64.b64decode("".join(value[header.end() if header else 0 :].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise SampleError("an image is not base64") from error
    return find(value.strip())
