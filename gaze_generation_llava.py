"""Does a model's answer follow gaze, recorded or simulated, that steers its attention?

    python gaze_generation_llava.py --limit 200
    python gaze_generation_llava.py --data-root pictures --scanpaths gaze.jsonl --prompt "describe the image ."

Each picture is asked about without gaze and under each mask type. samples.csv has the answers side by side, one row
for each picture and scanpath file, with the probability of every token and the share of attention inside the gaze;
summary.json the paired differences (steered minus plain) with intervals. The first --pictures rows also get
comparison.png, with masks and rollout overlays, and the raw maps.
Without --data-root it takes data/spatial_twoshapes where that lies, else it makes images of two shapes of different
colour; their gaze is simulated, on the first shape, on the second and on neither. It asks for "the" colour:
colours.png shows how often the answer follows the gaze. The embedded model takes a minute for 200 of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import models
from analysis import command
from analysis.gallery import RolloutFlags
from analysis.gaze import PLAIN, Outcome, colour_figure, columns, save_sample, summarise, summarise_colours, table_row
from analysis.gaze_heads import attention_inside
from analysis.report_views import way as view_of
from analysis.rollout import rollout
from analysis.runs import RunFolder, default_out_dir, measure_batches, refuse_existing
from data.errors import SampleError
from data.folders import following_links
from data.gaze_samples import GazeFlags, GazeSample, gather, left_out, locate
from data.images import read_image
from data.samples import Sample, SampleFlags
from data.twoshapes_scanpaths import TARGETS
from models.gaze import GazeMask, SalientHead, check_scanpath, parse_mask_type, windows
from models.generation import Answer, answers, word_probability
from models.loading import LoadFlags, describe

MaskType = Literal["gaussian", "non-gaussian", "salient-head"]


@dataclass(frozen=True)
class Config(LoadFlags, RolloutFlags, GazeFlags, SampleFlags):
    model: str = "tiny-llava"
    """Embedded model, folder, or hub id; of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Fuyu."""
    mask_types: tuple[MaskType, ...] = ("gaussian", "non-gaussian", "salient-head")
    """How gaze becomes attention; one answer for each."""
    scanpaths: tuple[str, ...] = ()
    """Fixations: .json, .jsonl or .csv files, one answer for each (default: those of --data-root; without it, simulated
    ones)."""
    prompt: str | None = "what colour is the shape ?"
    """What to ask; {first} and {second} are the shapes of a two-shapes set. None: the set's own questions."""
    limit: int = 100
    """Use at most so many samples of --data-root; 0 uses all."""
    target_layer: tuple[int, ...] = ()
    """Layers to steer, 0-based (default: all; for salient-head the published 19..26 of 32 in proportion)."""
    tau: float = 0.5232
    """salient-head: similarity with the gaze, over the layer's largest, that a head must exceed."""
    salient_heads: int | None = None
    """salient-head: at most so many heads of a layer (default: a quarter of them)."""
    sigma: float = 1.5
    """salient-head: fall-off of the mask around the gaze, in cells of a 24 x 24 grid (other grids in proportion)."""
    batch_size: int = 8
    """Samples generated together."""
    pictures: int = 6
    """Rows of the table that get pictures and maps."""
    seed: int = 0
    """Seed of generated pictures and scanpaths; the answers are greedy."""

    def check(self) -> None:
        """Raises ValueError for flags that cannot work with any model."""
        super().check()
        if not self.mask_types:
            raise ValueError("--mask-types is empty; give gaussian, non-gaussian or salient-head")
        if self.batch_size < 1 or self.pictures < 0:
            raise ValueError("give --batch-size of at least 1 and --pictures of at least 0")
        if lowest := [layer for layer in self.target_layer if layer < 0]:
            raise ValueError(f"--target-layer {lowest[0]} does not exist; layers count from 0")
        self.masks(layers=1 + max(self.target_layer, default=0), heads=1)

    def masks(self, layers: int, heads: int) -> dict[str, GazeMask | None]:
        """The ways in which each question is answered, for a model of that size; None is the plain one."""
        target = list(self.target_layer) or None
        found = {
            kind: parse_mask_type({"type": kind, "margin": self.margin, "target-layer": target}, layers, heads)
            for kind in dict.fromkeys(self.mask_types)
        }
        if isinstance(salient := found.get("salient-head"), SalientHead):
            at_most = salient.heads if self.salient_heads is None else self.salient_heads
            found["salient-head"] = replace(salient, tau=self.tau, heads=at_most, sigma=self.sigma)
        return {PLAIN: None, **found}


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.follow_links):
        config.check()
        samples, unusable, paths, source, fixations = gather(config, config.scanpaths, TARGETS)
        print(source, fixations, sep="\n")
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        model, processor = models.load(config.model, **config.loading)
        decoder = model.config.get_text_config()
        ways = config.masks(decoder.num_hidden_layers, decoder.num_attention_heads)
        gazed, without = locate(samples, paths, partial(model.image_grid, processor), **config.mapping)
    settings = {"flags": asdict(config), "model": describe(model), "masks": {w: m for w, m in ways.items() if m}}
    settings |= {"data": source.facts(), "fixations": fixations.facts()}
    run = RunFolder.create(out_dir, settings, columns(ways))
    drawn = {sample.name for sample in gazed[: config.pictures]}
    share = config.page_mb / max(1, len(drawn) * len(ways))

    def measure(batch: list[GazeSample]) -> list[dict]:
        pictures = [read_image(sample.sample.path) for sample in batch]
        outcomes = {way: answered(batch, pictures, mask) for way, mask in ways.items()}
        found = [dict(zip(outcomes, each, strict=True)) for each in zip(*outcomes.values(), strict=True)]
        return [
            table_row(
                sample, colours(sample), each,
                save_sample(run, sample, picture, each, config.rows, config.look) if sample.name in drawn else "",
            )
            for sample, picture, each in zip(batch, pictures, found, strict=True)
        ]  # fmt: skip

    def answered(batch: list[GazeSample], pictures, mask: GazeMask | None) -> list[Outcome]:
        """One way, whose trace is gone when the next begins; only maps need the prompt's rows."""
        pages = [share if sample.name in drawn else None for sample in batch]
        rows = [-1] if all(page is None for page in pages) else None
        said = ask(model, processor, batch, pictures, mask, config, rows)
        each = zip(batch, said, pages, strict=True)
        return [outcome(processor, sample, answer, mask, config, page) for sample, answer, page in each]

    rows = measure_batches(run, gazed, measure, config.batch_size, [*unusable, *without])
    by_colour = summarise_colours(rows, list(ways))
    if by_colour:
        run.save(colour_figure(by_colour), "colours.png")
    found = {"rows": config.rows, "gaze": summarise(rows, list(ways)), "colours": by_colour}
    lost = left_out(paths, gazed)
    run.finish({"left_out": lost, **found})
    command.tell_left_out(lost)
    return command.conclude(run)


