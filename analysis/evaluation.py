"""Folder and summary of an evaluation: answers are appended one by one, and a killed run can be resumed.

    settings.json         every flag, versions, model; the settings that decide the answers, and a hash of them
    parts/part-RRRRR.jsonl    answers of process R in the order of generation, one JSON object a line
    predictions.jsonl     merged from the parts after the last answer, in the order of the questions
    summary.json          computed from predictions.jsonl: accuracy over all and per sub-task; omissions by reason
    .lock                 held by the active run (`analysis.processes`)

The parts are the record of the run; all other files can be rebuilt from them. The key of a line is its "id" and
"rotation"; it is an answer if it holds all FIELDS with their types. A line is complete up to its line end: a last line
without one, torn by a killed process or a full disk, is dropped, and its question is answered again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from analysis import processes
from analysis.files import write_json, write_whole, writing
from analysis.judges import circular, summarise
from analysis.runs import SETTINGS, SUMMARY, provenance, refuse_existing
from data.errors import InputError

Key = tuple[str, int]
"""Id of a record, and the number of places by which its options are rotated."""

PARTS, PREDICTIONS = "parts", "predictions.jsonl"
FORMAT = 2  # format of settings.json and the parts; format 1 had no image hashes and no `cut`
SAME_MODEL = ("revision", "dtype", "family")  # of a model's description: fields that must not change within a run
LIBRARIES = ("torch", "transformers")  # another version of these may change answers


def _is(*types: type) -> Callable[[object], bool]:
    return lambda value: type(value) in types


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_touched(value: object) -> bool:
    """Return whether a value holds numbers by name, and `layers`, rows with "layer"; see `models.answering.Reply`."""
    if not isinstance(value, dict):
        return False
    layers, number = value.get("layers", []), _is(int, float)
    rows = isinstance(layers, list) and all(isinstance(row, dict) and "layer" in row for row in layers)
    counts = [count for name, count in value.items() if name != "layers"]
    return rows and all(map(number, [*counts, *(item for row in layers for item in row.values())]))


FIELDS: dict[str, Callable[[object], bool]] = {
    "id": _is(str), "task": _is(str), "prompt": _is(str), "gold": _is(str), "options": _is_texts, "rotation": _is(int),
    "prediction": _is(str, type(None)), "value": _is(str), "parsed": _is(bool), "correct": _is(bool),
    "failed": _is(str, type(None)), "cut": _is(bool, type(None)), "image_hashes": _is_texts,
}  # fmt: skip
"""Fields of an answer in predictions.jsonl, each with its type test. `cut`: the token limit ended the answer
(None: unknown); `image_hashes`: of each image's bytes, in order ("" for an unreadable one)."""
PART_FIELDS = {**FIELDS, "touched": _is_touched}
"""Fields of a line of the parts; the summary uses `touched`."""


def digest(settings: Mapping) -> str:
    """Hash of settings, in hexadecimal digits; independent of their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock an evaluation's folder against other runs until the block ends. Raises as `refuse_foreign` and
    `processes.lock` do."""
    refuse_foreign(folder)
    with processes.lock(folder):
        yield


def refuse_foreign(folder: Path) -> None:
    """Raise as `refuse_existing` does for a folder without settings.json. Changes no file; needs no lock."""
    if not (folder / SETTINGS).exists():
        refuse_existing(folder)


