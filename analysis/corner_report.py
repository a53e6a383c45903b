"""Report of a comparison of four corners: figures, report.md and pictures.html.

Each map is drawn at the position of its corner in the image; all maps of a figure have one colour scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from analysis.corners import (
    SHARED,
    UNIQUE,
    Calls,
    Comparison,
    Corners,
    direction_suffix,
    over_chance,
    rank_heads,
    scores,
)
from analysis.files import read_table, write_whole
from analysis.plots import BLUE, GREEN, ORANGE, Figure, for_lines, for_rows, whole_numbers
from analysis.report import PageFigure, Section, Table, as_markdown, as_page
from analysis.runs import RunFolder
from analysis.statistics import DIFFERENCE, MIN_SPLIT, halves, mean_interval, too_few

LABEL = "attention, full − control"
MAX_HEADS = 12  # in a figure
HELD_OUT_HEADER = (
    "chosen on one half", "rank", "head", "score", "score on the other half", "95 %", "p", "q", "rank there",
    "call (all pairs)",
)  # fmt: skip
COUNTS = (
    "Share of pairs in which a head is among the top {topk} of its layer that change most, minus the layer's mean share"
    " (the share by chance). The published sweep uses these counts. They are a description: a head whose attention"
    " varies more than that of others changes most in every corner, with or without an object."
)


def write_comparison(run: RunFolder, corners: Corners, comparison: Comparison) -> Path:
    """Draw the figures, write report.md and pictures.html; return the path of the page."""
    title = f"Corners: {Path(str(corners.about['model'])).name}, {corners.pairs_named} in each"
    sections = [
        _settings_section(corners),
        _response_section(run, corners, comparison),
        _count_section(run, corners),
        *_run_sections(corners),
    ]
    for name, text in (("report.md", as_markdown(title, sections)), ("pictures.html", as_page(title, sections))):
        data = text.encode("utf-8", errors="backslashreplace")
        write_whole(run.folder / name, lambda partial, data=data: partial.write_bytes(data))
    return run.folder / "pictures.html"


def _settings_section(corners: Corners) -> Section:
    about = ", ".join(f"{name} {value}" for name, value in corners.about.items() if value not in (None, False))
    folders = (f"{label}: {folder}" for label, folder in zip(corners.labels, corners.folders, strict=True))
    left_out = f" {len(corners.left_out)} pairs that a corner lacks are left out." if corners.left_out else ""
    return Section("Runs compared", (
        f"{'; '.join(folders)}.", f"All with {about}.{left_out}",
        "Heads are written layer.head, both counted from 0. The question names the corner, so differences between"
        " corners may come from the position of the object or from the wording.",
        "Shared: responds in every corner, in the same direction; the score is the weakest of the four responses."
        " Unique to a corner: responds there, and more than in any other corner; the score is the lead over the next."
        " Uneven: corners differ. (less): the head loses attention; its score is of the responses times −1.",
    ))  # fmt: skip


def _response_section(run: RunFolder, corners: Corners, comparison: Comparison) -> Section:
    text = (
        "Attention of a head to the image (or to the corner of it) with the object, minus that without.",
        *findings(corners, comparison),
    )
    tables = (_held_out_table(corners, comparison),) if comparison.held_out else ()
    n, axes = len(corners.pairs), (corners.labels, corners.layers)
    marks = f"circles: called shared; diamonds: called unique (q <= {comparison.level:g}); n = {n} pairs in each corner"
    first, second = split(comparison)
    note = f"ranked on {len(first)} pairs; drawn: the other {len(second)}, mean with 95 % interval"
    if n < MIN_SPLIT:
        note = f"ranked and drawn on the same {n} pairs: mean with 95 % interval"
    heads = [
        (f"{_spell(corners, head)}  {comparison.call(head, corners.labels)}".rstrip(), intervals(comparison, head))
        for head in strongest_heads(comparison)
    ]
    drawn = (
        ("signed_maps.png", map_figure(comparison.maps, *axes, LABEL, marks, comparison.calls),
         "Maps of layers by heads: the mean response of the four corners and that of each corner"),
        ("signed_heads.png", head_figure(heads, corners.labels, LABEL, note),
         "The strongest and the called heads, ranked on one half of the pairs: their response in each of the four"
         " corners on the other half, with intervals"),
        ("signed_curves.png", curve_figure(comparison, *axes, LABEL),
         "By layer: response in each corner, correlation between corners, and difference between corners, the last two"
         " with the range of the permutations"),
    )  # fmt: skip
    pictures = tuple(PageFigure(run.save(figure, name), f"{alt}.", f"{alt}.") for name, figure, alt in drawn)
    return Section("Responses", text, pictures, tables)


def _count_section(run: RunFolder, corners: Corners) -> Section:
    topk, heads, n = corners.about["topk"], corners.counts.shape[2], len(corners.pairs)
    text = COUNTS.format(topk=topk)
    if 2 * topk > heads:
        text += f" The top {topk} of {heads} heads hardly separates heads: measure with a smaller --topk."
    label = f"share of pairs in the layer's top {topk}, over chance"
    figure = map_figure(
        over_chance(corners.counts), corners.labels, corners.layers, label, f"n = {n} pairs in each corner"
    )
    alt = "Maps of layers by heads: counts of the heads that change most, mean of the four corners and each corner."
    return Section(
        "Counts of the heads that change most", (text,), (PageFigure(run.save(figure, "count_maps.png"), alt),)
    )


def _run_sections(corners: Corners) -> Iterator[Section]:
    """The first pair of each corner, and the ablation of each corner's own run, where their files exist."""
    pairs, ablations = [], []
    for label, folder in zip(corners.labels, corners.folders, strict=True):
        row = next((row for row in read_table(folder / "samples.csv") if not row["skipped"]), {})
        for column, kind in (("full_image", "with the object"), ("control_image", "without it")):
            path = Path(row.get(column) or "none")
            if path.suffix == ".png" and path.is_file():
                pairs.append(PageFigure(path, f"An image of the set {label}, {kind}.", f"{label}, {kind}"))
        if (path := folder / "ablation.png").is_file():
            alt = f"{label}: the answer without the image attention of the strongest heads, and of random heads."
            ablations.append(PageFigure(path, alt, alt))
    if pairs:
        yield Section("First pair of each corner", small=tuple(pairs))
    if ablations:
        yield Section("Ablation in each corner", pictures=tuple(ablations))


