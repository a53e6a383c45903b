"""Runs that survive interruption: each sample's results are one file, and the same command continues the run.

    settings.json         flags, versions, model; written before the first sample
    fingerprints.json     hashes of the checkpoint, of the samples, and of the files that flags name
    parts/samples.json    names of the samples in order, and of those that were unusable
    parts/000012.npz      results of the sample at index 12, written whole after its figures
    samples.csv, ...      written from the parts after the last sample; summary.json is the last of them
    .lock                 held by the active run (`analysis.processes`)

A sample is done if its part exists. Reports are computed from the parts, one at a time, never from the memory of the
process that measured them; so the files of a continued run equal those of an uninterrupted one, for any number of
processes. Another setting, checkpoint, sample or file is an error. A part holds arrays and JSON, no pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from analysis.files import plain, write_json, write_whole
from analysis.processes import Team, lock, own_device, team
from analysis.runs import (
    FINGERPRINTS,
    ORIGINS,
    SETTINGS,
    SUMMARY,
    Entry,
    RunFolder,
    flat_flags,
    provenance,
    refuse_existing,
)
from data.errors import InputError, SampleError
from models.folders import content_hash
from models.loading import checkpoint_hashes

PARTS, PLAN = "parts", "samples.json"
FREE_FLAGS = ("out_dir", "batch_size", "device", "retry_failed", "follow_links")  # flags that decide no result
SAME_MODEL = ("revision", "dtype", "family")  # of a model's description: fields that must not change within a run
LIBRARIES = ("torch", "transformers", "code")  # another version of these may change results


@dataclass(frozen=True)
class Result:
    """Results of one sample: its row of samples.csv, `values` for the report of the run (dicts, lists, dataclasses and
    named tuples of arrays, numbers and text), and its view on the page (`analysis.gallery.view`)."""

    row: dict
    values: object = field(default_factory=dict)
    view: dict | None = None


class Part(NamedTuple):
    """Results of a sample as stored: `row` is None for a skipped one. `values` and `view` are read from the file."""

    index: int
    name: str
    row: dict | None
    skipped: str
    path: Path

    @property
    def values(self):
        """The values of `Result`, with dataclasses and named tuples as dicts, and tuples as lists."""
        return self.value()

    def value(self, *names: str):
        """The entry of the values under these nested names; of the others, no array is read."""
        with np.load(self.path, allow_pickle=False) as file:
            values = _from_text(file["values"])
            for name in names:
                values = values[name]
            return _join(values, file)

    @property
    def view(self) -> dict | None:
        with np.load(self.path, allow_pickle=False) as file:
            return _from_text(file["view"])


class Parts:
    """Results of the samples of one stage of a run, one file each."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06}.npz"

    def write(self, index: int, name: str, result: Result | SampleError) -> None:
        """Write the results of a sample, or the reason for which it was skipped; they are on disk on return."""
        arrays: dict[str, np.ndarray] = {}
        head = {"name": name, "row": None, "skipped": ""}
        if isinstance(result, Result):
            head["row"], values, view = plain_row(result.row), _split(result.values, arrays), result.view
        else:
            head["skipped"], values, view = result.reason, None, None
        texts = {"head": _to_text(head), "values": _to_text(values), "view": _to_text(view)}

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                np.savez(file, **texts, **arrays)
                file.flush()
                os.fsync(file.fileno())

        write_whole(self.path(index), write)

    def read(self, index: int) -> Part | None:
        """The part of a sample; None if there is none."""
        try:
            with np.load(self.path(index), allow_pickle=False) as file:
                return Part(index=index, path=self.path(index), **_from_text(file["head"]))
        except FileNotFoundError:
            return None

    def write_plan(self, plan: dict) -> None:
        """Write the names of the samples. Raises ValueError if the folder holds parts of other ones."""
        if (known := self.plan()) is None:
            write_json(self.folder / PLAN, plan)
        elif known != json.loads(json.dumps(plan)):
            raise InputError("other-samples", f"{self.folder} holds results of other samples; pass another --out-dir")

    def plan(self) -> dict | None:
        """{"samples": names, "unusable": (name, reason)} in order, and "columns"; None for a run without a sample."""
        path = self.folder / PLAN
        return json.loads(path.read_bytes()) if path.is_file() else None

    def __iter__(self) -> Iterator[Part]:
        """The parts that exist, in the order of the samples."""
        plan = self.plan()
        for index in range(len(plan["samples"])) if plan else ():
            if part := self.read(index):
                yield part


