"""Figures of numbers as bars, lines and heat maps. Every function returns a new matplotlib Figure; the caller saves it.

Matplotlib draws a box for each character that its default font, DejaVu Sans, lacks, such as all Chinese, Japanese and
Korean ones. `Figure` falls back on the first installed font of FAMILIES with the character; matplotlib's settings are
unchanged.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from functools import cache
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from data.errors import InputError

BLUE, ORANGE, GREEN = "#31688e", "#e07b39", "#7a9a4e"
RANDOM = "precision of random dimensions, as many tokens"


def share_plot(tokens: Sequence[str], shares: Sequence[float]) -> Figure:
    """Bars of the attention mass on the image, 0..1, one per generated token, with the token as its label.

    Raises ValueError for an empty list of tokens, or if the numbers of shares and tokens differ.
    """
    if not len(tokens) or len(tokens) != len(shares):
        raise InputError(
            "shares-per-token",
            f"a share plot needs one share per token and at least one, but got {len(shares)} for {len(tokens)} tokens",
        )
    labels = [visible(token) for token in tokens]
    upright = len(labels) <= 12 and max(map(len, labels)) <= 9
    width = min(16, max(3.2, 1.0 + 0.55 * len(labels)))  # inches
    figure = Figure(figsize=(width, 2.4 if upright else 2.9), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(labels)), shares, width=0.7, color=BLUE)
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(0, 1), ylabel="attention on image")
    axes.set_xticks(range(len(labels)), labels=labels, fontsize=8, parse_math=False)
    if not upright:
        axes.tick_params(axis="x", labelrotation=90, labelsize=8 if len(labels) <= 60 else 5)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.grid(True, linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def head_heatmap(
    panels: Sequence[tuple[str, np.ndarray]], marked: np.ndarray | Sequence[np.ndarray] | None = None
) -> Figure:
    """Heat map of layers x heads, one panel per (title, values [layer, head]), each with its own colour scale.

    Layer 0 is at the top. Scales begin at 0, or are symmetric around 0 for negative values. `marked` bool [layer, head]
    puts a dot on heads: one array for all panels, or a list with one array per panel. Unknown values (NaN) are white.
    """
    marks = marked if isinstance(marked, list) else [marked] * len(panels)
    layers, heads = panels[0][1].shape
    width, height = max(2.4, 0.2 * heads + 1.4), max(1.9, 0.2 * layers + 0.9)  # inches
    figure = Figure(figsize=(width * len(panels), height), dpi=200, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, values), dots in zip(columns, panels, marks, strict=True):
        top = float(np.nanmax(np.abs(values), initial=0)) or 1.0
        signed = np.nanmin(values, initial=0) < 0
        scale = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if signed else {"cmap": "viridis", "vmin": 0, "vmax": top}
        mesh = axes.imshow(values, aspect="auto", interpolation="nearest", **scale)
        if dots is not None:
            row, col = np.nonzero(dots)
            axes.plot(col, row, "o", markersize=4, markerfacecolor="white", markeredgecolor="black", linestyle="none")
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        axes.set_title(title, fontsize=8, loc="left")
        for axis in (axes.xaxis, axes.yaxis):
            whole_numbers(axis)
        axes.tick_params(labelsize=7)
        figure.colorbar(mesh, ax=axes, shrink=0.9, pad=0.02).ax.tick_params(labelsize=7)
    return figure


def ranked_bars(
    names: Sequence[str],
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    controls: Sequence[float] | None = None,
    label: str = "",
    control_label: str = "",
    axis_label: str = "",
    most: int = 32,
    order_by: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """Bars with whiskers from `lows` to `highs` in falling order of `order_by` (default: the means), the first `most`.

    `controls` is drawn over each bar as a mark. `label` and `axis_label` name the axes of values and of bars,
    `control_label` names the marks.
    """
    means, lows, highs = (np.asarray(values, np.float64) for values in (means, lows, highs))
    ranks = means if order_by is None else np.asarray(order_by, np.float64)
    order = np.argsort(-np.nan_to_num(ranks, nan=-np.inf), kind="stable")[:most]
    width = min(12, max(3.6, 1.2 + 0.26 * len(order)))
    figure = Figure(figsize=(width, 2.7), dpi=200, layout="constrained")
    axes = figure.subplots()
    places, values = np.arange(len(order)), means[order]
    whisker = np.abs(np.stack([values - lows[order], highs[order] - values]))
    axes.bar(places, values, width=0.7, color=BLUE, yerr=whisker, error_kw={"linewidth": 0.9, "capsize": 1.5})
    if controls is not None:
        marks = np.asarray(controls, np.float64)[order]
        axes.plot(places, marks, "D", color=ORANGE, markersize=3.5, markeredgecolor="white", label=control_label)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.set_xticks(places, labels=[names[index] for index in order], fontsize=7, rotation=90)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylabel(label, fontsize=8)
    axes.set_xlabel(axis_label, fontsize=8)
    for_bars(axes)
    shown = f"the {len(order)} highest of {len(means)}" if len(order) < len(means) else ""
    axes.set_title("; ".join(part for part in (shown, title) if part), fontsize=8, loc="left")
    return figure


def dimension_heatmap(values: np.ndarray, dimensions: Sequence[int], marked: np.ndarray, title: str = "") -> Figure:
    """Heat map of hidden dimensions, values [layer, column], on a scale from 0; layer 0 is at the top.

    `dimensions` names the columns; `marked` bool [layer, column] puts a dot on entries.
    """
    layers, columns = values.shape
    size = (min(14, max(3.4, 0.34 * columns + 1.6)), max(1.9, 0.2 * layers + 1.1))  # inches
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.subplots()
    top = max(float(values.max(initial=0)), 1.0)
    mesh = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=top)
    row, column = np.nonzero(marked)
    axes.plot(column, row, "o", markersize=4, markerfacecolor="white", markeredgecolor="black", linestyle="none")
    axes.set_xticks(range(columns), labels=[str(dimension) for dimension in dimensions], rotation=90)
    whole_numbers(axes.yaxis)
    axes.set_xlabel("dimension", fontsize=8)
    axes.set_ylabel("layer", fontsize=8)
    axes.set_title(title, fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    figure.colorbar(mesh, ax=axes, shrink=0.9, pad=0.02).ax.tick_params(labelsize=7)
    return figure


class Panel(NamedTuple):
    """Input of `precision_and_recall`: `scores` at the positions `places` of the axis `label`; `used` is marked."""

    label: str
    places: Sequence[float]
    scores: Sequence[dict]
    used: float | None = None


def precision_and_recall(panels: Sequence[Panel], chance: float, random: dict, title: str = "") -> Figure:
    """Precision and recall as lines with their intervals.

    Each score of a panel holds "precision" and "recall" in the form of `analysis.statistics.mean_interval`; undefined
    values leave a gap. The controls of precision are `random`, for random dimensions, in the same form (dashed, with
    its interval), and `chance`, for guessing (dotted).
    """
    figure = Figure(figsize=(3.4 * len(panels), 3.0), dpi=200, layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, colour in (("precision", BLUE), ("recall", ORANGE)):
            means, lows, highs = (
                np.array([score[name][key] for score in panel.scores], np.float64) for key in ("mean", "low", "high")
            )
            axes.fill_between(panel.places, lows, highs, color=colour, alpha=0.2, linewidth=0)
            axes.plot(panel.places, means, "o-", color=colour, markersize=3, linewidth=1.2, label=name)
        if random["mean"] is not None:
            axes.axhline(random["mean"], color="black", linestyle="--", linewidth=1, label=RANDOM)
        if random["low"] is not None:
            axes.axhspan(random["low"], random["high"], color="black", alpha=0.12, linewidth=0)
        axes.axhline(chance, color="grey", linestyle=":", linewidth=1.2, label="precision of guessing")
        if panel.used is not None:
            axes.axvline(panel.used, color=GREEN, linewidth=1.2, label="tau used")
        axes.set(ylim=(-0.03, 1.03))
        axes.set_xlabel(panel.label, fontsize=8)
        for_lines(axes)
        if all(place == int(place) for place in panel.places):
            whole_numbers(axes.xaxis)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=7, ncols=5, loc="outside lower center")
    return figure


def whole_numbers(axis) -> None:
    """Set ticks at integers only, at least one for any length of the axis."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10], min_n_ticks=1))


