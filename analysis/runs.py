"""The folder a run leaves behind: settings.json, samples.csv, pictures and maps per sample, summary.json.

Rows are written as they come and every other file is written beside its name and then moved there, so what stands under
its final name is complete: a folder without summary.json is a run that did not finish.

A text that a spreadsheet would run as a formula (`= + - @` at its start, or a tab or line break) has a single quote put
before it in every CSV file, as OWASP advises against CSV injection; numbers stay as they are. `read_table` takes the
quote away, so that a text is read back as it was written.

The loop of every script: one sample after the other, each measured or counted by the reason why not.
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import math
import os
import platform
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from numbers import Number
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from data.errors import SampleError

SETTINGS, SUMMARY = "settings.json", "summary.json"
LOCK = ".lock"  # held by the run that writes into the folder (analysis.processes)
AT_START = {LOCK, f"partial-{SETTINGS}"}  # files that a run killed at its start leaves
RESULTS = {".csv", ".html", ".json", ".md", ".npy", ".npz", ".png"}  # suffixes of the files of a run
FREE_FLAGS = ("out_dir", "batch_size")  # flags that do not decide a result
PACKAGES = ("torch", "transformers", "numpy", "pillow")
FOOT_SIZE, FOOT_COLUMNS, FOOT_LINE = 6, 22, 0.11  # points; characters to an inch and inches to a line at that size
ORIGINS = ("data", "fixations")  # of settings.json: each has a `line`, which figures and the page repeat, and a `label`
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # quotes before it, so that a text which has some keeps them
NUMERAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class OutputError(OSError):
    """A result could not be written; the message is one sentence for the user (what, where, why)."""


def default_out_dir(script: str, model: str) -> Path:
    """results/<script>/<model's last name>-<date-time>, with a number behind it where that already exists."""
    name = re.sub(r"[^\w.-]", "-", Path(model).name or Path(model).resolve().name)
    base = Path("results") / Path(script).stem / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def refuse_existing(out_dir: str | Path) -> Path:
    """Return `out_dir` as a Path if it is new or an empty folder that can be written. Creates nothing.

    Files that a run leaves when it is killed at its start (AT_START) do not count.

    Raises FileExistsError where something lies in it already, ValueError where it cannot be made.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not (out_dir.is_dir() and {path.name for path in out_dir.iterdir()} <= AT_START):
        raise FileExistsError(
            f"the output folder {out_dir} exists and is not empty, and nothing is ever overwritten:"
            " pass another --out-dir or remove it"
        )
    check_place(out_dir, "the output folder")
    return out_dir


@dataclasses.dataclass(frozen=True)
class Output:
    """Place of the results."""

    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    def folder(self, config, about: str) -> Path:
        """The folder, checked as `refuse_existing` does."""
        return refuse_existing(self.place(config, about))

    def place(self, config, about: str) -> Path:
        """The folder, not checked. Its default name is that of the script that defines the class of `config`, and of
        `about`, a model."""
        return Path(self.out_dir or default_out_dir(inspect.getfile(type(config)), about))


def flat_flags(config) -> dict:
    """Every flag of a config with its value, by its name with underscores; a group of flags adds its own."""
    flags = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flags |= flat_flags(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return flags


def is_finished(folder: Path, settings: Mapping[str, Mapping]) -> bool:
    """Return whether `folder` holds the finished run of these settings. Removes the files of an unfinished one.

    settings: the values under "flags" and "fingerprints" of settings.json; FREE_FLAGS are not compared.
    Raises ValueError for a run with other settings, FileExistsError for a folder with other files.
    """
    if not (folder / SETTINGS).is_file():
        refuse_existing(folder)
        return False
    if differences := _differences(folder / SETTINGS, settings):
        raise ValueError(
            f"{folder} holds a run with other settings ({differences}): pass another --out-dir, or remove the folder"
        )
    if (folder / SUMMARY).is_file():
        return True
    paths = [path for path in folder.iterdir() if path.name != LOCK]
    if others := [path.name for path in paths if path.suffix not in RESULTS or not path.is_file()]:
        raise FileExistsError(
            f"{folder} holds an unfinished run and other files ({', '.join(others)}): move them away, or pass another"
            " --out-dir"
        )
    for path in sorted(paths, key=lambda path: path.name == SETTINGS):  # last: it identifies the folder
        path.unlink()
    return False


def _differences(path: Path, settings: Mapping[str, Mapping]) -> str:
    """Settings that differ from those in settings.json at `path`, with both values; "" for none."""
    here = _plain({**settings["flags"], **settings["fingerprints"]})
    try:
        known = json.loads(path.read_bytes())
        there = {**known["flags"], **known["fingerprints"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of this script; pass another --out-dir") from error
    names = [name for name in {**there, **here} if name not in FREE_FLAGS and there.get(name) != here.get(name)]
    return ", ".join(f"{name.replace('_', ' ')} {there.get(name)!r}, now {here.get(name)!r}" for name in names)


def check_place(path: Path, called: str) -> None:
    """Raises ValueError where `path`, which the message calls so, could not be made or written. Leaves nothing there.

    Asked is the nearest folder that exists, by a file without a name: permissions alone do not tell of a system's own
    folders, and not of a disk that can only be read.
    """
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ValueError(f"{called} {path} cannot be made: {above} is no folder that you may write to") from error


def provenance() -> dict:
    """First entries of every settings.json: the command line, the time, and the versions that decide results."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"command": sys.argv, "started": started, "versions": versions}


