"""What a run over pairs and heads says: its table, its figures, and its findings in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis import head_responses
from analysis.causal_heads import PICTURES
from analysis.response_figures import count_bars, response_maps
from analysis.results import RunFolder
from analysis.statistics import LEVEL, REAL, mean_interval, rate_interval, too_few

COLUMNS = (
    "full_image", "control_image", "prompt", "answer_full", "answer_control", "tokens_full", "tokens_control",
    "margin_full", "margin_control", "top_head", "top_response",
)  # fmt: skip
NOTICEABLE = 0.01  # of a row's attention


def sample_row(paths: Sequence[Path], prompt: str, said: Sequence, attention: np.ndarray, margins, layers) -> dict:
    """The row of one pair, the values of COLUMNS; everything comes in the order full, control.

    said: answers with `text` and `tokens`. attention: [2, layer, head], of which `layers` numbers the rows. margins:
    log p(yes) - log p(no), None where that is not known. The top head is "layer.head" of the largest |response|.
    """
    response = attention[0] - attention[1]
    layer, head = np.unravel_index(np.abs(response).argmax(), response.shape)
    values = (
        *paths, prompt, *(answer.text for answer in said), *(len(answer.tokens) for answer in said), *margins,
        f"{layers[layer]}.{head}", float(response[layer, head]),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


class Measured:
    """Attention to both pictures of every pair, as it is measured."""

    def __init__(self) -> None:
        self.pairs: list = []  # each with a `name`
        self._attention: list[np.ndarray] = []  # [2, layer, head]

    def add(self, pair, attention: np.ndarray) -> None:
        """attention: [2, layer, head], full and control."""
        self.pairs.append(pair)
        self._attention.append(attention)

    @property
    def names(self) -> list[str]:
        """Of the pairs, in the order of their axis."""
        return [pair.name for pair in self.pairs]

    @property
    def full(self) -> np.ndarray:
        """float32 [layer, head, pair]"""
        return np.stack([both[0] for both in self._attention], -1)

    @property
    def control(self) -> np.ndarray:
        """float32 [layer, head, pair]"""
        return np.stack([both[1] for both in self._attention], -1)


def save(run: RunFolder, measured: Measured, layers: Sequence[int], topk: int, where: str, save_diffs: bool):
    """Writes the arrays, tables and figures about all pairs; returns the rows of heads.csv. `where` names what
    attention was summed over."""
    full, control, heads = measured.full, measured.control, measured.full.shape[1]
    table = head_responses.save(run.folder, full, control, topk, layers)
    if save_diffs:
        head_responses.save_attention(run.folder, full, control, layers, measured.names)
    for layer, counts in zip(layers, head_responses.column(table, "count", heads), strict=True):
        run.save(count_bars(counts, len(measured.pairs), topk, layer), f"layer_{layer}_top{topk}_counts.png")
    run.save(response_maps(table, heads, topk, where), "heads.png")
    return table


def says(rows: Sequence[dict]) -> dict | None:
    """Share of yes answers to each picture, and the mean margin; None where the margin is not known."""
    if rows[0]["margin_full"] is None:
        return None
    margins = {picture: [row[f"margin_{picture}"] for row in rows] for picture in PICTURES}
    return {
        picture: {"says_yes": rate_interval(margin > 0 for margin in values), "margin": mean_interval(values, REAL)}
        for picture, values in margins.items()
    }


def responding(table: Sequence[dict]) -> list[dict]:
    """The heads that pass the test on all pairs, with their q, in the order of heads.csv, which has their effects.

    An effect of a head that was selected because it is large is too large on the same pairs; "held_out" of summary.json
    has effects on pairs that had no part in the selection.
    """
    return [{name: row[name] for name in ("layer", "head", "q")} for row in table if row["q"] <= LEVEL]


def findings(table: Sequence[dict], held_out: Sequence[dict]) -> str:
    """Counts of heads that pass the test and, of the heads chosen on one half of the pairs (rows of
    `causal_heads.held_out`), the responses on the other half; for the terminal."""
    found = [row for row in table if row["q"] <= LEVEL]
    clear, n = sum(abs(row["difference"]) >= NOTICEABLE for row in found), table[0]["n"]
    few = too_few(n)
    lines = [
        f"{len(found)} of {len(table)} heads attend differently with the object (q <= {LEVEL}, n = {n} pairs), {clear} "
        f"of them by {NOTICEABLE} or more" + (f"; {few}" if few else "")
    ]
    if held_out:
        n = held_out[0]["other_half"]["n"]
        lines.append(f"strongest heads of one half, on the other {n} pairs: attention with the object minus without")
    for row in held_out:
        other = row["other_half"]
        p = "" if other["p"] is None else f", p {row['other_half']['p_holm']:.2g} (Holm, {len(held_out)} heads)"
        lines.append(f"  layer {row['layer']} head {row['head']}: {_estimate(other, 4)}{p}")
    return "\n".join(lines)


def _estimate(figure: dict, digits: int = 2) -> str:
    """A mean with its interval, without one where it cannot be estimated."""
    mean, *ends = (None if figure[name] is None else f"{figure[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{', '.join(ends)}]" if None not in ends else f"{mean} ({figure['interval']})"


def ablation_finding(ablation: dict, heads: str) -> str:
    """Effect of ablation on the difference that the object makes to the answer, of a `causal_heads.summarise` summary.

    Where the random sets are too few for any rank to reach LEVEL, that is stated instead of p-values: a p over pairs is
    of a difference from these few sets, and small though another set might differ as much.
    """
    found = ablation["full_minus_control"]
    draws, least = len(found["draws"]), found["smallest_p_rank"]
    effect = (
        f"the object moves log p(yes) - log p(no) by {found['margin']['mean']:.2f}; without the image attention of "
        f"heads {heads} (layer.head) that changes by {_estimate(found['chosen'])}, without that of random heads by "
        f"{_estimate(found['random'])} (n = {found['chosen']['n']} other pairs); "
    )
    if least > LEVEL:
        return effect + (
            f"{draws} random set{'s' * (draws > 1)}: the smallest possible p is {least:.2g}, so this run cannot tell "
            "the chosen heads from random ones"
        )
    return effect + (
        f"by the size of that change the heads rank {found['rank']} of {1 + draws} sets (p = {found['p_rank']:.2g}, "
        f"smallest possible {least:.2g}; difference from the random sets over pairs: p = "
        f"{found['chosen_minus_random']['p']:.2g}, q = {found['chosen_minus_random']['q']:.2g})"
    )
