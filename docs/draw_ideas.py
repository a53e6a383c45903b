"""Draw the three figures of docs/how-it-works.md from attention recorded in the embedded LLaVA.

python -m docs.draw_ideas DATA OUT      (DATA: data.twoshapes --count 8 --seed 7; writes OUT/idea-*.png)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LogNorm, SymLogNorm
from PIL import Image

import models
from analysis.overlay import overlay
from analysis.plots import BLUE, ORANGE, Figure
from analysis.rollout import answer_rows, through
from data.images import read_image
from data.twoshapes import read
from models.adapt_vis import ImageScaling
from models.attention import listening
from models.gaze import Gaussian, SalientHead
from models.generation import Answer, answer
from models.interventions import LayerEdit, PromptBatch
from models.rows import softmax_rows

LAYER, HEAD = 2, 0  # of the first two figures: a head that attends to both shapes
QUESTION, DESCRIBE = "what colour is the shape ?", "describe the image ."
GAZE = [[(9, 6)]]  # cell (x, y) at the centre of the circle
GREY, INK, MARK = "#6f6f6f", "#222222", "#b3460b"

# Qwen2.5-VL-7B-Instruct, from its config.json; 2 bytes per number in bfloat16.
LAYERS, HEADS, KEY_HEADS, WIDTH, BYTES = 28, 28, 4, 128, 2
GB = 1e9


@dataclass(frozen=True)
class SingleLayer:
    """Restriction of an intervention to one layer, so that the states before that layer are unchanged."""

    intervention: object
    layer: int

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        return {self.layer: self.intervention.plan(prompt)[self.layer]}


def memory(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Bytes of a prompt's attention: all matrices, the recorded queries, and the KV cache of any generation."""
    return {
        "all T × T matrices": LAYERS * HEADS * tokens**2 * BYTES,
        "queries, recorded": LAYERS * HEADS * WIDTH * tokens * BYTES,
        "KV cache of any generation": 2 * LAYERS * KEY_HEADS * WIDTH * tokens * BYTES,
    }


def draw_memory(axes) -> None:
    tokens = np.geomspace(256, 32768, 60)
    rotated = {"rotation_mode": "anchor", "ha": "right", "fontsize": 7.5}
    for (name, size), colour in zip(memory(tokens).items(), (ORANGE, BLUE, GREY), strict=True):
        axes.plot(tokens, size / GB, color=colour, linewidth=1.8)
        axes.annotate(
            name,
            (tokens[-1], size[-1] / GB),
            (-3, 4),
            "data",
            "offset points",
            color=colour,
            rotation=46 if "×" in name else 26,
            **rotated,
        )
    marked = np.array([4096.0])
    places = ({"xytext": (-5, 4), "ha": "right"}, {"xytext": (-5, 4), "ha": "right"}, {"xytext": (3, -10)})
    for size, colour, place in zip(memory(marked).values(), (ORANGE, BLUE, GREY), places, strict=True):
        axes.plot(marked, size / GB, "o", color=colour, markersize=4)
        axes.annotate(
            f"{size[0] / GB:.2g} GB", (marked[0], size[0] / GB), textcoords="offset points", fontsize=7.5, **place
        )
    axes.set(xscale="log", yscale="log", ylim=(0.01, 3000))
    axes.set_xlabel("prompt length T (tokens)", fontsize=8)
    axes.set_ylabel("memory (GB, bfloat16)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_xticks([256, 1024, 4096, 16384], labels=["256", "1,024", "4,096", "16,384"], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks([0.01, 0.1, 1, 10, 100, 1000], labels=["0.01", "0.1", "1", "10", "100", "1,000"])
    axes.grid(True, linewidth=0.4, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("c   memory for Qwen2.5-VL-7B\n     (28 layers, 28 heads; arithmetic)", fontsize=8.5, loc="left")


def recorded_row(model, inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query [width] of the last prompt row, keys [key, width], and the attention row computed from them."""
    states = {}

    def listen(layer, module, query, key, value, mask, formula):
        if layer == LAYER:
            states.update(query=query[0, HEAD, -1:], key=key[0, HEAD], scaling=formula.scaling)

    with torch.no_grad(), listening(model, "decoder", listen):
        model(**inputs)
    row = softmax_rows(states["query"][None].float(), states["key"][None].float(), states["scaling"], None)
    return states["query"][0], states["key"], row[0, 0]


def eager_row(inputs) -> torch.Tensor:
    """The same row from the eager model's output_attentions."""
    model, _ = models.load("tiny-llava")
    model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions[LAYER][0, HEAD, -1]


def draw_queries(model, processor, image: Image.Image) -> Figure:
    """Idea 1: q of one row, K of the cache, their softmax compared with eager; memory over prompt length."""
    inputs, layout = model.prepare(processor, images=[image], prompt=QUESTION)
    query, key, row = recorded_row(model, inputs)
    eager = eager_row(inputs)
    figure = Figure(figsize=(9, 3.6), dpi=160, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.85, 1))
    grid = left.add_gridspec(2, 2, width_ratios=(1, 24), height_ratios=(1, 1.15))
    small, wide, line = (left.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, 1)))
    top = float(key.abs().max())
    scale = {"cmap": "PuOr", "vmin": -top, "vmax": top, "aspect": "auto", "interpolation": "nearest"}
    small.imshow(query[:, None].numpy(), **scale)
    small.set(xticks=[], yticks=[])
    small.set_title("q", fontsize=8.5)
    small.set_ylabel(f"{len(query)} head dimensions", fontsize=7.5)
    wide.imshow(key.T.numpy(), **scale)
    wide.set(xticks=[], yticks=[])
    wide.set_title(
        f"a   recorded: q, {len(query)} numbers per row.   Already cached: K, {len(key)} keys", fontsize=8.5, loc="left"
    )
    for axes in (small, wide):
        axes.tick_params(labelsize=7)
    draw_row(line, layout, row, eager)
    draw_memory(right.subplots())
    return figure


