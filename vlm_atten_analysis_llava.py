"""Attention of words and cells of LLaVA compared with the boxes of two shapes, and its effect on the answer.

    python vlm_atten_analysis_llava.py
    python vlm_atten_analysis_llava.py --data-root data/generated/twoshapes --limit 100
    python vlm_atten_analysis_llava.py --prompt "{caption}"

For each image of two shapes, the script measures the attention of the words of the first shape, of the relation and of
the second shape (text to image), and of a cell on each shape and one on the background (image to image), against the
shapes' boxes. Every metric has controls: the image with its cells shuffled, the other shape's box, a centre bias and a
uniform map. The default prompt is the set's question, which names both shapes; the relation is then a word of the
answer, measured in the row that predicted it. A missing word, such as the relation of a wrong answer, is left out of
its sample and counted; --prompt "{caption}" puts all three words into the prompt.
Insertion and deletion then hide and show the cells in the order of each word's map, compared with the same map shifted,
to test whether the answer depends on the attended cells.

summary.json has every metric with n, interval and controls; measures.csv the values per sample; heads.csv and heads/
those per layer and head; controls-*.png the controls; looks_and_uses.png and curves.png insertion and deletion. The
first --pictures samples get looks.png and their maps. Without --data-root the script reads data/spatial_twoshapes if it
exists, and otherwise generates synthetic images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import models
from analysis import command
from analysis.faithfulness import FaithfulnessScore, FaithfulnessSettings, score_sample
from analysis.gallery import answer_view
from analysis.report import LIMIT_MB
from analysis.resume import Result, Run, SampleOutput
from analysis.rollout import RolloutSettings, rollout
from analysis.spatial import COLUMNS, SampleMetrics, SpatialSettings, all_maps, measure_sample, place, sample_row
from analysis.spatial_report import FigureSettings, draw_sample, hidden_by, report
from analysis.words import rows_of_words
from data.folders import following_links
from data.images import hide_cells, median_colour, model_window, read_image, shuffle_cells
from data.spatial_samples import SpatialSample, SpatialSamples, gather
from models.generation import (
    Generation,
    answer,
    check_grid,
    encoder_depth,
    generate_answer,
    log_probabilities,
    read_along,
)
from models.loading import Load, describe


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu."""
    samples: SpatialSamples = SpatialSamples(prompt="{question}", limit=100)
    attention: SpatialSettings = SpatialSettings(layers="mid_third", seeds_in="auto", tower_layers="all")
    faithfulness: FaithfulnessSettings = FaithfulnessSettings(faithfulness=50, batch_size=24)
    generation: Generation = Generation(max_new_tokens=16)
    drawing: FigureSettings = FigureSettings(pictures=4, figures=True)
    output: SampleOutput = SampleOutput()


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.samples.follow_links):
            samples, unusable, source = gather(config.samples)
            print(source)
            if run.claim(config.load.model, samples, data=source.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            model, processor = models.load(config.load.model, **run.load_options)
            check_grid(model, processor)
            encoder = encoder_depth(model, config.attention.seeds_in)
            layers = config.attention.queried_layers(model.config.get_text_config().num_hidden_layers, encoder)
            seeds_in = "decoder" if encoder is None else "tower"
            about = {"layers": layers, "seeds_in": seeds_in, "rows": config.attention.rows}
            run.start(COLUMNS, model=describe(model), **about)
        drawn = {sample.name for sample in samples[: config.drawing.pictures]}
        scored = {sample.name for sample in samples[: config.faithfulness.faithfulness]}

        def measure(sample: SpatialSample) -> Result:
            name = sample.name
            return measure_image(run, config, model, processor, sample, layers, name in drawn, name in scored)

        run.measure(samples, measure, unusable)
        if not run.leads:
            return 0
        parts = list(run.results())
        metrics = [SampleMetrics.stored(part) for part in parts]
        scores = [FaithfulnessScore.stored(values) for part in parts if (values := part.value("scores"))]
        run.finish({**about, **report(run, metrics, scores, config.samples.seed, config.drawing.figures)})
        return command.conclude(run)


def measure_image(
    run: Run, config: Config, model, processor, sample: SpatialSample, layers: dict[str, tuple[int, ...]], drawn: bool,
    scored: bool,
) -> Result:  # fmt: skip
    """Attention metrics of one image; `drawn`: also its figure, maps and view; `scored`: also insertion and deletion.

    layers: those to average for each query.
    """
    attention, generation = config.attention, config.generation
    image, rng = read_image(sample.pair.image_path), np.random.default_rng([config.samples.seed, sample.number])
    grid, encoder = model.image_grid(processor, *image.size), encoder_depth(model, attention.seeds_in)
    scene = place(sample.pair, grid, rng)
    limits = generation.max_new_tokens, generation.repetition_penalty
    forced = generate_answer(model, processor, image, sample.prompt, *limits)
    images = [image, shuffle_cells(image, grid, rng)]
    reading = read_along(model, processor, images, sample.prompt, forced, encoder is not None, generation.offload)
    rows = rows_of_words(reading.layouts[0], forced, sample.words, attention.rows, attention.words_in)
    layouts, maps = reading.layouts, all_maps(reading.trace, reading.layouts, rows, scene.seeds, reading.encoder)
    del reading  # what it recorded is large, and has been read
    measured = measure_sample(sample.name, scene, maps, layers, causal=encoder is None)
    scores, folder, view = None, "", None
    if scored:
        window, colour = model_window(image, grid), median_colour(image)

        def score(hidden: np.ndarray) -> np.ndarray:
            shown = [hide_cells(window, cells, colour) for cells in hidden]
            size = config.faithfulness.batch_size
            return log_probabilities(model, processor, shown, sample.prompt, forced, size).numpy()

        scores = score_sample(sample.name, *hidden_by(scene, measured), score, rng)
    if drawn:
        folder = draw_sample(run, sample, images, layouts, scene, measured)
        view = view_of_answer(model, processor, sample, image, config)
    return Result(sample_row(sample, forced.text, measured, folder), {"metrics": measured, "scores": scores}, view)


def view_of_answer(model, processor, sample: SpatialSample, image, config: Config) -> dict:
    """View of the answer to one sample's prompt, with its rollout."""
    output = answer(model, processor, [image], sample.prompt, **vars(config.generation))
    rolled = rollout(
        output.trace, output.layout, RolloutSettings(rows=config.attention.rows), tokens=len(output.tokens)
    )
    return answer_view(sample.name, sample.prompt, image, output, rolled, LIMIT_MB / config.drawing.pictures)[1]


if __name__ == "__main__":
    command.run(main, Config, __doc__)
