"""Heads that respond to an object in every corner, and heads that respond to one corner alone.

A corner's *map* is the mean response of every head over pairs, [layer, head]: the attention with the object minus that
without. Of the four maps

    mean map      their mean                      residual      a corner's map - the mean map
    shared        min over corners of s m_c       unique to c   min(s m_c, min over the others d of s (m_c - m_d))

with s = +1, or -1 for heads that lose attention, whichever is larger. So a shared head answers in the same direction
in every corner by at least its score; a unique one answers in its corner, and by its score more than in any other. Each
score is a minimum, and a head is *called* shared or unique where every part of that minimum is above 0 by a test of its
own: the largest of their p is valid for all of them together (Berger, 1982), and Benjamini and Hochberg's q over all
heads (and corners) keeps the expected share of false calls at the level.

The published sweep counts instead how often a head is among the `topk` of its layer that changed most. Nothing is
called or tested by counts: a head whose attention merely varies more than that of others changes most in every corner,
whether there is an object or not. `over_chance` makes maps of them, to look at.

Four runs of head_attention_stats_qwen2.py, one per corner, put side by side: the same heads, the same pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from analysis.head_responses import Responses, read
from analysis.statistics import (
    CONFIDENCE,
    DIFFERENCE,
    MIN_SPLIT,
    Bounds,
    benjamini_hochberg,
    correct_family,
    halves,
    head_tests,
    mean_interval,
    sign_flip_test,
)

MEAN, RESIDUAL, SHARED, UNIQUE = "mean map", "residual", "shared", "unique"
LEAST = MIN_SPLIT  # pairs
OF_RESPONSES: Bounds = (-2.0, 2.0)  # range of the difference of two responses
SPLITS = 200


def over_chance(counts: np.ndarray) -> np.ndarray:
    """Share of pairs in which each head is among the top, minus the layer's mean share, which is what chance gives
    every head: [corner, layer, head], of 0/1 [corner, layer, head, pair]."""
    shares = counts.mean(-1)
    return shares - shares.mean(-1, keepdims=True)


def residuals(maps: np.ndarray) -> np.ndarray:
    """Each corner's map minus the mean of all, [corner, layer, head]."""
    return maps - maps.mean(0)


def scores(maps: np.ndarray) -> dict[tuple[str, int | None], tuple[np.ndarray, np.ndarray]]:
    """(score, direction s) of every head, each [layer, head], by (kind, corner); a score above 0 says that it holds.

    maps: [corner, layer, head]. Kinds: MEAN and SHARED with corner None, RESIDUAL and UNIQUE once per corner. Scores of
    MEAN and RESIDUAL are s times the value itself.
    """
    more, less = _signed_scores(maps), _signed_scores(-maps)
    return {key: (np.maximum(more[key], less[key]), np.where(more[key] >= less[key], 1, -1)) for key in more}


def _signed_scores(maps: np.ndarray) -> dict[tuple[str, int | None], np.ndarray]:
    """Scores of all kinds in the direction of more; [corner, ...] of any further axes."""
    found = {(MEAN, None): maps.mean(0), (SHARED, None): maps.min(0)}
    for corner, (own, rest) in enumerate(zip(maps, residuals(maps), strict=True)):
        others = np.delete(maps, corner, axis=0).max(0)
        found[RESIDUAL, corner] = rest
        found[UNIQUE, corner] = np.minimum(own, own - others)
    return found


@dataclass(frozen=True, eq=False)
class Calls:
    """Which heads are called what. q and bool arrays: shared [layer, head], unique [corner, layer, head]."""

    q_shared: np.ndarray
    q_unique: np.ndarray
    shared: np.ndarray
    unique: np.ndarray


