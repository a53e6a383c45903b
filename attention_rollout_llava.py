"""Where did LLaVA look when it wrote each word of its answer?

    python attention_rollout_llava.py --image photo.jpg --prompt "describe the image ."
    python attention_rollout_llava.py --limit 4

Per picture: overlays of the mean and the maximum over the answer's tokens, a strip with one overlay per token, the
share of attention on the image, and the raw maps (maps.npz). Beside them samples.csv, summary.json, settings.json.
--through-tower adds what lies behind the image tokens: the same maps, handed on to where the vision tower looked.
Without --image and --data-root it takes data/spatial_twoshapes where that lies, else it makes synthetic images.
The embedded model takes about a second a picture; the weights of LLaVA-1.5-7B alone are 14 GB in half precision.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import models
from analysis import command
from analysis.gallery import COLUMNS, RolloutFlags, lengths_line, report_answer
from analysis.rollout import rollout
from analysis.runs import RunFolder, default_out_dir, measure_each, refuse_existing
from analysis.statistics import SHARE, mean_interval
from data.folders import following_links
from data.images import read_image
from data.samples import Sample, SampleFlags, collect
from models.generation import answer
from models.loading import LoadFlags, describe
from models.tower import check_tower


@dataclass(frozen=True)
class Config(LoadFlags, RolloutFlags, SampleFlags):
    model: str = "tiny-llava"
    """Embedded model, folder, or hub id such as llava-hf/llava-1.5-7b-hf. The family may be any of LLaVA-1.5, Qwen2-VL,
    Qwen2.5-VL, Qwen3-VL and Fuyu; others that can be recorded give maps without overlays."""
    through_tower: bool = False
    """Also draw where the vision tower looked for the image tokens that the answer looked at (files with -tower)."""


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.follow_links):
        config.check()
        samples, unusable, source = collect(
            config.image, config.data_root, config.prompt, config.limit, config.seed
        )
        print(source)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        model, processor = models.load(config.model, **config.loading)
        if config.through_tower:
            check_tower(model)
    settings = {"flags": asdict(config), "model": describe(model), "data": source.facts()}
    run = RunFolder.create(out_dir, settings, COLUMNS)

    def look(sample: Sample) -> dict:
        picture = read_image(sample.path)
        said = answer(model, processor, [picture], sample.prompt, tower=config.through_tower, **config.answering)
        rolled = rollout(said.trace, said.layout, tokens=len(said.tokens), **config.rolling)
        return report_answer(run, sample, [picture], said, rolled, config.look, config.page_mb / len(samples))

    rows = measure_each(run, samples, look, unusable)
    run.finish({"rows": config.rows, "image_share": mean_interval([row["image_share"] for row in rows], SHARE)})
    if rows:
        print(lengths_line(rows))
    return command.conclude(run)


if __name__ == "__main__":
    command.run(main, Config, __doc__)
