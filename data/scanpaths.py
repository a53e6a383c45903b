"""Reader of scanpaths in JSON, JSONL and CSV, and their mapping to the cells of a model's image grid.

    python -m data.scanpaths --data-root X --count 8 --seed 0

A scanpath belongs to one image, given by its path below the data root, and is a list of fixations: x, y and optionally
`duration` and `time` (any unit of time, the same throughout). x points right and y down.

    JSON     {"units": "pixels", "scanpaths": [RECORD, ...]}, or just [RECORD, ...]
    JSONL    one RECORD per line
    CSV      image,x,y[,duration][,time][,units][,viewer][,task][,condition][,trial][,synthetic], one fixation per row;
             rows with equal image, viewer, task, condition and trial form one scanpath
    RECORD   {"image": "cats/tom.png", "units": "pixels", "fixations": [{"x": 31.5, "y": 80, "duration": 240}, ...]};
             a fixation may also be [x, y], [x, y, duration] or [x, y, duration, time]; further fields: "viewer",
             "task", "condition", "synthetic" (true if the fixations were generated), "display" [width, height]
    ARRAYS   {"name": "tom.jpg", "subject": 1, "task": "chair", "condition": "present", "X": [...], "Y": [...],
             "T": [...]}: a record of COCO-Search18 and COCO-FreeView, and of AiR-D and OSIE as distributed for
             GazeXplain; T has durations. The image path is <name>, else <task>/<name>.

The column or field of a viewer may also be named subject, participant, observer or user, with or without "_id".
`units` are stated in the record, for the whole JSON file, or by the caller if the file does not state them:

    pixels     of the original image (upright), from the outer edge of its top left pixel
    fractions  of its width and height, 0 to 1; 1 belongs to the last pixel
    patches    columns and rows of the model's grid; whole numbers are cells, 3.7 lies in cell 3
    display    pixels of a display with the letterboxed image: scaled to fit and centred. Needs the display's width and
               height, from the record or the caller. COCO-Search18's display has 1680 x 1050.

If any fixation of an image has a time, fixations are sorted by time, and those without one are dropped. Unusable
records and fixations are skipped with a reason. Each image has one scanpath: the first usable one of the chosen viewer,
task and condition. Further scanpaths, and records without a usable fixation, are skipped with their reasons.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import tyro

from data.errors import FlagError, InputError, MissingFileError, SampleError, Skip
from data.folders import root_fault
from data.geometry import ImageGrid
from data.twoshapes_scanpaths import generate

UNITS = ("pixels", "fractions", "patches", "display")
NUMBERED = r"([ _-]?(id|name|no|nr|num|number|index))?"
CHOICES = {  # fields and columns that distinguish the scanpaths of an image and by which a caller may choose
    "viewer": re.compile(f"(viewer|subject|subj|participant|observer|user){NUMBERED}", re.IGNORECASE),
    "task": re.compile(f"task{NUMBERED}", re.IGNORECASE),
    "condition": re.compile(f"condition{NUMBERED}", re.IGNORECASE),
}
TRIAL = re.compile(f"(trial|session|run|block|repetition){NUMBERED}", re.IGNORECASE)  # not to choose by
FIXATION_FIELDS = ("x", "y", "duration", "time")
RECORD_FIELDS = {"image", "units", "display", "fixations", "synthetic", "on", "length", "split"}
NO_DISPLAY = (
    "X and Y are pixels of a display of unknown size: give --display WIDTH HEIGHT (COCO-Search18: 1680 1050), or"
    " state the units in the record"
)
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # result of decoding bytes that are not UTF-8


class Fixation(NamedTuple):
    """One fixation in the scanpath's units; `number` counts from 0 in the record. `fault` is the reason why it is
    unusable, "" for none, and `duration_fault` why it is unusable where durations count."""

    number: int
    x: float | None
    y: float | None
    duration: float | None
    time: float | None
    fault: str = ""
    duration_fault: str = ""


class Scanpath(NamedTuple):
    """Ordered fixations on one image.

    image: path below the data root. units: one of UNITS. display: width and height in pixels, for units "display".
    synthetic: the record states that its fixations were generated.
    """

    image: str
    units: str
    fixations: tuple[Fixation, ...]
    display: tuple[float, float] | None = None
    synthetic: bool = False


class Cells(NamedTuple):
    """Scanpath on a model's grid: `points` (x, y) or (x, y, weight) in cells, and the `dropped` fixations."""

    points: list[tuple]
    dropped: list[Skip]


