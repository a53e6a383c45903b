"""Output of the spatial analyses: attention of words and cells over the image, per head, and metrics with controls.

It consists of figures of samples, tables and figures over all samples, and sentences with the main results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from analysis.faithfulness import FaithfulnessScore, save_faithfulness
from analysis.files import cell_rects, save_arrays
from analysis.metrics import METRICS
from analysis.overlay import LONGER_SIDE, overlay
from analysis.plots import BLUE, GREEN, ORANGE, Figure, for_bars, head_heatmap, visible
from analysis.runs import RunFolder
from analysis.spatial import (
    CONDITIONS,
    FAMILY,
    QUERIES,
    SEEDS,
    WORDS,
    SampleMetrics,
    Scene,
    column,
    compare_heads,
    metrics_of,
    missing_words,
    save_tables,
    summarise,
    summarise_heads,
)
from analysis.statistics import LEVEL, SHARE, mean_interval, too_few
from data.errors import check_at_least


@dataclass(frozen=True)
class FigureSettings:
    """Settings of the figures of a run."""

    pictures: int = 4
    """Number of samples with a figure of their attention maps (looks.png) and raw maps."""
    figures: bool = True
    """Draw controls-*.png and heads/ (a quarter of a minute)."""

    def __post_init__(self) -> None:
        check_at_least(self, pictures=0)


def draw_sample(
    run: RunFolder, sample, images: Sequence[Image.Image], layouts: Sequence, scene: Scene, measured: SampleMetrics
) -> str:
    """Write looks.png and maps.npz of one sample (`own` and `shuffled` [query, row, col], the boxes' cell weights
    `first` and `second`, `cells` as in every maps.npz); return its folder's name."""
    folder = run.sample_folder(sample.name)
    grids = [layout.grids[0] for layout in layouts]
    run.save(sample_figure(images, grids, scene, sample, measured), folder.name, "looks.png")
    own, shuffled = np.stack([measured.maps[query] for query in measured.maps]).astype(np.float32).swapaxes(0, 1)
    save_arrays(
        folder / "maps.npz", queries=np.array(list(measured.maps)), own=own, shuffled=shuffled, first=scene.first,
        second=scene.second, cells=cell_rects(grids[0]),
    )  # fmt: skip
    return folder.name