def call_heads(values: np.ndarray, level: float = 0.05) -> Calls:
    """Shared and unique heads at a false-discovery rate of `level`, shared and unique ones a family each.

    values: responses [corner, layer, head, pair]. Answers, and corner against corner, pair by pair: Wilcoxon's
    signed-rank test, two-sided.
    """
    held = {key: score > 0 for key, (score, _) in scores(values.mean(-1)).items()}
    answers = np.stack([_tested(corner) for corner in values])
    apart = _differences(values)
    q_shared = benjamini_hochberg(np.where(held[SHARED, None], answers.max(0), 1.0))
    corners = range(len(answers))
    p_unique = [
        np.where(held[UNIQUE, corner], np.maximum(answers[corner], apart[corner].max(0)), 1.0) for corner in corners
    ]
    q_unique = benjamini_hochberg(np.stack(p_unique))
    return Calls(q_shared, q_unique, q_shared <= level, q_unique <= level)


def _tested(values: np.ndarray) -> np.ndarray:
    """p [layer, head] of no response, of values [layer, head, pair]."""
    return head_tests(np.moveaxis(values, -1, 0))["p"]


def _differences(values: np.ndarray) -> np.ndarray:
    """p [corner, corner, layer, head] of no difference between two corners; 0, never the largest, with itself."""
    corners = len(values)
    p = np.zeros((corners, corners, *values.shape[1:3]))
    for one, other in combinations(range(corners), 2):
        p[one, other] = p[other, one] = _tested(values[one] - values[other])
    return p


def ranked(score: np.ndarray, top: int) -> list[tuple[int, int]]:
    """The (layer, head) of the `top` largest scores [layer, head], falling; of equal ones the first."""
    order = np.argsort(-score, axis=None, kind="stable")[:top]
    return [tuple(int(index) for index in np.unravel_index(at, score.shape)) for at in order]


def held_out(values: np.ndarray, top: int, seed: int) -> list[dict] | None:
    """The best heads of each kind, chosen on one half of the pairs (the same in all corners), scored on the other.

    values: responses [corner, layer, head, pair].
    Returns rows {"kind", "corner" (index or None), "rank", "layer" (row), "head", "direction", "selection", "held_out",
    "low", "high" (95 %), "p" that the score is not above 0 (`_minimum`), "q" over all rows, "drop" (selection -
    held_out), "rank_held_out"}; None for fewer than LEAST pairs. Scores on the other half are in the direction that was
    chosen, so they may well be below 0.
    """
    pairs = values.shape[-1]
    if pairs < LEAST:
        return None
    first, second = halves(pairs, np.random.default_rng(seed))
    rows = []
    for row in _choose(values, first, second, top):
        directed = row["direction"] * values[:, row["layer"], row["head"], second]
        rows.append({**row, **_minimum(*_parts(directed, row["kind"], row["corner"]), seed)})
    correct_family(rows, "every chosen head")
    return rows


def typical_drop(values: np.ndarray, seed: int, splits: int = SPLITS) -> dict[str, dict] | None:
    """What choosing the best head of each kind costs, over many random halves, since one split alone is luck.

    values: responses [corner, layer, head, pair].
    Returns by kind {"selection", "held_out", "drop": means over splits and corners, "again": share of them in which the
    other half ranks that head first}; None for fewer than LEAST pairs.
    """
    pairs = values.shape[-1]
    if pairs < LEAST:
        return None
    rng = np.random.default_rng(seed)
    rows = [row for _ in range(splits) for row in _choose(values, *halves(pairs, rng), top=1)]
    found = {}
    for kind in (MEAN, RESIDUAL, SHARED, UNIQUE):
        of_kind = [row for row in rows if row["kind"] == kind]
        found[kind] = {key: float(np.mean([row[key] for row in of_kind])) for key in ("selection", "held_out", "drop")}
        found[kind]["again"] = float(np.mean([row["rank_held_out"] == 1 for row in of_kind]))
    return found


