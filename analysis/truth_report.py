"""Table, summary and figure of `analysis.truth`: every map kind on images of known truth.

    python -m analysis.truth_report results/truth/*

The command stores the scores of these runs in SCORES, from which the map scripts take the captions of their figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis.files import plain, write_json, write_table
from analysis.maps import MapSettings
from analysis.metrics import Bounds
from analysis.plots import BLUE, Figure, for_rows
from analysis.runs import SETTINGS, SUMMARY, RunFolder, flat_flags
from analysis.statistics import DIFFERENCE, REAL, SHARE, correct_family, known_mean, mean_interval, paired_difference
from models.folders import content_hash
from models.loading import checkpoint_hashes

UNIFORM, RANDOM, BASELINE = "uniform", "random", "rollout"


class Measure(NamedTuple):
    """A measure of `analysis.truth`. better: 1 if a higher value is better, -1 if a lower one is."""

    label: str
    bounds: Bounds
    better: int


MEASURES = {
    "pointing": Measure("pointing game", SHARE, 1),
    "own": Measure("mass in own box", SHARE, 1),
    "other": Measure("mass in other box", SHARE, -1),
    "drop": Measure("drop of log-probability (nats)", REAL, 1),
    "choice": Measure("favours the answered colour", SHARE, 1),
}
CORRELATIONS = {
    "shuffled-decoder": Measure("correlation, shuffled decoder", DIFFERENCE, -1),
    "shuffled-encoder": Measure("correlation, shuffled encoder", DIFFERENCE, -1),
    "untrained": Measure("correlation, untrained", DIFFERENCE, -1),
}
SCORES = Path(__file__).parent / "truth_scores.json"  # of the embedded models; written by `store_scores`
OF_WORDS = ("pointing", "own", "other", "drop")


def truth_caption(model: str, kinds: Sequence[str], settings: MapSettings) -> str:
    """Line with the mass in the own box of map kinds on synthetic images of known truth, for a checkpoint and settings
    in SCORES, or with the command that measures it. Raises as `models.loading.checkpoint_hashes` does."""
    known = json.loads(SCORES.read_bytes()).get(score_key(model, flat_flags(settings)))
    if known is None or not set(kinds) <= set(known["own"]):
        return f"scores of these maps on synthetic images of known truth: python -m analysis.truth --model {model}"
    scores = ", ".join(f"{kind} {known['own'][kind]:.2f}" for kind in kinds)
    uniform = f"uniform {known['own'][UNIFORM]:.2f}"
    return f"mass in the named shape's box on {known['n']} synthetic images of two shapes: {scores}, {uniform}"


def score_key(model: str, flags: Mapping) -> str:
    """Hash of a checkpoint and of the settings of its maps; the general prompt decides contrast maps alone."""
    names = [name for name in flat_flags(MapSettings()) if name != "general"]
    about = [checkpoint_hashes(model, None), {name: flags[name] for name in names}]
    return content_hash(json.dumps(plain(about), sort_keys=True).encode())


def store_scores(folders: Sequence[Path]) -> None:
    """Write SCORES from finished runs of `analysis.truth`."""
    scores = {}
    for folder in folders:
        flags = json.loads((folder / SETTINGS).read_bytes())["flags"]
        own = json.loads((folder / SUMMARY).read_bytes())["measures"]["own"]
        means = {kind: round(values["mean"], 4) for kind, values in own.items() if kind != "contrast"}
        about = {"model": flags["model"], "lowest": flags["lowest"], "n": max(values["n"] for values in own.values())}
        scores[score_key(flags["model"], flags)] = about | {"own": means}
    write_json(SCORES, scores)


def report(run: RunFolder, found: Sequence[Mapping], kinds: Sequence[str], controls: Sequence[str], seed: int) -> dict:
    """Write words.csv, truth.csv and truth.png, print the table; return the summary.

    found: per image "name", "words" (`analysis.truth.WordScore`), "choice" and "controls" by kind.
    """
    write_table(run.folder / "words.csv", [
        {"sample": each["name"], "word": word.text, "kind": kind, **dict(zip(OF_WORDS, values, strict=True))}
        for each in found for word in each["words"] for kind, values in word.values.items()
    ])  # fmt: skip
    table = {name: of_measure(found, name, [*kinds, UNIFORM, RANDOM]) for name in (*MEASURES, *controls)}
    summary, tests = summarise(table, kinds, seed)
    family = correct_family(tests, "differences from rollout of every kind and measure")
    write_table(run.folder / "truth.csv", [
        {"measure": name, "kind": kind, **cells(values)} for name, of_kind in summary.items()
        for kind, values in of_kind.items()
    ])  # fmt: skip
    run.save(truth_figure(summary), "truth.png")
    print(text_table(summary))
    return {"words": sum(len(each["words"]) for each in found), "measures": summary, "family_of_q": family}


def of_measure(found: Sequence[Mapping], name: str, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of a measure by kind, float64 [image], NaN where an image has none; kinds without any are left out."""
    values = {kind: np.array([of_image(each, name, kind) for each in found], float) for kind in kinds}
    return {kind: each for kind, each in values.items() if np.isfinite(each).any()}


