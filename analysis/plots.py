"""Figures of numbers. Every function returns a matplotlib Figure of its own; the caller saves it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from analysis.overlay import visible

BLUE = "#31688e"


def share_plot(tokens: Sequence[str], shares: Sequence[float], title: str = "") -> Figure:
    """Bars: the share of each generated token's attention that is on the image, 0..1, with the token as its label."""
    if not len(tokens) or len(tokens) != len(shares):
        raise ValueError(
            f"a share plot needs one share per token and at least one, but got {len(shares)} for {len(tokens)} tokens"
        )
    labels = [visible(token) for token in tokens]
    upright = len(labels) <= 12 and max(map(len, labels)) <= 9
    width = min(16, max(3.2, 1.0 + 0.55 * len(labels)))  # inches
    figure = Figure(figsize=(width, 2.4 if upright else 2.9), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(labels)), shares, width=0.7, color=BLUE)
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(0, 1), ylabel="attention on the image")
    axes.set_xticks(range(len(labels)), labels=labels, fontsize=8, parse_math=False)
    if not upright:
        axes.tick_params(axis="x", labelrotation=90, labelsize=8 if len(labels) <= 60 else 5)
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.grid(True, linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