@dataclass(frozen=True)
class Scanpaths:
    """Usable scanpaths of one file by image (path below `root`), and the skipped records.

    names: values of "viewer", "task" and "condition" in the file. unread: its fields and columns that are not read.
    """

    root: Path
    by_image: dict[str, Scanpath]
    skipped: list[Skip]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def of(self, image: str | Path) -> Scanpath:
        """Scanpath of the image at path `image`. Raises SampleError if there is none."""
        path = Path(image).resolve()
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        if name not in self.by_image:
            known = ", ".join(list(self.by_image)[:3]) or "none"
            raise SampleError(
                "no scanpath", f"no scanpath for {name}; the file has {len(self.by_image)}, such as: {known}"
            )
        return self.by_image[name]


def read(
    path: str | Path, root: str | Path | None = None, units: str | None = None,
    display: tuple[float, float] | None = None, **chosen: str | None,
) -> Scanpaths:  # fmt: skip
    """Read the scanpaths of a file (.json, .jsonl or .csv) for images below `root` (default: the file's folder).

    units: pixels, fractions or patches, for a file that does not state its units. display: width and height in pixels,
    for a file in display pixels. chosen: `viewer`, `task`, `condition`, to read only these scanpaths. Raises
    FileNotFoundError for a missing file, ValueError for an invalid file, another file type or missing columns.
    """
    path = Path(path)
    root = Path(path.parent if root is None else root).resolve()
    request = _Request(units, display, {name: value for name, value in chosen.items() if value is not None})
    request.check()
    if path.suffix.lower() not in READERS:
        raise InputError("unknown-format", f"{path} is of no known kind; scanpaths come as {', '.join(READERS)}")
    if not path.is_file():
        raise MissingFileError("no-such-file", f"scanpath file {path} does not exist")
    by_image: dict[str, Scanpath] = {}
    skipped, names, unread = [], {name: {} for name in CHOICES}, {}
    try:
        for where, record in READERS[path.suffix.lower()](path):
            if isinstance(record, dict):
                unread |= dict.fromkeys(_unread(record))
                for name, known in names.items():
                    known[label(record, name)] = None
            try:
                scanpath = _scanpath(record, root, request)
                if scanpath.image in by_image:
                    raise SampleError("image has a scanpath already")
                by_image[scanpath.image] = scanpath
            except SampleError as error:
                skipped.append(Skip(where + _name_of(record), error.reason))
    except OSError as error:
        raise ValueError(f"scanpath file {path} cannot be read: {error.strerror}") from error
    names = {name: tuple(filter(None, known)) for name, known in names.items()}
    return Scanpaths(root, by_image, skipped, names, tuple(unread))


@dataclass(frozen=True)
class _Request:
    """Arguments of `read`: units and display of a file, and the choice among its scanpaths."""

    units: str | None
    display: tuple[float, float] | None
    chosen: dict[str, str]

    def check(self) -> None:
        """Raise ValueError for invalid settings."""
        if self.units is not None and self.units not in UNITS[:3]:
            raise InputError("unknown-units", f"units {self.units!r} are unknown; choose {', '.join(UNITS[:3])}")
        if unknown := set(self.chosen) - set(CHOICES):
            raise InputError(
                "unknown-selection", f"scanpaths cannot be chosen by {min(unknown)}; choose by {', '.join(CHOICES)}"
            )
        if self.display is None:
            return
        if self.units is not None:
            raise FlagError(
                "--display",
                "display-not-needed",
                f"--display belongs to fixations in its own pixels; leave --units {self.units} out",
            )
        if not _is_size(self.display):
            raise FlagError(
                "--display",
                "display-size",
                f"--display {' '.join(map(str, self.display))} must be a width and a height above 0",
            )


def label(record: dict, choice: str) -> str:
    """Viewer, task or condition of a record, "" for none."""
    values = (value for name, value in record.items() if isinstance(name, str) and CHOICES[choice].fullmatch(name))
    return "/".join(str(value).strip() for value in values if value is not None)


def _unread(record: dict) -> Iterator[str]:
    """Names of unread fields of a record and of its fixations."""
    fixations = record.get("fixations")
    items = fixations if isinstance(fixations, list) else []
    fields = {name for item in items if isinstance(item, dict) for name in item}
    patterns = (*CHOICES.values(), TRIAL)
    read = RECORD_FIELDS | ({"name", "X", "Y", "T"} if _is_arrays(record) else set())
    for name in sorted({*record, *fields} - read - set(FIXATION_FIELDS)):
        if name and not any(pattern.fullmatch(name) for pattern in patterns):
            yield name


