"""Do Qwen2-VL and Qwen2.5-VL look where the words point?

    python vlm_atten_analysis_qwen2.py
    python vlm_atten_analysis_qwen2.py --model tiny-qwen2-vl --data-root data/generated/twoshapes --limit 100
    python vlm_atten_analysis_qwen2.py --seeds-in decoder --prompt "{caption}"

Which of the two it is stands in the model's config. What is measured, and what comes out, is what
vlm_atten_analysis_llava.py says, by the same functions: where the words of two shapes and of their relation look, and
where cells look, against the shapes' boxes and beside controls; and whether the answer rests on it.
Two things are Qwen's own. A cell is 2 x 2 patches of the tower, merged: it looks as their mean and is looked at as
their sum. And image-to-image attention is the tower's, which sees the whole picture (Qwen2.5-VL's in windows, but for a
few layers), or, with --seeds-in decoder, the language model's, where a cell sees only those before it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

import models
from analysis import command
from analysis.faithfulness import use
from analysis.gallery import add_view
from analysis.report import LIMIT_MB
from analysis.rollout import rollout
from analysis.runs import RunFolder, default_out_dir, measure_each, refuse_existing
from analysis.spatial import COLUMNS, SpatialAttentionFlags, all_maps, look, place, sample_row
from analysis.spatial_report import draw_sample, hidden_by, report
from analysis.words import rows_of_words
from data.folders import following_links
from data.images import as_seen, hide_cells, median_colour, read_image, shuffle_cells
from data.spatial_samples import SpatialFlags, SpatialSample, gather
from models.generation import answer, check_grid, log_probabilities, read_along, speak, tower_depth
from models.loading import LoadFlags, describe


@dataclass(frozen=True)
class Config(LoadFlags, SpatialAttentionFlags, SpatialFlags):
    model: str = "tiny-qwen2.5-vl"
    """Embedded model, folder, or hub id such as Qwen/Qwen2.5-VL-3B-Instruct; of Qwen2-VL, Qwen2.5-VL,
    Qwen3-VL, LLaVA-1.5 or Fuyu."""


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.follow_links):
        config.check_samples()
        config.check_measures()
        samples, unusable, source = gather(config)
        print(source)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        model, processor = models.load(config.model, **config.loading)
        check_grid(model, processor)
        tower = tower_depth(model, config.seeds_in)
        layers = config.queried_layers(model.config.get_text_config().num_hidden_layers, tower)
    about = {"layers": layers, "seeds_in": "decoder" if tower is None else "tower", "rows": config.rows}
    settings = {"flags": asdict(config), "model": describe(model), **about, "data": source.facts()}
    run = RunFolder.create(out_dir, settings, COLUMNS)
    found, used = [], []

    def measure(sample: SpatialSample) -> dict:
        picture, rng = read_image(sample.pair.image_path), np.random.default_rng([config.seed, sample.number])
        grid = model.image_grid(processor, *picture.size)
        scene = place(sample.pair, grid, rng)
        spoken = speak(
            model, processor, picture, sample.prompt, config.max_new_tokens, config.repetition_penalty
        )
        pictures = [picture, shuffle_cells(picture, grid, rng)]
        reading = read_along(model, processor, pictures, sample.prompt, spoken, tower is not None, config.offload)
        rows = rows_of_words(reading.layouts[0], spoken, sample.words, config.rows, config.words_in)
        layouts, maps = reading.layouts, all_maps(reading.trace, reading.layouts, rows, scene.seeds, reading.tower)
        del reading  # what it recorded is large, and has been read
        looked, scored = look(sample.name, scene, maps, layers, causal=tower is None), []
        if len(used) < config.faithfulness:
            seen, colour = as_seen(picture, grid), median_colour(picture)

            def score(hidden: np.ndarray) -> np.ndarray:
                shown = [hide_cells(seen, cells, colour) for cells in hidden]
                return log_probabilities(model, processor, shown, sample.prompt, spoken, config.batch_size).numpy()

            scored = [use(sample.name, *hidden_by(scene, looked), score, rng)]
        folder = ""
        if len(found) < config.pictures:
            folder = draw_sample(run, sample, pictures, layouts, scene, looked)
            said = answer(model, processor, [picture], sample.prompt, **config.answering)
            rolled = rollout(said.trace, said.layout, tokens=len(said.tokens), rows=config.rows)
            add_view(run, sample.name, sample.prompt, picture, said, rolled, LIMIT_MB / config.pictures)
        found.append(looked)
        used.extend(scored)
        return sample_row(sample, spoken.text, looked, folder)

    measure_each(run, samples, measure, unusable)
    run.finish({**about, **report(run, found, used, config.seed, config.figures)})
    return command.conclude(run)


if __name__ == "__main__":
    command.run(main, Config, __doc__)
