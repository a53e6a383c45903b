"""Compare the heads that respond to an object in each of four corners: shared by all corners, or unique to one.

    python compare_corner_heads.py results/topleft results/topright results/bottomleft results/bottomright

The folders are results of head_attention_stats_qwen2.py, one per corner, of one model with one wording and the same
settings; run_corner_experiments.sh makes them and ends with this script. Needs no model; takes seconds. Files:

    pictures.html, report.md    maps of the corners, tests, the best shared and unique heads, counts for comparison
    heads.csv                   every head: map, scores, q, call
    chosen.csv                  heads chosen on one half of the pairs, scored on the other half
    samples.csv                 mean response of each pair in each corner

Tests and calls are of the signed responses (analysis/corners.py). A finished comparison of the same folders in
--out-dir is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tyro

from analysis import command
from analysis.corner_report import findings, write_comparison
from analysis.corners import SHARED, TESTS, UNIQUE, Comparison, Corners, compare, read_corners
from analysis.files import write_table
from analysis.resume import Output, Run
from analysis.runs import RunFolder
from data.errors import FlagError, check_at_least


@dataclass(frozen=True)
class Config:
    folders: tyro.conf.Positional[tuple[str, ...]]
    """Four folders, one per corner, in any order."""
    top: int = 3
    """Heads of each kind to choose on one half of the pairs and score on the other."""
    level: float = 0.05
    """False discovery rate at which heads are called shared or unique."""
    seed: int = 0
    """Seed of the permutations, the sign flips and the halves."""
    output: Output = Output()

    def __post_init__(self) -> None:
        check_at_least(self, top=1, seed=0)
        if not 0 < self.level < 1:
            raise FlagError(
                "--level", "out-of-range", f"--level {self.level} is out of range; give a share such as 0.05"
            )


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up():
            corners = read_corners(config.folders)
            line = f"data: {corners.pairs_named} in each of {', '.join(map(str, corners.folders))}"
            print(line)
            source = {"line": line, "label": "synthetic data" if corners.about["pictures"] == "synthetic" else ""}
            if run.claim(str(corners.about["model"]), [corners.signed, corners.counts], data=source):
                return command.conclude_finished(run.folder)
        run.start(corners.names, compared=corners.about)
        return write(run, corners, compare(corners.signed, config.level, config.top, config.seed))


def write(run: RunFolder, corners: Corners, comparison: Comparison) -> int:
    """Write all files of the comparison and print its findings. Returns the exit status."""
    for place, pair in enumerate(corners.pairs):
        means = corners.signed[..., place].mean((1, 2))
        run.add(pair, **dict(zip(corners.names, means, strict=True)))
    for pair, reason in corners.left_out:
        run.skip(pair, reason)
    write_table(run.folder / "heads.csv", list(head_rows(corners, comparison)))
    if chosen := list(chosen_rows(corners, comparison)):
        write_table(run.folder / "chosen.csv", chosen)
    page = write_comparison(run, corners, comparison)
    folders = dict(zip(corners.names, corners.folders, strict=True))
    run.finish({"corners": folders, "compared": corners.about, "signed": summary(corners, comparison)})
    print("\n".join(findings(corners, comparison)))
    print(f"page: {page}")
    return command.conclude(run)


def head_rows(corners: Corners, comparison: Comparison) -> Iterator[dict]:
    """Rows of heads.csv, one per head: its map in every corner, scores, q and call; and as a description its share of
    pairs among the top of its layer."""
    by_corner = {
        "map": comparison.maps,
        "unique": np.stack([comparison.scores[UNIQUE, place][0] for place in range(len(corners.names))]),
        "q_unique": comparison.calls.q_unique,
        "share_in_top": corners.counts.mean(-1),
    }
    for at in np.ndindex(comparison.q_differ.shape):
        yield {
            "layer": corners.layers[at[0]], "head": at[1], "n": len(corners.pairs),
            "call": comparison.call(at, corners.names), "mean_map": float(comparison.maps[:, *at].mean()),
            "shared": float(comparison.scores[SHARED, None][0][at]), "q_shared": float(comparison.calls.q_shared[at]),
            "q_differ": float(comparison.q_differ[at]),
            **{
                f"{column}_{corner}": float(values[place, *at])
                for column, values in by_corner.items() for place, corner in enumerate(corners.names)
            },
        }  # fmt: skip


def chosen_rows(corners: Corners, comparison: Comparison) -> Iterator[dict]:
    """Rows of chosen.csv: those of `held_out` with the model's layers and the corners' names."""
    for row in comparison.held_out or ():
        corner = "" if row["corner"] is None else corners.names[row["corner"]]
        yield {**row, "corner": corner, "layer": corners.layers[row["layer"]]}


def summary(corners: Corners, comparison: Comparison) -> dict:
    """The figures of summary.json."""

    def named(heads: np.ndarray) -> list[list[int]]:
        return [[corners.layers[layer], int(head)] for layer, head in np.argwhere(heads)]

    figures = ("direction", "selection", "held_out", "low", "high", "p", "q")
    best = {
        (row["kind"], row["corner"]): {
            "head": [row["layer"], row["head"]], **{name: row[name] for name in figures}
        }
        for row in chosen_rows(corners, comparison) if row["rank"] == 1
    }  # fmt: skip
    return {
        "mean_strength": dict(zip(corners.names, np.abs(comparison.maps).mean((1, 2)), strict=True)),
        "best_shared": best.get((SHARED, "")),
        "best_unique": {name: best.get((UNIQUE, name)) for name in corners.names},
        "called_shared": named(comparison.calls.shared),
        "called_unique": dict(zip(corners.names, map(named, comparison.calls.unique), strict=True)),
        "called_different": named(comparison.q_differ <= comparison.level),
        "sharing": {key: comparison.sharing[key] for key in ("correlation", "p", "q", "p_order", "p_signs", "n")},
        "specialisation": {
            key: comparison.specialisation[key] for key in ("observed", "expected", "ratio", "p", "q", "n")
        },
        "families_of_q": {
            "sharing, specialisation": TESTS,
            "held_out": "every chosen head",
            "heads.csv": "q_shared and q_differ each over all heads, q_unique over all heads and corners",
        },
    }  # fmt: skip


if __name__ == "__main__":
    command.run(main, Config, __doc__)