def _read_json(path: Path) -> Iterator[tuple[str, object]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(
            "not-json", f"{path} is not valid JSON ({error}); one record per line is JSONL: name it .jsonl"
        ) from error
    whole = content if isinstance(content, dict) else {}
    common = {name: whole[name] for name in ("units", "display", "synthetic") if whole.get(name) is not None}
    records = content.get("scanpaths") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise InputError("no-records", f'{path} holds no list of records; expected [...] or {{"scanpaths": [...]}}')
    for number, record in enumerate(records):
        if isinstance(record, dict):
            record = common | {name: value for name, value in record.items() if value is not None}
        yield f"record {number}", record


def _read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = SampleError("line is not valid JSON")
            yield f"line {number}", record


def _read_csv(path: Path) -> Iterator[tuple[str, object]]:
    """One record per image, viewer, task, condition and trial, in the order of their first rows; an invalid row is a
    separate record with a SampleError."""
    rows = _csv_rows(path)
    header = [name.strip() for name in next(rows, (1, None))[1] or []]
    if missing := [name for name in ("image", "x", "y") if header.count(name) != 1]:
        raise InputError(
            "missing-columns",
            f"{path} has no column {missing[0]!r}, or two; its first line must name image, x and y: {header}",
        )
    keys = ["image", *(name for name in header if any(key.fullmatch(name) for key in (*CHOICES.values(), TRIAL)))]
    records: dict[tuple, dict] = {}
    for number, row in rows:
        cells = {name: cell.strip() or None for name, cell in zip(header, row or (), strict=False)}
        key = tuple(cells.get(name) for name in keys)
        if fault := _row_fault(header, row, cells, records.get(key)):
            yield f"line {number}", SampleError(fault)
            continue
        first = {name: cells[name] for name in (*keys, "units", "synthetic") if cells.get(name) is not None}
        records.setdefault(key, first | {"fixations": []})["fixations"].append(cells)
    yield from ((f"image {number}", record) for number, record in enumerate(records.values()))


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str] | None]]:
    """(number of the last line, from 1; cells) of each non-blank row; cells are None for an invalid row."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:  # spreadsheets write a byte order mark
        rows = csv.reader(lines, strict=True)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                row = None
            if row != []:
                yield rows.line_num, row


def _row_fault(header: list[str], row: list[str] | None, cells: dict, known: dict | None) -> str:
    """Reason why a CSV row is unusable, "" for none; `known` is the record that it would belong to."""
    if row is None:
        return "line is not valid CSV"
    if any(UNREADABLE in cell for cell in row):
        return "line is not UTF-8 text"
    if len(row) != len(header):
        return "row does not have one cell per column"
    if cells["image"] is None:
        return "no image name"
    return "units change within an image" if known and known.get("units") != cells.get("units") else ""


READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}


def _name_of(record: object) -> str:
    name = record.get("image", record.get("name")) if isinstance(record, dict) else None
    return f" ({name!r})" if isinstance(name, str) and name else ""


def _scanpath(record: object, root: Path, request: _Request) -> Scanpath:
    if isinstance(record, SampleError):
        raise record
    if not isinstance(record, dict):
        raise SampleError("record is not an object")
    image = record.get("image", record.get("name"))
    if not isinstance(image, str) or not image.strip():
        raise SampleError("no image name")
    for name, wanted in request.chosen.items():
        if label(record, name) != wanted:
            raise SampleError(f"not the {name} asked for")
    fixations = _from_arrays(record) if _is_arrays(record) else record.get("fixations")
    if not isinstance(fixations, list):
        raise SampleError("no list of fixations")
    units, display = _units(record, request)
    ordered = _in_order(fixations)
    if all(fixation.fault for fixation in ordered):
        raise SampleError(ordered[0].fault if ordered else "no fixation")
    # files of earlier versions of data.twoshapes_scanpaths have the target "on" instead of "synthetic"
    synthetic = str(record.get("synthetic", "on" in record)).lower() in ("true", "1", "yes")
    return Scanpath(_image_path(root, image.strip(), record.get("task")), units, ordered, display, synthetic)


def _is_arrays(record: dict) -> bool:
    """True if a record has one array per coordinate instead of a list of fixations."""
    return "fixations" not in record and ("X" in record or "Y" in record)


def _from_arrays(record: dict) -> list[list]:
    """Fixations [x, y] or [x, y, duration] of a record with arrays X, Y and optionally T."""
    arrays = [record.get(name) for name in "XYT" if name in "XY" or record.get(name) is not None]
    if not all(isinstance(array, list) for array in arrays):
        raise SampleError("X, Y or T is no list")
    if len({len(array) for array in arrays}) > 1:
        raise SampleError("X, Y and T differ in length")
    return [list(fixation) for fixation in zip(*arrays, strict=True)]


def _units(record: dict, request: _Request) -> tuple[str, tuple[float, float] | None]:
    """Units of a record and, for "display", the display's width and height."""
    stated, display = record.get("units"), record.get("display")
    if stated is not None and stated not in UNITS:
        raise SampleError("unknown units")
    if display is not None and not _is_size(display):
        raise SampleError("display is no width and height")
    display = request.display if display is None else tuple(display)
    if request.display and display != tuple(request.display):
        raise SampleError("display is not the one asked for")
    if request.units and stated and request.units != stated or request.display and stated not in (None, "display"):
        raise SampleError("units are not the ones asked for")
    # --units pixels is not accepted for arrays: display pixels may lie inside the image by chance
    assumed = request.units if not (_is_arrays(record) and request.units == "pixels") else None
    units = stated or ("display" if display else assumed)
    if units is None:
        raise SampleError(NO_DISPLAY if _is_arrays(record) else "units are not stated")
    if units == "display" and display is None:
        raise SampleError("the display's size is not stated: give --display WIDTH HEIGHT")
    return units, display if units == "display" else None


