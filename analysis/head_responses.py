"""Responses of heads to an object: attention with the object minus attention without it, counts, tests and files.

A *pair* is an image with an object (full) and the same image without it (control). The attention of a head is that of
the row which predicts a generated token, summed over the cells of the image (or of one corner of it) and averaged over
the tokens of the answer without the end token. Its *response* is full - control.

The folder of a run of head_attention_stats_qwen2.py holds, besides settings.json, samples.csv and summary.json:

    count_LHN.npy           uint8 [layer, head, pair]: 1 where the head is among the `topk` heads of its layer with the
                            largest |response| for that pair. A response of 0 is not counted; of equal ones the lower
                            head comes first. So a layer and pair have at most `topk` ones.
    count_LH.npy            int64 [layer, head]: its sum over pairs
    signed_LHN.npy          float32 [layer, head, pair]: the responses
    layer_<l>_top<k>_counts.npy, .png    int64 [head]: one row of count_LH, and its bars; <l> counts layers from 0
    heads.csv               one row per head, layer by layer: layer, head, n (pairs), count, full, control (mean
                            attention), difference (mean response) with low, high (95 %, of this head alone: see
                            `analysis.statistics.mean_interval`), effect (matched-pairs rank-biserial correlation,
                            -1..1), p (Wilcoxon, two-sided), q (after Benjamini-Hochberg over all rows, as
                            family_of_q states)
    heads.png               heatmaps of counts, mean responses and effect sizes; dots where q <= 0.05
    attention.npz           with --save-diffs: full and control, float32 [layer, head, pair]; layers; pairs (names)
    ablation.csv, .png      with --ablate: per pair and set of heads log p(yes) - log p(no) of both images

Row i of every array is layer `layers[i]` of the model (all layers unless --layers selects some), and column j of the
last axis is pair `pairs[j]`; summary.json has both lists, and `topk`, `corner`, `patch_size` (both null where the whole
image is summed), `prompt`, `dataset` and `model`. A folder without summary.json is an unfinished run. `read` loads the
results.

Ablation: heads are chosen on one half of the pairs, by the size of their mean response. On the other half their
response is tested again, and log p(yes) - log p(no) is measured without their image attention (`models.ablation`),
compared with random sets of as many heads of the same layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from analysis.files import save_arrays, write_table, write_whole
from analysis.gaze_heads import mean_heads
from analysis.rollout import check_layout
from analysis.statistics import (
    DIFFERENCE,
    MIN_SPLIT,
    REAL,
    SHARE,
    benjamini_hochberg,
    correct_family,
    head_tests,
    holm,
    mean_interval,
    paired_difference,
    rate_interval,
)
from analysis.words import check_layers
from data.counterfactual_pairs import CORNERS
from data.errors import InputError, MissingFileError, SampleError, check_at_least


@dataclass(frozen=True)
class ResponseSettings:
    """Attention of the heads, whose change is their response."""

    layers: str = "all"
    """all | first_third | mid_third | last_third | last_K | 3,7,12 (0-based)."""
    max_new_tokens: int = 1
    """Max new tokens; attention is averaged over them. The second token follows "yes" for full and "no" for control, so
    from 2 tokens on a response mixes text with image."""
    topk: int = 3
    """Heads of a layer that count for a pair: those whose attention changes most."""
    corner: Literal["topleft", "topright", "bottomleft", "bottomright"] | None = None
    """Sum attention over the cells of this corner only (default: over the whole image)."""
    patch_size: int | None = None
    """Cells on each side of that corner (default: a third of the grid)."""

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_at_least(self, max_new_tokens=1, topk=1)
        if self.corner is not None and self.corner not in CORNERS:
            raise ValueError(f"--corner {self.corner!r} is unknown; choose {', '.join(CORNERS)}")
        if self.patch_size is not None and self.corner is None:
            raise ValueError("--patch-size is the size of a --corner; give that, too")


@dataclass(frozen=True)
class AblationSettings:
    """Ablation of the strongest heads, and its control."""

    ablate: int = 0
    """Number of strongest heads that lose their image attention, at most half of a layer's; 0: no ablation."""
    draws: int = 19
    """Random sets of heads to compare the ablated ones with, or all there are; 19 is the smallest number with which the
    first rank reaches p = 0.05."""
    seed: int = 0
    """Seed of the halves and of the random heads."""

    def __post_init__(self) -> None:
        check_at_least(self, ablate=0, draws=1, seed=0)


