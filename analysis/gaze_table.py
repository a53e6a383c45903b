"""One answer beside another, with and without gaze: the row of a sample, and what all rows say together.

A *way* is how an answer was made: "plain", or the name of a mask type. A row holds one picture under one scanpath, with
every way side by side; the paired differences are each steered way minus plain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.statistics import DIFFERENCE, SHARE, mean_interval, rate_interval

PLAIN = "plain"
ABOUT = ("image", "gaze", "prompt", "fixations", "dropped", "first_colour", "second_colour", "folder")
MEASURES = ("answer", "token_probabilities", "probability", "inside", "image_attention", "p_first", "p_second")
PAIRED = ("inside", "image_attention", "probability")


@dataclass(frozen=True)
class Outcome:
    """One answer to one question: `text`, its `tokens` with their `probabilities`; of the answer's attention, the share
    on the image (`image_attention`, mean over layers and heads), and of that the share `inside` the gaze's windows.

    `colours`: probability that the answer begins with the colour of the picture's first and second shape.
    `mask` [row, col] is what steered it, `maps` its rollout and `way` what its view shows; None where there is none.
    """

    text: str
    tokens: list[str]
    probabilities: list[float]
    inside: float
    image_attention: float
    colours: tuple[float | None, ...] = ()
    mask: np.ndarray | None = None
    maps: object = field(default=None, repr=False)
    way: object = field(default=None, repr=False)


def columns(ways: Sequence[str]) -> tuple[str, ...]:
    """Of the table: what the sample is, then each measure for one way after the other."""
    return (*ABOUT, *(f"{measure}_{way}" for measure in MEASURES for way in ways))


def table_row(sample, colours: Sequence[str], outcomes: dict[str, Outcome], folder: str) -> dict:
    """The row of one picture under one scanpath, the values of `columns`.

    sample: a `GazeSample`. colours: of its first and second shape, empty where they are not known or alike. `folder`
    holds its pictures, "" where none were drawn.
    """
    first, second = colours or ("", "")
    row = {
        "image": sample.sample.path, "gaze": sample.gaze, "prompt": sample.sample.prompt,
        "fixations": len(sample.points), "dropped": len(sample.dropped),
        "first_colour": first, "second_colour": second, "folder": folder,
    }  # fmt: skip
    for way, outcome in outcomes.items():
        p_first, p_second = outcome.colours or (None, None)
        values = (
            outcome.text, spelt(outcome), float(np.mean(outcome.probabilities)), outcome.inside,
            outcome.image_attention, p_first, p_second,
        )  # fmt: skip
        row |= {f"{measure}_{way}": value for measure, value in zip(MEASURES, values, strict=True)}
    return row


def spelt(outcome: Outcome, between: str = " | ") -> str:
    """Every token with its probability."""
    pairs = zip(outcome.tokens, outcome.probabilities, strict=True)
    return between.join(f"{token.strip()} {probability:.3f}" for token, probability in pairs)


def names(text: str, word: str) -> bool:
    """Whether an answer holds a word, case ignored."""
    return word.lower() in re.findall(r"\w+", text.lower())


def summarise(rows: Sequence[dict], ways: Sequence[str]) -> dict:
    """Per scanpath file and way: each measure of the plain answer, and the paired difference that the way makes."""
    found = {}
    for gaze in dict.fromkeys(row["gaze"] for row in rows):
        mine = [row for row in rows if row["gaze"] == gaze]
        found[gaze] = {way: _way_summary(mine, way) for way in ways}
    return found


def _way_summary(rows: Sequence[dict], way: str) -> dict:
    summary = {}
    for measure in PAIRED:
        values, before = (np.array([row[f"{measure}_{each}"] for row in rows], np.float64) for each in (way, PLAIN))
        known = np.isfinite(values - before)  # of a model that does not look at the image at all, no share is inside
        summary[measure] = mean_interval(values[known], SHARE)
        if way != PLAIN:
            summary[f"{measure}_difference"] = mean_interval((values - before)[known], DIFFERENCE)
    if way != PLAIN:
        summary["answer_changed"] = rate_interval(row[f"answer_{way}"] != row[f"answer_{PLAIN}"] for row in rows)
    return summary


def summarise_colours(rows: Sequence[dict], ways: Sequence[str]) -> dict:
    """Effect of gaze on a shape on the colour that the answer names. Empty where no row has two different colours.

    Without gaze, and per way and gaze: the share of answers that name the first and the second shape's colour (Wilson);
    for a way also the paired differences to plain, of these shares (score interval) and of the probabilities that the
    answer begins with the colour. "first_against_second": the change on the same picture when gaze moves from the
    second shape to the first, of the share that names the first shape's colour minus the share that names the second's
    (score interval of values -1, -.5, 0, .5, 1).
    """
    rows = [row for row in rows if row["first_colour"]]
    if not rows:
        return {}
    once = list({str(row["image"]): row for row in rows}.values())
    found = {"without_gaze": {shape: rate_interval(_named(once, PLAIN, shape)) for shape in ("first", "second")}}
    for way in ways:
        if way == PLAIN:
            continue
        found[way] = {}
        for gaze in dict.fromkeys(row["gaze"] for row in rows):
            found[way][f"gaze_on_{gaze}"] = _colour_summary([r for r in rows if r["gaze"] == gaze], way)
        found[way]["first_against_second"] = mean_interval(_moved(rows, way), DIFFERENCE)
    return found


def _colour_summary(rows: Sequence[dict], way: str) -> dict:
    summary = {}
    for shape in ("first", "second"):
        after, before = _named(rows, way, shape), _named(rows, PLAIN, shape)
        p_after, p_before = ([row[f"p_{shape}_{each}"] for row in rows] for each in (way, PLAIN))
        known = [(a, b) for a, b in zip(p_after, p_before, strict=True) if a is not None and b is not None]
        summary[shape] = rate_interval(after)
        summary[f"{shape}_difference"] = mean_interval(after.astype(int) - before, DIFFERENCE)
        summary[f"p_{shape}_difference"] = mean_interval([a - b for a, b in known], DIFFERENCE)
    return summary


def _named(rows: Sequence[dict], way: str, shape: str) -> np.ndarray:
    """Whether each row's answer names the colour of its `shape`, bool [row]."""
    return np.array([names(row[f"answer_{way}"], row[f"{shape}_colour"]) for row in rows])


def _moved(rows: Sequence[dict], way: str) -> list[float]:
    """Per picture with both scanpaths: (names first - names second) under gaze on the first, minus that on the second,
    halved: 1 where the answer follows the gaze from one shape to the other, -1, -0.5, 0 or 0.5 otherwise."""
    leaning: dict[str, dict[str, int]] = {}
    for row in rows:
        first, second = (int(names(row[f"answer_{way}"], row[f"{shape}_colour"])) for shape in ("first", "second"))
        leaning.setdefault(str(row["image"]), {})[row["gaze"]] = first - second
    pairs = [found for found in leaning.values() if "first" in found and "second" in found]
    return [(found["first"] - found["second"]) / 2 for found in pairs]