def of_image(each: Mapping, name: str, kind: str) -> float:
    """One image's value: the mean over its words of the measures OF_WORDS."""
    if name in OF_WORDS:
        place = OF_WORDS.index(name)
        values = [word.values[kind][place] for word in each["words"] if kind in word.values]
        return float(known_mean(values)) if values else np.nan
    held = each["choice"] if name == "choice" else each["controls"].get(name, {})
    return held.get(kind, np.nan)


def summarise(table: Mapping[str, Mapping[str, np.ndarray]], kinds, seed: int) -> tuple[dict, list[dict]]:
    """Mean with interval of every measure and kind, with "difference" from rollout, and the list of differences."""
    summary, tests = {}, []
    for name, values in table.items():
        bounds = (MEASURES | CORRELATIONS)[name].bounds
        summary[name] = {kind: mean_interval(each, bounds) for kind, each in values.items()}
        for kind in kinds:
            if BASELINE in values and kind in values and kind != BASELINE:
                between = DIFFERENCE if bounds == SHARE else REAL
                tested = paired_difference(values[kind], values[BASELINE], seed, between)
                summary[name][kind]["difference"] = tested
                tests.append(tested)
    return summary, tests


def cells(values: Mapping) -> dict:
    """One row of truth.csv."""
    tested = values.get("difference", {})
    own = {key: values[key] for key in ("mean", "low", "high", "n")}
    return own | {f"difference_{key}": tested.get(key, "") for key in ("mean", "low", "high", "n", "p", "q")}


def text_table(summary: Mapping[str, Mapping[str, Mapping]]) -> str:
    """Kinds as rows, measures as columns: mean [low, high]."""
    kinds = list(dict.fromkeys(kind for values in summary.values() for kind in values))
    head = ["kind", *(f"{name} (n {max(each['n'] for each in values.values())})" for name, values in summary.items())]
    lines = [head] + [[kind, *(text_cell(values.get(kind)) for values in summary.values())] for kind in kinds]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def text_cell(values: Mapping | None) -> str:
    if values is None or values["mean"] is None:
        return "-"
    interval = "" if values["low"] is None else f" [{values['low']:.2f}, {values['high']:.2f}]"
    return f"{values['mean']:.3f}{interval}"


def truth_figure(summary: Mapping[str, Mapping[str, Mapping]]) -> Figure:
    """A panel per measure: means with 95 % intervals, a row per kind; the dotted line is rollout's mean."""
    kinds = list(dict.fromkeys(kind for values in summary.values() for kind in values))[::-1]
    columns = min(4, len(summary))
    rows = -(-len(summary) // columns)
    figure = Figure(figsize=(2.1 * columns + 1, (0.2 * len(kinds) + 0.65) * rows), dpi=200, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(summary) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(panels.flat, summary.items(), strict=False):
        draw_panel(axes, values, kinds)
        measure = (MEASURES | CORRELATIONS)[name]
        axes.set_title(f"{measure.label}\n({'higher' if measure.better > 0 else 'lower'} is better)", fontsize=7)
    for axes in panels[:, 0]:
        axes.set_yticks(range(len(kinds)), labels=kinds, fontsize=7)
    return figure


def draw_panel(axes, values: Mapping[str, Mapping], kinds: Sequence[str]) -> None:
    """Means and intervals of one measure."""
    for place, kind in enumerate(kinds):
        held = values.get(kind)
        if held is not None and held["mean"] is not None:
            colour = "0.55" if kind in (UNIFORM, RANDOM) else BLUE
            axes.plot(held["mean"], place, "o", color=colour, markersize=3)
            if held["low"] is not None:
                axes.plot([held["low"], held["high"]], [place, place], "-", color=colour, linewidth=1)
    if BASELINE in values:
        axes.axvline(values[BASELINE]["mean"], color="0.6", linewidth=0.8, linestyle=":")
    for_rows(axes)


if __name__ == "__main__":
    store_scores([Path(folder) for folder in sys.argv[1:]])
