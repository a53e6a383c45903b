"""What a comparison of four corners leaves behind for a reader: figures, report.md and pictures.html.

Figures of four corners side by side, each placed where it lies in the picture. One colour scale per figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.corner_study import Study, intervals, less, share_intervals, shown_heads, split, top_cells
from analysis.corners import RESIDUAL, SHARED, UNIQUE, Calls, Corners, over_chance, residuals
from analysis.plots import BLUE, GREEN, ORANGE, Figure, for_lines, for_rows, whole_numbers
from analysis.report import Picture, Section, Table, as_markdown, as_page
from analysis.runs import RunFolder, write_whole
from analysis.statistics import too_few

LABEL = "attention, full − control"
DIRECTED = "score (in the chosen direction)"
SIGNED = "Attention of a head to the image (or the corner of it) with the object, minus that without."
COUNT = (
    "Share of pairs in which a head is among the top {topk} of its layer that changed most, minus the layer's mean"
    " share, which is what chance gives every head. It says which heads of a layer change most, not how much, nor that"
    " the object is why: a head whose attention varies more than that of others changes most in every corner without"
    " any object. So by counts no head is called shared or unique, and nothing is tested."
)


def write_texts(run: RunFolder, corners: Corners, made: Study, shown: list[Section]) -> Path:
    """Draws the figures, writes report.md and pictures.html; returns the page. `shown`: sections to end it with."""
    title = f"Corners: {Path(str(corners.about['model'])).name}, {corners.pairs_named} in each"
    sections = [_opening(corners), _signed(run, corners, made), _counted(run, corners, made), *shown]
    for name, text in (("report.md", as_markdown(title, sections)), ("pictures.html", as_page(title, sections))):
        data = text.encode("utf-8", errors="backslashreplace")
        write_whole(run.folder / name, lambda partial, data=data: partial.write_bytes(data))
    return run.folder / "pictures.html"


def _opening(corners: Corners) -> Section:
    about = ", ".join(f"{what} {value}" for what, value in corners.about.items() if value not in (None, False))
    folders = (f"{label}: {folder}" for label, folder in zip(corners.labels, corners.folders, strict=True))
    left_out = f" {len(corners.left_out)} pairs that a corner lacks are left out." if corners.left_out else ""
    return Section("What was compared", (
        f"{'; '.join(folders)}.", f"All with {about}.{left_out}",
        "Layers and heads count from 0, and a head is written layer.head. The question names the corner, so what"
        " differs between corners differs with the place of the object and with the wording together.",
        "Shared: answers in every corner, in the same direction; its score is the weakest of the four. Unique to a"
        " corner: answers there, and more than in any other corner; its score is the lead over the next. Uneven:"
        " corners differ. Calls say that an effect is there, scores how large it is.",
    ))  # fmt: skip


def _signed(run: RunFolder, corners: Corners, made: Study) -> Section:
    tables = [_cell_table(corners, made.maps, _top(made))]
    if made.chosen:
        tables.insert(0, _held_out_table(corners, made))
    text = (SIGNED, *sentences(corners, made))
    return Section("Measure: signed", text, _signed_figures(run, corners, made), tuple(tables))


def _counted(run: RunFolder, corners: Corners, made: Study) -> Section:
    """What the counts show, without calls and tests."""
    topk, heads = corners.about["topk"], corners.counts.shape[2]
    meaning = COUNT.format(topk=topk)
    if 2 * topk > heads:
        meaning += (
            f" With {topk} of {heads} heads in every top, it hardly tells heads apart: measure with a smaller --topk."
        )
    table = _cell_table(corners, over_chance(corners.counts), _top(made), np.positive)
    return Section("Measure: count, a description", (meaning,), _count_figures(run, corners), (table,))


def _top(made: Study) -> int:
    return max((row["rank"] for row in made.chosen), default=3) if made.chosen else 3


def sentences(corners: Corners, made: Study) -> list[str]:
    """The results of the signed responses in words."""
    shared, special, n = made.shared, made.special, len(corners.pairs)
    together = (
        "Sharing: a corner's map is the same for all heads, so there is no correlation."
        if shared["p"] is None
        else f"Sharing: maps of two corners correlate by r = {shared['correlation']:.2f} within layers on average;"
        f" {p_text(shared['p'])}, q = {shared['q']:.3f} of this and the next test"
        + (
            f" (heads permuted {p_text(shared['p_order'])}, signs flipped {p_text(shared['p_signs'])})."
            if shared["p_signs"] is not None
            else " (heads permuted)."
        )
    )
    ratio = "" if special["ratio"] is None else f", {special['ratio']:.2f} times what permuted corners give"
    apart = (
        f"Specialising: corners differ from their mean by {special['observed']:.4f} (RMS over heads){ratio};"
        f" {p_text(special['p'])}, q = {special['q']:.3f}."
    )
    counts = zip(corners.labels, made.calls.unique.sum((1, 2)), strict=True)
    only = (f"{count} unique to {label}" for label, count in counts)
    called = (
        f"Of {made.calls.shared.size} heads, {int(made.calls.shared.sum())} are called shared, {', '.join(only)}"
        f" (q <= {made.level:g} over all heads, and corners, n = {n} pairs)."
    )
    few = too_few(n)
    return [together, apart, called, *([f"{few}."] if few else ()), *_drops(made)]


def _drops(made: Study) -> list[str]:
    if made.drop is None:
        return ["There are too few pairs to choose heads on one half and score them on the other."]
    shared, unique = (
        f"{drop['selection']:.4f} where it was chosen and {drop['held_out']:.4f} on the other half"
        f" (drop {drop['drop']:.4f})"
        for drop in (made.drop[SHARED], made.drop[UNIQUE])
    )
    return [
        f"What choosing costs, over many random halves: the best shared head scores {shared}; a corner's best unique"
        f" head {unique}, and is the other half's best too in {made.drop[UNIQUE]['again']:.0%} of cases."
    ]


def _held_out_table(corners: Corners, made: Study) -> Table:
    rows = tuple(
        (
            name, str(row["rank"]), _spelt(corners, (row["layer"], row["head"])), _number(row["selection"]),
            _number(row["held_out"]), f"{_number(row['low'])} to {_number(row['high'])}", f"{row['p']:.2g}",
            f"{row['q']:.2g}", _number(row["drop"]), str(row["rank_held_out"]),
            made.call((row["layer"], row["head"]), corners.labels) or "not called",
        )
        for name, row in _chosen(corners, made)
    )  # fmt: skip
    header = (
        "chosen on one half", "rank", "head", DIRECTED, "on the other half", "95 %", "p", "q", "drop", "rank there",
        "call (all pairs)",
    )  # fmt: skip
    return Table(header, rows)


def _chosen(corners: Corners, made: Study) -> list[tuple[str, dict]]:
    """Shared and unique rows of `held_out`, with their names."""
    return [
        (_kind(corners, row["kind"], row["corner"], row["direction"]), row)
        for row in made.chosen if row["kind"] in (SHARED, UNIQUE)
    ]  # fmt: skip


def _cell_table(corners: Corners, maps: np.ndarray, top: int, size=np.abs) -> Table:
    rows = tuple(
        (where, _spelt(corners, head), *(_number(of) for of in maps[:, *head]), _number(value))
        for where, head, value in top_cells(corners, maps, top, size)
    )
    header = ("top cells on all pairs (a description: too large by selection)", "head", *corners.labels, "value")
    return Table(header, rows)


def _signed_figures(run: RunFolder, corners: Corners, made: Study) -> tuple[Picture, ...]:
    """Draws all figures of the responses into the run's folder."""
    n, places = len(corners.pairs), (corners.labels, corners.layers)
    marks = f"circles: called shared; diamonds: called unique (q <= {made.level:g}); n = {n} pairs in each corner"
    heads = [
        (f"{_spelt(corners, head)}  {made.call(head, corners.labels)}".rstrip(), intervals(made, head))
        for head in shown_heads(made)
    ]
    figures = _map_figures(corners, made.maps, LABEL, marks, made.calls) | {
        "heads": (
            head_figure(heads, corners.labels, LABEL, _halves_note(made)),
            "The best and the called heads, ranked on one half of the pairs: their response in each of the four corners"
            " on the other half, with intervals",
        ),
        "curves": (
            curve_figure(made.maps, *places, made.shared, made.special, LABEL),
            "Curves over layers: response in each corner, correlation between corners, and difference between corners,"
            " the last two beside what chance gives",
        ),
        "permutation": (
            permutation_figure(made.shared, made.special, f"n = {n} pairs in each corner"),
            "Histograms of what chance gives for sharing and for specialising, with the observed values",
        ),
    }
    if made.chosen:
        rows = [
            (f"{name}, {row['rank']}: {_spelt(corners, (row['layer'], row['head']))}", row)
            for name, row in _chosen(corners, made)
        ]
        note = f"chosen on {n // 2} pairs, scored on the other {n - n // 2}"
        figures["held_out"] = (
            held_out_figure(rows, f"{DIRECTED}: {LABEL}, times −1 for (less)", note),
            "Scores of the best heads on the half of the pairs that they were chosen on, and on the other half",
        )
    return _drawn(run, "signed", figures)


