"""Figures of steering by gaze: one picture under every way side by side, and how often answers follow the gaze."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from analysis.fonts import Figure
from analysis.gallery import Look, draw
from analysis.gaze_table import PLAIN, Outcome
from analysis.overlay import axes_height, overlay, show_image, visible
from analysis.plots import BLUE, GREEN, ORANGE, for_bars
from analysis.report_view import view
from analysis.results import RunFolder, save_arrays, save_maps

LINE, LINES = 26, 5  # characters of an answer under a picture
COLOURS = (BLUE, ORANGE, GREEN)
CRIMSON = "#d4004b"  # seen on skin, sky, paper and black
WHISKER = {"linewidth": 0.9, "capsize": 2}


def save_sample(
    run: RunFolder, sample, picture: Image.Image, outcomes: dict[str, Outcome], rows: str, look: Look
) -> str:
    """Writes comparison.png, masks.npz and maps-<way>.npz of one picture under one scanpath; returns the folder's name.

    Its view goes into the run.

    sample: a `GazeSample`. `rows`: the convention of the maps.
    """
    folder: Path = run.sample_folder(sample.name)
    for way, outcome in outcomes.items():
        tokens = outcome.tokens[: len(outcome.maps.per_token)]
        further = {"heads": outcome.way.heads, "layers": np.array(outcome.way.layers)}
        save_maps(folder, outcome.maps, tokens, rows, sample.grid, f"maps-{way}.npz", **further)
    ways = {"no gaze" if way == PLAIN else way: outcome.way for way, outcome in outcomes.items()}
    run.views.append(view(sample.name, sample.sample.prompt, picture, sample.grid, ways))
    masks = {way: np.asarray(outcome.mask, np.float32) for way, outcome in outcomes.items() if outcome.mask is not None}
    save_arrays(folder / "masks.npz", points=np.array(sample.points, np.float32), **masks)
    run.save(comparison(sample, picture, outcomes, look), folder.name, "comparison.png")
    return folder.name


def comparison(sample, picture: Image.Image, outcomes: dict[str, Outcome], look: Look) -> Figure:
    """A column per way: above the scanpath or the mask over the picture, below the rollout of the answer, its tokens
    with their probabilities, and the share of its image attention that is on the gaze."""
    width = 1.9  # inches of a picture
    height = axes_height(picture, width)
    fixations = "simulated fixations" if sample.simulated else "recorded fixations"
    texts = {way: caption(outcome) for way, outcome in outcomes.items()}
    lines = max(text.count("\n") + 1 for text in texts.values())
    size = (width * len(outcomes) + 0.3, 2 * height + 0.9 + 0.14 * lines)
    figure = Figure(figsize=size, dpi=200, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    figure.suptitle("\n".join(textwrap.wrap(sample.sample.prompt, 95)[:3]), fontsize=8, parse_math=False)
    above, below = figure.subplots(2, len(outcomes), squeeze=False)
    for axes, other, (way, outcome) in zip(above, below, outcomes.items(), strict=True):
        if outcome.mask is None:
            _scanpath(axes, sample, picture, look)
        else:
            mask = overlay(picture, outcome.mask, sample.grid, alpha=0.6, power=1, blur=0, at_least=look.at_least)
            show_image(axes, mask)
        axes.set_title(fixations if outcome.mask is None else f"mask: {way}", fontsize=8)
        other.set_title("no gaze" if way == PLAIN else way, fontsize=8)
        show_image(other, draw(picture, outcome.maps.mean, sample.grid, look, at_least=look.at_least))
        other.set_xlabel(texts[way], fontsize=7, parse_math=False)
    below[0].set_ylabel("rollout", fontsize=8)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def _scanpath(axes, sample, picture: Image.Image, look: Look) -> None:
    """The picture with its gaze points, in the middle of their cells and joined in their order."""
    shown = overlay(picture, np.zeros((sample.grid.rows, sample.grid.cols)), sample.grid, at_least=look.at_least)
    scale = shown.width / picture.width
    rects = np.array([sample.grid.rect(int(y), int(x)) for x, y, *_ in sample.points]) * scale
    across, down = rects[:, 0::2].mean(1), rects[:, 1::2].mean(1)
    show_image(axes, shown)
    axes.plot(across, down, color="white", linewidth=2.4)
    axes.plot(across, down, "o-", color=CRIMSON, linewidth=1.2, markersize=4.5, markeredgecolor="white")


def caption(outcome: Outcome) -> str:
    """The answer's tokens with their probabilities, cut to what fits under a picture, and its share on the gaze."""
    pairs = zip(outcome.tokens, outcome.probabilities, strict=True)
    words = [f"{visible(token).strip()} ({probability:.2f})" for token, probability in pairs]
    lines, line = [], ""
    for word in words:
        line, finished = (f"{line} {word}".strip(), None) if len(line) + len(word) < LINE else (word, line)
        lines += [finished] if finished else []
    lines.append(line)
    lines = lines if len(lines) <= LINES else [*lines[: LINES - 1], "…"]
    return "\n".join([*lines, f"{outcome.inside:.0%} of image attention on gaze"])


def rate_bars(groups: Sequence[str], series: dict[str, Sequence[dict]], base: dict, label: str) -> Figure:
    """Bars of rates with whiskers, one of each series in each group, over the line and band of the rate `base`.

    Rates as `analysis.statistics.rate_interval` returns them.
    """
    figure = Figure(figsize=(1.6 + 1.25 * len(groups), 2.9), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.axhspan(base["low"], base["high"], color="0.85", linewidth=0)
    axes.axhline(base["rate"], color="0.35", linewidth=1, linestyle="--", label="no gaze")
    width = 0.8 / len(series)
    for number, ((name, rates), colour) in enumerate(zip(series.items(), COLOURS * len(series), strict=False)):
        places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        values = np.array([[rate["rate"], rate["low"], rate["high"]] for rate in rates])
        reach = np.abs(values[:, 1:] - values[:, :1]).T
        axes.bar(places, values[:, 0], 0.9 * width, color=colour, label=name, yerr=reach, error_kw=WHISKER)
    axes.set_xticks(range(len(groups)), labels=groups, fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel(label, fontsize=8)
    for_bars(axes)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=7, ncols=4, loc="outside upper left")
    return figure


def colour_figure(colours: dict) -> Figure:
    """Of `analysis.gaze_table.summarise_colours`: how often answers name the first shape's colour, by way and gaze."""
    ways = [way for way in colours if way != "without_gaze"]
    gazes = [name for name in colours[ways[0]] if name.startswith("gaze_on_")]
    series = {name.replace("_", " "): [colours[way][name]["first"] for way in ways] for name in gazes}
    return rate_bars(ways, series, colours["without_gaze"]["first"], "answers naming the first shape's colour")