def _is_size(size: object) -> bool:
    """True for a width and a height: two finite numbers above 0."""
    if not isinstance(size, list | tuple) or len(size) != 2:
        return False
    return all(isinstance(side, int | float) and not isinstance(side, bool) and 0 < side < math.inf for side in size)


def _image_path(root: Path, image: str, task: object) -> str:
    """Path of the image below the root, or in the task's folder if only that exists."""
    path = _below(root, image)
    if isinstance(task, str) and task.strip() and not (root / path).is_file():
        of_task = _below(root, f"{task.strip()}/{image}")
        return of_task if (root / of_task).is_file() else path
    return path


def _below(root: Path, image: str) -> str:
    """Path of the image below the root, with links resolved and forward slashes."""
    try:
        image.encode()  # a name that is not valid Unicode could not be reported
        path = (root / image).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a loop of links
        raise SampleError("image name is no path") from error
    if path == root:
        raise SampleError("image name is no path")
    if fault := root_fault(root / image, root):
        raise SampleError(fault)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _in_order(raw: list) -> tuple[Fixation, ...]:
    """Fixations, sorted by time if any has one; those without a time are then appended as faults."""
    fixations = [_fixation(number, item) for number, item in enumerate(raw)]
    if all(fixation.time is None for fixation in fixations):
        return tuple(fixations)
    timed = sorted((f for f in fixations if f.time is not None), key=lambda fixation: fixation.time)
    untimed = (f._replace(fault=f.fault or "no time, though others have one") for f in fixations if f.time is None)
    return (*timed, *untimed)


def _fixation(number: int, item: object) -> Fixation:
    if isinstance(item, list):
        item = dict(zip(FIXATION_FIELDS, item, strict=False)) if 2 <= len(item) <= 4 else None
    if not isinstance(item, dict):
        return Fixation(number, math.nan, math.nan, None, None, "not a fixation")
    numbers, faults = {}, {}
    for name in FIXATION_FIELDS:
        numbers[name], fault = _number(item.get(name))
        if fault:
            faults[name] = f"{name} is {fault}"
    if (numbers["duration"] or 0) < 0:
        faults["duration"] = "duration is negative"
    duration_fault = faults.pop("duration", "")
    fault = next(iter(faults.values()), "no x or no y" if None in (numbers["x"], numbers["y"]) else "")
    return Fixation(number, **numbers, fault=fault, duration_fault=duration_fault)


def _number(value: object) -> tuple[float | None, str]:
    """(finite number or None, fault); (None, "") for an absent value."""
    if value is None:
        return None, ""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None, "not a number"
    try:
        number = float(value)
    except ValueError:
        return None, "not a number"
    except OverflowError:
        number = math.inf
    return (number, "") if math.isfinite(number) else (None, "not finite")