def ask(model, processor, batch, pictures, mask: GazeMask | None, config: Config, rows) -> list[Answer]:
    """The batch's answers one way, with the prompt's `rows` kept. Raises SampleError where one is empty.

    Without a mask, scanpaths on one picture share its answer, which is generated once.
    """
    places, steering = list(range(len(batch))), {}
    if mask is None:
        first: dict[Sample, int] = {}
        places = [first.setdefault(sample.sample, place) for place, sample in enumerate(batch)]
    else:
        steering = {"mask_type": mask, "scanpaths": [sample.points for sample in batch]}
    asked = sorted(set(places))
    prompts = [batch[place].sample.prompt for place in asked]
    shown = [[pictures[place]] for place in asked]
    said = answers(model, processor, shown, prompts, rows=rows, **config.answering, **steering)
    for answer in said:
        if isinstance(answer, SampleError):
            raise answer
    return [said[asked.index(place)] for place in places]


def outcome(processor, sample: GazeSample, said: Answer, mask: GazeMask | None, config: Config, page_mb: float | None):
    """What is kept of one answer, whose trace is large: with maps and a view of so many MB, or, for None, without."""
    rows, cols = sample.grid.rows, sample.grid.cols
    gaze = check_scanpath(sample.points, rows, cols)
    count = len(said.tokens)
    drawn = None if mask is None else mask.draw(gaze, rows, cols).numpy()
    rolled = rollout(said.trace, said.layout, tokens=count, **config.rolling) if page_mb is not None else None
    looked = attention_inside(
        said.trace, said.layout, [windows(gaze, rows, cols, config.margin)], rows=config.rows, tokens=count
    )
    return Outcome(
        text=said.text,
        tokens=said.tokens,
        probabilities=said.probabilities,
        inside=float(looked.share[0]),
        image_attention=float(looked.seen.mean()),
        colours=tuple(word_probability(said.first, processor.tokenizer, colour) for colour in colours(sample)),
        mask=drawn,
        maps=rolled and rolled.maps(),
        way=rolled and view_of(said, rolled, page_mb, mask=drawn),
    )


def colours(sample: GazeSample) -> tuple[str, ...]:
    """Of the picture's first and second shape; empty where they are not known or alike."""
    found = tuple(colour for colour, _ in sample.sample.shapes)
    return found if len(set(found)) == 2 else ()


if __name__ == "__main__":
    command.run(main, Config, __doc__)
