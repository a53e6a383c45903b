"""Render a run folder as one self-contained page, report.html, and sections of text as an HTML page or Markdown.

    write_report(run.folder)                           at the end of a script
    python -m analysis.report results/some/run         for an unfinished run, or a folder without a page

report.html works without network or server. It holds the numbers of summary.json with their intervals, the figures,
the rows of samples.csv, the settings, links to the raw files, and the views of single samples (`analysis.gallery`)
with a choice of token, layer and head. All text from data and models is escaped: by jinja2 in the page, by `in_script`
in the JSON; the page's content security policy blocks all other scripts. A page of sections (`as_page`) embeds its
figures and has no script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2
import matplotlib
import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.files import read_table, write_whole
from analysis.overlay import TOP
from analysis.resume import PARTS, Parts, stored_entries
from analysis.runs import ORIGINS, SAMPLES, SETTINGS, SUMMARY
from data.errors import MissingFileError

NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
COLOURS = ("viridis", "inferno", "turbo", "jet")  # the first is the default: it is perceptually uniform
LIMIT_MB = 5.0
MEGABYTE = 2**20
MOST_ROWS, MOST_FILES = 1000, 200
THUMBNAIL, SMALL_THUMBNAIL, MANY_ROWS = 240, 64, 200  # pixels of images in a table; rows above which they are small
THUMBNAILED = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")  # none runs other programs
ANSWER = ("task", "prompt", "gold", "rotation", "prediction", "value", "correct", "failed")  # columns of evaluate.py
OPEN_ROWS = 24  # rows of plots that are unfolded initially
WHISKER = (8, 192)  # start and end of a plot of 200 units


class Figure(NamedTuple):
    """A number of summary.json with its interval; `low` and `high` are None without an interval."""

    path: tuple[str, ...]
    value: float
    low: float | None
    high: float | None
    n: int | None


def write_report(folder: str | Path, rows: Sequence[dict] | None = None) -> Path:
    """Write report.html into a run folder, from its files; return its path.

    `rows` are the rows of the table, with equal keys (default: samples.csv or, in an unfinished run, those so far). Key
    "sample" names the view that a row opens, "image" (or the first key ending in "_image") the path of its image, and
    "folder" that of its files. A page of more than LIMIT_MB is written with a note on stderr. Raises FileNotFoundError
    for a folder without settings.json, which is no run.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise MissingFileError("no-run", f"{folder} holds no {SETTINGS}, so it is no run; give the folder of one")
    page = render(folder, stored_rows(folder) if rows is None else rows).encode("utf-8", errors="backslashreplace")
    if len(page) > LIMIT_MB * MEGABYTE:
        size = f"{len(page) / MEGABYTE:.1f} MB, more than {LIMIT_MB:g}"
        tqdm.write(f"note: {folder / NAME} is {size}; use fewer samples or tokens for a smaller one", file=sys.stderr)
    return write_whole(folder / NAME, lambda partial: partial.write_bytes(page))