def for_lines(axes) -> None:
    """Style axes of lines: a faint grid; the top and right spines are hidden."""
    axes.tick_params(labelsize=7)
    axes.grid(True, linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)


def for_rows(axes) -> None:
    """Style axes with one row per name: faint vertical lines below the marks; only the bottom spine is drawn."""
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.grid(True, linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def for_bars(axes) -> None:
    """Style axes of bars: faint horizontal lines below the bars; x ticks, top and right spines are hidden."""
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=7)
    axes.yaxis.grid(True, linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR",
    "Source Han Sans SC", "Source Han Sans CN", "Source Han Sans JP", "Source Han Sans KR", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo",
    "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic", "Noto Sans",
    "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Telugu", "Noto Sans Thai", "Nirmala UI", "Segoe UI", "Noto Sans Symbols", "Noto Sans Symbols2",
    "Noto Emoji", "Segoe UI Symbol", "Segoe UI Emoji",
)  # fmt: skip
"""Fallback fonts, in this order, for characters that a text's own font lacks; missing fonts are skipped."""
REMEDY = (
    "install one, for Chinese, Japanese and Korean Noto Sans CJK (apt-get install fonts-noto-cjk), for other scripts"
    " Noto Sans (fonts-noto-core)"
)

_reported = False  # True once this run has printed the note


