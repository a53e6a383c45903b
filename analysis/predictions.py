"""The folder of an evaluation: answers are appended as they come, and a run that was killed anywhere goes on.

    settings.json         every flag, versions, model; the settings that decide the answers, and a hash of them
    parts/part-RRRRR.jsonl    answers of process R in the order in which they came, one JSON object a line
    predictions.jsonl     made of the parts when all is answered, in the order of the questions
    summary.json          made of predictions.jsonl

The parts are the record of the run; everything else can be made of them again. A line is known by its "id" and
"rotation". What stands before a line's end is complete: a last line without one was torn by the end of a process or a
full disk, is dropped, and its question asked again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from analysis.results import provenance, refuse_existing, write_json, write_whole, writing

Key = tuple[str, int]
"""The id of a record, and by how many places its options are rotated."""

SETTINGS, PARTS, PREDICTIONS, SUMMARY = "settings.json", "parts", "predictions.jsonl", "summary.json"
FIELDS = ("id", "task", "prompt", "gold", "options", "rotation", "prediction", "value", "parsed", "correct", "failed")
SAME_MODEL = ("revision", "dtype", "family")  # of a model's description: what must not change within a run


def digest(settings: Mapping) -> str:
    """A hash of settings, in hexadecimal digits; the same for the same settings, in whatever order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Predictions:
    """An evaluation's folder. `deciding`: the settings that decide the answers, by flag; JSON types only.

    Creates and changes nothing. Raises ValueError for a folder that holds answers under other settings, and as
    `refuse_existing` does for one that is no evaluation's.
    """

    def __init__(self, folder: str | Path, deciding: Mapping):
        self.folder, self.deciding = Path(folder), json.loads(json.dumps(deciding))
        self.parts = self.folder / PARTS
        self.known = self._read_settings()
        if self.known is None:
            if not (
                self.folder.is_dir() and os.listdir(self.folder) == [f"partial-{SETTINGS}"]
            ):  # killed while starting
                refuse_existing(self.folder)
        elif differing := self._differing():
            raise ValueError(
                f"{self.folder} holds answers under other settings ({differing}), and they must not be mixed: pass "
                "another --out-dir, or the same settings"
            )

    def _read_settings(self) -> dict | None:
        path = self.folder / SETTINGS
        if not path.is_file():
            return None
        try:
            known = json.loads(path.read_bytes())
            known["deciding"], known["model"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not of this script; pass another --out-dir") from error
        return known

    def _differing(self) -> str:
        """Which settings are not those of the folder, with both values; "" where all are."""
        there, here = self.known["deciding"], self.deciding
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        return ", ".join(f"{name} was {there.get(name)!r} and is {here.get(name)!r} now" for name in names)

    def check_model(self, model: Mapping) -> None:
        """Raises ValueError where the answers in the folder are of a model that was another one; see `describe`."""
        there = {} if self.known is None else self.known["model"]
        for name in SAME_MODEL:
            if there.get(name, model.get(name)) != model.get(name):
                raise ValueError(
                    f"{self.folder} holds answers of a model whose {name} was {there[name]!r}, and now it is "
                    f"{model.get(name)!r}: pass another --out-dir"
                )

    def start(self, flags: Mapping, model: Mapping) -> None:
        """Makes the folder and writes settings.json, with the versions and the command line, before the first answer.

        Of a run that goes on, the flags are the latest ones: those that may change decide no answer.
        """
        about = {**provenance(), "flags": flags, "model": model}
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        deciding = {"deciding": self.deciding, "settings_hash": digest(self.deciding)}
        write_json(self.folder / SETTINGS, {**about, **deciding})

    def answered(self, processes: int = 0) -> dict[Key, dict]:
        """What all parts hold, by record; of a record that stands there twice, the first that has not failed.

        Lines that are broken are left out. The parts of so many `processes` are asked for by name, since a folder that
        machines share may list new files late.
        """
        found: dict[Key, dict] = {}
        for path in sorted({*self.parts.glob("part-*.jsonl"), *map(self._path, range(processes))}):
            for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
                record = parse(line)
                if record is not None:
                    known = found.setdefault((record["id"], record["rotation"]), record)
                    if known["failed"] is not None:
                        found[record["id"], record["rotation"]] = record
        return found

    def part(self, rank: int) -> Part:
        """Opens the part that process `rank` writes to."""
        return Part(self._path(rank))

    def _path(self, rank: int) -> Path:
        return self.parts / f"part-{rank:05}.jsonl"

    def merge(self, lines: Iterable[dict], summary: Mapping) -> bool:
        """Writes predictions.jsonl and summary.json whole, each unless it is on disk already as it would be written;
        returns whether one was written. Both are made of the parts, so a broken one is made again."""
        merged, answers, figures = b"".join(map(encode, lines)), self.folder / PREDICTIONS, self.folder / SUMMARY
        known = answers.is_file() and answers.read_bytes() == merged
        if not known:
            write_whole(answers, lambda partial: partial.write_bytes(merged))
        if holds(figures, summary):
            return not known
        write_json(figures, summary)
        return True


class Part:
    """One process's file of answers, held against any other process until it is closed.

    Raises ValueError where another run holds it, OutputError where it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._hold()
            self._drop_torn_line()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the file, which another process may then write to."""
        os.close(self._file)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another run is writing to {self.path.parent.parent}; wait until it ends, or pass another --out-dir"
            ) from error
        except OSError:
            return  # a file system without locks; a record that two runs answer is still counted once

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        with writing(self.path):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)
            os.lseek(self._file, 0, os.SEEK_END)

    def append(self, records: Iterable[dict]) -> None:
        """Adds lines, on disk when this returns. Raises OutputError where they cannot be written."""
        data = memoryview(b"".join(map(encode, records)))
        with writing(self.path):
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)


def encode(record: Mapping) -> bytes:
    """One line of JSON; what UTF-8 cannot hold (half a surrogate pair) is written as JSON's own escape."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")


def holds(path: Path, values: Mapping) -> bool:
    """Whether a file of JSON says this; not where it is broken or missing."""
    try:
        return json.loads(path.read_bytes()) == json.loads(json.dumps(values))
    except (FileNotFoundError, ValueError, RecursionError):
        return False


def parse(line: bytes) -> dict | None:
    """A record, or None for a line that is none."""
    try:
        record = json.loads(line)
        whole = set(FIELDS) <= record.keys() and isinstance(record["id"], str) and isinstance(record["rotation"], int)
        return record if whole else None
    except (ValueError, AttributeError, RecursionError):
        return None


def in_order(rows: Iterable[Mapping]) -> list[dict]:
    """Records as predictions.jsonl holds them: without what only the summary needs."""
    return [{name: value for name, value in row.items() if name != "touched"} for row in rows]