def to_cells(scanpath: Scanpath, grid: ImageGrid, trajectory: bool = False, by_duration: bool = False) -> Cells:
    """Map a scanpath to cells in order, one entry per fixation inside the model's grid.

    trajectory: adds the cells on the line between consecutive fixations (`line`), each once per line. A dropped
    fixation interrupts the path. by_duration: points are (x, y, duration); fixations without a duration > 0 are
    dropped, and a cell on a line has the shorter duration of its two ends. `models/gaze.py` defines the weights of a
    mask: Gaussians are summed with them, the connected decay of a point is scaled by them, windows ignore them.
    """
    points, dropped, last = [], [], None
    for fixation in scanpath.fixations:
        point, reason = _cell(scanpath, fixation, grid, by_duration)
        if reason:
            dropped.append(Skip(f"{scanpath.image} fixation {fixation.number}", reason))
            last = None
            continue
        if trajectory and last is not None:
            weight = (min(last[2], fixation.duration),) if by_duration else ()
            points += [(*cell, *weight) for cell in line(last[:2], point)]
        last = (*point, fixation.duration) if by_duration else point
        points.append(last)
    return Cells(points, dropped)


def _cell(
    scanpath: Scanpath, fixation: Fixation, grid: ImageGrid, by_duration: bool
) -> tuple[tuple[int, int] | None, str]:
    """((x, y) in cells, "") of a fixation, or (None, reason) if it is dropped."""
    units = scanpath.units
    if fixation.fault:
        return None, fixation.fault
    if by_duration and (fixation.duration_fault or not fixation.duration):
        return None, fixation.duration_fault or "no duration"
    x, y = fixation.x, fixation.y
    if units == "patches":
        inside = 0 <= x < grid.cols and 0 <= y < grid.rows
        return ((math.floor(x), math.floor(y)), "") if inside else (None, "outside the grid")
    if units == "fractions":
        x, y = _pixel(x, grid.width), _pixel(y, grid.height)
    if units == "display":
        if not (0 <= x < scanpath.display[0] and 0 <= y < scanpath.display[1]):
            return None, "outside the display"
        x, y = from_display(x, y, scanpath.display, (grid.width, grid.height))
    if not (0 <= x < grid.width and 0 <= y < grid.height):
        return None, "beside the image on the display" if units == "display" else "outside the image"
    cell = grid.cell_at(x, y)
    return (None, "cropped away") if cell is None else ((cell[1], cell[0]), "")


def from_display(x: float, y: float, display: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """Map a display pixel (x, y) to a pixel of an image of `size` (width, height), scaled to fit and centred.

    `display` is its (width, height) in pixels; points on the letterbox bars map to points outside the image.
    """
    scale = min(display[0] / size[0], display[1] / size[1])
    left, top = ((whole - scale * side) / 2 for whole, side in zip(display, size, strict=True))
    return (x - left) / scale, (y - top) / scale


def _pixel(fraction: float, size: int) -> float:
    """Pixel coordinate of a fraction of `size` pixels; 1, the image border, belongs to the last pixel."""
    return math.nextafter(size, 0) if fraction == 1 else fraction * size


def line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells (x, y) strictly between two cells, on the straight line between their centres, in order.

    Supercover line: every cell whose interior is crossed. Where the line passes exactly through a corner it continues
    diagonally, without the two cells that it only touches. Integer arithmetic, so the reverse line has the same cells.
    """
    (x, y), (width, height) = start, (abs(end[0] - start[0]), abs(end[1] - start[1]))
    right, down = (1 if end[0] > start[0] else -1), (1 if end[1] > start[1] else -1)
    cells, across, along = [], 0, 0
    while (across, along) != (width, height):
        # The next column starts at (1 + 2 across) / (2 width) of the line, the next row at (1 + 2 along) / (2 height).
        column, row = (1 + 2 * across) * height, (1 + 2 * along) * width
        across, along = across + (column <= row), along + (row <= column)
        cells.append((x + right * across, y + down * along))
    return cells[:-1]


@dataclass(frozen=True)
class Config:
    """Write synthetic scanpaths for a two-shapes set: on the first shape, the second shape and the background."""

    data_root: Path
    """Folder made by `python -m data.twoshapes`; the three files are written into it."""
    count: int = 8
    """Fixations per image."""
    seed: int = 0
    """Random seed; equal seeds give equal bytes."""
    jitter: float = 0.5
    """Standard deviation of fixations around a shape's centre, in halves of its shorter side."""
    clearance: float = 0.1
    """Minimum distance of background fixations from both boxes, as a share of the image side."""


def main(config: Config) -> int:
    try:
        files, skipped = generate(config.data_root, config.count, config.seed, config.jitter, config.clearance)
    except (OSError, ValueError) as error:
        print(f"nothing written: {error}", file=sys.stderr)
        return 2
    for path in files.values():
        print(path)
    for skip in skipped:
        print(f"left out: {skip.id}: {skip.reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