@dataclass(frozen=True, eq=False)
class Responses:
    """Results of a finished run: `counts` uint8 and `signed` float32, both [layer, head, pair]; `layers`: numbers of
    the layers; `pairs`: names of the pairs; `summary`: summary.json."""

    counts: np.ndarray
    signed: np.ndarray
    layers: tuple[int, ...]
    pairs: tuple[str, ...]
    summary: dict


def read(folder: str | Path) -> Responses:
    """Load the results of one run.

    Raises FileNotFoundError for a folder without a finished run, ValueError for files that do not fit each other.
    """
    folder = Path(folder)
    for name in ("summary.json", "count_LHN.npy", "signed_LHN.npy"):
        if not (folder / name).is_file():
            raise MissingFileError(
                "run-not-finished",
                f"{folder} holds no {name}, so it is no finished run of head_attention_stats_qwen2.py; run that first",
            )
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        layers, pairs = tuple(summary["layers"]), tuple(summary["pairs"])
        counts, signed = (np.load(folder / name) for name in ("count_LHN.npy", "signed_LHN.npy"))
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        raise InputError(
            "results-unreadable", f"the results in {folder} cannot be read ({error!r}); measure that corner again"
        ) from error
    if counts.ndim != 3 or counts.shape != signed.shape or counts.shape[::2] != (len(layers), len(pairs)):
        raise InputError(
            "results-do-not-fit",
            f"the results in {folder} do not fit each other: counts of shape {counts.shape}, responses of shape "
            f"{signed.shape}, {len(layers)} layers and {len(pairs)} pairs; measure that corner again",
        )
    return Responses(counts, signed, layers, pairs, summary)


def corner_cells(rows: int, cols: int, corner: str, side: int | None = None) -> np.ndarray:
    """Indices, int64 [cell] in raster order, of the side x side cells at one corner of a grid.

    corner: "topleft" | "topright" | "bottomleft" | "bottomright". `side` None is a third of the grid's shorter side, a
    corner cell of a 3 x 3 grid. Raises SampleError for a corner larger than the grid.
    """
    side = max(1, round(min(rows, cols) / 3)) if side is None else side
    if not 1 <= side <= min(rows, cols):
        raise SampleError(
            "patch size beyond the grid",
            f"a corner of {side} x {side} cells does not fit the grid of {rows} rows and {cols} columns; give a patch "
            f"size of 1 to {min(rows, cols)}",
        )
    top = 0 if corner.startswith("top") else rows - side
    left = 0 if corner.endswith("left") else cols - side
    return (np.arange(top, top + side)[:, None] * cols + np.arange(left, left + side)).ravel()


@torch.no_grad()
def attention_to(
    trace, layouts: Sequence, keys: Sequence[torch.Tensor], tokens: Sequence[int], layers: Sequence[int]
) -> np.ndarray:
    """Attention of the rows that predict each answer to some keys, summed over them and averaged over the answer's
    tokens: float32 [sample, layer, head].

    layouts: of all samples of the trace, in its order. keys: positions for each sample. tokens: number of tokens of
    each answer, at least one.
    """
    for layout in layouts:
        check_layout(trace, layout)
    rows = range(trace.prompt_length - 1, trace.prompt_length - 1 + max(tokens))
    counted = torch.arange(len(rows)) < torch.tensor(tokens)[:, None]  # [sample, row]
    attention = torch.empty(len(layouts), len(layers), trace.heads)
    for place, layer in enumerate(layers):
        weights = trace.weights(layer, rows, samples=[layout.sample for layout in layouts])
        for sample, positions in enumerate(keys):
            summed = weights[sample][..., positions.to(weights.device)].sum(-1).cpu()  # [head, row]
            attention[sample, place] = summed[:, counted[sample]].mean(-1)
    return attention.numpy()


def most_changed(signed: np.ndarray, topk: int) -> np.ndarray:
    """Heads among the `topk` of their layer with the largest |response|: uint8 [layer, head, pair].

    signed: responses [layer, head, pair]. The module's docstring states the rule for responses of 0 and ties.
    """
    size = np.abs(signed)
    rank = np.argsort(np.argsort(-size, axis=1, kind="stable"), axis=1)
    return ((rank < topk) & (size > 0)).astype(np.uint8)


