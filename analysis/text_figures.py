"""Figures of sentences and their counterfactuals: pairs about the line of ideal symmetry, examples, layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Patch

from analysis.fonts import Figure
from analysis.plots import BLUE, ORANGE, for_bars, for_lines, whole_numbers
from analysis.text_symmetry import IDEAL, SENTENCES, Asymmetries, lean, pair_of

TITLES = {"swapped": "entities swapped", "flipped": "relation flipped", "both": "both"}
STYLES = {"entities": (BLUE, "o"), "articles": (ORANGE, "D")}
LABELS = {"entities": "entities", "articles": "articles (control)"}


def pair_scatter(found: Asymmetries, figures: dict) -> Figure:
    """A panel per kind of pair: asymmetry of the caption across, of its counterfactual up, with the ideal line.

    figures: "pairs" of `analysis.text_symmetry.summarise`.
    """
    figure = Figure(figsize=(2.75 * len(IDEAL), 3.35), dpi=200, layout="constrained")
    for axes, (kind, sign) in zip(figure.subplots(1, len(IDEAL)), IDEAL.items(), strict=True):
        axes.axhline(0, color="0.85", linewidth=0.8)
        axes.axvline(0, color="0.85", linewidth=0.8)
        axes.plot([-1, 1], [-sign, sign], color="black", linewidth=0.9, linestyle="--", label="ideal symmetry")
        for measured in reversed(STYLES):
            colour, marker = STYLES[measured]
            across, up = pair_of(found.overall[measured], kind)
            axes.plot(
                across, up, marker, color=colour, markersize=2.6, alpha=0.5, markeredgewidth=0, label=LABELS[measured]
            )
        axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axes.set_xlabel("asymmetry of the caption", fontsize=8)
        axes.set_ylabel(f"asymmetry, {TITLES[kind]}", fontsize=8)
        lines = [f"{measured}: score {_interval(figures[kind][measured]['score'])}" for measured in STYLES]
        axes.set_title(
            "\n".join([f"{TITLES[kind]} (n = {figures[kind]['entities']['score']['n']})", *lines]), fontsize=7
        )
        axes.tick_params(labelsize=7)
    legend = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        legend.values(), legend, loc="outside lower center", ncols=3, frameon=False, fontsize=7, markerscale=1.8
    )
    return figure


def _interval(figure: dict) -> str:
    if figure["low"] is None:
        return "unknown" if figure["mean"] is None else f"{figure['mean']:.3f}"
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def example_bars(found: Asymmetries, captions: Sequence, chosen: Sequence[int]) -> Figure:
    """For some captions, the attention of the relation word to each entity in every sentence, in the order of naming.

    chosen: indices of captions. Bars of one colour are one entity: where attention goes with the entities, the colours
    keep their heights though they change places.
    """
    masses = found.attention[:, :, :2][..., list(found.layers), :].mean((-2, -1))  # [sample, sentence, place]
    scores = np.abs(lean(*pair_of(found.overall["entities"], "swapped"), "swapped"))
    figure = Figure(figsize=(7.0, 1.5 * len(chosen) + 0.7), dpi=200, layout="constrained")
    figure.suptitle("attention of the relation word to each entity; the left bar is the one named first", fontsize=8)
    for axes, index in zip(figure.subplots(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        sentences = captions[index].sentences
        for place, sentence in enumerate(SENTENCES):
            swapped = IDEAL.get(sentence) == -1
            colours = (ORANGE, BLUE) if swapped else (BLUE, ORANGE)
            axes.bar([place - 0.2, place + 0.2], masses[index, place], width=0.36, color=colours)
        labels = [f"{name}\n({sentences[name].relation})" for name in SENTENCES]
        axes.set_xticks(range(len(SENTENCES)), labels=labels, fontsize=7)
        axes.set_ylabel("attention per token", fontsize=7)
        axes.set_title(f"{captions[index].name}: score of the swapped pair {scores[index]:.3f}", fontsize=8, loc="left")
        names = (sentences["caption"].first, sentences["caption"].second)
        patches = [Patch(color=colour, label=name) for colour, name in zip((BLUE, ORANGE), names, strict=True)]
        axes.legend(handles=patches, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for_bars(axes)
    return figure


def layer_lines(scores: dict[str, dict[str, list[dict]]], chosen: Sequence[int]) -> Figure:
    """A panel per kind of pair: mean symmetry score of every layer with its interval, entities and articles.

    scores: per kind what `analysis.text_symmetry.score_by_layer` returns. The `chosen` layers stand on grey where they
    are not all.
    """
    layers = len(next(iter(scores.values()))["entities"])
    figure = Figure(figsize=(2.75 * len(scores), 2.7), dpi=200, layout="constrained")
    for axes, (kind, by_measured) in zip(figure.subplots(1, len(scores), sharey=True), scores.items(), strict=True):
        for layer in chosen if len(chosen) < layers else ():
            axes.axvspan(layer - 0.5, layer + 0.5, color="0.93", linewidth=0)
        for measured, figures in by_measured.items():
            colour, marker = STYLES[measured]
            mean, low, high = (np.array([each[key] for each in figures], np.float64) for key in ("mean", "low", "high"))
            places = np.arange(layers)
            axes.fill_between(places, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(
                places, mean, marker, linestyle="-", color=colour, markersize=3, linewidth=1.2, label=LABELS[measured]
            )
        axes.set_title(f"{TITLES[kind]} (n = {max(each['n'] for each in figures)})", fontsize=8, loc="left")
        axes.set_xlabel("layer", fontsize=8)
        whole_numbers(axes.xaxis)
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_ylim(bottom=0)
        for_lines(axes)
    figure.axes[0].set_ylabel("symmetry score, 0 = ideal", fontsize=8)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=7
    )
    return figure
