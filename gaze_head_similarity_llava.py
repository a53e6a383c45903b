"""Similarity of attention heads to gaze, recorded or simulated, and settings of the salient-head mask.

    python gaze_head_similarity_llava.py
    python gaze_head_similarity_llava.py --data-root pictures --scanpaths gaze.jsonl --prompt "describe the image ."

Without --data-root the images are those of data/spatial_twoshapes if present, else generated ones of two shapes; the
prompt asks for the position of the first shape, and gaze is simulated on that shape.
heads.csv has every head's similarity with the gaze (mean, deviation, n), the same with another image's gaze, and its
attention mass on the image; heads.png shows them as layers x heads, ranked.png as bars. summary.json proposes tau, k
and the layers, chosen on one half of the images, with their scores on the other half; they are also printed as flags
of gaze_generation_llava.py. similarity.npz has the values of every image. The embedded model takes 20 seconds for 200.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

import models
from analysis import command
from analysis.gaze_heads import (
    COLUMNS,
    Inside,
    Measured,
    Settings,
    attention_inside,
    sample_row,
    save_heads,
    sentence,
    study,
)
from analysis.resume import Result, Run, SampleOutput
from data.errors import check_at_least
from data.folders import following_links
from data.gaze_samples import GazeSample, ScanpathSettings, gather, left_out, locate, shuffled
from data.images import read_image
from data.samples import Samples
from models.gaze import SalientHead, check_scanpath, parse_mask_type
from models.generation import answer
from models.loading import Load, describe


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Model: LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Fuyu."""
    samples: Samples = Samples(prompt="where is the {first} ?", limit=100)
    """Images and the question; {first} and {second} in it are the shapes of a two-shapes set."""
    reading: ScanpathSettings = ScanpathSettings(margin=1)
    output: SampleOutput = SampleOutput()
    scanpaths: str | None = None
    """Fixations: a .json, .jsonl or .csv file (default: scanpaths-first.jsonl of --data-root; without it,
    simulated ones)."""
    sigma: float = 1.5
    """Fall-off of the mask around the gaze, in cells of a 24 x 24 grid (scaled for other grids)."""
    max_new_tokens: int = 16
    """Max new tokens."""

    def __post_init__(self) -> None:
        check_at_least(self, max_new_tokens=1)
        self.mask()

    def mask(self) -> SalientHead:
        """Mask to compare the heads with. Raises ValueError as `SalientHead` does."""
        return SalientHead((0,), margin=self.reading.margin, sigma=self.sigma)


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.samples.follow_links):
            files = (config.scanpaths,) if config.scanpaths else ()
            samples, unusable, paths, source, fixations = gather(config.samples, config.reading, files, ("first",))
            print(source, fixations, sep="\n")
            if run.claim(config.load.model, [*samples, paths], data=source.facts(), fixations=fixations.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            model, processor = models.load(config.load.model, **run.load_options)
            gazed, without = locate(samples, paths, partial(model.image_grid, processor), **config.reading.mapping)
            run.start(COLUMNS, model=describe(model))
        rng = np.random.default_rng(config.samples.seed)
        others = dict(zip((sample.name for sample in gazed), shuffled(gazed, rng), strict=True))
        mask = config.mask()

        def measure(sample: GazeSample) -> Result:
            image, (rows, cols) = read_image(sample.sample.path), (sample.grid.rows, sample.grid.cols)
            answering = {"max_new_tokens": config.max_new_tokens, "rows": [-1]}  # of the prompt, the last row alone
            output = answer(model, processor, [image], sample.sample.prompt, **answering)
            gazes = [points for points in (sample.points, others[sample.name]) if points]
            drawn = [mask.draw(check_scanpath(points, rows, cols), rows, cols) for points in gazes]
            inside = attention_inside(output.trace, output.layout, drawn, tokens=len(output.tokens))
            return Result(sample_row(sample, output, drawn[0], inside), inside)

        run.measure(gazed, measure, [*unusable, *without])
        if not run.leads:
            return 0
        lost = left_out(paths, gazed)
        run.finish({"left_out": lost, **(report(run, config) if run.done else {})})
        command.print_left_out(lost)
        return command.conclude(run)


def report(run: Run, config: Config) -> dict:
    """Write the files over all images; return the values of the summary."""
    measured = Measured([(part.name, Inside(**part.values)) for part in run.results()])
    published = parse_mask_type({"type": "salient-head"}, *measured.own.shape[1:])
    proposal, summary = study(measured, Settings(published.layers, published.tau, published.heads), config.samples.seed)
    save_heads(run, measured, proposal, config.samples.seed)
    print(sentence(proposal))
    if proposal.settings:
        print(f"as flags of gaze_generation_llava.py: {' '.join(flags(proposal.settings, config))}")
    return summary


def flags(settings: Settings, config: Config) -> list[str]:
    """Flags of gaze_generation_llava.py for these settings and the mask of this run."""
    chosen = ["--mask-types", "salient-head", "--target-layer", *map(str, settings.layers)]
    chosen += ["--tau", f"{settings.tau:g}", "--salient-heads", str(settings.heads)]
    for name, value in (("margin", config.reading.margin), ("sigma", config.sigma)):
        if value != getattr(SalientHead, name):
            chosen += [f"--{name}", f"{value:g}"]
    return chosen


if __name__ == "__main__":
    command.run(main, Config, __doc__)
