"""Figures of four corners side by side, each placed where it lies in the picture. One colour scale per figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.corner_comparison import Calls
from analysis.fonts import Figure
from analysis.plots import BLUE, GREEN, ORANGE, for_lines, for_rows, whole_numbers

PURPLE = "#7b4b94"
# a triangle that fills its corner, so that corners are told apart without their colours: top left, top right, ...
TRIANGLES = (
    ((-1, 1), (1, 1), (-1, -1)),
    ((-1, 1), (1, 1), (1, -1)),
    ((-1, 1), (-1, -1), (1, -1)),
    ((1, 1), (1, -1), (-1, -1)),
)
MARKS = tuple(zip((BLUE, ORANGE, GREEN, PURPLE), TRIANGLES, strict=True))
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, col) of each corner's panel
CALLED_SHARED = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": "black"}
CALLED_UNIQUE = {"marker": "D", "markersize": 4.5, "markerfacecolor": "gold", "markeredgecolor": "black"}


def map_figure(
    mean: np.ndarray | None, maps: np.ndarray, names: Sequence[str], layers: Sequence[int], label: str, note: str,
    calls: Calls | None = None,
) -> Figure:  # fmt: skip
    """Maps [corner, layer, head] in their corners, with the mean map [layer, head] beside them where it is given.

    Circles mark heads called shared, in the mean map; diamonds those called unique to a corner, in its map; without
    `calls` nothing is marked. `label` names the colours, `note` is written above.
    """
    rows, heads = maps.shape[1:]
    width, height = max(1.7, 0.1 * heads + 0.7), max(1.3, 0.1 * rows + 0.6)  # inches of a panel
    columns = 2 if mean is None else 3
    figure = Figure(figsize=(width * columns + 1.1, 2 * height + 0.7), dpi=200, layout="constrained")
    grid = figure.add_gridspec(2, columns)
    panels = [(grid[row, col + columns - 2], name) for (row, col), name in zip(PLACES, names, strict=True)]
    shown = list(maps)
    if mean is not None:
        panels, shown = [(grid[:, 0], "mean of the four"), *panels], [mean, *shown]
    top = max(float(np.abs(each).max()) for each in shown) or 1.0
    drawn = []
    for (place, name), values in zip(panels, shown, strict=True):
        axes = figure.add_subplot(place)
        drawn.append(axes)
        picture = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-top, vmax=top)
        axes.set_box_aspect((height - 0.5) / (width - 0.5))
        axes.set_title(name, fontsize=8, loc="left", parse_math=False)
        _layer_axis(axes.yaxis, layers)
        whole_numbers(axes.xaxis)
        axes.tick_params(labelsize=7)
        axes.set_ylabel("layer", fontsize=8)
        axes.set_xlabel("head", fontsize=8)
    if calls is not None:
        for axes, called in zip(drawn[-len(maps) :], calls.unique, strict=True):
            _mark(axes, called, CALLED_UNIQUE)
        if mean is not None:
            _mark(drawn[0], calls.shared, CALLED_SHARED)
    bar = figure.colorbar(picture, ax=drawn, shrink=0.85, pad=0.02, aspect=30)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(note, fontsize=8, parse_math=False)
    return figure


def _mark(axes, called: np.ndarray, how: dict) -> None:
    row, col = np.nonzero(called)
    axes.plot(col, row, linestyle="none", **how)


def _layer_axis(axis, layers: Sequence[int]) -> None:
    """Ticks at rows 0, 1, ... that show the layers' own numbers, at most about fifteen of them."""
    step = -(-len(layers) // 15)
    axis.set_ticks(range(0, len(layers), step), labels=[str(layer) for layer in layers[::step]])


def head_figure(rows: Sequence[tuple[str, np.ndarray]], names: Sequence[str], label: str, note: str) -> Figure:
    """One line per (head's name, [corner, 3]: mean, low, high): its response in every corner with its interval."""
    figure = Figure(figsize=(6.2, 1.1 + 0.34 * len(rows)), dpi=200, layout="constrained")
    axes = figure.subplots()
    shifts = np.linspace(-0.27, 0.27, len(names))
    for corner, (name, (colour, triangle), shift) in enumerate(zip(names, MARKS, shifts, strict=True)):
        values, places = np.array([found[corner] for _, found in rows]), np.arange(len(rows)) + shift
        axes.hlines(places, values[:, 1], values[:, 2], color=colour, linewidth=1.1)
        axes.plot(values[:, 0], places, linestyle="none", marker=triangle, markersize=5, color=colour, label=name)
    axes.axvline(0, color="0.5", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), labels=[name for name, _ in rows], fontsize=7, parse_math=False)
    axes.set(ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel(label, fontsize=8)
    for edge in np.arange(len(rows) - 1) + 0.5:
        axes.axhline(edge, color="0.9", linewidth=0.6)
    for_rows(axes)
    _legend(figure, len(names))
    axes.set_title(note, fontsize=8, loc="left", parse_math=False)
    return figure


def held_out_figure(rows: Sequence[tuple[str, dict]], label: str, note: str) -> Figure:
    """One line per (name, row of `analysis.corner_comparison.held_out`): its scores on both halves."""
    figure = Figure(figsize=(6.2, 1.1 + 0.24 * len(rows)), dpi=200, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    selection, other, low, high = (
        np.array([row[key] for _, row in rows], np.float64) for key in ("selection", "held_out", "low", "high")
    )
    axes.hlines(places, low, high, color=BLUE, linewidth=1.3)
    axes.plot(other, places, "s", color=BLUE, markersize=4.5, label="on the other half, with its 95 % interval")
    hollow = {"color": ORANGE, "markersize": 4.5, "markerfacecolor": "white"}
    axes.plot(selection, places, "o", **hollow, label="on the half it was chosen on")
    axes.axvline(0, color="0.5", linewidth=0.8, linestyle="--")
    axes.set_yticks(places, labels=[name for name, _ in rows], fontsize=7, parse_math=False)
    axes.set(ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel(label, fontsize=8)
    for_rows(axes)
    _legend(figure, 2)
    axes.set_title(note, fontsize=8, loc="left", parse_math=False)
    return figure


def curve_figure(
    maps: np.ndarray, names: Sequence[str], layers: Sequence[int], shared: dict, special: dict, label: str
) -> Figure:
    """Layer by layer: how strong the heads answer in each corner, and how much corners share and differ.

    maps: [corner, layer, head]; `shared` and `special` as `analysis.corner_permutation` returns them. Grey is the
    middle 95 % of what permuted heads, or permuted corners, give.
    """
    figure = Figure(figsize=(9.0, 2.7), dpi=200, layout="constrained")
    strong, same, apart = figure.subplots(1, 3)
    places = np.arange(len(layers))
    for name, (colour, triangle), values in zip(names, MARKS, np.abs(maps).mean(-1), strict=True):
        strong.plot(places, values, marker=triangle, markersize=4.5, linewidth=1.1, color=colour, label=name)
    strong.set_ylim(bottom=0)
    for axes, found in ((same, shared), (apart, special)):
        low, high = _middle(found["by_layer_null"])
        axes.fill_between(places, low, high, color="0.85", linewidth=0, label="95 % of chance")
        if len(places) == 1:
            axes.vlines(places, low, high, color="0.8", linewidth=8)
        axes.plot(places, found["by_layer"], "o-", color="black", markersize=3.5, linewidth=1.1, label="observed")
    same.axhline(0, color="0.6", linewidth=0.6)
    apart.set_ylim(bottom=0)
    strong.set_ylabel(f"mean |{label}|", fontsize=7)
    same.set_ylabel("correlation between corners", fontsize=8)
    apart.set_ylabel("difference between corners (RMS)", fontsize=8)
    asked = (f"do corners share heads?  {p_text(shared['p'])}", f"do they differ?  {p_text(special['p'])}")
    for axes, title in zip((strong, same, apart), ("response, mean over heads", *asked), strict=True):
        axes.set_title(title, fontsize=8, loc="left")
        axes.set_xlabel("layer", fontsize=8)
        _layer_axis(axes.xaxis, layers)
        for_lines(axes)
    _legend(figure, len(names) + 2, strong, same)
    return figure


def permutation_figure(shared: dict, special: dict, note: str) -> Figure:
    """What chance gives as histograms, and the observed statistic as a line: sharing on the left, differing right."""
    figure = Figure(figsize=(6.6, 2.5), dpi=200, layout="constrained")
    panels = (
        (shared["null"], shared["correlation"], shared["p_order"], "correlation between corners", "heads permuted"),
        (special["null"], special["observed"], special["p"], "difference between corners (RMS)", "corners permuted"),
    )
    for axes, (null, observed, p, label, what) in zip(figure.subplots(1, 2), panels, strict=True):
        null = null[np.isfinite(null)]
        if len(null):
            axes.hist(null, bins=40, color="0.75", label=f"{what}, {len(null):,} times")
        axes.axvline(observed, color=ORANGE, linewidth=1.6, label=f"observed, {p_text(p)}")
        axes.set_xlabel(label, fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.margins(y=0.3)
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    figure.suptitle(note, fontsize=8, parse_math=False)
    return figure


def p_text(p: float | None) -> str:
    """A p as text: three digits behind the point, four below 0.001; None is a test that could not be made."""
    if p is None:
        return "not defined"
    return f"p = {p:.3f}" if p >= 0.001 else f"p = {p:.4f}"


def _middle(null: np.ndarray) -> np.ndarray:
    """2.5 % and 97.5 % quantiles over resamples [resample, layer]; NaN where a layer has none."""
    found = np.full((2, null.shape[1]), np.nan)
    known = np.isfinite(null).all(0)
    found[:, known] = np.quantile(null[:, known], (0.025, 0.975), axis=0)
    return found


def _legend(figure: Figure, columns: int, *axes) -> None:
    """One legend below the figure, of what is named in `axes` (all of them where none is given)."""
    found = [each.get_legend_handles_labels() for each in axes or figure.axes]
    handles, labels = (sum(parts, []) for parts in zip(*found, strict=True))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)