def hidden_by(scene: Scene, measured: SampleMetrics) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Maps that rank the cells to hide, and the box of each, [row, col] by name: those of each word, and "boxes", the
    true boxes themselves."""
    boxes = {"first": scene.first, "relation": scene.both, "second": scene.second, "boxes": scene.both}
    return {**{word: measured.maps[word][0] for word in WORDS}, "boxes": scene.both}, boxes


def report(
    run: RunFolder,
    samples: Sequence[SampleMetrics],
    scores: Sequence[FaithfulnessScore],
    seed: int,
    figures: bool = True,
) -> dict:
    """Write the tables and (if `figures`) figures of all samples, print the main results and return the summary.

    Returns {} if all samples were skipped.
    """
    if not samples:
        return {}
    tested = compare_heads(samples)
    save_tables(run, samples, tested)
    if figures:
        save_controls(run, samples)
        save_heads(run, tested, len(samples))
    stated = ("label", "unit", "better", "bounds")
    about = {name: {key: getattr(metric, key) for key in stated} for name, metric in METRICS.items()}
    summary = {"metrics": about, "skipped_words": missing_words(samples)}
    summary |= {
        "queries": summarise(samples, seed),
        "family_of_q": FAMILY,
        "heads": summarise_heads(samples, tested, seed),
    }
    if scores:
        summary["faithfulness"] = save_faithfulness(run, scores, seed)
    for line in sentences(summary):
        print(line)
    return summary


def sentences(summary: dict) -> list[str]:
    """Main results for the terminal: attention mass of the words in their boxes and faithfulness gains."""
    lines = [f"{reason}: left out of {count} samples" for reason, count in summary["skipped_words"].items()]
    few = too_few(max(summary["queries"][word]["mass"]["n"] for word in WORDS))
    lines += [few] if few else []
    for word in WORDS:
        mass = summary["queries"][word]["mass"]
        held = ", ".join(f"{LABELS[name]} {_percent(control)}" for name, control in mass["controls"].items())
        lines.append(f"{TITLES[word]}: {_percent(mass)} of image attention in the box ({held}; n = {mass['n']})")
    for order in (*WORDS, "boxes") if "faithfulness" in summary else ():
        scores = summary["faithfulness"]["orders"][order]
        gains = ", ".join(
            f"{direction} {_nats(gain)}"
            for direction, gain in ((direction, scores[f"{direction}_gain"]) for direction in ("insertion", "deletion"))
        )
        name = TITLES.get(order, "true boxes")
        n = scores["deletion_gain"]["n"]
        lines.append(f"cells in the order of the {name}, against the same map shifted: {gains} (n = {n})")
    return lines


def _percent(figure: dict) -> str:
    return "unknown" if figure["mean"] is None else f"{figure['mean']:.0%}"


def _nats(figure: dict) -> str:
    if figure["mean"] is None:
        return "unknown"
    interval = "" if figure["low"] is None else f" [{figure['low']:+.2f}, {figure['high']:+.2f}]"
    return f"{figure['mean']:+.2f} nats{interval}"


TITLES = {
    "first": "first shape's words", "relation": "relation's word", "second": "second shape's words",
    "seed_first": "cell on first shape", "seed_second": "cell on second shape", "seed_background": "background cell",
}  # fmt: skip
GROUPS = {"words": WORDS, "seeds": SEEDS}
COLOURS = {"own": BLUE, "shuffled": ORANGE, "other": GREEN, "centre": "#b5b5b5", "uniform": "#6b6b6b"}
LABELS = {
    "own": "as measured", "shuffled": "cells shuffled", "other": "other shape's box", "centre": "centre prior",
    "uniform": "even map",
}  # fmt: skip
BOXES = {"first": "-", "second": (0, (3, 2))}
REACTIONS = {"other": "dot: differs from other shape's box", "shuffled": "dot: reacts to cells shuffled"}


def sample_figure(
    images: Sequence[Image.Image], grids: Sequence, scene: Scene, sample, measured: SampleMetrics
) -> Figure:
    """Figure with a column per query: its map over the image (top) and the shuffled image (bottom), with the share of
    its image attention in the box. Solid: the first shape's box, dashed: the second's; a cross marks a seed.

    images, grids: of the image and the shuffled one. sample: has `words` by query and `pair`, with the two shapes.
    """
    figure = Figure(figsize=(1.75 * len(QUERIES) + 0.3, 4.5), dpi=200, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    axes = figure.subplots(2, len(QUERIES))
    for column_axes, query in zip(axes.T, QUERIES, strict=True):
        column_axes[0].set_title(_title(query, sample.words), fontsize=8, parse_math=False)
        for shown, image, grid, cells, kind in zip(
            column_axes, images, grids, measured.maps[query], ("own", "shuffled"), strict=True
        ):
            shown_map = np.nan_to_num(cells)
            if query in SEEDS:
                shown_map[scene.seeds[query]] = 0  # as in the metrics: the seed's own cell is excluded
            _overlay(shown, image, grid, shown_map)
            _boxes(shown, image, sample.pair, grids[0], grid)
            if query in SEEDS:
                _seed(shown, image, grid, scene.seeds[query])
            share, even = (measured.values[query][condition]["mass"] for condition in (kind, "uniform"))
            known = np.isfinite(share) and np.isfinite(even)  # a box may hold only the seed's own cell
            unknown = "box not to be seen" if np.isfinite(cells).all() else "word is not there"
            shown.set_xlabel(f"{share:.0%} in box (even: {even:.0%})" if known else unknown, fontsize=7)
    axes[0, 0].set_ylabel("image", fontsize=8)
    axes[1, 0].set_ylabel("cells shuffled", fontsize=8)
    key = [
        *(
            Line2D([], [], color="white", linewidth=1, linestyle=line, label=f"{word} shape's box")
            for word, line in BOXES.items()
        ),
        Line2D([], [], color="white", marker="x", linewidth=0, label="the cell that looks"),
    ]
    figure.legend(
        handles=key, loc="outside lower center", ncols=3, fontsize=7, facecolor="0.35", labelcolor="white", framealpha=1
    )
    return figure


def _title(query: str, words: dict[str, str]) -> str:
    if query in words:
        return f"“{visible(words[query], 22)}”"
    shape = words.get(query.removeprefix("seed_"))
    return f"cell on\n{visible(shape, 22)}" if shape else "background cell"


def _overlay(axes, image, grid, cells) -> None:
    axes.imshow(overlay(image, cells, grid, at_least=LONGER_SIDE))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _scale(axes, image) -> float:
    """Pixels of the drawn image per pixel of the image."""
    return axes.images[0].get_array().shape[1] / image.width


def _boxes(axes, image, pair, original, grid) -> None:
    """Draw both shapes' boxes, given in pixels of the `original` image, on an image of any size."""
    scale = _scale(axes, image)
    (left, top, *_), (_, _, right, bottom) = original.rect(0, 0), original.rect(original.rows - 1, original.cols - 1)
    (x, y, *_), (_, _, x_end, y_end) = grid.rect(0, 0), grid.rect(grid.rows - 1, grid.cols - 1)
    across, down = (x_end - x) / (right - left), (y_end - y) / (bottom - top)
    for word, line in BOXES.items():
        box = getattr(pair, word).box
        corner = scale * (x + (box[0] - left) * across), scale * (y + (box[1] - top) * down)
        size = scale * (box[2] - box[0]) * across, scale * (box[3] - box[1]) * down
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=1, linestyle=line))


def _seed(axes, image, grid, cell: tuple[int, int]) -> None:
    left, top, right, bottom = (_scale(axes, image) * side for side in grid.rect(*cell))
    place = (left + right) / 2, (top + bottom) / 2
    axes.plot(*place, "x", color="black", markersize=7, markeredgewidth=2.6)
    axes.plot(*place, "x", color="white", markersize=6, markeredgewidth=1.2)


