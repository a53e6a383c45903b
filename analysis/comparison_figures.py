"""Figures of two runs side by side: accuracies with their difference, and the records that flipped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image

from analysis.fonts import Figure
from analysis.overlay import FLATTEST, show_image
from analysis.plots import BLUE, ORANGE, for_rows
from analysis.run_comparison import GAINED, LOST, Pair, spelt

MARKS = ((BLUE, "o", -0.14), (ORANGE, "D", 0.14))  # of A and B: colour, marker, place within the row
CARDS, ACROSS = 6, 3  # records on a page, and side by side
LINE, QUESTION_LINES, ANSWER_LINES = 44, 5, 2  # characters and lines under a picture
TALL = 300  # pixels


def accuracy_figure(contrasts: dict[str, dict], names: Sequence[str]) -> Figure:
    """A row per (label, contrast of `analysis.run_comparison`): left both accuracies with Wilson intervals, right their
    paired difference with its score interval, the number of records that flipped each way, and McNemar's p.

    The first row is all records; the p of others is the one corrected over sub-tasks.
    """
    rows = np.arange(len(contrasts))
    figure = Figure(figsize=(7.2, 1.4 + 0.36 * len(rows)), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    for key, name, (colour, marker, shift) in zip("ab", names, MARKS, strict=True):
        rates = _whiskers([found[key] for found in contrasts.values()], "rate")
        _points(left, rates, rows + shift, color=colour, marker=marker, label=name)
    differences = _whiskers([found["difference"] for found in contrasts.values()], "mean")
    _points(right, differences, rows, color="black", marker="s")
    right.axvline(0, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    for row, found in zip(rows, contrasts.values(), strict=True):
        p = found.get("p_holm", found["p"])
        note = f"+{found[GAINED]} −{found[LOST]}   p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
        note = note if found[GAINED] or found[LOST] else "no record flipped"
        right.text(1.03, row, note, transform=right.get_yaxis_transform(), fontsize=7, va="center")
    labels = [f"{label} (n = {found['difference']['n']})" for label, found in contrasts.items()]
    left.set_yticks(rows, labels=labels, fontsize=8, parse_math=False)
    left.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    left.set_xlabel("accuracy\n(95 % interval, Wilson)", fontsize=8)
    right.set_xlabel("difference, B − A\n(95 % interval, paired score)", fontsize=8)
    header = "gained, lost, p" if len(rows) == 1 else "gained, lost, p (tasks: Holm)"
    right.text(1.03, -0.5, header, transform=right.get_yaxis_transform(), fontsize=7, va="bottom")
    for axes in (left, right):
        for_rows(axes)
    if len(rows) > 1:
        for axes in (left, right):
            axes.axhline(0.5, color="0.8", linewidth=0.8)
    legend = figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _whiskers(figures: Sequence[dict], key: str) -> np.ndarray:
    """(middle, low, high) of each as float64 [row, 3]; NaN where they are not defined."""
    return np.array([[each[key], each["low"], each["high"]] for each in figures], np.float64)


def _points(axes, values: np.ndarray, places: np.ndarray, color: str, marker: str, label: str | None = None) -> None:
    axes.hlines(places, values[:, 1], values[:, 2], color=color, linewidth=1.3)
    axes.plot(values[:, 0], places, marker, color=color, markersize=4.5, markeredgecolor="white", label=label)


def flip_pages(pairs: Sequence[Pair], pictures: Sequence[Image.Image | str], title: str) -> list[Figure]:
    """Records with both answers, six on a page. `pictures`: what each shows, or why that cannot be shown."""
    starts = range(0, len(pairs), CARDS)
    pages = []
    for number, start in enumerate(starts, 1):
        several = f" ({number} of {len(starts)})" if len(starts) > 1 else ""
        shown = slice(start, start + CARDS)
        pages.append(_page(pairs[shown], pictures[shown], title + several))
    return pages


def _page(pairs: Sequence[Pair], pictures: Sequence[Image.Image | str], title: str) -> Figure:
    rows = -(-len(pairs) // ACROSS)
    aspects = [0.6 if isinstance(picture, str) else picture.height / picture.width for picture in pictures]
    cards = [_card(pair) for pair in pairs]
    lines = max(card.count("\n") + 1 for card in cards)
    height = 2.4 * min(1.0, max(aspects)) + 0.14 * lines + 0.35  # inches of a picture, its name and its text
    figure = Figure(figsize=(2.5 * ACROSS, height * rows + 0.3), dpi=200, layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False)
    places = list(figure.subplots(rows, ACROSS, squeeze=False).flat)
    for axes in places:
        axes.set(xticks=[], yticks=[], anchor="S")
        axes.spines[:].set_visible(False)
    for axes, pair, picture, card in zip(places, pairs, pictures, cards, strict=False):
        if isinstance(picture, str):
            axes.text(0.5, 0.5, textwrap.fill(picture, 30), ha="center", va="center", fontsize=7, parse_math=False)
            axes.set(facecolor="0.94", box_aspect=0.6)
        else:
            show_image(axes, picture)
        axes.set_title(pair.a.id, fontsize=7, loc="left", parse_math=False)
        axes.set_xlabel(card, fontsize=6.5, loc="left", parse_math=False, linespacing=1.3)
    return figure


def _card(pair: Pair) -> str:
    """The question, the right answer, and what both runs said."""
    lines = _cut(pair.a.prompt, QUESTION_LINES)
    lines += _cut(f"right answer: {spelt(pair.a.golds)}", ANSWER_LINES)
    for name, outcome in zip("AB", pair, strict=True):
        verdict = "right" if outcome.correct else "wrong"
        lines += _cut(f"{name} ({verdict}): {spelt(outcome.predictions) or 'no answer'}", ANSWER_LINES)
    return "\n".join(lines)


def _cut(text: str, most: int) -> list[str]:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, LINE)]
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][: LINE - 2]} …"]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """The images of one question in a row, scaled to one height; flatter ones than FLATTEST to one width."""
    scaled = []
    for picture in pictures:
        scale = TALL / max(picture.height, FLATTEST * picture.width)
        size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
        scaled.append(picture.resize(size, Image.Resampling.LANCZOS))
    gap = 12
    row = Image.new("RGB", (sum(picture.width for picture in scaled) + gap * (len(scaled) - 1), TALL), "white")
    left = 0
    for picture in scaled:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row