class Predictions:
    """Folder of an evaluation. `deciding`: the settings that decide the answers, by flag; JSON types only.

    Changes no file. Raises ValueError for a folder with answers under other settings, and as `refuse_existing` does
    for one of another kind.
    """

    def __init__(self, folder: str | Path, deciding: Mapping):
        self.folder, self.deciding = Path(folder), json.loads(json.dumps(deciding))
        self.parts = self.folder / PARTS
        self.known = self._read_settings()
        if self.known is None:
            refuse_foreign(self.folder)
        elif differences := self._differences():
            raise InputError(
                "other-settings",
                f"{self.folder} holds answers under other settings ({differences}), and they must not be mixed: pass "
                "another --out-dir, or the same settings",
            )

    def _read_settings(self) -> dict | None:
        path = self.folder / SETTINGS
        if not path.is_file():
            return None
        try:
            known = json.loads(path.read_bytes())
            known["deciding"], known["model"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("foreign-folder", f"{path} is not of this script; pass another --out-dir") from error
        if known.get("format") != FORMAT:
            raise InputError(
                "other-version",
                f"{self.folder} was made by another version of evaluate.py, whose answers do not tell of which images "
                "they are; pass another --out-dir",
            )
        return known

    def _differences(self) -> str:
        """Settings that differ from those of the folder, with both values, or the changed files; "" for none."""
        there, here = self.known["deciding"], self.deciding
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        return ", ".join(_difference(name, there.get(name), here.get(name)) for name in names)

    def other_versions(self) -> str:
        """LIBRARIES whose version differs from that of the folder's answers, with both versions; "" for none."""
        there, here = ({} if self.known is None else self.known.get("versions", {})), provenance()["versions"]
        names = [name for name in LIBRARIES if there.get(name, here[name]) != here[name]]
        return ", ".join(f"{name} {there[name]}, now {here[name]}" for name in names)

    def check_model(self, model: Mapping) -> None:
        """Compare the model with that of the folder's answers; see `describe`. Raises ValueError for another model."""
        there = {} if self.known is None else self.known["model"]
        for name in SAME_MODEL:
            if there.get(name, model.get(name)) != model.get(name):
                raise InputError(
                    "other-model",
                    f"{self.folder} holds answers of a model whose {name} was {there[name]!r}, and now it is "
                    f"{model.get(name)!r}: pass another --out-dir",
                )

    def start(self, flags: Mapping, model: Mapping) -> None:
        """Make the folder and write settings.json, with the versions and the command line, before the first answer.

        A resumed run stores the latest flags: those that may change decide no answer.
        """
        about = {**provenance(), "flags": flags, "model": model}
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        deciding = {"format": FORMAT, "deciding": self.deciding, "settings_hash": digest(self.deciding)}
        write_json(self.folder / SETTINGS, {**about, **deciding})

    def answered(self, processes: int = 0, broken: Counter | None = None) -> dict[Key, dict]:
        """Answers of all parts, by record; of a record with two, the first that has not failed.

        Other lines are left out, and counted in `broken` by part. The parts of `processes` processes are opened by
        name, since a shared file system may list new files late.
        """
        answers: dict[Key, dict] = {}
        for path in sorted({*self.parts.glob("part-*.jsonl"), *map(self._path, range(processes))}):
            for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
                record = parse(line)
                if record is None:
                    if broken is not None:
                        broken[path.name] += 1
                    continue
                known = answers.setdefault((record["id"], record["rotation"]), record)
                if known["failed"] is not None:
                    answers[record["id"], record["rotation"]] = record
        return answers

    def part(self, rank: int) -> Part:
        """Open the part that process `rank` writes to."""
        return Part(self._path(rank))

    def _path(self, rank: int) -> Path:
        return self.parts / f"part-{rank:05}.jsonl"

    def merge(self, lines: Iterable[dict], summary: Mapping) -> bool:
        """Write predictions.jsonl and summary.json whole, each unless the file already has this content; return whether
        one was written. Both are computed from the parts, so a broken file is rewritten."""
        merged, answers, figures = b"".join(map(encode, lines)), self.folder / PREDICTIONS, self.folder / SUMMARY
        known = answers.is_file() and answers.read_bytes() == merged
        if not known:
            write_whole(answers, lambda partial: partial.write_bytes(merged))
        if holds(figures, summary):
            return not known
        write_json(figures, summary)
        return True


class Part:
    """File of answers of one process, locked against other processes until closed.

    Raises ValueError if another run holds the lock, OutputError if the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            processes.hold(self._file, path.parent.parent)  # a process of a killed run may still write its last line
            self._drop_torn_line()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._file)

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        with writing(self.path):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)
            os.lseek(self._file, 0, os.SEEK_END)

    def append(self, records: Iterable[dict]) -> None:
        """Append lines; they are on disk on return. Raises OutputError if they cannot be written."""
        data = memoryview(b"".join(map(encode, records)))
        with writing(self.path):
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)


def encode(record: Mapping) -> bytes:
    """One line of JSON; characters that UTF-8 cannot encode (half a surrogate pair) become JSON escapes."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")


