"""POPE: yes-no questions on the presence of objects, in three files that differ in the choice of the absent objects.

    <data root>/pope/coco/coco_pope_random.json         and _popular, _adversarial; one record a line:
    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
     "label": "yes"}

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (EMNLP 2023, arXiv 2305.10355); layout of
its repository (folder output/). The files lie anywhere below `pope/`, also as a list instead of lines. Images lie in
`pope/val2014/` or beside the file, in `val2014/` below the data root, or at their path below it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from data.errors import InputError, MissingFileError
from data.spatial_qa_files import Record

NAME, FOLDER = "pope", Path("pope")
SPLITS = ("random", "popular", "adversarial")
FILE = re.compile(rf"(?:(.+)_)?pope_({'|'.join(SPLITS)})")
IMAGES = (FOLDER / "val2014", FOLDER / "images", Path("val2014"))  # below the data root


def find(root: Path) -> dict[str, Path]:
    """Files below `root`/pope by split: "random", or "coco random" where there are several sources.

    Raises FileNotFoundError without any.
    """
    named = [(match, path) for path in (root / FOLDER).rglob("*.json") if (match := FILE.fullmatch(path.stem))]
    if not named:
        raise MissingFileError(
            "no-pope",
            f"{root / FOLDER} holds no file like coco_pope_random.json; make a set in this layout with `python -m "
            f"data.twoshapes_pope --out-dir {root}`, or pass the folder above pope/ as --data-root",
        )
    named.sort(key=lambda pair: (pair[0][1] or "", SPLITS.index(pair[0][2]), pair[1]))
    several = len({match[1] for match, _ in named}) > 1
    files: dict[str, Path] = {}
    for match, path in named:
        split = f"{match[1]} {match[2]}" if several and match[1] else match[2]
        if split in files:
            raise InputError(
                "split-twice",
                f"{files[split]} and {path} are both the split {split!r}; leave one of them below pope/",
            )
        files[split] = path
    return files


def read(file: Path, split: str, root: Path | None = None) -> Iterator[Record]:
    """Records of one file under the field names of `data.spatial_qa_records`; ids are "<split>/<question_id>".

    `root` is where images are looked for. Raises ValueError, a one-line message, for a file that is neither lines of
    JSON nor a list.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("unreadable-file", f"{file} cannot be read: {error}") from error
    for number, (where, content, fault) in enumerate(_contents(file, text)):
        yield Record(f"{split}/{where}", f"{split}/{number}", _translated(content, split, file, root), fault)


def _contents(file: Path, text: str) -> Iterator[tuple[str, object, str]]:
    """(location, content, fault) of each record."""
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("not-json", f"{file} is not valid JSON ({error})") from error
        yield from ((f"record {number}", record, "") for number, record in enumerate(records))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line), ""
            except (ValueError, RecursionError):
                yield f"line {number}", None, "line is not valid JSON"


def _translated(record: object, split: str, file: Path, root: Path | None) -> object:
    """The record with `id`, `sub_task`, `question`, `answer` and the path of its image; others are returned as is."""
    if not isinstance(record, dict) or "text" not in record or "label" not in record:
        return record
    image, label = record.get("image"), record["label"]
    answer = label.strip().lower() if isinstance(label, str) else label
    fields = {"sub_task": split, "question": record["text"], "answer": answer, "image": _placed(image, file, root)}
    return fields | ({"id": f"{split}/{record['question_id']}"} if "question_id" in record else {})


def _placed(image: object, file: Path, root: Path | None) -> object:
    """Path of an image below the root, in the first of the usual folders that has it; unchanged in none."""
    if not isinstance(image, str) or root is None or Path(image).is_absolute() or ".." in Path(image).parts:
        return image
    beside = file.resolve().parent / "val2014"
    folders = [*IMAGES, *([beside.relative_to(root)] if beside.is_relative_to(root) else [])]
    return next((str(folder / image) for folder in folders if (root / folder / image).is_file()), image)