def render(folder: Path, rows: Sequence[dict]) -> str:
    """Render the HTML text of the page."""
    views = [view for part in Parts(folder / PARTS) if (view := part.view)]
    settings, summary = (_read_json(folder / name) for name in ("settings.json", "summary.json"))
    columns, shown = table(folder, rows, {view["name"]: index for index, view in enumerate(views)})
    style, script = (TEMPLATES.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    command = settings.get("command", [])
    script_name = Path(command[0]).name if command else folder.name
    model = settings.get("model", {})
    name = Path(model.get("name", "") if isinstance(model, dict) else str(model)).name
    sources = origins(settings, summary)
    labels = [item.get("label") for item in sources]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((TEMPLATES / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=" · ".join(part for part in (script_name.removesuffix(".py"), name, *labels) if part),
        summary=opening(summary, settings),
        sources=[str(item["line"]) for item in sources],
        notes=notes(folder, summary),
        views=bool(views),
        figures=plots(list(estimates_in(summary))),
        pictures=pictures(folder),
        columns=columns,
        rows=shown,
        more=len(rows) if len(rows) > len(shown) else None,
        thumbnails=any(row["thumbnail"] or row["view"] is not None for row in shown),
        command=shlex.join(command),
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
        figures_json=json.dumps(summary, indent=2, ensure_ascii=False),
        files=files(folder),
        data=jinja2.utils.markupsafe.Markup(in_script({"views": views, "colours": colours() if views else {}})),
        style=jinja2.utils.markupsafe.Markup(style),
        script=jinja2.utils.markupsafe.Markup(script),
        style_hash=policy_hash(style),
        script_hash=policy_hash(script),
    )


def origins(settings: dict, summary: dict) -> list[dict]:
    """Origins of a run's data and fixations, each with its `line`, from settings.json or else summary.json."""
    named = (settings.get(name) or summary.get(name) for name in ORIGINS)
    return [item for item in named if isinstance(item, dict) and "line" in item]


def opening(summary: dict, settings: dict) -> str:
    """First line of the page: number of samples and start time."""
    count = summary.get("n")
    parts = [f"{count} samples" if count is not None else "", str(settings.get("started", "")).replace("T", " ")]
    return ", ".join(part for part in parts if part)


def in_script(values) -> str:
    """Encode JSON so that it cannot end its script element or begin a comment in it."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(mark): f"\\u{ord(mark):04x}" for mark in "<>\u2028\u2029"})


def policy_hash(text: str) -> str:
    """Hash source with which a content security policy allows exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def colours() -> dict[str, str]:
    """256 colours of each selectable colour map, three bytes each, in base64."""
    steps = {name: np.linspace(0, TOP.get(name, 1.0), 256) for name in COLOURS}
    tables = {name: matplotlib.colormaps[name](at, bytes=True)[:, :3] for name, at in steps.items()}
    return {name: base64.b64encode(np.ascontiguousarray(rgb).tobytes()).decode() for name, rgb in tables.items()}


def estimates_in(summary, path: tuple[str, ...] = ()) -> Iterator[Figure]:
    """Every figure of a summary: objects with `mean`, `rate` or `accuracy`, and optionally `low`, `high` and `n`, at
    any depth. An accuracy gets that name as the end of its path, so that all accuracies of a run share one plot."""
    if not isinstance(summary, dict):
        return
    for kind, name in (("mean", ()), ("rate", ()), ("accuracy", ("accuracy",))):
        if isinstance(value := summary.get(kind), int | float):
            yield Figure((*path, *name), value, summary.get("low"), summary.get("high"), summary.get("n"))
            return
    for name, item in summary.items():
        yield from estimates_in(item, (*path, str(name)))


def plots(figures: list[Figure]) -> list[dict]:
    """Group figures by name (the last part of their paths) into plots; each is a row of its plot."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.path[-1] if figure.path else "", []).append(figure)
    made = [plot(name.replace("_", " "), group) for name, group in groups.items()]
    before = np.cumsum([0, *(len(item["rows"]) for item in made)])
    return [{**item, "open": bool(rows < OPEN_ROWS)} for item, rows in zip(made, before, strict=False)]


def plot(name: str, figures: list[Figure]) -> dict:
    """One plot: position of each point and interval on an axis of 200 units, and its text."""
    ends = [end for item in figures for end in (item.value, item.low, item.high) if end is not None]
    low, high = min(ends), max(ends)
    spread = (high - low) or abs(high) or 1.0
    low, high = low - 0.05 * spread, high + 0.05 * spread

    def place(value: float) -> float:
        return round(WHISKER[0] + (value - low) / (high - low) * (WHISKER[1] - WHISKER[0]), 1)

    rows = []
    for item in figures:
        known = item.low is not None and item.high is not None
        interval = f" [{number(item.low)}, {number(item.high)}]" if known else ""
        rows.append({
            "label": " · ".join(part.replace("_", " ") for part in item.path[:-1]) or name,
            "text": f"{number(item.value)}{interval}" + ("" if item.n is None else f", n = {item.n}"),
            "middle": place(item.value),
            "left": place(item.low) if known else None,
            "right": place(item.high) if known else None,
        })  # fmt: skip
    return {"name": name, "rows": rows, "zero": place(0) if low < 0 < high else None}


def number(value: float) -> str:
    """Format a number with three significant digits, or more for numbers of 1000 and above."""
    return f"{value:.3g}" if value == 0 or abs(value) < 1000 else f"{value:.0f}"


def pictures(folder: Path) -> list[dict]:
    """Figures of the run folder, shrunk for the page; each links to its file."""
    return [
        {"name": path.stem.replace("_", " "), "alt": f"Figure: {path.stem.replace('_', ' ')}", "link": quote(path.name),
         "source": shown}
        for path in sorted(folder.glob("*.png")) if (shown := _embed(path, 1100))
    ]  # fmt: skip


def notes(folder: Path, summary: dict) -> list[str]:
    """Lines at the top of the page: the progress of an unfinished run, and the skipped samples by reason."""
    lines, skipped = [], summary.get("skipped") or {}
    if not (folder / SUMMARY).is_file():
        rows, plan = stored_rows(folder), Parts(folder / PARTS).plan()
        total = f" of {len(plan['samples']) + len(plan['unusable'])}" if plan else ""
        lines.append(f"unfinished run: {len(rows)}{total} samples so far; its command continues it")
        skipped = Counter(reason for row in rows if (reason := row.get("skipped") or row.get("failed")))
    return lines + [f"{number} skipped: {reason}" for reason, number in skipped.items()]


def stored_rows(folder: Path) -> list[dict]:
    """Rows of samples.csv; without that file, those of the samples measured, or the records answered, so far."""
    path = folder / SAMPLES
    if path.is_file():
        return read_table(path)
    if answers := sorted((folder / PARTS).glob("*.jsonl")):  # of evaluate.py; a last line may be torn
        lines = [line for part in answers for line in part.read_bytes().split(b"\n")[:-1]]
        return [{"sample": each["id"], **{name: each[name] for name in ANSWER}} for each in map(json.loads, lines)]
    columns = (Parts(folder / PARTS).plan() or {}).get("columns", ())
    return [
        {**dict.fromkeys(columns, ""), "sample": entry.name, **entry.row, "skipped": entry.skipped}
        for entry in stored_entries(folder)
    ]  # fmt: skip


def table(folder: Path, rows: Sequence[dict], views: dict[str, int]) -> tuple[list[str], list[dict]]:
    """Non-empty columns and the first MOST_ROWS rows; `views` maps samples to indices of views."""
    rows = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    side = THUMBNAIL if len(rows) <= MANY_ROWS else SMALL_THUMBNAIL
    return columns, [_row(folder, row, columns, views, side) for row in rows[:MOST_ROWS]]


def _row(folder: Path, values: dict[str, str], columns: list[str], views: dict[str, int], side: int) -> dict:
    own = folder / values["folder"] if values.get("folder") else None
    cells = [cell(name, values[name]) for name in columns]
    drawn = own / "overlay_mean.png" if own and (own / "overlay_mean.png").is_file() else image_in(values)
    thumbnail = _embed(drawn or None, side)
    name = values.get("sample", "")
    return {"name": name, "cells": cells, "thumbnail": thumbnail, "view": views.get(name)}


def is_image_path(column: str) -> bool:
    return column == "image" or column.endswith("_image")


def image_in(values: dict[str, str]) -> str | None:
    """Path of a row's first image, or None."""
    return next((path for column, path in values.items() if is_image_path(column) and path), None)


def cell(column: str, text: str) -> dict:
    """Cell of the table: a folder is a link, a path is cut to its last part, a number of many digits is rounded."""
    if column == "folder" and text:
        return {"text": text, "number": False, "link": quote(text) + "/", "whole": None}
    if is_image_path(column):
        return {"text": Path(text).name, "number": False, "link": None, "whole": text}
    rounded = is_number(text) and len(text) > 8 and "." in text
    whole = text if rounded else None
    return {"text": f"{float(text):.4g}" if rounded else text, "number": is_number(text), "link": None, "whole": whole}


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def files(folder: Path) -> list[dict]:
    """Files of the run folder and of its samples, the first MOST_FILES, without hidden files."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != NAME and path.name[0] != "."]
    paths = sorted(path.relative_to(folder) for path in paths)
    paths.sort(key=lambda path: len(path.parts))
    links = [{"name": str(path), "link": quote(path.as_posix())} for path in paths[:MOST_FILES]]
    rest = len(paths) - len(links)
    return links + ([{"name": f"... and {rest} more in this folder", "link": "."}] if rest else [])


def _embed(path: str | Path | None, longest: int) -> str | None:
    """An image file as a data URI; None for a missing or unreadable file, whose row then lacks a thumbnail."""
    if path is None:
        return None
    try:
        with Image.open(path, formats=THUMBNAILED) as image:
            return embedded(image, longest)
    except Exception:  # decoders raise many error classes for a damaged image; the table holds the reason
        return None


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def embedded(image: Image.Image, longest: int) -> str:
    """An image as a data URI: a small one unchanged as PNG, else shrunk to `longest` pixels as JPEG."""
    shown = image.convert("RGB")
    shown.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    small = max(image.size) <= longest and image.width * image.height <= 2**16
    held = io.BytesIO()
    shown.save(held, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 85}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(held.getvalue()).decode()}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m analysis.report FOLDER")
    print(write_report(sys.argv[1]))


TEMPLATE = Path(__file__).parent / "templates" / "pictures.html.jinja"


class PageFigure(NamedTuple):
    """A PNG file; `alt` is its text alternative, `caption` is printed below it."""

    path: Path
    alt: str
    caption: str = ""


class Table(NamedTuple):
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Section(NamedTuple):
    """A title and its content, in this order; `small` figures share one row at their own size."""

    title: str
    paragraphs: tuple[str, ...] = ()
    pictures: tuple[PageFigure, ...] = ()
    tables: tuple[Table, ...] = ()
    small: tuple[PageFigure, ...] = ()


def as_page(title: str, sections: Sequence[Section]) -> str:
    """Render sections as an HTML document with embedded figures."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["data_uri"] = data_uri
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections)


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """Render text and tables as Markdown, without figures."""
    parts = [f"# {title}"]
    for section in sections:
        if section.paragraphs or section.tables:
            parts += [f"## {section.title}", *section.paragraphs, *map(_markdown_table, section.tables)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def data_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
