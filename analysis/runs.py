"""Results folder of a run: settings.json, samples.csv, figures and maps of single samples, and last summary.json.

A folder without summary.json holds an unfinished run; analysis/resume.py continues one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from analysis.files import check_place, draw, write_json, write_table, write_whole, writing
from data.errors import InputError

SETTINGS, SUMMARY, SAMPLES, FINGERPRINTS = "settings.json", "summary.json", "samples.csv", "fingerprints.json"
LOCK = ".lock"  # held by the run that writes into the folder (analysis.processes)
AT_START = {LOCK, FINGERPRINTS, f"partial-{SETTINGS}", f"partial-{FINGERPRINTS}"}  # of a run killed at its start
PACKAGES = ("torch", "transformers", "numpy", "pillow")
ORIGINS = ("data", "fixations")  # in settings.json: each has a `line`, repeated in figures and the page, and a `label`
ROOT = Path(__file__).parents[1]
CODE = ("*.py", "data/*.py", "models/*.py", "analysis/*.py")


def default_out_dir(script: str, model: str) -> Path:
    """results/<script>/<last part of the model's name>-<date-time>, with a numeric suffix if that folder exists."""
    name = re.sub(r"[^\w.-]", "-", Path(model).name or Path(model).resolve().name)
    base = Path("results") / Path(script).stem / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def refuse_existing(out_dir: str | Path) -> Path:
    """Return `out_dir` as a Path if it is new or an empty folder that can be written. Has no side effects.

    Files left by a run that was killed at its start (AT_START) do not count.

    Raises FileExistsError if it holds other files, ValueError if it cannot be created.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not (out_dir.is_dir() and {path.name for path in out_dir.iterdir()} <= AT_START):
        raise FileExistsError(
            f"the output folder {out_dir} exists and is not empty, and nothing is ever overwritten:"
            " pass another --out-dir or remove it"
        )
    check_place(out_dir, "the output folder")
    return out_dir


def flat_flags(config) -> dict:
    """Every flag of a config with its value, by its name with underscores; flags of groups have no prefix."""
    flags = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flags |= flat_flags(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return flags


def provenance() -> dict:
    """First entries of every settings.json: the command line, the time, and the versions that affect results."""
    versions = {"code": code_hash(), "python": platform.python_version()}
    versions |= {name: version(name) for name in PACKAGES}
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"command": sys.argv, "started": started, "versions": versions}


@cache
def code_hash() -> str:
    """Hash of the code of this project, of which results depend as they do on the versions of its packages."""
    paths = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class Entry(NamedTuple):
    """Line of samples.csv: a measured sample with its row, or a skipped one with the reason and an empty row."""

    name: str
    row: dict
    skipped: str = ""


class RunFolder:
    """Folder of one run. The columns of samples.csv are sample, `columns`, skipped."""

    def __init__(self, folder: str | Path, columns: Sequence[str], origins: dict[str, dict]):
        self.folder = Path(folder)
        self.columns = ("sample", *columns, "skipped")
        self.origins = origins  # by ORIGINS; in summary.json and the foot of every figure
        self._entries: list[Entry] = []
        self._folders = dict.fromkeys((SETTINGS, SAMPLES, SUMMARY, FINGERPRINTS, "parts"))  # used names -> their sample

    def add(self, sample: str, **values) -> None:
        """Add the row of a measured sample; a column without a value stays empty."""
        self._entries.append(Entry(sample, values))

    def skip(self, sample: str, reason: str) -> None:
        """Add the row of a skipped sample."""
        self._entries.append(Entry(sample, {}, reason))

    def entries(self) -> Iterator[Entry]:
        """Lines of samples.csv, in order."""
        yield from self._entries

    @property
    def done(self) -> int:
        """Number of measured samples."""
        return sum(not entry.skipped for entry in self.entries())

    @property
    def skipped(self) -> Counter:
        """Number of skipped samples by reason."""
        return Counter(entry.skipped for entry in self.entries() if entry.skipped)

    def save(self, image: Image.Image | Figure, *path: str, caption: str = "") -> Path:
        """Write a PIL image, or a matplotlib figure with `caption` and the origin of the data below it, to folder/*path
        (a .png)."""
        target = self.folder.joinpath(*path)
        if isinstance(image, Figure):
            lines = [caption] * bool(caption) + [origin["line"] for origin in self.origins.values()]
            image = draw(image, "; ".join(lines))
        return write_whole(target, image.save)

    def folder_name(self, sample: str) -> str:
        """Safe name of the folder of one sample; repeated calls return the same name."""
        plain = re.sub(r"[^\w.-]", "-", str(sample)).strip(".")[:80] or "sample"
        name, number = plain, 1
        while self._folders.setdefault(name, sample) != sample:
            number += 1
            name = f"{plain}-{number}"
        return name

    def sample_folder(self, sample: str) -> Path:
        """The folder of one sample, made if missing."""
        folder = self.folder / self.folder_name(sample)
        with writing(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def finish(self, summary: dict) -> Path:
        """Write samples.csv, then summary.json: the numbers of samples measured and skipped (by reason), the origin of
        the data, then `summary`. Raises ValueError for a row with a value without a column."""
        self.write_samples()
        head = {"n": self.done, "skipped": dict(self.skipped), **self.origins}
        return write_json(self.folder / SUMMARY, {**head, **summary})

    def write_samples(self) -> Path:
        """Write samples.csv."""
        rows = []
        for entry in self.entries():
            if unknown := set(entry.row) - set(self.columns[1:-1]):
                raise InputError(
                    "unknown-columns", f"unknown columns {sorted(unknown)}; samples.csv has {', '.join(self.columns)}"
                )
            values = (entry.row.get(column, "") for column in self.columns[1:-1])
            rows.append(dict(zip(self.columns, (entry.name, *values, entry.skipped), strict=True)))
        return write_table(self.folder / SAMPLES, rows, self.columns)
