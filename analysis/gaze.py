"""Table rows, paired summaries and figures of answers with and without gaze steering.

A condition (`condition`) is "plain" or the name of a mask type. A row holds one image under one scanpath, with all
conditions in columns; the paired differences are each steered condition minus plain.

Figures: one image under every condition in columns, and rates of answers that follow the gaze.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from analysis.files import save_arrays, save_maps
from analysis.gallery import view
from analysis.overlay import LONGER_SIDE, OverlayStyle, axes_height, overlay, show_image
from analysis.plots import BLUE, GREEN, ORANGE, Figure, for_bars, visible
from analysis.runs import RunFolder
from analysis.statistics import DIFFERENCE, SHARE, mean_interval, rate_interval

PLAIN = "plain"
ABOUT = ("image", "gaze", "prompt", "fixations", "dropped", "first_colour", "second_colour", "folder")
MEASURES = ("answer", "token_probabilities", "probability", "inside", "image_attention", "p_first", "p_second")
PAIRED = ("inside", "image_attention", "probability")


@dataclass(frozen=True)
class Outcome:
    """One answer to one question: `text`, its `tokens` with their `probabilities`; `image_attention`, its attention
    mass on the image (mean over layers and heads), and the fraction of that mass `inside` the gaze windows.

    `colours`: probability that the answer begins with the colour of the image's first and second shape.
    `mask` [row, col]: the mask that steered it; `maps`: its rollout; `view`: its view. None where absent.
    """

    text: str
    tokens: list[str]
    probabilities: list[float]
    inside: float
    image_attention: float
    colours: tuple[float | None, ...] = ()
    mask: np.ndarray | None = None
    maps: object = field(default=None, repr=False)
    view: object = field(default=None, repr=False)


def columns(conditions: Sequence[str]) -> tuple[str, ...]:
    """Column names of the table: sample fields, then each measure under every condition."""
    return (*ABOUT, *(f"{measure}_{condition}" for measure in MEASURES for condition in conditions))


def table_row(sample, colours: Sequence[str], outcomes: dict[str, Outcome], folder: str) -> dict:
    """Row of one image under one scanpath, the values of `columns`.

    sample: a `GazeSample`. colours: of its first and second shape, empty where unknown or equal. `folder` holds its
    figures, "" without figures.
    """
    first, second = colours or ("", "")
    row = {
        "image": sample.sample.path, "gaze": sample.gaze, "prompt": sample.sample.prompt,
        "fixations": len(sample.points), "dropped": len(sample.dropped),
        "first_colour": first, "second_colour": second, "folder": folder,
    }  # fmt: skip
    for condition, outcome in outcomes.items():
        p_first, p_second = outcome.colours or (None, None)
        values = (
            outcome.text, join_tokens(outcome), float(np.mean(outcome.probabilities)), outcome.inside,
            outcome.image_attention, p_first, p_second,
        )  # fmt: skip
        row |= {f"{measure}_{condition}": value for measure, value in zip(MEASURES, values, strict=True)}
    return row


def join_tokens(outcome: Outcome, between: str = " | ") -> str:
    """Every token with its probability."""
    pairs = zip(outcome.tokens, outcome.probabilities, strict=True)
    return between.join(f"{token.strip()} {probability:.3f}" for token, probability in pairs)


def names(text: str, word: str) -> bool:
    """Return whether an answer contains a word, ignoring case."""
    return word.lower() in re.findall(r"\w+", text.lower())


def summarise(rows: Sequence[dict], conditions: Sequence[str]) -> dict:
    """Per scanpath file and condition: each measure of the plain answer, and the paired difference to it."""
    summary = {}
    for gaze in dict.fromkeys(row["gaze"] for row in rows):
        mine = [row for row in rows if row["gaze"] == gaze]
        summary[gaze] = {condition: _condition_summary(mine, condition) for condition in conditions}
    return summary


def _condition_summary(rows: Sequence[dict], condition: str) -> dict:
    summary = {}
    for measure in PAIRED:
        values, before = (
            np.array([row[f"{measure}_{name}"] for row in rows], np.float64) for name in (condition, PLAIN)
        )
        known = np.isfinite(values - before)  # NaN where a model has no attention on the image
        summary[measure] = mean_interval(values[known], SHARE)
        if condition != PLAIN:
            summary[f"{measure}_difference"] = mean_interval((values - before)[known], DIFFERENCE)
    if condition != PLAIN:
        summary["answer_changed"] = rate_interval(row[f"answer_{condition}"] != row[f"answer_{PLAIN}"] for row in rows)
    return summary


def summarise_colours(rows: Sequence[dict], conditions: Sequence[str]) -> dict:
    """Effect of gaze on a shape on the colour in the answer. Empty where no row has two different colours.

    Without gaze, and per condition and gaze: the rate of answers that name the first and the second shape's colour
    (Wilson); for a steered condition also the paired differences to plain, of these rates (score interval) and of the
    probabilities that the answer begins with the colour. "first_against_second": the change on the same image when the
    gaze moves from the second shape to the first, of the rate of the first shape's colour minus the rate of the
    second's (score interval of values -1, -.5, 0, .5, 1).
    """
    rows = [row for row in rows if row["first_colour"]]
    if not rows:
        return {}
    once = list({str(row["image"]): row for row in rows}.values())
    summary = {"without_gaze": {shape: rate_interval(_named(once, PLAIN, shape)) for shape in ("first", "second")}}
    for condition in conditions:
        if condition == PLAIN:
            continue
        summary[condition] = {}
        for gaze in dict.fromkeys(row["gaze"] for row in rows):
            summary[condition][f"gaze_on_{gaze}"] = _colour_summary([r for r in rows if r["gaze"] == gaze], condition)
        summary[condition]["first_against_second"] = mean_interval(_moved(rows, condition), DIFFERENCE)
    return summary


def _colour_summary(rows: Sequence[dict], condition: str) -> dict:
    summary = {}
    for shape in ("first", "second"):
        after, before = _named(rows, condition, shape), _named(rows, PLAIN, shape)
        p_after, p_before = ([row[f"p_{shape}_{name}"] for row in rows] for name in (condition, PLAIN))
        known = [(a, b) for a, b in zip(p_after, p_before, strict=True) if a is not None and b is not None]
        summary[shape] = rate_interval(after)
        summary[f"{shape}_difference"] = mean_interval(after.astype(int) - before, DIFFERENCE)
        summary[f"p_{shape}_difference"] = mean_interval([a - b for a, b in known], DIFFERENCE)
    return summary


def _named(rows: Sequence[dict], condition: str, shape: str) -> np.ndarray:
    """Return whether each row's answer names the colour of its `shape`, bool [row]."""
    return np.array([names(row[f"answer_{condition}"], row[f"{shape}_colour"]) for row in rows])


