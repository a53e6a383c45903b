"""Pictures of which heads answer to an object: counts per layer, all heads as maps, and what ablating them does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import stats

from analysis.fonts import Figure
from analysis.head_responses import column
from analysis.plots import BLUE, ORANGE, for_bars, head_heatmap, whole_numbers
from analysis.statistics import LEVEL


def count_bars(counts: np.ndarray, pairs: int, topk: int, layer: int) -> Figure:
    """How often each head of a layer was among the `topk` that respond most, int [head], of so many pairs.

    A line and a band show what equal heads would get: the mean, and where 95 % of their counts lie.
    """
    heads = len(counts)
    chance = min(topk / heads, 1.0)
    low, high = stats.binom.interval(0.95, pairs, chance)
    figure = Figure(figsize=(min(10, max(3.2, 1.6 + 0.2 * heads)), 2.5), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.axhspan(low, high, color="0.85", linewidth=0, zorder=0, label="95 % by chance")
    axes.axhline(pairs * chance, color="0.45", linestyle=":", linewidth=1, label="chance")
    axes.bar(range(heads), counts, width=0.7, color=BLUE)
    axes.set(xlim=(-0.6, heads - 0.4), ylim=(0, max(pairs * 1.05, 1)))
    whole_numbers(axes.xaxis)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlabel("head", fontsize=8)
    axes.set_ylabel(f"pairs with the head\namong the top {topk}", fontsize=8)
    axes.set_title(f"layer {layer}, n = {pairs} pairs", fontsize=8, loc="left")
    for_bars(axes)
    axes.tick_params(labelsize=7)
    figure.legend(frameon=False, fontsize=7, loc="outside lower center", ncols=2)
    return figure


def response_maps(rows: Sequence[dict], heads: int, topk: int, where: str = "the image") -> Figure:
    """Counts, mean responses and effect sizes as layers x heads, of the rows of heads.csv; layers that were not
    measured stay white. Dots where q <= LEVEL. `where` names what attention was summed over."""
    layers = [row["layer"] for row in rows[::heads]]

    def placed(name: str) -> np.ndarray:
        values = np.full((max(layers) + 1, heads), np.nan)
        values[layers] = column(rows, name, heads)
        return values

    panels = {
        f"pairs among the top {topk}": "count",
        "full - control": "difference",
        f"effect size (dot: q ≤ {LEVEL})": "effect",
    }
    marked = np.nan_to_num(placed("q"), nan=1.0) <= LEVEL
    figure = head_heatmap([(title, placed(name)) for title, name in panels.items()], marked)
    figure.suptitle(f"attention to {where}, n = {rows[0]['n']} pairs", fontsize=8, x=0.01, ha="left")
    return figure


def ablation_figure(summary: dict, heads: str) -> Figure:
    """Change of log p(yes) - log p(no) by ablation of the chosen `heads` and of random ones, of a `summarise` summary.

    The rank is that of the chosen set among all sets by the size of its change; the title states the smallest p that so
    many sets allow where none can reach LEVEL."""
    pictures = {"full": "full", "control": "control", "full_minus_control": "full - control"}
    figure = Figure(figsize=(4.6, 2.7), dpi=200, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(pictures))
    drawn = []
    axes.axhline(0, color="0.45", linewidth=0.8)
    for offset, colour, key, label in (
        (-0.12, ORANGE, "chosen", f"chosen heads {heads} (layer.head)"),
        (0.12, BLUE, "random", "random heads of the same layers, mean"),
    ):
        mean, low, high = (
            np.array([summary[name][key][of] for name in pictures], np.float64) for of in ("mean", "low", "high")
        )
        reach = np.stack([mean - low, high - mean])
        marks = {"fmt": "o", "color": colour, "capsize": 2.5, "markersize": 5, "linewidth": 1.2}
        drawn.append(axes.errorbar(places + offset, mean, reach, label=label, **marks))
    draws = np.array([summary[name]["draws"] for name in pictures])  # [picture, set]
    each = axes.plot(places + 0.24, draws, "_", color="0.5", markersize=7)
    each[0].set_label(f"each of {draws.shape[1]} such sets" if draws.shape[1] > 1 else "the only such set")
    axes.set(xlim=(-0.5, len(pictures) - 0.5))
    ranks = [f"{label}\nrank {summary[name]['rank']} of {1 + draws.shape[1]}" for name, label in pictures.items()]
    axes.set_xticks(range(len(pictures)), labels=ranks, fontsize=8)
    axes.set_ylabel("change of\nlog p(yes) - log p(no), nats", fontsize=8)
    title = f"image attention removed, n = {summary['full']['chosen']['n']} pairs; mean with 95 % interval"
    if (least := summary["full"]["smallest_p_rank"]) > LEVEL:
        title += f"\nof so few sets the smallest possible p of a rank is {least:.2g}"
    axes.set_title(title, fontsize=8, loc="left")
    for_bars(axes)
    figure.legend(handles=[*drawn, each[0]], frameon=False, fontsize=7, loc="outside lower center")
    return figure