def findings(corners: Corners, comparison: Comparison) -> list[str]:
    """The results of the tests in words."""
    shared, special, n = comparison.sharing, comparison.specialisation, len(corners.pairs)
    if shared["p"] is None:
        sharing = "Sharing: all heads of a corner's map are equal, so there is no correlation."
    else:
        sharing = (
            f"Sharing: the maps of two corners correlate by r = {shared['correlation']:.2f} within layers on average;"
            f" {p_text(shared['p'])} (heads permuted {p_text(shared['p_order'])}, signs flipped"
            f" {p_text(shared['p_signs'])}), {p_text(shared['q'], 'q')} over this and the next test."
        )
    ratio = "" if special["ratio"] is None else f", {special['ratio']:.2f} times that of permuted corners"
    specialising = (
        f"Specialising: corners differ from their mean by {special['observed']:.4f} (RMS over heads){ratio};"
        f" {p_text(special['p'])}, {p_text(special['q'], 'q')}."
    )
    unique = ", ".join(
        f"{count} unique to {label}"
        for label, count in zip(corners.labels, comparison.calls.unique.sum((1, 2)), strict=True)
    )
    called = (
        f"Of {comparison.calls.shared.size} heads, {int(comparison.calls.shared.sum())} are called shared, {unique}"
        f" (q <= {comparison.level:g} over all heads, and corners, n = {n} pairs)."
    )
    lines = [sharing, specialising, called]
    if few := too_few(n):
        lines.append(f"{few}.")
    if comparison.held_out is None:
        lines.append("There are too few pairs to choose heads on one half and score them on the other.")
    return lines


def _held_out_table(corners: Corners, comparison: Comparison) -> Table:
    rows = []
    for row in comparison.held_out:
        if row["kind"] not in (SHARED, UNIQUE):
            continue
        kind = SHARED if row["kind"] == SHARED else f"unique to {corners.labels[row['corner']]}"
        head = row["layer"], row["head"]
        rows.append((
            kind + direction_suffix(row["direction"]), str(row["rank"]), _spell(corners, head),
            _signed(row["selection"]), _signed(row["held_out"]), f"{_signed(row['low'])} to {_signed(row['high'])}",
            f"{row['p']:.2g}", f"{row['q']:.2g}", str(row["rank_held_out"]),
            comparison.call(head, corners.labels) or "not called",
        ))  # fmt: skip
    return Table(HELD_OUT_HEADER, tuple(rows))