def plain_row(row: Mapping) -> dict:
    """A row of samples.csv with Python numbers in place of numpy's and paths as text."""
    return {name: value if isinstance(value, float) else plain(value) for name, value in row.items()}


def _to_text(value) -> np.ndarray:
    text = json.dumps(value, ensure_ascii=False)
    return np.frombuffer(text.encode("utf-8", errors="backslashreplace"), np.uint8)


def _from_text(array: np.ndarray):
    return json.loads(array.tobytes())


def _split(value, arrays: dict[str, np.ndarray]):
    """JSON form of nested values; their arrays are moved to `arrays` and replaced by {"array": name}."""
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"the keys of a sample's values are text, and these are not: {list(value)[:3]}")
        return {name: _split(each, arrays) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_split(each, arrays) for each in value]
    return str(value) if isinstance(value, Path) else value


def _join(value, arrays: Mapping[str, np.ndarray]):
    """Values from the JSON form of `_split`."""
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return arrays[value["array"]]
        return {name: _join(each, arrays) for name, each in value.items()}
    return [_join(each, arrays) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Output:
    """Folder of the results."""

    out_dir: str | None = None
    """Folder for the results (default: results/<script>/<model>-<hash of settings and data>); the same command
    continues an unfinished run."""


@dataclass(frozen=True)
class SampleOutput(Output):
    """Folder of the results."""

    retry_failed: bool = False
    """In a continued run, measure the skipped samples again."""


class Run(RunFolder):
    """Run of a script, on one process or many, that continues where it stopped.

    leads: this process writes the files of the whole run; the others write only those of samples. continued: the folder
    held this run at its start.
    """

    def __init__(self, config, processes: Team, held: ExitStack):
        super().__init__("", (), {})
        self.config, self.flags = config, json.loads(json.dumps(plain(flat_flags(config))))
        self.team, self.leads = processes, processes.leads
        self.continued, self._finished = False, False
        self._held, self._hashes = held, {}

    @classmethod
    @contextmanager
    def of(cls, config) -> Iterator[Run]:
        """Run of a script's `Config`, which has the groups `output` and, with a model, `load`. Its folder is locked
        from `claim` to the end of the block."""
        with team() as processes, ExitStack() as held:
            yield cls(config, processes, held)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Block that reads the data and claims the folder: the leading process runs it first, since it may generate
        data, then the others. They exit with it if it fails or finds a finished run."""
        with self.team.first(lambda: not self._finished):
            yield

    @property
    def load_options(self) -> dict:
        """Keyword arguments of `models.load`, with the device of this process. Raises ValueError for a device that the
        processes cannot share."""
        return self.config.load.options | {"device": own_device(self.config.load.device, self.team)}

    def claim(self, about: str, inputs: Iterable, **origins: dict) -> bool:
        """Choose and lock the run's folder; return whether it holds the finished run of these settings and inputs.

        about: name of the model, for the default folder. inputs: the samples and whatever else decides the results;
        files under their paths are hashed. origins: by ORIGINS, the facts of the sources.
        Raises ValueError for a folder of other settings or inputs or one that another run holds, FileExistsError for a
        folder with other files.
        """
        self.origins = {name: origins[name] for name in ORIGINS if name in origins}
        load = getattr(self.config, "load", None)
        model = checkpoint_hashes(load.model, load.revision) if load else {}
        hashes = {"model": model, "files": named_files(self.flags), "inputs": input_hashes(inputs)}
        self.folder = Path(self.config.output.out_dir or self._default_folder(about, hashes))
        self.continued, self._hashes = (self.folder / SETTINGS).is_file(), hashes
        if not self.leads:
            return False
        if not self.continued:
            refuse_existing(self.folder)
        self._held.enter_context(lock(self.folder))
        if self.continued:
            self._check_same(hashes)
            for path in self.folder.rglob("partial-*"):  # of a killed run
                path.unlink()
        self._finished = (self.folder / SUMMARY).is_file() and not self.flags.get("retry_failed")
        return self._finished

    def _default_folder(self, about: str, hashes: Mapping) -> Path:
        """results/<script>/<last part of the model's name>-<hash of the settings and inputs>."""
        flags = {name: value for name, value in self.flags.items() if name not in FREE_FLAGS}
        digest = hashlib.sha256(json.dumps([flags, hashes], sort_keys=True).encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]", "-", Path(about).name or Path(about).resolve().name)
        return Path("results", Path(inspect.getfile(type(self.config))).stem, f"{name}-{digest}")

    def _check_same(self, hashes: Mapping) -> None:
        """Compare settings and inputs with those of the folder. Raises ValueError where they differ."""
        try:
            known = json.loads((self.folder / SETTINGS).read_bytes())["flags"]
            before = json.loads((self.folder / FINGERPRINTS).read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{self.folder / SETTINGS} is not of this script; pass another --out-dir"
            raise InputError("foreign-folder", message) from error
        names = [name for name in {**known, **self.flags} if name not in FREE_FLAGS]
        changed = [
            f"--{name.replace('_', '-')} was {known.get(name)!r} and is {self.flags.get(name)!r} now"
            for name in names if known.get(name) != self.flags.get(name)
        ]  # fmt: skip
        changed = changed or [f"{kind} changed: {_changes(before.get(kind, {}), now)}" for kind, now in hashes.items()
                              if before.get(kind, {}) != now]  # fmt: skip
        if changed:
            raise InputError(
                "other-settings",
                f"{self.folder} holds a run with other settings or data ({'; '.join(changed)}): pass another --out-dir",
            )

    def start(self, columns: Sequence[str], **about) -> None:
        """Write settings.json before the first sample, or compare the model with that of the folder.

        about: `model` (`models.loading.describe`) and further settings that depend on it. A continued run keeps its
        settings.json; other versions are noted on stderr. Raises ValueError for another model.
        """
        self.columns = ("sample", *columns, "skipped")
        self.team.lead(lambda: self._start(about))

    def _start(self, about: dict) -> None:
        path = self.folder / SETTINGS
        if not self.continued:
            write_json(self.folder / FINGERPRINTS, self._hashes)
            write_json(path, {**provenance(), "flags": self.flags, **about, **self.origins})
            return
        (self.folder / SUMMARY).unlink(missing_ok=True)  # with --retry-failed the run is unfinished again
        known = json.loads(path.read_bytes())
        there, here = known.get("model", {}), plain(about.get("model", {}))
        for name in SAME_MODEL:
            if there.get(name) != here.get(name):
                raise InputError(
                    "other-model",
                    f"{self.folder} holds results of a model whose {name} was {there.get(name)!r}, and now it is "
                    f"{here.get(name)!r}: pass another --out-dir",
                )
        if versions := other_versions(known):
            print(f"note: the results so far were computed with {versions}", file=sys.stderr)

    def measure(
        self, samples: Sequence, measure: Callable[..., Result], unusable: Iterable[tuple[str, str]] = (),
        stage: str = "",
    ) -> None:  # fmt: skip
        """Write the results of `measure(sample)` for this process's share of the samples that have none yet.

        A sample (any object with a `name`) that raises SampleError or runs out of memory is reported on stderr and
        counted under its reason. Any other error ends the run. unusable: (name, reason) of samples rejected before.
        stage: name of a second pass over samples of the run.
        """
        self.measure_batches(samples, lambda batch: [measure(batch[0])], 1, unusable, stage)

    def measure_batches(
        self, samples: Sequence, measure: Callable[[Sequence], list[Result]], size: int,
        unusable: Iterable[tuple[str, str]] = (), stage: str = "",
    ) -> None:  # fmt: skip
        """`measure` in batches: `measure(batch)` returns one result for each of up to `size` samples.

        Batches are those of an uninterrupted run: one that lacks a result is measured whole, since the composition of a
        batch affects rounding. If a batch holds a bad sample, its samples are measured one by one.
        """
        parts = self.parts(stage)
        names = [sample.name for sample in samples]
        for name in names:
            self.folder_name(name)  # in the order of the samples, whichever process needs it first
        plan = {"columns": self.columns, "samples": names, "unusable": [list(each) for each in unusable]}
        self.team.lead(lambda: parts.write_plan(plan))
        batches = [range(first, min(first + size, len(samples))) for first in range(0, len(samples), size)]
        remaining = [batch for batch in batches if not all(self._is_done(parts.read(index)) for index in batch)]
        self.team.wait()  # all processes read before one writes
        mine = self.team.share(remaining)
        done = len(samples) - sum(map(len, remaining))
        with tqdm(total=done + sum(map(len, mine)), initial=done, unit="sample", disable=not self.leads) as progress:
            for batch in mine:
                results = attempt(measure, [samples[index] for index in batch])
                for index, result in zip(batch, results, strict=True):
                    if isinstance(result, Exception):
                        tqdm.write(f"skipped {names[index]}: {result}", file=sys.stderr)
                    parts.write(index, names[index], result)
                    progress.update()
        self.team.wait()

    def _is_done(self, part: Part | None) -> bool:
        return part is not None and not (part.skipped and self.flags.get("retry_failed"))

    def parts(self, stage: str = "") -> Parts:
        """All parts of a stage, skipped samples included."""
        return Parts(self.folder / PARTS / stage)

    def results(self, stage: str = "") -> Iterator[Part]:
        """Parts of the measured samples, in order."""
        return (part for part in self.parts(stage) if part.row is not None)

    def entries(self) -> Iterator[Entry]:
        """Lines of samples.csv: the unusable samples, then the others in order."""
        yield from super().entries()
        yield from stored_entries(self.folder)


def stored_entries(folder: Path) -> Iterator[Entry]:
    """Lines of samples.csv from the parts of a run's folder: the unusable samples, then the others in order."""
    parts = Parts(folder / PARTS)
    for name, reason in (parts.plan() or {}).get("unusable", ()):
        yield Entry(name, {}, reason)
    for part in parts:
        yield Entry(part.name, part.row or {}, part.skipped)


def input_hashes(inputs: Iterable) -> dict[str, str]:
    """Hash of each input by its name (`name`, or its position); files under Path values count by their content."""
    hashes = {}
    for position, each in enumerate(inputs):
        name = str(getattr(each, "name", position))
        while name in hashes:
            name += "'"
        text = json.dumps(_content(each), sort_keys=True, default=str)
        hashes[name] = hashlib.sha256(text.encode("utf-8", errors="backslashreplace")).hexdigest()[:16]
    return hashes


def _content(value):
    """JSON form of an input, with the hash of the content in place of a path or bytes."""
    if isinstance(value, Path | bytes):
        try:
            return content_hash(value) if isinstance(value, bytes) or value.is_file() else str(value)
        except OSError:  # reading the sample gives the reason
            return str(value)
    if dataclasses.is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return content_hash(value.tobytes())
    if isinstance(value, Mapping):
        return {str(name): _content(each) for name, each in value.items()}
    return [_content(each) for each in value] if isinstance(value, list | tuple) else value


def named_files(flags: Mapping) -> dict[str, str]:
    """Hash of each file that a flag names, by its path."""
    texts = [text for value in flags.values() for text in (value if isinstance(value, list) else [value])]
    paths = [Path(text) for text in texts if isinstance(text, str) and 0 < len(text) < 4096 and "\0" not in text]
    return {str(path): content_hash(path) for path in paths if os.path.isfile(path)}


def _changes(before: Mapping, now: Mapping) -> str:
    """The first three names whose hashes differ, and the number of the others."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def other_versions(settings: Mapping) -> str:
    """LIBRARIES whose version differs from that of a run's settings, with both versions; "" for none."""
    there, here = settings.get("versions", {}), provenance()["versions"]
    return ", ".join(
        f"{name} {there[name]}, now {here[name]}" for name in LIBRARIES if there.get(name, here[name]) != here[name]
    )


def attempt(measure: Callable[[Sequence], list], batch: Sequence) -> list:
    """Result of `measure(batch)` for each sample of a batch, or the SampleError of a failed sample."""
    try:
        return measure(batch)
    except SampleError as error:
        failed = error.with_traceback(None)  # its frames would keep the recorded tensors
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        failed = SampleError("out of memory", "out of memory; fewer or smaller images or half precision may fit")
    torch.cuda.empty_cache()  # here, after the error and its frames are freed
    return [failed] if len(batch) == 1 else [result for one in batch for result in attempt(measure, [one])]


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is an out-of-memory error; torch's CPU allocator raises a generic RuntimeError for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
