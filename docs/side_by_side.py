"""One picture under several models: the mean overlay and the answer of each run, side by side.

    python -m docs.side_by_side FOLDER OUT.png      (FOLDER holds one run of a rollout script per model)
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

from PIL import Image

from analysis.plots import Figure
from analysis.runs import read_table

WIDTH = 28  # characters of a line of the answer


def main(folder: Path, out: Path) -> None:
    runs = sorted(folder.iterdir())
    figure = Figure(figsize=(2 * len(runs), 2.6), dpi=150, layout="compressed")
    for run, axes in zip(runs, figure.subplots(1, len(runs), squeeze=False).flat, strict=True):
        row = read_table(run / "samples.csv")[0]
        axes.imshow(Image.open(run / row["folder"] / "overlay_mean.png"))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(run.name, fontsize=9, parse_math=False)
        axes.set_xlabel(fill(row["answer"], WIDTH), fontsize=8, parse_math=False)
    figure.savefig(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
