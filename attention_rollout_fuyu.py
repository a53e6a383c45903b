"""Where did Fuyu look when it wrote each word of its answer?

    python attention_rollout_fuyu.py --image photo.jpg --prompt "describe the image ."
    python attention_rollout_fuyu.py --limit 4

Fuyu has no vision tower: patches go straight into the decoder, row by row from the top left of the picture at its own
size, shrunk only above the processor's limit (Fuyu-8B: 30 pixels a patch, limit 1920 x 1080; the embedded model 8 and
96 x 96), so a patch of the map is a square of the picture.
Per picture: overlays of the mean and the maximum over the answer's tokens, a strip with one overlay per token, the
share of attention on the image, and the raw maps (maps.npz). Beside them samples.csv, summary.json, settings.json.
The weights of Fuyu-8B alone are 19 GB in half precision.
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


@dataclass(frozen=True)
class Config(LoadFlags, RolloutFlags, SampleFlags):
    model: str = "tiny-fuyu"
    """Embedded model, folder, or hub id such as adept/fuyu-8b. The family may be any of LLaVA-1.5, Qwen2-VL,
    Qwen2.5-VL, Qwen3-VL and Fuyu; others that can be recorded give maps without overlays."""
    blur: float = 0.3
    """Standard deviation of the overlay's blur, in patches: light, as each patch was read by itself."""
    lowest: float = 0.5
    """Where the product of layers ends, as a share of the depth. The lower layers do a vision tower's work here;
    composed too (0, as published), they carry every map to the first patches, the only ones that all others see.
    Fewer layers drift less, and still drift: see docs/corrections.md."""


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.follow_links):
        config.check()
        samples, unusable, source = collect(
            config.image, config.data_root, config.prompt, config.limit, config.seed
        )
        print(source)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        model, processor = models.load(config.model, **config.loading)
    settings = {"flags": asdict(config), "model": describe(model), "data": source.facts()}
    run = RunFolder.create(out_dir, settings, COLUMNS)

    def look(sample: Sample) -> dict:
        picture = read_image(sample.path)
        said = answer(model, processor, [picture], sample.prompt, **config.answering)
        rolled = rollout(said.trace, said.layout, tokens=len(said.tokens), **config.rolling)
        return report_answer(run, sample, [picture], said, rolled, config.look, config.page_mb / len(samples))

    rows = measure_each(run, samples, look, unusable)
    run.finish({"rows": config.rows, "image_share": mean_interval([row["image_share"] for row in rows], SHARE)})
    if rows:
        print(lengths_line(rows))
    return command.conclude(run)


if __name__ == "__main__":
    command.run(main, Config, __doc__)
