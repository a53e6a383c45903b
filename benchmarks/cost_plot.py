"""Time, as a multiple of plain generation's, and memory against the length of the prompt, of one or several runs of
benchmarks.attention_cost.

    python -m benchmarks.cost_plot RUN/cost.csv OTHER/cost.csv OUT.png

For each shape of attention a line of panels for recording and rollout, and one for steering. Whiskers go from the
lowest to the highest round. An eager way that did not fit, or was not tried at a length, has an open ring where its
matrices alone would put it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from analysis.plots import Figure
from analysis.runs import read_table
from benchmarks import steering
from benchmarks.ways import RECORDING, WAYS

MARKS = {"few": (0.5, 1, 1.5, 2, 3, 5, 8, 12), "many": (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2)}  # of the ratios' axis
APART = 1.03  # each way's points stand so much further right than those of the way before, to show all whiskers
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2")  # Okabe and Ito, 2008
STEERING = ("plain", *WAYS[len(RECORDING) :])


def plot(rows: list[dict], title: str) -> Figure:
    """Rows of `attention_cost.measure`; both axes are logarithmic."""
    panels = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        mine = [row for row in rows if row["shape"] == shape]
        measured = {row["way"] for row in mine}
        groups = [ways for ways in (RECORDING, STEERING) if len(measured & set(ways)) > 1]
        panels += [(shape, mine, ways) for ways in groups or [("plain",)]]
    figure = Figure(figsize=(7.5, 3 * len(panels)), dpi=160, layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for (shape, mine, ways), (time, memory) in zip(panels, grid, strict=True):
        looks = styles(mine, ways)
        draw_time(time, mine, looks)
        draw_memory(memory, mine, looks)
        time.set_title(f"attention of {shape}", fontsize=8)
        memory.legend(*memory.get_legend_handles_labels(), fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def styles(rows: list[dict], ways: tuple[str, ...]) -> dict[str, dict]:
    """How to draw each way that was measured; an intervention and its eager implementation share a colour."""
    colours = dict(zip((way for way in ways if not eager_pair(way)), COLOURS, strict=False))
    measured = {row["way"] for row in rows}
    pairs = {way: eager_pair(way) for way in ways if way in measured}
    common = {"markersize": 3, "linewidth": 1.2, "marker": "o"}
    return {
        way: {"color": colours[pair or way], "linestyle": "--" if pair else "-", **common}
        for way, pair in pairs.items()
    }


def draw_time(axes, rows: list[dict], looks: dict[str, dict]) -> None:
    """Ratios to plain, which is the line at 1; plain's seconds stand under each length."""
    for place, (way, style) in enumerate(looks.items()):
        mine = sorted((row for row in rows if row["way"] == way and row["time_to_plain"]), key=lambda row: row["T"])
        low, ratio, high = ([row[f"{name}_to_plain"] for row in mine] for name in ("lowest", "time", "highest"))
        whiskers = [[b - a for a, b in zip(low, ratio, strict=True)], [b - a for a, b in zip(ratio, high, strict=True)]]
        axes.errorbar([row["T"] * APART**place for row in mine], ratio, whiskers, elinewidth=0.7, **style)
    seconds = {row["T"]: row["seconds"] for row in rows if row["way"] == "plain"}
    lengths_of(axes, {length: f"{length}\n{took:.2g} s" for length, took in seconds.items()})
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    shown = [mark for mark in MARKS["few" if high > 3 * low else "many"] if low <= mark <= high]
    axes.set_yticks(shown, labels=[f"{mark:g}" for mark in shown])
    axes.set_yticks([], minor=True)
    axes.set_ylabel("time, to plain")
    axes.set_xlabel("prompt length T, and plain's seconds")


def draw_memory(axes, rows: list[dict], looks: dict[str, dict]) -> None:
    """Peaks above the model; dotted to what eager's matrices alone would need."""
    for way, style in looks.items():
        mine = sorted((row for row in rows if row["way"] == way), key=lambda row: row["T"])
        points = [(row["T"], row["above_model_MB"]) for row in mine if row["above_model_MB"]]
        axes.plot([x for x, _ in points], [y for _, y in points], label=way, **style)
        needed = [(row["T"], row["matrices_MB"]) for row in mine if row["matrices_MB"] and not row["above_model_MB"]]
        if needed:
            axes.plot(*zip(*points[-1:], *needed, strict=True), **style | {"linestyle": ":", "markerfacecolor": "none"})
    lengths_of(axes, {row["T"]: str(row["T"]) for row in rows})
    axes.set_yscale("log")
    axes.set_ylabel("peak MB above the model")
    axes.set_xlabel("prompt length T")


def lengths_of(axes, labels: dict[int, str]) -> None:
    """A logarithmic axis of the lengths that were measured, each with its label."""
    axes.set_xscale("log")
    axes.set_xticks(list(labels), labels=list(labels.values()), fontsize=7)
    axes.set_xticks([], minor=True)
    axes.grid(True, which="both", linewidth=0.4, alpha=0.4)


def eager_pair(way: str) -> str | None:
    """The intervention that an eager way implements; None for all other ways."""
    method = way.removeprefix("eager-")
    return method if way != method and method in steering.METHODS else None


def read(path: Path) -> list[dict]:
    """Rows of a cost.csv, numbers as numbers and empty cells as None."""
    return [{name: number(cell) for name, cell in row.items()} for row in read_table(path)]


def number(cell: str) -> str | float | None:
    try:
        return float(cell) if "." in cell else int(cell)
    except ValueError:
        return cell or None


def title(flags: dict) -> str:
    """What a run's flags say of the decoder and the machine."""
    size = f"{flags['layers']} layers, width {flags['width']}, {flags['new_tokens']} new tokens"
    return f"{size}, {flags['device']} {flags['dtype']}, {flags['threads']} threads"


def main(tables: list[Path], out: Path) -> None:
    """Raises ValueError for runs of different decoders or machines, whose lines would mean nothing together."""
    rows = [row for table in tables for row in read(table)]
    titles = {title(json.loads(table.with_name("settings.json").read_text())["flags"]) for table in tables}
    if len(titles) > 1:
        raise ValueError(f"these runs differ, so they do not belong into one picture: {'; '.join(sorted(titles))}")
    plot(rows, *titles).savefig(out)


if __name__ == "__main__":
    *paths, drawn = map(Path, sys.argv[1:])
    main(paths, drawn)