def head_table(full: np.ndarray, control: np.ndarray, topk: int, layers: Sequence[int]) -> list[dict]:
    """Rows of heads.csv, of attention [layer, head, pair] to both images of each pair."""
    signed = full - control
    counts = most_changed(signed, topk).sum(-1)
    by_pair = signed.transpose(2, 0, 1).astype(np.float64)
    tested, mean = head_tests(by_pair), mean_heads(by_pair, DIFFERENCE)
    family = f"{np.isfinite(tested['q']).sum()} heads: every measured layer x head"
    return [
        {
            "layer": layers[at[0]], "head": at[1], "n": int(tested["n"][at]), "count": int(counts[at]),
            "full": float(full[at].mean()), "control": float(control[at].mean()),
            "difference": float(mean["mean"][at]), "low": float(mean["low"][at]), "high": float(mean["high"][at]),
            **{name: float(tested[name][at]) for name in ("effect", "p", "q")}, "family_of_q": family,
        }
        for at in np.ndindex(counts.shape)
    ]  # fmt: skip


def column(rows: Sequence[dict], name: str, heads: int) -> np.ndarray:
    """One column of a head table as [layer, head]."""
    return np.array([row[name] for row in rows], np.float64).reshape(-1, heads)


def save(folder: Path, full: np.ndarray, control: np.ndarray, topk: int, layers: Sequence[int]) -> list[dict]:
    """Write the arrays and heads.csv that the module's docstring names; return the rows of heads.csv.

    full, control: attention, float32 [layer, head, pair]; `layers`: numbers of the layers.
    """
    signed = full - control
    cube = most_changed(signed, topk)
    counts = cube.sum(-1, dtype=np.int64)
    arrays = {"count_LHN": cube, "count_LH": counts, "signed_LHN": signed}
    arrays |= {f"layer_{layer}_top{topk}_counts": row for layer, row in zip(layers, counts, strict=True)}
    for name, array in arrays.items():
        write_whole(folder / f"{name}.npy", lambda partial, array=array: np.save(partial, array))
    rows = head_table(full, control, topk, layers)
    write_table(folder / "heads.csv", rows)
    return rows


def save_attention(folder: Path, full: np.ndarray, control: np.ndarray, layers: Sequence[int], pairs: Sequence[str]):
    """Write attention.npz, the attention to both images of every pair, float32 [layer, head, pair]."""
    names = np.array(pairs, dtype=str)
    save_arrays(folder / "attention.npz", full=full, control=control, layers=np.array(layers), pairs=names)


Heads = tuple[tuple[int, int], ...]
"""(index of the layer among the measured ones, head) pairs, or (layer, head) pairs; from 0."""
MIN_PAIRS = MIN_SPLIT
IMAGES = ("full", "control")


