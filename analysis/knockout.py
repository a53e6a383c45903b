"""Windows of layers in which an answer needs one shape's cells: attention knockout with a known answer.

In each window the rows of the question do not attend to the cells of one box: that of the asked shape, or that of the
other shape as a control (`models.knockout`). An answer that needs the asked shape's cells in these layers is lost in
the first case and stays in the second. The figure draws both rates over the windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from analysis.gaze import names
from analysis.metrics import cell_weights
from analysis.plots import BLUE, ORANGE, Figure, for_lines, whole_numbers
from analysis.statistics import DIFFERENCE, mean_interval, rate_interval
from data.colour_questions import ColourQuestion
from data.errors import FlagError, SampleError
from models.knockout import Knockout, Positions
from models.layout import TokenLayout

Rows = Literal["word", "question", "last"]
BOXES = ("asked", "other")
PLAIN = "plain"
ABOUT = ("image", "prompt", "colour", "other_colour")


class Condition(NamedTuple):
    """Knockout of one box in the layers `first` to `last`."""

    box: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.box}_{self.first}-{self.last}"


def windows_of(layers: int, widths: Sequence[int]) -> list[Condition]:
    """All windows of these widths in a model of that many layers, for both boxes. Raises ValueError for a width that
    is not 1 to `layers`."""
    if wrong := [width for width in widths if not 1 <= width <= layers]:
        raise FlagError(
            "--widths",
            "window-width",
            f"--widths {wrong[0]}: the model has {layers} layers; give 1 to {layers}",
        )
    return [
        Condition(box, first, first + width - 1)
        for width in sorted(set(widths))
        for first in range(layers - width + 1)
        for box in BOXES
    ]


def knockout(condition: Condition, rows: Rows, batch: Sequence[ColourQuestion], layouts: Sequence[TokenLayout]):
    """The intervention of a condition on a batch. Raises SampleError for a box outside the cells of its image."""
    pairs = list(zip(batch, layouts, strict=True))
    queries = [rows_of(rows, question, layout) for question, layout in pairs]
    keys = [box_cells(getattr(question, condition.box).box, layout) for question, layout in pairs]
    return Knockout(Positions(queries), Positions(keys), tuple(range(condition.first, condition.last + 1)))


def rows_of(rows: Rows, question: ColourQuestion, layout: TokenLayout) -> list[int]:
    """Positions of the rows: the asked shape's word, the text after the image, or the last row of the prompt."""
    if rows == "word":
        return layout.word(question.asked.shape).tolist()
    first = layout.length - 1 if rows == "last" else int(layout.image_positions[-1]) + 1
    return list(range(first, layout.length))


def box_cells(box: tuple[float, float, float, float], layout: TokenLayout) -> list[int]:
    """Positions of the cells that overlap a box (left, top, right, bottom) in pixels of the layout's only image."""
    covered = torch.from_numpy(cell_weights(box, layout.grids[0])).flatten() > 0
    if not covered.any():
        raise SampleError("box outside the cells", "no image token covers the shape: it is cropped away")
    return layout.images[0][covered].tolist()


def columns(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """Column names of the table: the question, then the answer without and with each knockout."""
    return (*ABOUT, *(f"answer_{name}" for name in (PLAIN, *(condition.name for condition in conditions))))


def table_row(question: ColourQuestion, answers: dict[str, str]) -> dict:
    """Row of one image, the values of `columns`; `answers` by name of the condition."""
    about = (question.path, question.prompt, question.asked.colour, question.other.colour)
    return dict(zip(ABOUT, about, strict=True)) | {f"answer_{name}": answer for name, answer in answers.items()}


def summarise(rows: Sequence[dict], conditions: Sequence[Condition]) -> dict:
    """Per condition the rates of answers that name the asked shape's colour ("right") and the other's ("other"), with
    Wilson's intervals, and the paired difference of "right" to the plain answer; `windows` lists the conditions."""
    plain = named(rows, PLAIN, "colour")
    windows = []
    for condition in conditions:
        right = named(rows, condition.name, "colour")
        windows.append(
            {
                **condition._asdict(),
                "right": rate_interval(right),
                "other": rate_interval(named(rows, condition.name, "other_colour")),
                "difference": mean_interval(right.astype(int) - plain, DIFFERENCE),
            }
        )
    return {PLAIN: rate_interval(plain), "windows": windows}


def named(rows: Sequence[dict], condition: str, colour: str) -> np.ndarray:
    """Mask of the answers under a condition that name the colour of that column, bool [row]."""
    return np.array([names(row[f"answer_{condition}"], row[colour]) for row in rows], bool)


def sentence(summary: dict) -> str:
    """The window in which hiding the asked shape costs most, in words."""
    worst = min((each for each in summary["windows"] if each["box"] == "asked"), key=lambda each: each["right"]["rate"])
    same = next(
        each for each in summary["windows"]
        if each["box"] == "other" and (each["first"], each["last"]) == (worst["first"], worst["last"])
    )  # fmt: skip
    rates = [f"{each['rate']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in (
        summary[PLAIN], worst["right"], same["right"],
    )]  # fmt: skip
    return (
        f"right answers: {rates[0]} plain; layers {worst['first']} to {worst['last']}: {rates[1]} without the asked "
        f"shape's cells, {rates[2]} without the other's (n = {summary[PLAIN]['n']})"
    )


def window_figure(summary: dict, title: str) -> Figure:
    """Panel per width of window: the rate of right answers over the first layer of the window, for both boxes, with
    Wilson's intervals, and the plain rate as a dashed line with its band."""
    windows = summary["windows"]
    widths = sorted({each["last"] - each["first"] + 1 for each in windows})
    figure = Figure(figsize=(1.2 + 2.3 * len(widths), 2.9), dpi=200, layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    for axes, width in zip(figure.subplots(1, len(widths), sharey=True, squeeze=False)[0], widths, strict=True):
        axes.axhspan(summary[PLAIN]["low"], summary[PLAIN]["high"], color="0.85", linewidth=0)
        axes.axhline(summary[PLAIN]["rate"], color="0.35", linewidth=1, linestyle="--", label="no knockout")
        for box, colour, marker in (("asked", ORANGE, "o"), ("other", BLUE, "s")):
            own = [each for each in windows if each["box"] == box and each["last"] - each["first"] + 1 == width]
            rates = np.array([[each["right"][key] for key in ("rate", "low", "high")] for each in own])
            whiskers = np.abs(rates[:, 1:] - rates[:, :1]).T
            label = f"the {box} shape's cells hidden"
            axes.errorbar(
                [each["first"] for each in own], rates[:, 0], whiskers, color=colour, marker=marker, markersize=4,
                linewidth=1.2, elinewidth=0.9, capsize=2, label=label,
            )  # fmt: skip
        axes.set_title(f"{width} layer{'s' * (width > 1)} at a time", fontsize=8)
        axes.set_xlabel("first layer of the window", fontsize=8)
        axes.set(ylim=(-0.03, 1.05), xlim=(-0.4, max(each["first"] for each in windows) + 0.4))
        whole_numbers(axes.xaxis)
        for_lines(axes)
    figure.axes[0].set_ylabel("answers naming the right colour", fontsize=8)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=7, ncols=3, loc="outside lower center")
    return figure