def _halves_note(made: Study) -> str:
    """The pairs on which the heads of a figure were ranked, and those that it shows."""
    first, second = split(made)
    if len(made.values[0, 0, 0]) == len(first):
        return f"ranked and drawn on the same {len(first)} pairs: mean with 95 % interval"
    return f"ranked on {len(first)} pairs; drawn: the other {len(second)}, mean with 95 % interval"


def _count_figures(run: RunFolder, corners: Corners) -> tuple[Picture, ...]:
    """Draws the figures of the counts into the run's folder."""
    n, topk, maps = len(corners.pairs), corners.about["topk"], over_chance(corners.counts)
    shown = dict.fromkeys(head for _, head, _ in top_cells(corners, maps, 1, np.positive))
    heads = [(_spelt(corners, head), share_intervals(corners.counts, head)) for head in shown]
    label = f"share of pairs in the layer's top {topk}"
    figures = _map_figures(corners, maps, f"{label}, over chance", f"n = {n} pairs in each corner") | {
        "heads": (
            head_figure(heads, corners.labels, label, f"layer.head: share and 95 % interval over n = {n} pairs"),
            "Heads that change most: in how many pairs of each corner, with intervals",
        )
    }
    return _drawn(run, "count", figures)


def _map_figures(corners: Corners, maps: np.ndarray, label: str, note: str, calls: Calls | None = None) -> dict:
    places = corners.labels, corners.layers
    return {
        "maps": (
            map_figure(maps.mean(0), maps, *places, label, note, calls),
            "Heatmaps of layers by heads: the mean map of the four corners and each corner's own",
        ),
        "residuals": (
            map_figure(None, residuals(maps), *places, f"{RESIDUAL}: corner − mean map", note, calls),
            "Heatmaps of layers by heads: each corner's map minus the mean map",
        ),
    }


def _drawn(run: RunFolder, measure: str, figures: dict) -> tuple[Picture, ...]:
    return tuple(
        Picture(run.save(figure, f"{measure}_{kind}.png"), f"{alt} ({measure}).", f"{alt}.")
        for kind, (figure, alt) in figures.items()
    )


def _kind(corners: Corners, kind: str, place: int | None, direction: int) -> str:
    """Such as "unique to top right (less)": the direction is part of what a head is."""
    return (kind if place is None else f"{kind} to {corners.labels[place]}") + less(direction)


def _spelt(corners: Corners, head: tuple[int, int]) -> str:
    return f"{corners.layers[head[0]]}.{head[1]}"


def _number(value: float) -> str:
    """With its sign; what rounds to 0 is no less than 0."""
    return f"{round(value, 4) + 0:+.4f}"


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
    """One line per (name, row of `analysis.corners.held_out`): its scores on both halves."""
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

    maps: [corner, layer, head]; `shared` and `special` as `analysis.corner_study` returns them. Grey is the
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
