"""Report of a run of head_attention_stats_qwen2.py: rows of its tables, its figures and its findings in words.

Figures: counts per layer, maps of all heads, and the effect of ablation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import stats

from analysis import head_responses
from analysis.head_responses import IMAGES, column
from analysis.plots import BLUE, ORANGE, Figure, for_bars, head_heatmap, whole_numbers
from analysis.runs import RunFolder
from analysis.statistics import LEVEL, REAL, mean_interval, rate_interval, too_few

COLUMNS = (
    "full_image", "control_image", "prompt", "answer_full", "answer_control", "tokens_full", "tokens_control",
    "margin_full", "margin_control", "top_head", "top_response",
)  # fmt: skip
NOTICEABLE = 0.01  # of a row's attention


def sample_row(paths: Sequence[Path], prompt: str, answered: Sequence, attention: np.ndarray, margins, layers) -> dict:
    """Row of one pair, the values of COLUMNS, in the order full, control.

    answered: answers with `text` and `tokens`. attention: [2, layer, head]; `layers` are the numbers of its layers.
    margins: log p(yes) - log p(no), None where it is not known. The top head is "layer.head" of the largest |response|.
    """
    response = attention[0] - attention[1]
    layer, head = np.unravel_index(np.abs(response).argmax(), response.shape)
    values = (
        *paths, prompt, *(answer.text for answer in answered), *(len(answer.tokens) for answer in answered), *margins,
        f"{layers[layer]}.{head}", float(response[layer, head]),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


class Attention:
    """Attention to both images of every pair; `attention` holds [2, layer, head] (full, control) of each of `pairs`,
    which have a `name`."""

    def __init__(self, pairs: Sequence, attention: Sequence[np.ndarray]):
        self.pairs, self._attention = pairs, attention

    @property
    def names(self) -> list[str]:
        """Names of the pairs, in the order of their axis."""
        return [pair.name for pair in self.pairs]

    @property
    def full(self) -> np.ndarray:
        """float32 [layer, head, pair]"""
        return np.stack([both[0] for both in self._attention], -1)

    @property
    def control(self) -> np.ndarray:
        """float32 [layer, head, pair]"""
        return np.stack([both[1] for both in self._attention], -1)


def save(run: RunFolder, attention: Attention, layers: Sequence[int], topk: int, region: str, save_diffs: bool):
    """Write the arrays, tables and figures of all pairs; return the rows of heads.csv. `region`: the cells over which
    attention was summed, in words."""
    full, control, heads = attention.full, attention.control, attention.full.shape[1]
    table = head_responses.save(run.folder, full, control, topk, layers)
    if save_diffs:
        head_responses.save_attention(run.folder, full, control, layers, attention.names)
    for layer, counts in zip(layers, head_responses.column(table, "count", heads), strict=True):
        run.save(count_bars(counts, len(attention.pairs), topk, layer), f"layer_{layer}_top{topk}_counts.png")
    run.save(response_maps(table, heads, topk, region), "heads.png")
    return table


def answer_rates(rows: Sequence[dict]) -> dict | None:
    """Share of yes answers and mean margin for each image of a pair; None where the margin is not known."""
    if rows[0]["margin_full"] is None:
        return None
    margins = {image: [row[f"margin_{image}"] for row in rows] for image in IMAGES}
    return {
        image: {"says_yes": rate_interval(margin > 0 for margin in values), "margin": mean_interval(values, REAL)}
        for image, values in margins.items()
    }


def responding_heads(table: Sequence[dict]) -> list[dict]:
    """Heads that pass the test on all pairs, with their q, in the order of heads.csv.

    Their effects on these pairs are too large by selection; "held_out" of summary.json has effects on other pairs.
    """
    return [{name: row[name] for name in ("layer", "head", "q")} for row in table if row["q"] <= LEVEL]


def findings(table: Sequence[dict], held_out: Sequence[dict]) -> str:
    """Counts of heads that pass the test, and the responses of the heads chosen on one half of the pairs (rows of
    `head_responses.held_out`) on the other half, as text."""
    responding = [row for row in table if row["q"] <= LEVEL]
    clear, n = sum(abs(row["difference"]) >= NOTICEABLE for row in responding), table[0]["n"]
    few = too_few(n)
    lines = [
        f"{len(responding)} of {len(table)} heads attend differently with the object (q <= {LEVEL}, n = {n} pairs), "
        f"{clear} of them by {NOTICEABLE} or more" + (f"; {few}" if few else "")
    ]
    if held_out:
        n = held_out[0]["other_half"]["n"]
        lines.append(f"strongest heads of one half, on the other {n} pairs: attention with the object minus without")
    for row in held_out:
        other = row["other_half"]
        p = "" if other["p"] is None else f", p {row['other_half']['p_holm']:.2g} (Holm, {len(held_out)} heads)"
        lines.append(f"  layer {row['layer']} head {row['head']}: {_estimate(other, 4)}{p}")
    return "\n".join(lines)


def _estimate(figure: dict, digits: int = 2) -> str:
    """A mean with its interval, or with the reason for which there is none."""
    mean, *ends = (None if figure[name] is None else f"{figure[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{', '.join(ends)}]" if None not in ends else f"{mean} ({figure['interval']})"


def ablation_finding(ablation: dict, heads: str) -> str:
    """Effect of ablation on the change of the answer by the object, of a `head_responses.summarise` summary, as text.

    Where the random sets are too few for any rank to reach LEVEL, the text states this instead of p: a p over pairs
    compares with these few sets only, and another set might differ as much.
    """
    moved = ablation["full_minus_control"]
    draws, least = len(moved["draws"]), moved["smallest_p_rank"]
    effect = (
        f"the object moves log p(yes) - log p(no) by {moved['margin']['mean']:.2f}; without the image attention of "
        f"heads {heads} (layer.head) that changes by {_estimate(moved['chosen'])}, without that of random heads by "
        f"{_estimate(moved['random'])} (n = {moved['chosen']['n']} other pairs); "
    )
    if least > LEVEL:
        return effect + (
            f"{draws} random set{'s' * (draws > 1)}: the smallest possible p is {least:.2g}, so this run cannot tell "
            "the chosen heads from random ones"
        )
    return effect + (
        f"by the size of that change the heads rank {moved['rank']} of {1 + draws} sets (p = {moved['p_rank']:.2g}, "
        f"smallest possible {least:.2g}; difference from the random sets over pairs: p = "
        f"{moved['chosen_minus_random']['p']:.2g}, q = {moved['chosen_minus_random']['q']:.2g})"
    )


def count_bars(counts: np.ndarray, pairs: int, topk: int, layer: int) -> Figure:
    """Bars of counts, int [head]: pairs in which each head of a layer is among the `topk` that change most.

    A line and a band are the mean and the 95 % interval of the counts of exchangeable heads.
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


