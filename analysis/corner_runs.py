"""Four runs of head_attention_stats_qwen2.py, one per corner, put side by side: the same heads, the same pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.head_responses import Responses, read

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
