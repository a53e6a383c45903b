"""Results folder of a run (settings.json, samples.csv, figures and maps per sample, summary.json) and the sample loop.

The loop measures the samples in order and counts each skipped sample by reason. Each row is written at once; every
other file is written under a partial name and then renamed, so a file under its final name is complete. A folder
without summary.json is an unfinished run.

In every CSV file, a single quote precedes a text that a spreadsheet would run as a formula (`= + - @` at its start, or
a tab or line break), as OWASP advises against CSV injection; numbers are unchanged. `read_table` removes the quote, so
a text is read back as it was written.
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

from data.errors import InputError, SampleError

SETTINGS, SUMMARY = "settings.json", "summary.json"
LOCK = ".lock"  # held by the run that writes into the folder (analysis.processes)
AT_START = {LOCK, f"partial-{SETTINGS}"}  # files left by a run that was killed at its start
RESULTS = {".csv", ".html", ".json", ".md", ".npy", ".npz", ".png"}  # suffixes of the files of a run
FREE_FLAGS = ("out_dir", "batch_size")  # flags that do not affect a result
PACKAGES = ("torch", "transformers", "numpy", "pillow")
FOOT_SIZE, FOOT_COLUMNS, FOOT_LINE = 6, 22, 0.11  # points; characters per inch and inches per line at that size
ORIGINS = ("data", "fixations")  # in settings.json: each has a `line`, repeated in figures and the page, and a `label`
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # with leading quotes, so that a text keeps its own quotes
NUMERAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class OutputError(OSError):
    """Error in writing a result; the message is one sentence with the result, its path and the reason."""


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


@dataclasses.dataclass(frozen=True)
class Output:
    """Folder of the results."""

    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    def folder(self, config, about: str) -> Path:
        """The folder, checked as `refuse_existing` does."""
        return refuse_existing(self.place(config, about))

    def place(self, config, about: str) -> Path:
        """The folder, not checked. Its default name holds the script that defines the class of `config`, and `about`,
        a model."""
        return Path(self.out_dir or default_out_dir(inspect.getfile(type(config)), about))


def flat_flags(config) -> dict:
    """Every flag of a config with its value, by its name with underscores; flags of groups have no prefix."""
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
        raise InputError(
            "other-settings",
            f"{folder} holds a run with other settings ({differences}): pass another --out-dir, or remove the folder",
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
        raise InputError("foreign-folder", f"{path} is not of this script; pass another --out-dir") from error
    names = [name for name in {**there, **here} if name not in FREE_FLAGS and there.get(name) != here.get(name)]
    return ", ".join(f"{name.replace('_', ' ')} {there.get(name)!r}, now {here.get(name)!r}" for name in names)


def check_place(path: Path, called: str) -> None:
    """Raise ValueError if `path`, named `called` in the message, cannot be created or written. Creates no file.

    The test opens an unnamed file in the nearest existing folder: permissions alone do not reveal system folders or a
    read-only disk.
    """
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise InputError(
            "folder-not-writable", f"{called} {path} cannot be made: {above} is no folder that you may write to"
        ) from error


def provenance() -> dict:
    """First entries of every settings.json: the command line, the time, and the versions that affect results."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"command": sys.argv, "started": started, "versions": versions}


