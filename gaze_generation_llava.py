"""Generation with attention steered by gaze, recorded or simulated, compared with the unsteered answer.

    python gaze_generation_llava.py --limit 200
    python gaze_generation_llava.py --data-root pictures --scanpaths gaze.jsonl --prompt "describe the image ."

Each image gets an answer without gaze and one under each mask type. samples.csv has the answers in columns, one row
per image and scanpath file, with the probability of every token and the fraction of attention inside the gaze;
summary.json the paired differences (steered minus plain) with intervals. The first --pictures rows also get
comparison.png, with masks and rollout overlays, and the raw maps.
Without --data-root the images are those of data/spatial_twoshapes if present, else generated ones of two shapes of
different colour; gaze is simulated on the first shape, on the second and on neither. The prompt asks for "the" colour:
colours.png shows the rate of answers that follow the gaze. The embedded model takes a minute for 200 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import models
from analysis import command
from analysis.gallery import Page, condition_view
from analysis.gaze import PLAIN, Outcome, colour_figure, columns, save_sample, summarise, summarise_colours, table_row
from analysis.gaze_heads import attention_inside
from analysis.overlay import OverlayStyle
from analysis.resume import Result, Run, SampleOutput
from analysis.rollout import RolloutSettings, rollout
from data.errors import SampleError, check_at_least
from data.folders import following_links
from data.gaze_samples import GazeSample, ScanpathSettings, gather, left_out, locate
from data.images import read_image
from data.samples import Sample, Samples
from data.twoshapes_scanpaths import TARGETS
from models.gaze import GazeMask, MaskSettings, check_scanpath, windows
from models.generation import Answer, Generation, answers, word_probability
from models.loading import Load, describe


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Model: LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Fuyu."""
    samples: Samples = Samples(prompt="what colour is the shape ?", limit=100)
    """Images and the question; {first} and {second} in it are the shapes of a two-shapes set."""
    reading: ScanpathSettings = ScanpathSettings(margin=1)
    masks: MaskSettings = MaskSettings(mask_types=("gaussian", "non-gaussian", "salient-head"), tau=0.5232, sigma=1.5)
    generation: Generation = Generation(max_new_tokens=16)
    rollout: RolloutSettings = RolloutSettings(residual=0.5, lowest=0.0)
    style: OverlayStyle = OverlayStyle(alpha=0.7, power=1.5, blur=0.5)
    page: Page = Page(page_mb=5.0)
    output: SampleOutput = SampleOutput()
    scanpaths: tuple[str, ...] = ()
    """Fixations: .json, .jsonl or .csv files, one answer for each (default: those of --data-root; without it,
    simulated ones)."""
    batch_size: int = 8
    """Samples generated together."""
    pictures: int = 6
    """Rows of the table that get figures and maps."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, pictures=0)


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.samples.follow_links):
            samples, unusable, paths, source, fixations = gather(
                config.samples, config.reading, config.scanpaths, TARGETS
            )
            print(source, fixations, sep="\n")
            if run.claim(config.load.model, [*samples, paths], data=source.facts(), fixations=fixations.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            model, processor = models.load(config.load.model, **run.load_options)
            decoder = model.config.get_text_config()
            size = decoder.num_hidden_layers, decoder.num_attention_heads
            conditions = {PLAIN: None, **config.masks.masks(config.reading.margin, *size)}
            gazed, without = locate(samples, paths, partial(model.image_grid, processor), **config.reading.mapping)
            masks = {name: mask for name, mask in conditions.items() if mask}
            run.start(columns(conditions), model=describe(model), masks=masks)
        drawn = {sample.name for sample in gazed[: config.pictures]}
        share = config.page.page_mb / max(1, len(drawn) * len(conditions))

        def measure(batch: list[GazeSample]) -> list[Result]:
            images = [read_image(sample.sample.path) for sample in batch]
            outcomes = {condition: answered(batch, images, mask) for condition, mask in conditions.items()}
            by_sample = (dict(zip(outcomes, each, strict=True)) for each in zip(*outcomes.values(), strict=True))
            return [
                result(run, sample, image, each, config, sample.name in drawn)
                for sample, image, each in zip(batch, images, by_sample, strict=True)
            ]

        def answered(batch: list[GazeSample], images, mask: GazeMask | None) -> list[Outcome]:
            """Answers under one condition; its trace is freed before the next. Only maps need the prompt's rows."""
            pages = [share if sample.name in drawn else None for sample in batch]
            rows = [-1] if all(page is None for page in pages) else None
            generated = answer_batch(model, processor, batch, images, mask, config, rows)
            parts = zip(batch, generated, pages, strict=True)
            return [outcome(processor, sample, answer, mask, config, page) for sample, answer, page in parts]

        run.measure_batches(gazed, measure, config.batch_size, [*unusable, *without])
        return report(run, config, list(conditions), left_out(paths, gazed)) if run.leads else 0