def choose(signed: np.ndarray, count: int) -> Heads:
    """The `count` heads of largest |mean response|, of responses [layer, head, pair], largest first.

    At most half of a layer's heads, so that as many others are left to compare with; heads with a mean response of 0
    are left out. Raises ValueError where a model has too few heads for that.
    """
    layers, heads, _ = signed.shape
    if count > layers * (heads // 2):
        raise InputError(
            "too-many-heads",
            f"{count} heads are more than half of those of the {layers} layers with {heads} heads each; choose at most "
            f"{layers * (heads // 2)}, so that as many others are left to compare with",
        )
    size = np.abs(signed.astype(np.float64).mean(-1))
    chosen: list[tuple[int, int]] = []
    for place in np.argsort(-size, axis=None, kind="stable").tolist():
        layer, head = divmod(place, heads)
        if len(chosen) < count and size[layer, head] > 0 and sum(of == layer for of, _ in chosen) < heads // 2:
            chosen.append((layer, head))
    return tuple(chosen)


def random_sets(chosen: Heads, heads: int, draws: int, rng: np.random.Generator) -> list[Heads]:
    """Different sets of heads that were not chosen, as many in each layer as chosen: `draws` of them, or all there are.

    heads: number of heads of a layer; at most half of them may be chosen.
    """
    taken = {layer: [head for of, head in chosen if of == layer] for layer in sorted({layer for layer, _ in chosen})}
    possible = prod(comb(heads - len(mine), len(mine)) for mine in taken.values())
    sets: dict[Heads, None] = {}
    while taken and len(sets) < min(draws, possible):
        drawn = []
        for layer, mine in taken.items():
            others = np.setdiff1d(np.arange(heads), mine)
            drawn += [(layer, int(head)) for head in sorted(rng.choice(others, len(mine), replace=False))]
        sets[tuple(drawn)] = None
    return list(sets)


def held_out(signed: np.ndarray, chosen: Heads, first: np.ndarray, second: np.ndarray, seed: int) -> list[dict]:
    """Responses of the chosen heads on the half of the pairs on which they were not chosen: one row per head.

    signed: [layer, head, pair]; first, second: indices of the halves. "q" is that of the first half over all heads;
    "other_half" has mean, interval, n and p as `analysis.statistics.paired_difference`, and p_holm over these heads.
    """
    tested = head_tests(signed[..., first].transpose(2, 0, 1))
    tests = [paired_difference(signed[*at][second], 0.0, seed, DIFFERENCE) for at in chosen]
    corrected = holm([np.nan if test["p"] is None else test["p"] for test in tests])
    return [
        {
            "layer": layer,
            "head": head,
            "mean": float(tested["mean"][layer, head]),
            "q": float(tested["q"][layer, head]),
            "n": int(tested["n"][layer, head]),
            "other_half": {**test, "p_holm": float(p)},
        }
        for (layer, head), test, p in zip(chosen, tests, corrected, strict=True)
    ]


def summarise(margins: dict[str, np.ndarray], seed: int) -> dict:
    """Effect of ablation, of margins log p(yes) - log p(no) by set of heads, each float64 [pair, full or control].

    Sets are "none", "chosen", and any number of others, the random ones. For full, control, and full - control: the
    margin without ablation, its change by the chosen heads and by the random ones (mean over the
    random sets of each pair), each with interval, n and p; "chosen_minus_random" is their paired difference, "draws"
    the mean change by each random set. That difference may be significant and yet no larger than those between random
    sets, so "rank" counts the sets, the chosen one among them, that change the margin at least as much, and "p_rank" is
    their share: the p of the hypothesis that the chosen heads are exchangeable with the others, at least
    "smallest_p_rank", 1 / (1 + draws). q corrects over the nine paired tests, as "family_of_q" states, "q_rank" over
    the three ranks. "says_yes": share of pairs with a margin above 0 (random: the mean over pairs of the share of the
    random sets with a margin above 0).
    """
    random = [margin for name, margin in margins.items() if name not in ("none", "chosen")]
    mean_random = np.mean(random, axis=0)
    summary = {}
    for name, weights in (("full", (1, 0)), ("control", (0, 1)), ("full_minus_control", (1, -1))):
        plain, chosen, control = (values @ weights for values in (margins["none"], margins["chosen"], mean_random))
        draws = [float(np.mean(values @ weights - plain)) for values in random]
        rank = 1 + int((np.abs(draws) >= np.abs(np.mean(chosen - plain))).sum())
        summary[name] = {
            "margin": mean_interval(plain, REAL),
            "chosen": paired_difference(chosen, plain, seed, REAL),
            "random": paired_difference(control, plain, seed, REAL),
            "chosen_minus_random": paired_difference(chosen, control, seed, REAL),
            "draws": draws,
            "rank": rank,
            "p_rank": rank / (1 + len(draws)),
            "smallest_p_rank": 1 / (1 + len(draws)),
        }
    parts = list(summary.values())
    for part, q in zip(parts, benjamini_hochberg([part["p_rank"] for part in parts]), strict=True):
        part["q_rank"] = float(q)
    tests = [part[name] for part in parts for name in ("chosen", "random", "chosen_minus_random")]
    summary["family_of_q"] = correct_family(tests, "three comparisons of full, control and full - control")
    summary["says_yes"] = {
        image: {
            **{name: rate_interval(margins[name][:, place] > 0) for name in ("none", "chosen")},
            "random": mean_interval(np.mean([values[:, place] > 0 for values in random], axis=0), SHARE),
        }
        for place, image in enumerate(IMAGES)
    }
    return summary


def margin_rows(pairs: Sequence[str], margins: dict[str, np.ndarray], names: dict[str, str]) -> list[dict]:
    """Rows of ablation.csv: both margins for each pair and set of heads, of [pair, full or control] as in `summarise`;
    `names`: the heads of each set as text."""
    return [
        {"sample": pair, "set": which, "heads": names[which], "full": float(full), "control": float(control)}
        for place, pair in enumerate(pairs)
        for which, (full, control) in ((which, values[place]) for which, values in margins.items())
    ]