def draw_row(line, layout, row: torch.Tensor, eager: torch.Tensor) -> None:
    """Draw a recomputed attention row [key] as bars and that of the eager model as points."""
    keys = np.arange(len(row))
    line.bar(keys, row.numpy(), width=1.0, color=BLUE, label="softmax(q · K / √d), recomputed")
    line.plot(
        keys,
        eager.numpy(),
        "o",
        markersize=2.6,
        markerfacecolor="none",
        markeredgecolor=ORANGE,
        markeredgewidth=0.7,
        label="eager model's output_attentions",
    )
    line.set(yscale="log", xlim=(-0.5, len(row) - 0.5), ylim=(1e-11, 300))
    line.set_ylabel("weight", fontsize=8)
    line.set_yticks([1e-10, 1e-5, 1])
    mark_image(line, layout)
    drawn = line.get_legend_handles_labels()
    line.legend(
        *(entries[::-1] for entries in drawn), fontsize=7, loc="upper left", frameon=False, ncols=2, borderpad=0.2
    )
    difference = float((row - eager).abs().max())
    line.set_title(
        f"b   row {layout.length - 1} of layer {LAYER}, head {HEAD}; largest difference {difference:.0e}",
        fontsize=8.5,
        loc="left",
    )


def mark_image(axes, layout, colour: str = INK, named: bool = True) -> None:
    """Draw lines around the image keys; `named` labels them on the x axis."""
    first, last = int(layout.images[0][0]), int(layout.images[0][-1])
    for border in (first - 0.5, last + 0.5):
        axes.axvline(border, color=colour, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xticks([first, last] if named else [], labels=[str(first), str(last)] if named else [], fontsize=7)
    if named:
        name = f"{last - first + 1} cells of the image"
        place = {"ha": "center", "va": "top", "transform": axes.get_xaxis_transform()}
        axes.text((first + last) / 2, -0.03, name, fontsize=7.5, **place)


EDITS = (
    ("a   no edit", "softmax(z)", None, {}),
    (
        "b   key bias: all rows",
        "softmax(z + log g),  g a Gaussian around the gaze",
        range(9),
        {"mask_type": Gaussian((LAYER,)), "scanpaths": GAZE},
    ),
    (
        "c   row edit: last prompt row, answer",
        "f(softmax(z)),  f multiplies by a mask and renormalises",
        (7, 8),
        {"mask_type": SalientHead((LAYER,), heads=4, tau=0.1), "scanpaths": GAZE},
    ),
    (
        "d   scaled row: last prompt row",
        "softmax(a · z),  a = 0.5 on the image, else 1",
        (7,),
        {"steering": SingleLayer(ImageScaling((0.5,)), LAYER)},
    ),
)


def text_rows(result: Answer) -> tuple[range, list[str]]:
    """Positions of the prompt rows after the image and of the answer rows, with their tokens."""
    words = ["what", "colour", "is", "the", "shape", "?", "assistant", ":", *result.tokens]
    return range(result.trace.length - len(words), result.trace.length), words


def draw_edits(model, processor, image: Image.Image) -> Figure:
    """Idea 2: softmax rows of one head, and the change of each kind of edit."""
    results = [answer(model, processor, [image], QUESTION, **options) for *_, options in EDITS]
    if len({tuple(result.tokens) for result in results}) > 1:
        raise ValueError("an edit changed the answer, so the rows are not comparable; use another image")
    figure = Figure(figsize=(9, 6.4), dpi=150, layout="constrained")
    panels = figure.subplots(len(EDITS), 2, width_ratios=(6.2, 1))
    rows, words = text_rows(results[0])
    weights = [result.trace.weights(LAYER, rows, heads=[HEAD])[0, 0] for result in results]
    plain = LogNorm(1e-4, 1)
    change = SymLogNorm(1e-3, vmin=-1, vmax=1)
    for (wide, small), (title, formula, edited, options), result, weight in zip(
        panels, EDITS, results, weights, strict=True
    ):
        first = edited is None
        shown = weight.clamp_min(1e-4) if first else weight - weights[0]
        drawn = wide.imshow(
            shown.numpy(),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis" if first else "PuOr",
            norm=plain if first else change,
        )
        bar = figure.colorbar(drawn, ax=wide, fraction=0.05, pad=0.01, aspect=9, extend="min" if first else "neither")
        bar.set_label("weight" if first else "change", fontsize=7.5)
        bar.set_ticks([1e-4, 1e-2, 1] if first else [-1, -0.01, 0, 0.01, 1])
        bar.ax.tick_params(labelsize=6.5)
        wide.set_title(f"{title}:  {formula}", fontsize=8.5, loc="left")
        labels = [f"{word} ▸" if index in (edited or ()) else word for index, word in enumerate(words)]
        wide.set_yticks(range(len(words)), labels=labels, fontsize=6.5)
        mark_image(wide, result.layout, "white" if first else INK, named=wide is panels[-1, 0])
        for index in edited or ():
            wide.get_yticklabels()[index].set(color=MARK, fontweight="bold")
        draw_map(small, image, result, weight[7])
        small.set_xlabel(f"row “:”, {weight[7, result.layout.images[0]].sum():.1%}", fontsize=7, labelpad=2)
        if "scanpaths" in options:
            left, top, right, bottom = result.layout.grids[0].rect(GAZE[0][0][1], GAZE[0][0][0])
            ring = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": "white", "markeredgewidth": 1}
            small.plot((left + right) * 2, (top + bottom) * 2, "o", **ring)
    return figure


def draw_map(axes, image: Image.Image, result: Answer, row: torch.Tensor) -> None:
    """Draw the image part of an attention row over the image."""
    grid = result.layout.grids[0]
    cells = row[result.layout.images[0]].reshape(grid.rows, grid.cols).numpy()
    axes.imshow(overlay(image, cells, grid, at_least=400))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def rollout_states(result: Answer, tokens: tuple[int, ...]) -> list[torch.Tensor]:
    """V [token, key] at the start and after each layer, from the last to the first."""
    trace, rows = result.trace, answer_rows(result.trace, "predicting")
    vectors = torch.zeros(len(tokens), trace.length)
    vectors[range(len(tokens)), [rows[token] for token in tokens]] = 1
    states = [vectors]
    for layer in reversed(range(trace.layers)):
        states.append(through(trace, layer, 0, states[-1], 0, 0.5, False))
    return states


def draw_rollout(model, processor, image: Image.Image) -> Figure:
    """Idea 3: rollout rows of two tokens after each layer, from the last to the first, and their mass on the image."""
    result = answer(model, processor, [image], DESCRIBE)
    tokens = tuple(result.tokens.index(word) for word in ("magenta", "cyan"))
    states = rollout_states(result, tokens)
    figure = Figure(figsize=(9, 6.7), dpi=150, layout="constrained")
    panels = figure.subplots(len(states), 3, width_ratios=(3.6, 1, 1))
    product = "V"
    for place, ((wide, *small), vectors) in enumerate(zip(panels, states, strict=True)):
        layer = result.trace.layers - place
        product += f" A{'₀₁₂₃₄'[layer]}" if place else ""
        drawn = wide.imshow(
            vectors.clamp_min(1e-4).numpy(),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            norm=LogNorm(1e-4, 1),
        )
        wide.set_yticks([0, 1], labels=[result.tokens[token] for token in tokens], fontsize=7.5)
        mark_image(wide, result.layout, "white", named=wide is panels[-1, 0])
        step = f"through layer {layer}: " if place else "start: one row of the identity per token, "
        wide.set_title(f"{step}{product}", fontsize=8.5, loc="left")
        for axes, vector, token in zip(small, vectors, tokens, strict=True):
            draw_map(axes, image, result, vector)
            label = f"rollout mass on image {vector[result.layout.images[0]].sum():.0%}"
            axes.set_xlabel(label, fontsize=7, labelpad=2)
            if place == 0:
                axes.set_title(f"“{result.tokens[token]}”", fontsize=8.5)
    bar = figure.colorbar(
        drawn, ax=panels[:, 0], orientation="horizontal", fraction=0.025, pad=0.01, aspect=60, extend="min"
    )
    bar.set_label("weight in V; each row sums to 1", fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
    return figure


def main(data: Path, out: Path) -> None:
    samples, _ = read(data)
    image = read_image(samples[0].image_path)
    model, processor = models.load("tiny-llava")
    for name, draw in (("queries", draw_queries), ("edits", draw_edits), ("rollout", draw_rollout)):
        draw(model, processor, image).savefig(out / f"idea-{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