class Figure(matplotlib.figure.Figure):
    """Matplotlib figure whose texts fall back on the installed fonts of FAMILIES.

    Characters that all of them lack are drawn as boxes; one note on stderr lists the first of them, once per run.
    """

    def draw(self, renderer) -> None:
        lacking = "".join(_extend_fonts(text) for text in self.findobj(Text))
        if lacking:
            _report(lacking)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)  # replaced by the note
            super().draw(renderer)


def _extend_fonts(text: Text) -> str:
    """Append the installed families that a text's characters need; return the characters that all of them lack."""
    lacking = _lacking(text.get_text(), text.get_fontfamily())
    if not lacking:
        return ""
    for known in (installed, _installed_anew):
        families = [*text.get_fontfamily(), *known()]
        lacking = _lacking(lacking, families)
        if not lacking:
            break
    text.set_fontfamily(families)
    return lacking


def _lacking(characters: str, families: Collection[str]) -> str:
    """Characters that all fonts of these families lack, without control characters and the like."""
    unusual = {char for char in characters if ord(char) > 126 and not unicodedata.category(char).startswith("C")}
    for path in {_path(family) for family in families} if unusual else ():
        font = get_font(path)
        unusual = {char for char in unusual if not font.get_char_index(ord(char))}
    return "".join(sorted(unusual))


def _path(family: str):
    return fontManager.findfont(FontProperties(family=[family]))


def installed() -> list[str]:
    """Families of FAMILIES in matplotlib's list of fonts."""
    names = {entry.name for entry in fontManager.ttflist}
    return [family for family in FAMILIES if family in names]


@cache
def _installed_anew() -> list[str]:
    """`installed` after a search for fonts that were installed after matplotlib wrote its list of fonts."""
    listed = {str(entry.fname) for entry in fontManager.ttflist}
    for path in set(findSystemFonts()) - listed:
        try:
            fontManager.addfont(path)
        except Exception as error:  # bitmap and damaged fonts raise errors of many classes; matplotlib skips them, too
            logging.getLogger(__name__).info("font %s cannot be read: %s", path, error)
    return installed()


def _report(lacking: str) -> None:
    global _reported
    if not _reported:
        _reported = True
        shown = ", ".join(list(dict.fromkeys(lacking))[:5])
        sentence = f"note: figures show boxes for characters that no installed font has ({shown}): {REMEDY}"
        tqdm.write(sentence, file=sys.stderr)


def visible(token: str, longest: int = 14) -> str:
    """Label of a token: white space and control characters are made visible, a long token is truncated."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in token)
    text = text if text.strip() else "␣" * max(1, len(text))
    return text if len(text) <= longest else text[: longest - 1] + "…"