def _choose(values: np.ndarray, first: np.ndarray, second: np.ndarray, top: int) -> list[dict]:
    """The `top` heads of each kind on the pairs `first`, with their scores on `second` in the direction chosen."""
    chosen = scores(values[..., first].mean(-1))
    maps = values[..., second].mean(-1)
    others = {sign: _signed_scores(sign * maps) for sign in (1, -1)}
    rows = []
    for (kind, corner), (score, direction) in chosen.items():
        for rank, head in enumerate(ranked(score, top), 1):
            sign = int(direction[head])
            other = others[sign][kind, corner]
            rows.append({
                "kind": kind, "corner": corner, "rank": rank, "layer": head[0], "head": head[1], "direction": sign,
                "selection": float(score[head]), "held_out": float(other[head]),
                "drop": float(score[head] - other[head]), "rank_held_out": int((other > other[head]).sum()) + 1,
            })  # fmt: skip
    return rows


def _parts(values: np.ndarray, kind: str, corner: int | None) -> tuple[np.ndarray, Bounds]:
    """The responses, or their differences, whose means' minimum is the score, [part, pair], and the range of these, of
    one head's values [corner, pair]."""
    if kind == MEAN:
        return values.mean(0, keepdims=True), DIFFERENCE
    if kind == SHARED:
        return values, DIFFERENCE
    own = values[corner]
    if kind == RESIDUAL:
        return (own - values.mean(0))[None], OF_RESPONSES
    return np.stack([own, *(own - other for other in np.delete(values, corner, axis=0))]), OF_RESPONSES


def _minimum(parts: np.ndarray, bounds: Bounds, seed: int) -> dict:
    """{"low", "high", "p"} of the minimum of the means of some parts [part, pair], each value within `bounds`.

    Low is the lowest of the parts' lower ends, which is above the minimum only where the smallest part's own end is;
    high the lowest of their upper ends, each at the level that Bonferroni's correction for the number of parts demands.
    p is the largest of the parts' (Berger, 1982; sign flips), 1 where a mean is not above 0.
    """
    above = (parts.mean(1) > 0).all()
    return {
        "low": min(mean_interval(part, bounds)["low"] for part in parts),
        "high": min(mean_interval(part, bounds, 1 - (1 - CONFIDENCE) / len(parts))["high"] for part in parts),
        "p": max(sign_flip_test(part, seed) for part in parts) if above else 1.0,
    }


CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
PLACE = re.compile(r"(top|upper|bottom|lower)[\s_-]*(left|right)", re.IGNORECASE)
FLAGS, LOADED = ("max_new_tokens", "load_4bit", "load_8bit"), ("revision", "family", "dtype")  # of settings.json


