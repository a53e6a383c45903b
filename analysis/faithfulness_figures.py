"""What the answer rests on beside what is looked at: files and figures of insertion and deletion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.faithfulness import BASELINES, DIRECTIONS, LOG_PROBABILITY, RANDOM, Used, summarise
from analysis.fonts import Figure
from analysis.plots import BLUE, GREEN, ORANGE, for_lines
from analysis.results import RunFolder, save_arrays, write_table
from analysis.spatial_attention import WORDS
from analysis.statistics import known_mean, mean_interval

STYLES = {
    "first": (BLUE, "-"), "second": (ORANGE, "-"), "relation": (GREEN, "-"), "boxes": ("black", "--"),
    "shifted": ("0.45", "-."), RANDOM: ("0.6", ":"),
}  # fmt: skip
LABELS = {
    "first": "first shape's words", "second": "second shape's words", "relation": "relation's word",
    "boxes": "the true boxes", "shifted": "words' maps shifted", RANDOM: "random order",
}  # fmt: skip
COLUMNS = (
    ("looks", "looks at it", "mass in the box\nabove an even map's"),
    ("insertion_gain", "uses it: insertion", "area above that of\nthe map shifted (nats)"),
    ("deletion_gain", "uses it: deletion", "area below that of\nthe map shifted (nats)"),
)
AGAINST_RANDOM = tuple(f"{way}_gain_random" for way in DIRECTIONS)
PARTS = ("mean", "low", "high", "n", "p", "q")
BANDS = ("first", RANDOM)  # curves with their intervals: more of them could not be told apart


def save_faithfulness(run: RunFolder, found: Sequence[Used], seed: int) -> dict:
    """Writes faithfulness.csv (one row per sample and order), looks_and_uses.csv (one row per order), curves.npz,
    curves.png and looks_and_uses.png; returns the summary."""
    rows = [
        {
            "sample": each.name, "order": order,
            **dict(zip(("mass", "mass_even"), each.looks.get(order, ("", "")), strict=True)),
            **{way: each.area(order, way) for way in DIRECTIONS},
            **{
                f"{way}_{kind}": "" if order == RANDOM else each.baseline(order, way, kind)
                for way in DIRECTIONS for kind in BASELINES
            },
        }
        for each in found for order in each.curves
    ]  # fmt: skip
    write_table(run.folder / "faithfulness.csv", rows)
    stacked = stack(found)
    save_arrays(run.folder / "curves.npz", samples=np.array([each.name for each in found]), **stacked)
    summary = summarise(found, seed)
    keys = *(key for key, *_ in COLUMNS), *AGAINST_RANDOM
    held = [
        {"order": order, **{f"{key}_{part}": values[key][part] for key in keys for part in PARTS}}
        for order, values in summary.items() if order != RANDOM
    ]  # fmt: skip
    write_table(run.folder / "looks_and_uses.csv", held)
    run.save(curve_figure(stacked), "curves.png")
    run.save(looks_and_uses(summary), "looks_and_uses.png")
    return {"n": len(found), "orders": summary}


def stack(found: Sequence[Used]) -> dict[str, np.ndarray]:
    """The curves of all samples, [sample, step] by <order>_<direction> and <order>_shifted_<direction>."""
    own = {
        f"{order}_{way}": np.stack([getattr(each.curves[order], way) for each in found])
        for order in found[0].curves for way in DIRECTIONS
    }  # fmt: skip
    shifted = {
        f"{order}_shifted_{way}": np.stack([getattr(each.shifted[order], way) for each in found])
        for order in found[0].shifted for way in DIRECTIONS
    }  # fmt: skip
    return own | shifted


def curve_figure(stacked: Mapping[str, np.ndarray]) -> Figure:
    """Mean curves of every order, of some with 95 % intervals: insertion on the left, deletion on the right.

    stacked: [sample, step] by name, as `stack` returns it and curves.npz holds it. The words' maps shifted are one
    line, the mean of them.
    """
    figure = Figure(figsize=(7.2, 3.2), dpi=200, layout="constrained")
    for axes, way in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        shifted = known_mean([stacked[f"{word}_shifted_{way}"] for word in WORDS])
        for order, (colour, line) in STYLES.items():
            values = shifted if order == "shifted" else stacked[f"{order}_{way}"]
            share = np.linspace(0, 100, values.shape[1])
            if order in BANDS:
                held = [mean_interval(step, LOG_PROBABILITY) for step in values.T]
                lows, highs = (np.array([each[key] for each in held], float) for key in ("low", "high"))
                axes.fill_between(share, lows, highs, color=colour, alpha=0.2, linewidth=0)
            axes.plot(share, known_mean(values), line, color=colour, linewidth=1.4, label=LABELS[order])
        shown = "shown" if way == "insertion" else "hidden"
        axes.set_xlabel(f"cells {shown} (%), highest of the map first", fontsize=8)
        axes.set_title(way, fontsize=9, loc="left")
        for_lines(axes)
    figure.axes[0].set_ylabel("log-probability of the answer (nats)", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    banded = " and ".join(LABELS[order] for order in BANDS)
    title = f"order of the cells; n = {len(values)}, mean; shaded: 95 % interval of {banded}"
    figure.legend(
        handles, labels, title=title, title_fontsize=8, loc="outside upper left", ncols=6, frameon=False, fontsize=6.5,
        alignment="left",
    )  # fmt: skip
    return figure


def looks_and_uses(summary: dict) -> Figure:
    """What is looked at and what the answer rests on, as columns of one table: a row per map, means with 95 %
    intervals; 0 is what an even map and the map shifted have. Hollow: the gain over a random order. The true boxes,
    which are in themselves by definition, look at nothing."""
    names = [order for order in summary if order != RANDOM][::-1]
    figure = Figure(figsize=(7.2, 0.4 * len(names) + 1.5), dpi=200, layout="constrained")
    for axes, (key, title, label) in zip(figure.subplots(1, 3, sharey=True), COLUMNS, strict=True):
        for place, name in enumerate(names):
            if key != "looks" or name != "boxes":
                _mean_and_interval(axes, summary[name][key], place, STYLES[name][0])
            if key != "looks":
                _mean_and_interval(axes, summary[name][f"{key}_random"], place - 0.25, STYLES[name][0], hollow=True)
        axes.axvline(0, color="0.6", linewidth=1, linestyle=":")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(label, fontsize=7)
        axes.tick_params(labelsize=7)
        axes.xaxis.grid(True, linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yticks(range(len(names)), labels=[LABELS[name] for name in names], fontsize=8)
    figure.axes[0].set_ylim(-0.6, len(names) - 0.4)
    n = max(summary[name]["looks"]["n"] for name in names)
    figure.suptitle(f"n = {n}, mean with 95 % interval; hollow: against a random order of the cells", fontsize=8)
    return figure


def _mean_and_interval(axes, value: dict, place: float, colour: str, hollow: bool = False) -> None:
    """A mark with whiskers; nothing where the mean is not known, no whiskers where the interval is not."""
    if value["mean"] is None:
        return
    low, high = (value["mean"] if value[end] is None else value[end] for end in ("low", "high"))
    reach = [[value["mean"] - low], [high - value["mean"]]]
    size, face, line = (3, "white", 0.7) if hollow else (4.5, colour, 1.5)
    axes.errorbar(
        value["mean"], place, xerr=reach, fmt="o", color=colour, markerfacecolor=face, markersize=size, capsize=2,
        linewidth=line,
    )  # fmt: skip
