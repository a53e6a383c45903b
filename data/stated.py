"""Values of a record's fields as data sets write them: lists as text, empty cells as NaN."""

from __future__ import annotations

import ast
import json
import math


def is_missing(value: object) -> bool:
    """Whether a field holds nothing: None, NaN, "nan" (a NaN cell written as text) or blanks."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def parsed(value: object) -> object:
    """A list or dictionary that a text holds, as JSON or as Python prints it; any other value as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{", "("):
        return value
    text = value.strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return list(found) if isinstance(found, tuple) else found if isinstance(found, list | dict) else value


def as_list(value: object) -> list:
    """The items of a list, also of one written as text; any other value alone in a list."""
    found = parsed(value)
    return found if isinstance(found, list) else [value]
