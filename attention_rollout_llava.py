"""Attention rollout of LLaVA: one map over the image for each token of the answer.

    python attention_rollout_llava.py --image photo.jpg --prompt "describe the image ."
    python attention_rollout_llava.py --limit 4

Per image: overlays of the mean and the maximum over the answer's tokens, a strip with one overlay per token, the
attention on the image per token, and the raw maps (maps.npz). By default the maps are rollout and gradient x attention,
side by side in maps.png; --maps chooses among the seven kinds of docs/maps.md, and --sanity adds the same maps of the
model with shuffled decoder weights. --through-tower also composes the rollout with the attention of the vision encoder.
Per run: samples.csv, summary.json, settings.json and report.html.
Without --image and --data-root the script reads data/spatial_twoshapes if it exists, and otherwise generates synthetic
images. The weights of LLaVA-1.5-7B are 14 GB in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import models
from analysis import command
from analysis.gallery import COLUMNS, Page, lengths_line, report_answer
from analysis.maps import MAPS, MapChoice, MapSettings, drawable_kinds, needs
from analysis.overlay import OverlayStyle
from analysis.resume import Result, Run, SampleOutput
from analysis.rollout import RolloutSettings
from analysis.sanity import forced_answer
from analysis.statistics import DIFFERENCE, SHARE, mean_interval
from analysis.truth_report import truth_caption
from data.folders import following_links
from data.images import read_image
from data.samples import Sample, Samples, collect
from models.generation import Generation, answer
from models.loading import Load, describe
from models.randomised import randomised
from models.vision_encoder import check_encoder


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu; other families that can be recorded give maps without
    overlays."""
    samples: Samples = Samples(limit=8)
    generation: Generation = Generation(max_new_tokens=16)
    maps: MapChoice = MapChoice(maps=(), sanity=False)
    map_settings: MapSettings = MapSettings(rollout=RolloutSettings(residual=0.5, lowest=0.0))
    style: OverlayStyle = OverlayStyle(alpha=0.7, power=1.5, blur=0.5)
    page: Page = Page(page_mb=5.0)
    output: SampleOutput = SampleOutput()
    through_tower: bool = False
    """Also draw the vision encoder's attention from the image tokens that the answer attends to (files with -tower)."""


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.samples.follow_links):
            samples, unusable, source = collect(config.samples)
            print(source)
            if run.claim(config.load.model, samples, data=source.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            config.maps.kinds(config.map_settings.rollout.rows)  # raises before the model is loaded
            model, processor = models.load(config.load.model, **run.load_options)
            if config.through_tower:
                check_encoder(model)
            kinds = drawable_kinds(config.maps, model, processor, config.map_settings)
            other = randomised(model, "shuffled-decoder", config.samples.seed) if config.maps.sanity else None
            run.start((*COLUMNS, *(f"sanity_{kind}" for kind in kinds * config.maps.sanity)), model=describe(model))
        caption = truth_caption(config.load.model, kinds, config.map_settings)
        page_mb = config.page.page_mb / len(samples)

        def measure(sample: Sample) -> Result:
            images, settings = [read_image(sample.path)], config.map_settings
            options = vars(config.generation) | needs(kinds, settings)
            output = answer(model, processor, images, sample.prompt, encoder=config.through_tower, **options)
            maps = {kind: MAPS[kind].draw(output, settings) for kind in kinds}
            control = {}
            if other is not None:
                same = forced_answer(other, processor, images, sample.prompt, output.ids, options)
                control = {kind: MAPS[kind].draw(same, settings) for kind in kinds}
            return report_answer(run, sample, images, output, maps, config.style, page_mb, caption, control)

        run.measure(samples, measure, unusable)
        return report(run, config, kinds) if run.leads else 0


def report(run: Run, config: Config, kinds: tuple[str, ...]) -> int:
    """Write the summary and the page; return the exit status."""
    rows = [part.row for part in run.results()]
    summary = {"rows": config.map_settings.rollout.rows, "maps": kinds}
    summary["image_share"] = mean_interval([row["image_share"] for row in rows], SHARE)
    if config.maps.sanity:
        summary["sanity"] = {kind: mean_interval([row[f"sanity_{kind}"] for row in rows], DIFFERENCE) for kind in kinds}
    run.finish(summary)
    if rows:
        print(lengths_line(rows))
    return command.conclude(run)


if __name__ == "__main__":
    command.run(main, Config, __doc__)