@dataclass(frozen=True, eq=False)
class Corners:
    """What the runs found: `counts` and `signed`, float64 [corner, layer, head, pair], as `analysis.head_responses`
    has them; `names` and `folders` go with the first axis, `layers` (numbers from 0) with the second, `pairs` with the
    last. `left_out`: (pair, reason) of pairs that a corner lacks. `about`: what the runs have in common."""

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    counts: np.ndarray
    signed: np.ndarray
    layers: tuple[int, ...]
    pairs: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    about: dict

    @property
    def pairs_named(self) -> str:
        """Number and kind of the pairs, such as "40 synthetic pairs"."""
        return f"{len(self.pairs)} {'synthetic ' * (self.about['pictures'] == 'synthetic')}pairs"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names as a person writes them: "top left"."""
        return tuple(PLACE.sub(r"\1 \2", name) for name in self.names)


def read_corners(folders: Sequence[str | Path]) -> Corners:
    """The results of four folders, corners in the order top left to bottom right, restricted to the pairs of all four.

    Raises ValueError or FileNotFoundError, in one sentence, for folders that cannot be compared: not four of them, one
    of them or one corner twice, no finished run, other models, questions, layers or settings, cubes of other shapes, or
    fewer than two pairs in common.
    """
    folders = [Path(folder) for folder in folders]
    _check_folders(folders)
    runs = {_corner(folder, run): (folder, run) for folder, run in _each_once(folders)}
    if set(runs) == set(CORNERS):
        runs = {name: runs[name] for name in CORNERS}
    folders, found = zip(*runs.values(), strict=True)
    about = _in_common(folders, found)
    pairs, left_out = _common_pairs(tuple(runs), found)
    picks = [[run.pairs.index(pair) for pair in pairs] for run in found]
    counts, signed = (
        np.stack([getattr(run, name)[..., pick] for run, pick in zip(found, picks, strict=True)]).astype(np.float64)
        for name in ("counts", "signed")
    )
    return Corners(tuple(runs), tuple(folders), counts, signed, found[0].layers, pairs, left_out, about)


def _common_pairs(names: Sequence[str], runs: Sequence[Responses]) -> tuple[tuple[str, ...], tuple]:
    """The pairs that all runs have, in order, and those that some lack with the reason."""
    measured = [set(run.pairs) for run in runs]
    everywhere = set.intersection(*measured)
    if len(everywhere) < 2:
        raise ValueError(f"the four runs have {len(everywhere)} pairs in common; at least 2 are needed to compare them")
    every = dict.fromkeys(pair for run in runs for pair in run.pairs)
    lacking = {
        pair: [name for name, known in zip(names, measured, strict=True) if pair not in known]
        for pair in every if pair not in everywhere
    }  # fmt: skip
    left_out = tuple((pair, f"not measured in {' and '.join(where)}") for pair, where in lacking.items())
    return tuple(pair for pair in every if pair in everywhere), left_out


def _check_folders(folders: Sequence[Path]) -> None:
    if len(folders) != len(CORNERS):
        raise ValueError(
            f"{len(folders)} folders were given; give four, the results of head_attention_stats_qwen2.py for"
            f" {', '.join(CORNERS)}"
        )
    places = [folder.resolve() for folder in folders]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ValueError(f"the folder {folders[index]} is given twice; give one folder for each corner")


def _each_once(folders: Sequence[Path]):
    """(folder, its results), once it is known that no corner comes twice."""
    seen = {}
    for folder in folders:
        run = read(folder)
        name = _corner(folder, run)
        if name in seen:
            raise ValueError(f"{seen[name]} and {folder} are both of the corner {name}; give one folder for each")
        seen[name] = folder
        yield folder, run


def _corner(folder: Path, run: Responses) -> str:
    """Which corner a run is about: that whose patches were summed, or that which its question, its data set or its
    folder names; else the folder's own name."""
    summary = run.summary
    for text in (summary.get("corner"), summary.get("prompt"), summary.get("dataset"), folder.resolve().name):
        if place := PLACE.search(str(text or "")):
            vertical, horizontal = place[1].lower(), place[2].lower()
            return {"upper": "top", "lower": "bottom"}.get(vertical, vertical) + horizontal
    return folder.resolve().name


def _in_common(folders: Sequence[Path], runs: Sequence[Responses]) -> dict:
    """What the runs were made with. Raises ValueError where they differ in anything but the corner."""
    made = [_made_with(folder, run) for folder, run in zip(folders, runs, strict=True)]
    for folder, other in zip(folders[1:], made[1:], strict=True):
        for what, value in made[0].items():
            if other[what] != value:
                raise ValueError(
                    f"{folders[0]} and {folder} differ in their {what}: {value!r} and {other[what]!r}; corners can be"
                    " compared where all else is the same"
                )
    return made[0]


def _made_with(folder: Path, run: Responses) -> dict:
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        flags = {name.replace("_", " "): settings["flags"].get(name) for name in FLAGS}
        loaded = {name: settings["model"].get(name) for name in LOADED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} has no settings.json of its run; measure that corner again") from error
    layers, heads, pairs = run.counts.shape
    return {
        "model": run.summary["model"],
        "pictures": "synthetic" if settings.get("data", {}).get("synthetic") else None,
        **loaded,
        "question": PLACE.sub("CORNER", run.summary["prompt"]),
        "layers": list(run.layers),
        "cubes (layers, heads)": [layers, heads],
        "pairs, skipped ones included": pairs + sum(run.summary["skipped"].values()),
        "topk": run.summary["topk"],
        "patch size": run.summary["patch_size"],
        **flags,
    }
