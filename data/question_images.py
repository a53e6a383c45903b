"""Images of a question record and the markers that say where they stand in its text.

Images come from numbered fields (image_1, image2, img_0, ...), in the order of their numbers, else from the first of
FIELDS; a field holds one image or a list, also a list written as text ("['a.png', 'b.png']"). An image is a path, bytes
as parquet holds them ({"bytes": ..., "path": ...}), "data:image/png;base64,..." or base64.

Markers are `<image>`, `<image 1>`, `<image_1>`, `<image1>`, `<img1>` and `<|image_1|>`. One with a number stands for
the field of that number, or for that image of the list, from 1 (from 0 where `<image 0>` occurs); those without stand
for the images in turn.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.errors import SampleError
from data.images import suffixes
from data.stated import as_list, is_missing

FIELDS = ("image", "images", "image_bytes", "image_path", "image_paths", "img_path")
PATHS = {"image_path": "image", "image_paths": "images", "img_path": "image"}  # names of what the other field holds
NUMBERED = re.compile(r"(?:image|img)[ _-]?(\d+)", re.IGNORECASE)
PICTURE_NAME = re.compile(r"image|img|picture|photo", re.IGNORECASE)
MARKER = re.compile(r"<\|?(?:image|img)[ _-]?(\d*)\|?>", re.IGNORECASE)
LEADING = re.compile(r"(?:\s*<image \d+>)+\s*")
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
# First characters of JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF and JPEG 2000 files in base64.
BASE64 = re.compile(r"(?:/9j/|iVBOR|R0lGOD|UklGR|Qk|SUkq|TU0A|AAAA)[A-Za-z0-9+/\s]+={0,2}\s*")
SHORT = 64  # characters; a shorter text is a path


class Pictures(NamedTuple):
    """Raw images of a record: `numbers` are those of their fields, None for a list, `encoded` says that texts are
    base64, `notes` name what the record holds and the model is not shown."""

    values: list
    numbers: list[int] | None
    encoded: bool
    notes: tuple[str, ...]


def pictures_of(fields: dict) -> Pictures:
    """The images that a record's fields hold. Raises SampleError for a record without one."""
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
            raise SampleError("no picture")
        values = [value for value in as_list(fields[name]) if not is_absent(value)]
        names, numbers = [name], None
    return Pictures(values, numbers, names == ["image_bytes"], _unshown(fields, names, values))


def is_absent(value: object) -> bool:
    """Whether a field holds no image: nothing, a NaN, an empty text or list, or a struct without content."""
    if isinstance(value, dict):
        return all(is_absent(part) for part in value.values())
    return is_missing(value) or value in ([], b"", "[]")


def _unshown(fields: dict, used: list[str], shown: list) -> tuple[str, ...]:
    """A note for each other field that holds an image which is not among those shown."""
    others = (name for name in fields if name not in used and PATHS.get(name) not in used)
    return tuple(
        f"picture in field {name!r} is not shown"
        for name in others
        if any(_is_picture(name, value) and value not in shown for value in as_list(fields[name]))
    )


def _is_picture(name: str, value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes | str)
    if not isinstance(value, str):
        return isinstance(value, bytes)
    path = PICTURE_NAME.search(name) and Path(value[-100:]).suffix.lower() in suffixes()
    return bool(path or DATA_URL.match(value) or (len(value) > SHORT and BASE64.fullmatch(value)))


def renumber(texts: list[str], pictures: Pictures) -> tuple[list[str], list[int]]:
    """Pieces of one text with their markers as `<image 1>` for the first image shown, and the images, by index, in the
    order in which they are shown: that of the markers where they name each image once, else that of the record.

    Raises SampleError for a marker of an image that the record has not, and for markers with and without numbers.
    """
    marked = [number for text in texts for number in MARKER.findall(text)]
    if "" in marked and any(marked):
        raise SampleError("image markers with and without numbers")
    count = len(pictures.values)
    first = 0 if "0" in marked else 1
    labels = pictures.numbers or list(range(first, first + count))
    numbers = labels[: len(marked)] if "" in marked else [int(number) for number in marked]
    if not set(numbers) <= set(labels) or len(numbers) < len(marked):
        raise SampleError("an image marker names no picture")
    indices = [labels.index(number) for number in numbers]
    order = indices if sorted(indices) == list(range(count)) else list(range(count))
    places = (f"<image {order.index(index) + 1}>" for index in indices)
    return [MARKER.sub(lambda _: next(places), text) for text in texts], order


def without_leading(prompt: str) -> str:
    """The prompt without markers that only say that its images, in order, stand in front of it."""
    leading = LEADING.match(prompt)
    if leading is None or MARKER.search(prompt, leading.end()):
        return prompt
    numbers = [int(number) for number in MARKER.findall(leading[0])]
    return prompt[leading.end() :] if numbers == list(range(1, len(numbers) + 1)) else prompt


def source(value: object, encoded: bool, find: Callable[[str], Path]) -> Path | bytes:
    """The file of an image, which `find` looks for, or its encoded bytes; `encoded`: a text is base64, not a path.

    Raises SampleError.
    """
    if isinstance(value, dict):
        encoded = value.get("bytes") is not None
        value = value["bytes"] if encoded else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise SampleError("a picture is neither path nor bytes")
    header = DATA_URL.match(value)
    if encoded or header or (len(value) > SHORT and BASE64.fullmatch(value)):
        try:
            return base64.b64decode("".join(value[header.end() if header else 0 :].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise SampleError("a picture is not base64") from error
    return find(value.strip())
