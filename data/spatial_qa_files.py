"""Readers of question records: JSON, JSONL, parquet, CSV, TSV, a folder of these, or a data set of the hub.

A record has its location and its number in the file, from 0 without blank lines, so that the number does not depend on
the file type. `is_missing`, `parsed` and `as_list` handle field values: empty cells as NaN, lists as text.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError

PUBLISHED = {
    "blink": Path("spatial_reasoning", "blink", "blink_validation.jsonl"),
    "sat2": Path("spatial_reasoning", "sat2_test", "sat2_test.jsonl"),
}
WRAPPERS = ("data", "annotations", "examples", "items", "records", "questions")
HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(:(?P<split>[\w.-]+))?")
SPLITS = ("validation", "val", "test", "train")  # preferred first; BLINK's test answers are not public
QUESTIONS = ("question", "prompt", "conversations", "messages")  # columns, of which a table of questions needs one
CELL = 2**30  # maximum characters per table cell; base64 images are large
ROWS = 16  # rows per batch of a parquet file; images are large


class Record(NamedTuple):
    """Record of a file: `where` is its location for the user ("line 3"), `id` its number, used if the record has no id,
    `fault` the reason for missing content, "" for none."""

    where: str
    id: str
    content: object
    fault: str = ""


def find(dataset: str, data_root: str | Path | None) -> tuple[Path | None, dict[str, Path]]:
    """Find a data set: (data root, {label: file}), or (None, {}) for the hub; the label of a single file is "".

    Raises ValueError or FileNotFoundError if there is no data set of that name.
    """
    if dataset in PUBLISHED:
        if data_root is None:
            raise InputError(
                "data-root-needed", f"--dataset {dataset} needs --data-root, the folder that holds {PUBLISHED[dataset]}"
            )
        return Path(data_root), {"": _published(dataset, Path(data_root))}
    path = Path(dataset)
    if not path.exists() and data_root is not None and Path(data_root, dataset).exists():
        path = Path(data_root, dataset)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS)
        if not files:
            raise FileNotFoundError(f"{path} holds no file of records ({', '.join(READERS)})")
        return Path(data_root or path), {
            f"{file.relative_to(path).with_suffix('').as_posix()}/": file for file in files
        }
    if path.suffix.lower() in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"the file of questions {path} does not exist")
        return Path(data_root or path.parent), {"": path}
    if path.exists():
        raise ValueError(f"{path} is of no known kind; questions come as {', '.join(READERS)}, or as a folder of these")
    if not HUB_ID.fullmatch(dataset):
        raise FileNotFoundError(
            f"no data set {dataset!r}: it is neither blink nor sat2, no file, no folder, and no hub id like owner/name"
        )
    return None, {}


def _published(dataset: str, root: Path) -> Path:
    """Published file, or its copy as JSON or parquet."""
    path = root / PUBLISHED[dataset]
    for suffix in (".jsonl", ".json", ".parquet"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise FileNotFoundError(
        f"{path} does not exist; make a set in this layout with `python -m data.twoshapes_qa --out-dir {root}`, or"
        " pass a file, a folder or a hub id as --dataset"
    )


def read_file(path: Path, label: str = "") -> Iterator[Record]:
    """Read the records of one file; `label` is prepended to their locations and ids.

    Raises ValueError, a one-line message, for an invalid file.
    """
    try:
        for record in READERS[path.suffix.lower()](path):
            yield record._replace(where=label + record.where, id=label + record.id)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_json(path: Path) -> Iterator[Record]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); one record per line is JSONL: name it .jsonl") from error
    if isinstance(content, dict):
        content = next((content[name] for name in WRAPPERS if isinstance(content.get(name), list)), content)
    if not isinstance(content, list):
        raise ValueError(f'{path} holds no list of records; expected [...] or {{"data": [...]}}')
    for number, record in enumerate(content):
        yield Record(f"record {number}", str(number), record)


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for number, (line_number, line) in enumerate(filled):
            try:
                yield Record(f"line {line_number}", str(number), json.loads(line))
            except (ValueError, RecursionError):
                yield Record(f"line {line_number}", str(number), None, "line is not valid JSON")


def _read_parquet(path: Path) -> Iterator[Record]:
    _need("pyarrow", f"{path} is a parquet file")
    from pyarrow import ArrowException, parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield Record(f"record {number}", str(number), row)
    except ArrowException as error:
        raise ValueError(f"{path} is not a parquet file that can be read: {error}") from error


def _read_table(path: Path) -> Iterator[Record]:
    """Rows of a CSV or TSV file with a header. As in VLMEvalKit, `image` may be the index of another row with the same
    image."""
    images: dict[str, str] = {}
    referenced = {row["image"] for _, row in _rows(path) if isinstance(row, dict) and _is_reference(row.get("image"))}
    if referenced:
        rows = (row for _, row in _rows(path) if isinstance(row, dict))
        images = {row["index"]: row["image"] for row in rows if row.get("index") in referenced}
    for number, (where, row) in enumerate(_rows(path)):
        if isinstance(row, str):
            yield Record(where, str(number), None, row)
            continue
        if _is_reference(row.get("image")):
            row["image"] = images.get(row["image"], row["image"])
        yield Record(where, str(number), row)


def _is_reference(image: str | None) -> bool:
    return image is not None and image.isdecimal()


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str] | str]]:
    """(lines, cells by column) of each row of a table, or (lines, fault) of an invalid row.

    Raises ValueError for a file without a question column in its header.
    """
    csv.field_size_limit(max(CELL, csv.field_size_limit()))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise ValueError(f"{path} has no header that can be read: {error}") from error
        if not set(QUESTIONS) & set(header) or len(set(header)) < len(header):
            raise InputError(
                "no-question-column",
                f"{path} is not a table of questions: its header needs a column {' or '.join(QUESTIONS)}, and each "
                "column once",
            )
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error:
                cells = "row is not valid CSV"
            if cells is None:
                return
            where = f"line {first}" if reader.line_num <= first else f"lines {first} to {reader.line_num}"
            if isinstance(cells, list) and len(cells) != len(header):
                if not cells:
                    continue
                cells = "row does not have one cell per column"
            yield where, cells if isinstance(cells, str) else dict(zip(header, cells, strict=True))


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_table,
    ".tsv": _read_table,
}


def read_hub(dataset: str) -> Iterator[Record]:
    """Read the records of all configurations of a hub data set, "owner/name" or "owner/name:split".

    Raises ValueError, a one-line message, if it cannot be loaded.
    """
    _need("datasets", f"{dataset} is a data set of the hub (no file or folder of that name is here)")
    import datasets

    named = HUB_ID.fullmatch(dataset)
    try:
        for configuration in datasets.get_dataset_config_names(named["name"]):
            parts = datasets.load_dataset(named["name"], configuration)
            split = named["split"] or next(filter(parts.__contains__, SPLITS), next(iter(parts)))
            if split not in parts:
                raise ValueError(f"it has no split {split!r}, only {', '.join(parts)}")
            table = parts[split].with_format("arrow")  # keeps images encoded
            rows = (row for batch in table.iter(ROWS) for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield Record(f"{configuration}/record {number}", f"{configuration}/{number}", row)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the data set {dataset} cannot be loaded from the hub: {reason}") from error


def _need(package: str, why: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{why}, which needs the package {package}: pip install {package}")


def is_missing(value: object) -> bool:
    """True for an empty field: None, NaN, "nan" (a NaN cell as text) or blanks."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def parsed(value: object) -> object:
    """Parse a list or dictionary in a text, as JSON or as a Python literal; other values are returned unchanged."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{", "("):
        return value
    text = value.strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return list(literal) if isinstance(literal, tuple) else literal if isinstance(literal, list | dict) else value


def as_list(value: object) -> list:
    """Items of a list, also of a list as text; any other value as a list of one item."""
    items = parsed(value)
    return items if isinstance(items, list) else [value]
