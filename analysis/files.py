"""Files of a run: tables, JSON, arrays, maps and figures, each complete under its name.

Every file is written under a partial name and then renamed. In every CSV file, a single quote precedes a text that a
spreadsheet would run as a formula (`= + - @` at its start, or a tab or line break), as OWASP advises against CSV
injection; numbers are unchanged. `read_table` removes the quote, so a text is read back as it was written.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Number
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from data.errors import InputError

FOOT_SIZE, FOOT_COLUMNS, FOOT_LINE = 6, 22, 0.11  # points; characters per inch and inches per line at that size
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # with leading quotes, so that a text keeps its own quotes
NUMERAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class OutputError(OSError):
    """Error in writing a result; the message is one sentence with the result, its path and the reason."""


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


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Convert a system error while writing `path` (disk full, no permission, ...) into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"could not write {path}: {(error.strerror or str(error)).lower()}; free space or pass another --out-dir"
        ) from error


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


def write_json(path: str | Path, values) -> Path:
    """Write JSON with paths as text, arrays as lists, dataclasses as objects, and null for non-finite numbers."""
    text = json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False)
    data = (text + "\n").encode("utf-8", errors="backslashreplace")
    return write_whole(path, lambda partial: partial.write_bytes(data))


def plain(value):
    """Convert `value` to JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_table(path: str | Path, rows: Sequence[dict], columns: Sequence[str] | None = None) -> Path:
    """Write rows with the same keys as CSV, under `columns` (default: the keys of the first row)."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            names = list(rows[0] if columns is None else columns)
            table = csv.DictWriter(file, names)
            table.writerow({name: to_cell(name) for name in names})
            table.writerows({name: to_cell(value) for name, value in row.items()} for row in rows)

    return write_whole(path, write)


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file from `RunFolder` or `write_table`, by column; cells are the texts as written."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, restkey="", restval=""))
    return [{_from_cell(name): _from_cell(cell) for name, cell in row.items() if name} for row in rows]


def to_cell(value):
    """A value as a CSV cell: numbers unchanged, a text that a spreadsheet would run after a single quote."""
    if value is None or isinstance(value, Number):
        return value
    text = str(value)
    return f"'{text}" if FORMULA.match(text) and not NUMERAL.fullmatch(text) else text


def _from_cell(text: str) -> str:
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def save_arrays(path: str | Path, **arrays: np.ndarray) -> Path:
    """Write arrays under their names as a compressed .npz file."""
    return write_whole(path, lambda partial: np.savez_compressed(partial, **arrays))


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
