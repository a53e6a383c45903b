"""Which heads see an object in every corner, and which in one corner alone?

    python compare_corner_heads.py results/topleft results/topright results/bottomleft results/bottomright

The folders are results of head_attention_stats_qwen2.py, one per corner, of one model with one wording and the same
settings; run_corner_experiments.sh makes them and ends with this. pictures.html and report.md say it all: maps of each
corner, their mean, the residuals, the best shared and unique heads, permutation tests of whether corners share or
specialise more than chance makes it look, and how heads chosen on one half of the pairs do on the other. All of that
is of the signed responses; counts of the heads that change most are shown beside, and nothing is called by them.
heads.csv has every head, chosen.csv the chosen ones, samples.csv each pair's mean response. Takes seconds; needs no
model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from analysis import command
from analysis.corner_report import sentences, write_texts
from analysis.corner_study import changes_most, chosen_rows, head_rows, study, summary
from analysis.corners import Corners, read_corners
from analysis.report import Picture, Section
from analysis.runs import Output, RunFolder, flat_flags, read_table, write_table
from data.errors import check_at_least

FIGURES = {  # of the corners' own runs
    "heads.png": "counts, mean responses and effect sizes of all heads",
    "ablation.png": "the answer without the image attention of the heads that respond most, beside random heads",
}


@dataclass(frozen=True)
class Config:
    folders: tyro.conf.Positional[tuple[str, ...]]
    """Four folders, one per corner, in any order."""
    top: int = 3
    """Heads of each kind to choose on one half of the pairs and score on the other, and cells of each map to list."""
    level: float = 0.05
    """False-discovery rate at which heads are called shared or unique."""
    seed: int = 0
    """Seed of the permutations, the sign flips and the halves."""
    output: Output = Output()

    def __post_init__(self) -> None:
        check_at_least(self, top=1, seed=0)
        if not 0 < self.level < 1:
            raise ValueError(f"--level {self.level} is out of range; give a share such as 0.05")


def main(config: Config) -> int:
    with command.setting_up():
        corners = read_corners(config.folders)
        out_dir = config.output.folder(config, str(corners.about["model"]))
    line = f"data: {corners.pairs_named} in each of {', '.join(map(str, corners.folders))}"
    source = {"line": line, "label": "synthetic data" if corners.about["pictures"] == "synthetic" else ""}
    print(source["line"])
    settings = {"flags": flat_flags(config), "compared": corners.about, "data": source}
    run = RunFolder.create(out_dir, settings, corners.names)
    for place, pair in enumerate(corners.pairs):
        means = corners.signed[..., place].mean((1, 2))
        run.add(pair, **dict(zip(corners.names, means, strict=True)))
    for pair, reason in corners.left_out:
        run.skip(pair, reason)
    made = study(corners.signed, config.level, config.top, config.seed)
    write_table(run.folder / "heads.csv", list(head_rows(corners, made)))
    if chosen := list(chosen_rows(corners, made)):
        write_table(run.folder / "chosen.csv", chosen)
    page = write_texts(run, corners, made, list(shown(corners)))
    run.finish({
        "corners": dict(zip(corners.names, corners.folders, strict=True)), "compared": corners.about,
        "signed": summary(corners, made), "changes_most": changes_most(corners),
    })  # fmt: skip
    print("\n".join(sentences(corners, made)))
    print(f"pictures: {page}")
    return command.conclude(run)


def shown(corners: Corners) -> Iterator[Section]:
    """What else a reader may want to see: the first pair of each corner, and the figures of each corner's own run."""
    pairs, figures = [], []
    for label, folder in zip(corners.labels, corners.folders, strict=True):
        for kind, path in first_pair(folder).items():
            pairs.append(Picture(path, f"A picture of the set {label}, {kind}.", f"{label}, {kind}"))
        for name, what in FIGURES.items():
            if (path := folder / name).is_file():
                figures.append(Picture(path, f"{label}: {what}.", f"{label}: {what}."))
    if pairs:
        yield Section("What the model saw: the first pair of each corner", small=tuple(pairs))
    if figures:
        yield Section("Each corner by itself", pictures=tuple(figures))


def first_pair(folder: Path) -> dict[str, Path]:
    """The pictures of a run's first pair by what they are, those that are still where the run read them."""
    row = next((row for row in read_table(folder / "samples.csv") if not row["skipped"]), {})
    paths = {"with the object": row.get("full_image"), "without it": row.get("control_image")}
    return {kind: Path(path) for kind, path in paths.items() if path and path.endswith(".png") and Path(path).is_file()}


if __name__ == "__main__":
    command.run(main, Config, __doc__)