class RunFolder:
    """Results of one run. `columns` of samples.csv are fixed from the start: sample, the given ones, skipped."""

    def __init__(self, folder: str | Path, columns: Sequence[str]):
        self.folder = Path(folder)
        self.columns = ("sample", *columns, "skipped")
        self.done = 0
        self.skipped = Counter()
        self.views: list[dict] = []  # of samples, for the run's page (analysis.gallery)
        self.origins: dict[str, dict] = {}  # by ORIGINS, for summary.json and the foot of every figure
        self._folders = dict.fromkeys((SETTINGS, "samples.csv", SUMMARY))  # taken names -> their sample
        self._append(self.columns)

    @classmethod
    def create(cls, out_dir: str | Path, settings: dict, columns: Sequence[str]) -> RunFolder:
        """Make `out_dir` and write settings.json into it.

        settings: what the caller alone knows: every flag, model id and revision, seed, device, and under ORIGINS the
        facts of `data.folders.Source` and `data.gaze_samples.GazeSource`. The command line, the time and the versions
        are added.
        Raises FileExistsError where `out_dir` holds anything already.
        """
        out_dir = refuse_existing(out_dir)
        with writing(out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
        write_json(out_dir / SETTINGS, {**provenance(), **settings})
        run = cls(out_dir, columns)
        run.origins = {name: settings[name] for name in ORIGINS if name in settings}
        return run

    def add(self, sample: str, **values) -> None:
        """One row for a sample that was measured; a column that is not given stays empty.

        Raises ValueError for a value without a column, OutputError where the row cannot be written.
        """
        unknown = set(values) - set(self.columns[1:-1])
        if unknown:
            raise ValueError(f"unknown columns {sorted(unknown)}; samples.csv has {', '.join(self.columns)}")
        self._append([sample, *(values.get(column, "") for column in self.columns[1:])])
        self.done += 1

    def skip(self, sample: str, reason: str) -> None:
        """One row for a sample that could not be measured, counted under `reason`."""
        self._append([sample, *("" for _ in self.columns[1:-1]), reason])
        self.skipped[reason] += 1

    def save(self, picture: Image.Image | Figure, *path: str) -> Path:
        """Write a PIL image, or a matplotlib figure with the origin of the data below it, to folder/*path (a .png)."""
        target = self.folder.joinpath(*path)
        if isinstance(picture, Figure):
            picture = draw(picture, "; ".join(origin["line"] for origin in self.origins.values()))
        return write_whole(target, picture.save)

    def sample_folder(self, sample: str) -> Path:
        """A folder of its own for a sample, whatever characters its name has; the same one when asked again."""
        plain = re.sub(r"[^\w.-]", "-", str(sample)).strip(".")[:80] or "sample"
        name, number = plain, 1
        while self._folders.setdefault(name, sample) != sample:
            number += 1
            name = f"{plain}-{number}"
        folder = self.folder / name
        with writing(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def finish(self, summary: dict) -> Path:
        """Write summary.json: the numbers of samples measured and skipped (by reason), the origin of the data, then the
        caller's figures."""
        head = {"n": self.done, "skipped": dict(self.skipped), **self.origins}
        return write_json(self.folder / SUMMARY, {**head, **summary})

    def _append(self, cells: Sequence) -> None:
        path = self.folder / "samples.csv"
        with writing(path), open(path, "a", newline="", encoding="utf-8", errors="backslashreplace") as table:
            csv.writer(table).writerow(map(_to_cell, cells))


def draw(figure: Figure, foot: str) -> Image.Image:
    """A matplotlib figure as an image, cropped to its content, above the lines of `foot`, where that is not empty.

    The lines are an image of their own, since a text below the figure's edge would shift its outer legends.
    """
    above = _rasterise(figure, bbox_inches="tight", pad_inches=0.05)
    if not foot:
        return above
    width = above.width / figure.dpi
    lines = textwrap.wrap(foot, max(20, int(FOOT_COLUMNS * width)), break_long_words=False, break_on_hyphens=False)
    strip = Figure(figsize=(width, FOOT_LINE * len(lines) + 0.05), dpi=figure.dpi)
    strip.text(0.05 / width, 1, "\n".join(lines), fontsize=FOOT_SIZE, color="0.35", va="top", parse_math=False)
    below = _rasterise(strip)
    whole = Image.new("RGB", (above.width, above.height + below.height), "white")
    whole.paste(above, (0, 0))
    whole.paste(below, (0, above.height))
    return whole


def _rasterise(figure: Figure, **options) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", **options)
    return Image.open(file).convert("RGB")


def save_maps(
    folder: str | Path, maps, tokens: Sequence[str], rows: str, grid, name: str = "maps.npz", **further
) -> Path:
    """Write folder/name, the raw maps of one sample with what is needed to read them later.

    maps: has per_token [token, row, col], mean and max [row, col]. tokens: the generated tokens as text.
    rows: which attention row a token's map is ("predicting" or "query"). grid: as in `analysis.overlay`, with
    `rect(row, col)`. The file holds no pickle: `numpy.load` with its defaults reads it. Besides the maps (float32),
    `tokens` and `rows` there are `cells` [row, col, 4], left, top, right, bottom of each cell in the original picture's
    pixels, and the grid's `image_size` and `resized` (width, height), `offset` (left, top) and `cell`; `further`
    numbers and arrays stand there under their own names, such as the settings of the rollout. A grid that is not known
    is None: the maps are one row of image tokens then, and all that would say where they lie is NaN. Raises ValueError
    for maps of another size than grid and tokens say.
    """
    per_token, mean, top = (np.asarray(array, np.float32) for array in (maps.per_token, maps.mean, maps.max))
    shape = (1, per_token.shape[-1]) if grid is None else (grid.rows, grid.cols)
    if per_token.shape != (len(tokens), *shape) or mean.shape != shape or top.shape != shape:
        raise ValueError(
            f"maps of shape {per_token.shape}, {mean.shape} and {top.shape} do not fit {len(tokens)} tokens on a grid"
            f" of {shape[0]} rows x {shape[1]} columns"
        )
    arrays = {
        "per_token": per_token, "mean": mean, "max": top, "tokens": np.array(tokens, dtype=str), "rows": np.array(rows),
        **_geometry(grid, shape), **{name: np.array(value) for name, value in further.items()},
    }  # fmt: skip
    return save_arrays(Path(folder) / name, **arrays)


def save_arrays(path: str | Path, **arrays: np.ndarray) -> Path:
    """Write arrays under their names as a compressed .npz file."""
    return write_whole(path, lambda partial: np.savez_compressed(partial, **arrays))


def cell_rects(grid) -> np.ndarray:
    """Left, top, right and bottom of every cell in the original picture's pixels, float32 [row, col, 4]."""
    cells = [[grid.rect(row, col) for col in range(grid.cols)] for row in range(grid.rows)]
    return np.array(cells, np.float32)


def _geometry(grid, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Rectangles of the cells in the image, as in `save_maps`."""
    if grid is None:
        pair, cells = np.full(2, np.nan), np.full((*shape, 4), np.nan, np.float32)
        return {"cells": cells, "image_size": pair, "resized": pair, "offset": pair, "cell": np.array(np.nan)}
    return {
        "cells": cell_rects(grid), "image_size": np.array([grid.width, grid.height]),
        "resized": np.array(grid.resized), "offset": np.array(grid.offset), "cell": np.array(grid.cell),
    }  # fmt: skip


def write_table(path: str | Path, rows: Sequence[dict], columns: Sequence[str] | None = None) -> Path:
    """Rows with the same keys as CSV, under `columns` (default: the keys of the first row)."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            names = list(rows[0] if columns is None else columns)
            table = csv.DictWriter(file, names)
            table.writerow({name: _to_cell(name) for name in names})
            table.writerows({name: _to_cell(value) for name, value in row.items()} for row in rows)

    return write_whole(path, write)


def read_table(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file that `RunFolder` or `write_table` wrote, by column; cells are the texts as written."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, restkey="", restval=""))
    return [{_from_cell(name): _from_cell(cell) for name, cell in row.items() if name} for row in rows]


def _to_cell(value):
    """A value as a CSV file holds it: numbers as they are, a text that a spreadsheet would run behind a quote."""
    if value is None or isinstance(value, Number):
        return value
    text = str(value)
    return f"'{text}" if FORMULA.match(text) and not NUMERAL.fullmatch(text) else text


def _from_cell(text: str) -> str:
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def write_json(path: str | Path, values) -> Path:
    """JSON with paths as text, arrays as lists, dataclasses as objects, and null for what is not a finite number."""
    text = json.dumps(_plain(values), indent=2, ensure_ascii=False, allow_nan=False)
    data = (text + "\n").encode("utf-8", errors="backslashreplace")
    return write_whole(path, lambda partial: partial.write_bytes(data))


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write(partial path)`, then move the result to `path`: nobody ever sees half a file under that name."""
    path = Path(path)
    partial = path.with_name(f"partial-{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn the system's error while writing `path` (disk full, no permission, ...) into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"could not write {path}: {(error.strerror or str(error)).lower()}; free space or pass another --out-dir"
        ) from error


def _plain(value):
    """`value` in JSON's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def measure_each(
    run: RunFolder,
    samples: Sequence,
    measure: Callable[..., dict],
    unusable: Iterable[tuple[str, str]] = (),
) -> list[dict]:
    """Adds the row that `measure(sample)` returns for each sample to the run; returns the rows, in order.

    A sample (anything with a `name`) that raises SampleError is reported on stderr and counted under its reason; so is
    one for which memory runs out. Any other error ends the run.
    `unusable` are (name, reason) of samples that were given up before.
    """
    return measure_batches(run, samples, lambda batch: [measure(batch[0])], 1, unusable)


def measure_batches(
    run: RunFolder,
    samples: Sequence,
    measure: Callable[[Sequence], list[dict]],
    size: int,
    unusable: Iterable[tuple[str, str]] = (),
) -> list[dict]:
    """As `measure_each`, with `measure(batch)` for up to `size` samples at a time, which returns a row for each.

    Where a batch holds a bad sample, its samples are measured one by one.
    """
    for name, reason in unusable:
        run.skip(name, reason)
    rows = []
    with tqdm(total=len(samples), unit="sample") as progress:
        for first in range(0, len(samples), size):
            batch = samples[first : first + size]
            for sample, found in zip(batch, attempt(measure, batch), strict=True):
                progress.update()
                if isinstance(found, Exception):
                    tqdm.write(f"skipped {sample.name}: {found}", file=sys.stderr)
                    run.skip(sample.name, found.reason)
                    continue
                run.add(sample.name, **found)
                rows.append(found)
    return rows


def attempt(measure: Callable[[Sequence], list], batch: Sequence) -> list:
    """The result of `measure(batch)` for each sample of a batch, or the SampleError of a sample that has none."""
    try:
        return measure(batch)
    except SampleError as error:
        failed = error.with_traceback(None)  # whose frames would keep what was recorded
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        failed = SampleError("out of memory", "out of memory; fewer or smaller pictures or half precision may fit")
    torch.cuda.empty_cache()  # here, where the error and its frames are gone
    return [failed] if len(batch) == 1 else [found for one in batch for found in attempt(measure, [one])]


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; torch's CPU allocator has no exception of its own for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
