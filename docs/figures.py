"""Draw the figures of README.md and docs from finished runs.

    python -m docs.figures families FOLDER OUT.png                 (one run of a rollout script per model)
    python -m docs.figures page RUN/report.html OUT.png            (needs chromium)
    python -m docs.figures cost RUN/cost.csv OTHER/cost.csv OUT.png

`families` puts the mean overlays and answers of several models on one image side by side. `page` is a screenshot of the
viewer of a run's report page. `cost` plots several runs of benchmarks.attention_cost together.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from textwrap import fill

from PIL import Image
from playwright.sync_api import sync_playwright

from analysis.files import read_table
from analysis.plots import Figure
from benchmarks import attention_cost
from models.doctor import BROWSERS

ANSWER_WIDTH = 28  # characters per line


def families(folder: Path, out: Path) -> None:
    runs = sorted(folder.iterdir())
    figure = Figure(figsize=(2 * len(runs), 2.6), dpi=150, layout="compressed")
    for run, axes in zip(runs, figure.subplots(1, len(runs), squeeze=False).flat, strict=True):
        row = read_table(run / "samples.csv")[0]
        axes.imshow(Image.open(run / row["folder"] / "overlay_mean.png"))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(run.name, fontsize=9, parse_math=False)
        axes.set_xlabel(fill(row["answer"], ANSWER_WIDTH), fontsize=8, parse_math=False)
    figure.savefig(out)


def page(report: Path, out: Path) -> None:
    with sync_playwright() as playwright:
        installed = filter(None, map(shutil.which, BROWSERS))
        browser = playwright.chromium.launch(executable_path=next(installed, None), args=["--no-sandbox"])
        size = {"width": 1200, "height": 900}
        # The page's security policy forbids the margin added below.
        tab = browser.new_context(viewport=size, device_scale_factor=1.5, bypass_csp=True).new_page()
        tab.goto(report.resolve().as_uri())
        tab.locator("#viewer").wait_for(state="visible")
        tab.locator("#sample").select_option("shard0/1 second")
        tab.locator("img[alt='Image of shard0/1 second']").first.wait_for()
        tab.locator("#condition-b").select_option("non-gaussian")
        tab.locator("#colours").select_option("turbo")
        tab.locator('#matrix button[data-layer="2"]:not([data-head])').click()
        tab.add_style_tag(content="#view { padding: 16px; }")
        tab.mouse.move(0, 0)
        tab.locator("#view").screenshot(path=out)
        browser.close()


def cost(tables: list[Path], out: Path) -> None:
    """Raises ValueError for runs with different decoders, devices or threads, which are not comparable."""
    rows = [row for table in tables for row in attention_cost.read(table)]
    flags = [json.loads(table.with_name("settings.json").read_text())["flags"] for table in tables]
    titles = set(map(attention_cost.title, flags))
    if len(titles) > 1:
        raise ValueError(f"the runs cannot share a figure; their settings differ: {'; '.join(sorted(titles))}")
    attention_cost.plot(rows, *titles).savefig(out)


def main(name: str, *paths: str) -> None:
    *sources, out = map(Path, paths)
    if name == "cost":
        cost(sources, out)
    else:
        {"families": families, "page": page}[name](*sources, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