def split(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pairs on which heads are chosen and on which they are measured, the halves of `held_out`; all
    pairs twice where these are too few for halves."""
    pairs = comparison.values.shape[-1]
    return halves(pairs, np.random.default_rng(comparison.seed)) if pairs >= MIN_SPLIT else (np.arange(pairs),) * 2


def strongest_heads(comparison: Comparison) -> list[tuple[int, int]]:
    """At most MAX_HEADS heads, ranked on the first half of the pairs (`split`): the best shared head, the best unique
    head of each corner, then all called heads in falling order of score."""
    first, _ = split(comparison)
    by_kind = [
        score
        for (kind, _), (score, _) in scores(comparison.values[..., first].mean(-1)).items()
        if kind in (SHARED, UNIQUE)
    ]
    called = comparison.calls.shared | comparison.calls.unique.any(0)
    others = rank_heads(np.where(called, np.max(by_kind, axis=0), -np.inf), int(called.sum()))
    return list(dict.fromkeys([*(rank_heads(score, 1)[0] for score in by_kind), *others]))[:MAX_HEADS]


def intervals(comparison: Comparison, head: tuple[int, int]) -> np.ndarray:
    """Mean, low and high of one head in every corner over the second half of the pairs (`split`), [corner, 3]; NaN
    where there is no interval."""
    _, second = split(comparison)
    means = [mean_interval(values[head][second], DIFFERENCE) for values in comparison.values]
    return np.array([[mean["mean"], mean["low"], mean["high"]] for mean in means], np.float64)


def _spell(corners: Corners, head: tuple[int, int]) -> str:
    return f"{corners.layers[head[0]]}.{head[1]}"


def _signed(value: float) -> str:
    """A number with its sign; + for a value that rounds to 0."""
    return f"{round(value, 4) + 0:+.4f}"


PURPLE = "#7b4b94"
# markers: a triangle that fills its corner, which identifies it without the colour: top left, top right, ...
TRIANGLES = (
    ((-1, 1), (1, 1), (-1, -1)),
    ((-1, 1), (1, 1), (1, -1)),
    ((-1, 1), (-1, -1), (1, -1)),
    ((1, 1), (1, -1), (-1, -1)),
)
MARKS = tuple(zip((BLUE, ORANGE, GREEN, PURPLE), TRIANGLES, strict=True))
PANELS = ((0, 1), (0, 2), (1, 1), (1, 2))  # (row, column) of each corner's panel; column 0 holds the mean map
CALLED_SHARED = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": "black"}
CALLED_UNIQUE = {"marker": "D", "markersize": 4.5, "markerfacecolor": "gold", "markeredgecolor": "black"}


def map_figure(
    maps: np.ndarray, names: Sequence[str], layers: Sequence[int], label: str, note: str, calls: Calls | None = None
) -> Figure:
    """Maps [corner, layer, head] in their corners, with their mean on the left.

    Circles mark heads called shared in the mean map, diamonds those called unique to a corner in its map. `label` names
    the colour scale; `note` is the title.
    """
    rows, heads = maps.shape[1:]
    width, height = max(1.7, 0.1 * heads + 0.7), max(1.3, 0.1 * rows + 0.6)  # inches of a panel
    figure = Figure(figsize=(width * 3 + 1.1, 2 * height + 0.7), dpi=200, layout="constrained")
    grid = figure.add_gridspec(2, 3)
    shown = (maps.mean(0), *maps)
    top = max(float(np.abs(values).max()) for values in shown) or 1.0
    drawn = []
    cells = (grid[:, 0], *(grid[place] for place in PANELS))
    for cell, name, values in zip(cells, ("mean of the four", *names), shown, strict=True):
        axes = figure.add_subplot(cell)
        drawn.append(axes)
        image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-top, vmax=top)
        axes.set_box_aspect((height - 0.5) / (width - 0.5))
        axes.set_title(name, fontsize=8, loc="left", parse_math=False)
        _layer_axis(axes.yaxis, layers)
        whole_numbers(axes.xaxis)
        axes.tick_params(labelsize=7)
        axes.set_ylabel("layer", fontsize=8)
        axes.set_xlabel("head", fontsize=8)
    if calls is not None:
        styles = (CALLED_SHARED, *(CALLED_UNIQUE,) * len(maps))
        for axes, called, style in zip(drawn, (calls.shared, *calls.unique), styles, strict=True):
            row, col = np.nonzero(called)
            axes.plot(col, row, linestyle="none", **style)
    bar = figure.colorbar(image, ax=drawn, shrink=0.85, pad=0.02, aspect=30)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(note, fontsize=8, parse_math=False)
    return figure


def _layer_axis(axis, layers: Sequence[int]) -> None:
    """Set ticks at rows 0, 1, ... with the layers' numbers, at most fifteen of them."""
    step = -(-len(layers) // 15)
    axis.set_ticks(range(0, len(layers), step), labels=[str(layer) for layer in layers[::step]])


def head_figure(rows: Sequence[tuple[str, np.ndarray]], names: Sequence[str], label: str, note: str) -> Figure:
    """One line per (head's name, [corner, 3]: mean, low, high): its response in every corner with its interval."""
    figure = Figure(figsize=(6.2, 1.1 + 0.34 * len(rows)), dpi=200, layout="constrained")
    axes = figure.subplots()
    shifts = np.linspace(-0.27, 0.27, len(names))
    for corner, (name, (colour, triangle), shift) in enumerate(zip(names, MARKS, shifts, strict=True)):
        values, places = np.array([estimates[corner] for _, estimates in rows]), np.arange(len(rows)) + shift
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


def curve_figure(comparison: Comparison, names: Sequence[str], layers: Sequence[int], label: str) -> Figure:
    """By layer: mean size of the response in each corner, correlation and difference between corners.

    Grey is the middle 95 % of the statistic of permuted heads, or of permuted corners.
    """
    figure = Figure(figsize=(9.0, 2.7), dpi=200, layout="constrained")
    size, same, apart = figure.subplots(1, 3)
    places = np.arange(len(layers))
    for name, (colour, triangle), values in zip(names, MARKS, np.abs(comparison.maps).mean(-1), strict=True):
        size.plot(places, values, marker=triangle, markersize=4.5, linewidth=1.1, color=colour, label=name)
    size.set_ylim(bottom=0)
    for axes, test in ((same, comparison.sharing), (apart, comparison.specialisation)):
        low, high = _middle(test["by_layer_null"])
        axes.fill_between(places, low, high, color="0.85", linewidth=0, label="95 % of chance")
        if len(places) == 1:
            axes.vlines(places, low, high, color="0.8", linewidth=8)
        axes.plot(places, test["by_layer"], "o-", color="black", markersize=3.5, linewidth=1.1, label="observed")
    same.axhline(0, color="0.6", linewidth=0.6)
    apart.set_ylim(bottom=0)
    size.set_ylabel(f"mean |{label}|", fontsize=7)
    same.set_ylabel("correlation between corners", fontsize=8)
    apart.set_ylabel("difference between corners (RMS)", fontsize=8)
    tests = (f"sharing, {p_text(comparison.sharing['p'])}", f"specialisation, {p_text(comparison.specialisation['p'])}")
    for axes, title in zip((size, same, apart), ("response, mean over heads", *tests), strict=True):
        axes.set_title(title, fontsize=8, loc="left")
        axes.set_xlabel("layer", fontsize=8)
        _layer_axis(axes.xaxis, layers)
        for_lines(axes)
    _legend(figure, len(names) + 2, size, same)
    return figure


def p_text(p: float | None, symbol: str = "p") -> str:
    """A p or q as text: three digits, four below 0.001; None is a test that is not defined."""
    if p is None:
        return "not defined"
    return f"{symbol} = {p:.3f}" if p >= 0.001 else f"{symbol} = {p:.4f}"


def _middle(null: np.ndarray) -> np.ndarray:
    """2.5 % and 97.5 % quantiles over resamples [resample, layer]; NaN where a layer has none."""
    interval = np.full((2, null.shape[1]), np.nan)
    known = np.isfinite(null).all(0)
    interval[:, known] = np.quantile(null[:, known], (0.025, 0.975), axis=0)
    return interval


def _legend(figure: Figure, columns: int, *axes) -> None:
    """Add one legend below the figure, of the labels in `axes` (default: all axes)."""
    entries = [panel.get_legend_handles_labels() for panel in axes or figure.axes]
    handles, labels = (sum(parts, []) for parts in zip(*entries, strict=True))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)