def response_maps(rows: Sequence[dict], heads: int, topk: int, region: str = "the image") -> Figure:
    """Maps of counts, mean responses and effect sizes, layers x heads, of the rows of heads.csv; layers that were not
    measured are white. Dots: q <= LEVEL. `region`: the cells over which attention was summed, in words."""
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
    figure.suptitle(f"attention to {region}, n = {rows[0]['n']} pairs", fontsize=8, x=0.01, ha="left")
    return figure


def ablation_figure(summary: dict, heads: str) -> Figure:
    """Change of log p(yes) - log p(no) by ablation of the chosen `heads` and of random ones, of a `summarise` summary.

    The rank is that of the chosen set among all sets by the size of its change. Where no rank can reach LEVEL, the
    title states the smallest possible p."""
    kinds = {"full": "full", "control": "control", "full_minus_control": "full - control"}
    figure = Figure(figsize=(4.6, 2.7), dpi=200, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(kinds))
    drawn = []
    axes.axhline(0, color="0.45", linewidth=0.8)
    for offset, colour, key, label in (
        (-0.12, ORANGE, "chosen", f"chosen heads {heads} (layer.head)"),
        (0.12, BLUE, "random", "random heads of the same layers, mean"),
    ):
        mean, low, high = (
            np.array([summary[name][key][of] for name in kinds], np.float64) for of in ("mean", "low", "high")
        )
        whisker = np.stack([mean - low, high - mean])
        marks = {"fmt": "o", "color": colour, "capsize": 2.5, "markersize": 5, "linewidth": 1.2}
        drawn.append(axes.errorbar(places + offset, mean, whisker, label=label, **marks))
    draws = np.array([summary[name]["draws"] for name in kinds])  # [image, set]
    markers = axes.plot(places + 0.24, draws, "_", color="0.5", markersize=7)
    markers[0].set_label(f"each of {draws.shape[1]} such sets" if draws.shape[1] > 1 else "the only such set")
    axes.set(xlim=(-0.5, len(kinds) - 0.5))
    ranks = [f"{label}\nrank {summary[name]['rank']} of {1 + draws.shape[1]}" for name, label in kinds.items()]
    axes.set_xticks(range(len(kinds)), labels=ranks, fontsize=8)
    axes.set_ylabel("change of\nlog p(yes) - log p(no), nats", fontsize=8)
    title = f"image attention removed, n = {summary['full']['chosen']['n']} pairs; mean with 95 % interval"
    if (least := summary["full"]["smallest_p_rank"]) > LEVEL:
        title += f"\nof so few sets the smallest possible p of a rank is {least:.2g}"
    axes.set_title(title, fontsize=8, loc="left")
    for_bars(axes)
    figure.legend(handles=[*drawn, markers[0]], frameon=False, fontsize=7, loc="outside lower center")
    return figure