class RunFolder:
    """Results of one run. The columns of samples.csv are fixed at the start: sample, `columns`, skipped."""

    def __init__(self, folder: str | Path, columns: Sequence[str]):
        self.folder = Path(folder)
        self.columns = ("sample", *columns, "skipped")
        self.done = 0
        self.skipped = Counter()
        self.views: list[dict] = []  # views of samples for the run's page (analysis.gallery)
        self.origins: dict[str, dict] = {}  # by ORIGINS; in summary.json and the foot of every figure
        self._folders = dict.fromkeys((SETTINGS, "samples.csv", SUMMARY))  # used names -> their sample
        self._append(self.columns)

    @classmethod
    def create(cls, out_dir: str | Path, settings: dict, columns: Sequence[str]) -> RunFolder:
        """Make `out_dir` and write settings.json into it.

        settings: from the caller: every flag, model id and revision, seed, device, and under ORIGINS the fields of
        `data.folders.Source` and `data.gaze_samples.GazeSource`. The command line, the time and the versions are added.
        Raises FileExistsError if `out_dir` is not empty.
        """
        out_dir = refuse_existing(out_dir)
        with writing(out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
        write_json(out_dir / SETTINGS, {**provenance(), **settings})
        run = cls(out_dir, columns)
        run.origins = {name: settings[name] for name in ORIGINS if name in settings}
        return run

    def add(self, sample: str, **values) -> None:
        """Write the row of a measured sample; a column without a value stays empty.

        Raises ValueError for a value without a column, OutputError if the row cannot be written.
        """
        unknown = set(values) - set(self.columns[1:-1])
        if unknown:
            raise InputError(
                "unknown-columns", f"unknown columns {sorted(unknown)}; samples.csv has {', '.join(self.columns)}"
            )
        self._append([sample, *(values.get(column, "") for column in self.columns[1:])])
        self.done += 1

    def skip(self, sample: str, reason: str) -> None:
        """Write the row of a skipped sample and count it under `reason`."""
        self._append([sample, *("" for _ in self.columns[1:-1]), reason])
        self.skipped[reason] += 1

    def save(self, picture: Image.Image | Figure, *path: str) -> Path:
        """Write a PIL image, or a matplotlib figure with the origin of the data below it, to folder/*path (a .png)."""
        target = self.folder.joinpath(*path)
        if isinstance(picture, Figure):
            picture = draw(picture, "; ".join(origin["line"] for origin in self.origins.values()))
        return write_whole(target, picture.save)

    def sample_folder(self, sample: str) -> Path:
        """The folder of one sample, under a safe name; repeated calls return the same folder."""
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
        """Write summary.json: the numbers of samples measured and skipped (by reason), the origin of the data, then
        `summary`."""
        head = {"n": self.done, "skipped": dict(self.skipped), **self.origins}
        return write_json(self.folder / SUMMARY, {**head, **summary})

    def _append(self, cells: Sequence) -> None:
        path = self.folder / "samples.csv"
        with writing(path), open(path, "a", newline="", encoding="utf-8", errors="backslashreplace") as table:
            csv.writer(table).writerow(map(_to_cell, cells))


def draw(figure: Figure, foot: str) -> Image.Image:
    """Render a matplotlib figure as an image, cropped to its content, above the lines of `foot` unless that is empty.

    The lines are a separate image, because a text below the figure's edge would shift its outer legends.
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
    """Write folder/name, the raw maps of one sample with their geometry.

    maps: has per_token [token, row, col], mean and max [row, col]. tokens: the generated tokens as text.
    rows: the attention row of a token's map ("predicting" or "query"). grid: as in `analysis.overlay`, with
    `rect(row, col)`. The file holds no pickle: `numpy.load` with its defaults reads it. Besides the maps (float32),
    `tokens` and `rows` it holds `cells` [row, col, 4], left, top, right, bottom of each cell in pixels of the original
    image, and the grid's `image_size` and `resized` (width, height), `offset` (left, top) and `cell`; `further` numbers
    and arrays, such as the settings of the rollout, keep their own names. An unknown grid is None: the maps are then
    one row of image tokens, and the geometry is NaN. Raises ValueError for maps whose size differs from that of grid
    and tokens.
    """
    per_token, mean, top = (np.asarray(array, np.float32) for array in (maps.per_token, maps.mean, maps.max))
    shape = (1, per_token.shape[-1]) if grid is None else (grid.rows, grid.cols)
    if per_token.shape != (len(tokens), *shape) or mean.shape != shape or top.shape != shape:
        raise InputError(
            "map-size",
            f"maps of shape {per_token.shape}, {mean.shape} and {top.shape} do not fit {len(tokens)} tokens on a grid"
            f" of {shape[0]} rows x {shape[1]} columns",
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
    """Left, top, right and bottom of every cell in pixels of the original image, float32 [row, col, 4]."""
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
    """Write rows with the same keys as CSV, under `columns` (default: the keys of the first row)."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            names = list(rows[0] if columns is None else columns)
            table = csv.DictWriter(file, names)
            table.writerow({name: _to_cell(name) for name in names})
            table.writerows({name: _to_cell(value) for name, value in row.items()} for row in rows)

    return write_whole(path, write)


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file from `RunFolder` or `write_table`, by column; cells are the texts as written."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, restkey="", restval=""))
    return [{_from_cell(name): _from_cell(cell) for name, cell in row.items() if name} for row in rows]


def _to_cell(value):
    """A value as a CSV cell: numbers unchanged, a text that a spreadsheet would run after a single quote."""
    if value is None or isinstance(value, Number):
        return value
    text = str(value)
    return f"'{text}" if FORMULA.match(text) and not NUMERAL.fullmatch(text) else text


def _from_cell(text: str) -> str:
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def write_json(path: str | Path, values) -> Path:
    """Write JSON with paths as text, arrays as lists, dataclasses as objects, and null for non-finite numbers."""
    text = json.dumps(_plain(values), indent=2, ensure_ascii=False, allow_nan=False)
    data = (text + "\n").encode("utf-8", errors="backslashreplace")
    return write_whole(path, lambda partial: partial.write_bytes(data))


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write(partial path)`, then rename the result to `path`, so that a file of that name is complete."""
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
    """Convert a system error while writing `path` (disk full, no permission, ...) into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"could not write {path}: {(error.strerror or str(error)).lower()}; free space or pass another --out-dir"
        ) from error


def _plain(value):
    """Convert `value` to JSON types."""
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
    """Add the row that `measure(sample)` returns for each sample to the run; return the rows, in order.

    A sample (any object with a `name`) that raises SampleError or runs out of memory is reported on stderr and counted
    under its reason. Any other error ends the run.
    unusable: (name, reason) of samples that were rejected before.
    """
    return measure_batches(run, samples, lambda batch: [measure(batch[0])], 1, unusable)


def measure_batches(
    run: RunFolder,
    samples: Sequence,
    measure: Callable[[Sequence], list[dict]],
    size: int,
    unusable: Iterable[tuple[str, str]] = (),
) -> list[dict]:
    """`measure_each` in batches: `measure(batch)` returns one row for each of up to `size` samples.

    If a batch holds a bad sample, its samples are measured one by one.
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
    return [failed] if len(batch) == 1 else [found for one in batch for found in attempt(measure, [one])]


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is an out-of-memory error; torch's CPU allocator raises a generic RuntimeError for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