def _moved(rows: Sequence[dict], condition: str) -> list[float]:
    """Per image with both scanpaths: (names first - names second) under gaze on the first, minus that on the second,
    halved: 1 where the answer follows the gaze from one shape to the other, -1, -0.5, 0 or 0.5 otherwise."""
    leaning: dict[str, dict[str, int]] = {}
    for row in rows:
        first, second = (
            int(names(row[f"answer_{condition}"], row[f"{shape}_colour"])) for shape in ("first", "second")
        )
        leaning.setdefault(str(row["image"]), {})[row["gaze"]] = first - second
    pairs = [by_shape for by_shape in leaning.values() if "first" in by_shape and "second" in by_shape]
    return [(by_shape["first"] - by_shape["second"]) / 2 for by_shape in pairs]


OF_MASKS = OverlayStyle(alpha=0.6, power=1, blur=0)
LINE, LINES = 26, 5  # characters and lines of an answer under an image
COLOURS = (BLUE, ORANGE, GREEN)
CRIMSON = "#d4004b"  # visible on skin, sky, paper and black
WHISKER = {"linewidth": 0.9, "capsize": 2}


def save_sample(
    run: RunFolder, sample, image: Image.Image, outcomes: dict[str, Outcome], rows: str, style: OverlayStyle
) -> tuple[str, dict]:
    """Write comparison.png, masks.npz and maps-<condition>.npz of one image under one scanpath; return the folder's
    name and the sample's view.

    sample: a `GazeSample`. `rows`: the convention of the maps.
    """
    folder: Path = run.sample_folder(sample.name)
    for condition, outcome in outcomes.items():
        tokens = outcome.tokens[: len(outcome.maps.per_token)]
        further = {"heads": outcome.view.heads, "layers": np.array(outcome.view.layers)}
        save_maps(folder, outcome.maps, tokens, rows, sample.grid, f"maps-{condition}.npz", **further)
    conditions = {
        "no gaze" if condition == PLAIN else condition: outcome.view for condition, outcome in outcomes.items()
    }
    masks = {
        condition: np.asarray(outcome.mask, np.float32)
        for condition, outcome in outcomes.items()
        if outcome.mask is not None
    }
    save_arrays(folder / "masks.npz", points=np.array(sample.points, np.float32), **masks)
    run.save(comparison(sample, image, outcomes, style), folder.name, "comparison.png")
    return folder.name, view(sample.name, sample.sample.prompt, image, sample.grid, conditions)