def holds(path: Path, values: Mapping) -> bool:
    """Return whether a JSON file holds these values; False for a broken or missing file."""
    try:
        return json.loads(path.read_bytes()) == json.loads(json.dumps(values))
    except (FileNotFoundError, ValueError, RecursionError):
        return False


def parse(line: bytes) -> dict | None:
    """Answer of a line; None for a line that lacks a field or has one of another type."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not record.keys() >= PART_FIELDS.keys():
        return None
    whole = all(fits(record[name]) for name, fits in PART_FIELDS.items())
    return record if whole and (record["failed"] is None) == (record["prediction"] is not None) else None


def _difference(name: str, there: object, here: object) -> str:
    """One setting with its values in both runs; for hashes by file or module, those that differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        changed = [part for part in {**there, **here} if there.get(part) != here.get(part)]
        return f"{name} has changed: {', '.join(changed)}"
    return f"{name} was {there!r} and is {here!r} now"


def in_order(rows: Iterable[Mapping]) -> list[dict]:
    """Records as predictions.jsonl holds them: without the fields that only the summary needs."""
    return [{name: value for name, value in row.items() if name in FIELDS} for row in rows]


def summarise_run(rows: Sequence[Mapping], skipped: Sequence[tuple[str, str]]) -> dict:
    """Content of summary.json. rows: one per record and rotation, with `touched`; skipped: (where, reason).

    The rotations of a record count as one, correct only if all are. `overall` and `tasks` as from `judges.summarise`,
    each with `cut`, the number of answered records with an answer cut by the token limit (None where unknown for all
    records); `failed` counts records by reason, `skipped` unreadable records, with their names in `skipped_records`;
    `touched` sums the effects of steering on the answers (empty without an effect).
    """
    by_record: dict[str, list] = {}
    for row in rows:
        by_record.setdefault(row["id"], []).append(row)
    records = [{**circular(item), "cut": any_cut(item)} for item in by_record.values()]
    failed = Counter(record["failed"] for record in records if record["failed"] is not None)
    touched = Counter()
    for row in rows:
        touched.update({name: count for name, count in (row.get("touched") or {}).items() if name != "layers"})
    figures = summarise(records)
    figures["overall"]["cut"] = count_cut(records)
    for task, item in figures["tasks"].items():
        item["cut"] = count_cut([record for record in records if record["task"] == task])
    return {
        "records": len(records),
        "answers": len(rows),
        **figures,
        "failed": dict(sorted(failed.items())),
        "skipped": dict(sorted(Counter(reason for _, reason in skipped).items())),
        "skipped_records": [list(item) for item in skipped],
        "touched": dict(sorted(touched.items())),
    }


def constant_gold(rows: Iterable[Mapping]) -> str | None:
    """Warning if all questions with options (at least two) have the same gold letter; else None."""
    golds = [row["gold"] for row in rows if row["options"]]
    if len(golds) < 2 or len(set(golds)) > 1:
        return None
    return (
        f"the gold of all {len(golds)} multiple-choice questions is {golds[0]}, so a model that always answers "
        f"{golds[0]} would score 1.000 on them: check the set, or rotate the options by --circular"
    )


def any_cut(rows: Iterable[Mapping]) -> bool | None:
    """Return whether the token limit cut one of the answers; None where unknown for all rows."""
    known = [row["cut"] for row in rows if row.get("cut") is not None]
    return any(known) if known else None


def count_cut(records: Iterable[Mapping]) -> int | None:
    """Number of answered records with a cut answer; None where unknown for all records."""
    known = [record["cut"] for record in records if record["failed"] is None and record["cut"] is not None]
    return sum(known) if known else None


def figures_line(name: str, figures: Mapping) -> str:
    """One line for the terminal: "all: accuracy 0.840 [0.755, 0.900], n = 98, 3 unparsed, 1 cut, 2 failed"."""
    if figures["accuracy"] is None:
        return f"{name}: nothing answered, {figures['failed']} failed"
    bounds = f"[{figures['low']:.3f}, {figures['high']:.3f}]"
    left = "".join(f", {figures[kind]} {kind}" for kind in ("unparsed", "cut", "failed") if figures.get(kind))
    return f"{name}: accuracy {figures['accuracy']:.3f} {bounds}, n = {figures['n']}{left}"