def save_heads(run: RunFolder, tested: dict, n: int) -> None:
    """Write heads/<words or seeds>-<metric>.png: the metric's mean for every head, a panel per query, with a dot on
    heads that differ from their control."""
    for group, queries in GROUPS.items():
        for metric, of in METRICS.items():
            held = [query for query in queries if metric in tested[query]]
            if not held:
                continue
            by_query = {query: tested[query][metric] for query in held}
            panels = [
                (f"{TITLES[query]}\n{REACTIONS[values['against'].flat[0]]}", values["own"])
                for query, values in by_query.items()
            ]
            figure = head_heatmap(panels, [values["q"] <= LEVEL for values in by_query.values()])
            unit = f" ({of.unit})" if of.unit else ""
            title = f"{of.label}{unit}, n = {n}; dots: q ≤ {LEVEL}, of the heads of a panel"
            figure.suptitle(title, fontsize=8)
            run.save(figure, "heads", f"{group}-{metric}.png")


def save_controls(run: RunFolder, samples: Sequence[SampleMetrics]) -> None:
    """Write controls-words.png and controls-seeds.png: every metric over samples with its controls."""
    for group, queries in GROUPS.items():
        run.save(control_boxes(samples, queries), f"controls-{group}.png")


def control_boxes(samples: Sequence[SampleMetrics], queries: Sequence[str]) -> Figure:
    """Figure with a panel per metric and a box per query and condition: quartiles and median, whiskers to the 5th and
    95th percentile, a diamond on the mean. The pointing game (binary) has bars of rates with 95 % score intervals.
    """
    shown = [metric for metric in METRICS if any(metric in metrics_of(samples, query) for query in queries)]
    rows = -(-len(shown) // 4)
    figure = Figure(figsize=(13, 2.3 * rows + 0.6), dpi=160, layout="constrained")
    panels = figure.subplots(rows, 4, squeeze=False)
    for axes, metric in zip(panels.flat, shown, strict=False):
        for place, query in enumerate(queries):
            if metric in metrics_of(samples, query):
                _metric_boxes(axes, samples, query, metric, place)
        of = METRICS[metric]
        arrow = {1: " ↑", -1: " ↓", 0: ""}[of.better]
        axes.set_title(f"{of.label}{f' ({of.unit})' if of.unit else ''}{arrow}", fontsize=9, loc="left")
        names = [TITLES[query].replace(" ", "\n", 1) for query in queries]
        axes.set_xticks(range(len(queries)), labels=names, fontsize=7)
        axes.set_xlim(-0.5, len(queries) - 0.5)
        for_bars(axes)
    for axes in list(panels.flat)[len(shown) :]:
        axes.set_axis_off()
    handles = [Patch(color=COLOURS[condition], label=LABELS[condition]) for condition in CONDITIONS]
    mean = Line2D([], [], color="white", marker="D", markersize=4, markeredgecolor="black", linewidth=0, label="mean")
    title = (
        f"n = {len(samples)}; box: quartiles, whiskers: 5 % to 95 %; bar (pointing game): rate with 95 % score"
        " interval; an arrow says which side is better"
    )
    figure.legend(
        handles=[*handles, mean], title=title, title_fontsize=8, loc="outside upper left", ncols=6, frameon=False,
        fontsize=8, alignment="left",
    )  # fmt: skip
    return figure


def _metric_boxes(axes, samples: Sequence[SampleMetrics], query: str, metric: str, place: int) -> None:
    present = [kind for kind in CONDITIONS if metric in samples[0].values[query].get(kind, ())]
    for number, kind in enumerate(present):
        values = column(samples, query, kind, metric)
        values = values[np.isfinite(values)]
        at = place + (number - (len(present) - 1) / 2) * 0.16
        if len(values) and metric == "pointing":
            held = mean_interval(values, SHARE)
            axes.bar(at, held["mean"], 0.12, color=COLOURS[kind], edgecolor="black", linewidth=0.5)
            if held["low"] is not None:
                axes.plot([at, at], [held["low"], held["high"]], color="black", linewidth=0.8)
            axes.plot(at, held["mean"], "D", markersize=3, color=COLOURS[kind], markeredgecolor="black")
            axes.set_ylim(-0.03, 1.03)
        elif len(values):
            axes.boxplot(
                [values], positions=[at], widths=0.12, whis=(5, 95), showfliers=False, showmeans=True,
                patch_artist=True, manage_ticks=False, boxprops={"facecolor": COLOURS[kind], "linewidth": 0.5},
                medianprops={"color": "white", "linewidth": 1.2}, whiskerprops={"linewidth": 0.7},
                capprops={"linewidth": 0.7},
                meanprops={"marker": "D", "markersize": 3, "markerfacecolor": COLOURS[kind],
                           "markeredgecolor": "black", "markeredgewidth": 0.6},
            )  # fmt: skip