def comparison(sample, image: Image.Image, outcomes: dict[str, Outcome], style: OverlayStyle) -> Figure:
    """Column per condition: above the image with the scanpath or the mask, below the rollout of the answer, its tokens
    with their probabilities, and the fraction of its image attention inside the gaze."""
    width = 1.9  # inches of an image
    height = axes_height(image, width)
    fixations = "simulated fixations" if sample.simulated else "recorded fixations"
    texts = {condition: caption(outcome) for condition, outcome in outcomes.items()}
    lines = max(text.count("\n") + 1 for text in texts.values())
    size = (width * len(outcomes) + 0.3, 2 * height + 0.9 + 0.14 * lines)
    figure = Figure(figsize=size, dpi=200, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    figure.suptitle("\n".join(textwrap.wrap(sample.sample.prompt, 95)[:3]), fontsize=8, parse_math=False)
    above, below = figure.subplots(2, len(outcomes), squeeze=False)
    for axes, other, (condition, outcome) in zip(above, below, outcomes.items(), strict=True):
        if outcome.mask is None:
            _scanpath(axes, sample, image)
        else:
            show_image(axes, overlay(image, outcome.mask, sample.grid, OF_MASKS, at_least=LONGER_SIDE))
        axes.set_title(fixations if outcome.mask is None else f"mask: {condition}", fontsize=8)
        other.set_title("no gaze" if condition == PLAIN else condition, fontsize=8)
        show_image(other, overlay(image, outcome.maps.mean, sample.grid, style, at_least=LONGER_SIDE))
        other.set_xlabel(texts[condition], fontsize=7, parse_math=False)
    below[0].set_ylabel("rollout", fontsize=8)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def _scanpath(axes, sample, image: Image.Image) -> None:
    """Draw the image with its gaze points at the centres of their cells, joined in order."""
    shown = overlay(image, np.zeros((sample.grid.rows, sample.grid.cols)), sample.grid, at_least=LONGER_SIDE)
    scale = shown.width / image.width
    rects = np.array([sample.grid.rect(int(y), int(x)) for x, y, *_ in sample.points]) * scale
    across, down = rects[:, 0::2].mean(1), rects[:, 1::2].mean(1)
    show_image(axes, shown)
    axes.plot(across, down, color="white", linewidth=2.4)
    axes.plot(across, down, "o-", color=CRIMSON, linewidth=1.2, markersize=4.5, markeredgecolor="white")


def caption(outcome: Outcome) -> str:
    """The answer's tokens with probabilities, truncated to the width of an image, and its fraction inside the gaze."""
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
    """Bars of rates with intervals, one of each series in each group, over the line and band of the rate `base`.

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
        whisker = np.abs(values[:, 1:] - values[:, :1]).T
        axes.bar(places, values[:, 0], 0.9 * width, color=colour, label=name, yerr=whisker, error_kw=WHISKER)
    axes.set_xticks(range(len(groups)), labels=groups, fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel(label, fontsize=8)
    for_bars(axes)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=7, ncols=4, loc="outside upper left")
    return figure


def colour_figure(colours: dict) -> Figure:
    """Bars of the rate of answers that name the first shape's colour, by condition and gaze (`summarise_colours`)."""
    conditions = [condition for condition in colours if condition != "without_gaze"]
    gazes = [name for name in colours[conditions[0]] if name.startswith("gaze_on_")]
    series = {name.replace("_", " "): [colours[condition][name]["first"] for condition in conditions] for name in gazes}
    return rate_bars(conditions, series, colours["without_gaze"]["first"], "answers naming the first shape's colour")