def result(run: Run, sample: GazeSample, image, outcomes: dict[str, Outcome], config: Config, drawn: bool) -> Result:
    """Row of one image under one scanpath; `drawn`: also its files and its view."""
    folder, view = "", None
    if drawn:
        folder, view = save_sample(run, sample, image, outcomes, config.rollout.rows, config.style)
    return Result(table_row(sample, colours(sample), outcomes, folder), view=view)


def report(run: Run, config: Config, conditions: list[str], lost: dict[str, dict[str, int]]) -> int:
    """Write the summary, figure and page; return the exit status. lost: scanpath records and fixations left out."""
    rows = [part.row for part in run.results()]
    by_colour = summarise_colours(rows, conditions)
    if by_colour:
        run.save(colour_figure(by_colour), "colours.png")
    figures = {"rows": config.rollout.rows, "gaze": summarise(rows, conditions), "colours": by_colour}
    run.finish({"left_out": lost, **figures})
    command.print_left_out(lost)
    return command.conclude(run)


def answer_batch(model, processor, batch, images, mask: GazeMask | None, config: Config, rows) -> list[Answer]:
    """Answers of the batch under one condition, with the prompt's `rows` kept. Raises SampleError for an empty one.

    Without a mask, scanpaths on one image share its answer, which is generated once.
    """
    places, steering = list(range(len(batch))), {}
    if mask is None:
        first: dict[Sample, int] = {}
        places = [first.setdefault(sample.sample, place) for place, sample in enumerate(batch)]
    else:
        steering = {"mask_type": mask, "scanpaths": [sample.points for sample in batch]}
    distinct = sorted(set(places))
    prompts = [batch[place].sample.prompt for place in distinct]
    shown = [[images[place]] for place in distinct]
    generated = answers(model, processor, shown, prompts, rows=rows, **vars(config.generation), **steering)
    for answer in generated:
        if isinstance(answer, SampleError):
            raise answer
    return [generated[distinct.index(place)] for place in places]


def outcome(
    processor, sample: GazeSample, answer: Answer, mask: GazeMask | None, config: Config, page_mb: float | None
):
    """Results of one answer, without its large trace; `page_mb`: size of the view in MB, None: no maps and no view."""
    rows, cols = sample.grid.rows, sample.grid.cols
    gaze = check_scanpath(sample.points, rows, cols)
    count = len(answer.tokens)
    drawn = None if mask is None else mask.draw(gaze, rows, cols).numpy()
    rolled = None if page_mb is None else rollout(answer.trace, answer.layout, config.rollout, tokens=count)
    opened = windows(gaze, rows, cols, config.reading.margin)
    attended = attention_inside(answer.trace, answer.layout, [opened], rows=config.rollout.rows, tokens=count)
    return Outcome(
        text=answer.text,
        tokens=answer.tokens,
        probabilities=answer.probabilities,
        inside=float(attended.share[0]),
        image_attention=float(attended.image_mass.mean()),
        colours=tuple(word_probability(answer.first, processor.tokenizer, colour) for colour in colours(sample)),
        mask=drawn,
        maps=rolled and rolled.maps(),
        view=rolled and condition_view(answer, rolled, page_mb, mask=drawn),
    )


def colours(sample: GazeSample) -> tuple[str, ...]:
    """Colours of the image's first and second shape; empty where unknown or equal."""
    named = tuple(colour for colour, _ in sample.sample.shapes)
    return named if len(set(named)) == 2 else ()


if __name__ == "__main__":
    command.run(main, Config, __doc__)
