"""Scores of every map kind on images whose truth is known, and its sanity: how much of a map comes from the weights.

    python -m analysis.truth
    python -m analysis.truth --model tiny-fuyu --limit 50 --controls 10

Images of two shapes and the model's own description of them. The map of a colour or shape word of the answer should lie
on the box of the shape that it names; a colour counts if the shapes differ in colour. Per kind, over images:

    pointing     share of words whose highest cell is on the own box (Zhang et al., ECCV 2016)
    own, other   share of the map's sum on the image that lies in the own box, and in the other shape's box
    drop         fall of the word's log-probability, in nats, when the highest cells of its map (--hidden, 5 %) take the
                 image's median colour
    choice       share of answers to "what colour is the shape ?", about two colours, whose map is denser in the box of
                 the shape of the answered colour; the question does not determine the answer, and .5 is chance
    shuffled-decoder, shuffled-encoder, untrained
                 correlation (Pearson, over cells) of a word's map with that of the same word, image and kind in the
                 model with such weights (`models.randomised`)

Every value is the mean over the words of an image, then over images, with a 95 % interval over images; differences are
paired against rollout. The rows "uniform" and "random" are the controls of a uniform map and of random cells.
truth.csv has one row per kind and measure, words.csv one per word and kind, summary.json the same as truth.csv, and
truth.png draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, get_args

import numpy as np

import models
from analysis import command
from analysis.faithfulness import ranking
from analysis.maps import MAPS, MapSettings, check_kinds, needs
from analysis.metrics import cell_weights, mass, pointing
from analysis.resume import Result, Run, SampleOutput
from analysis.sanity import correlation, forced_answer
from analysis.truth_report import RANDOM, UNIFORM, report
from analysis.words import find_word
from data.errors import SampleError, check_at_least
from data.images import hide_cells, median_colour, model_window, read_image
from data.shapes import COLOURS
from data.twoshapes import Entity, TwoShapes, find_root, read
from models.generation import (
    Answer,
    ForcedAnswer,
    Generation,
    answer,
    check_grid,
    decode_answer,
    token_log_probabilities,
)
from models.loading import Load, describe
from models.randomised import Control, randomised

COLUMNS = ("image", "answer", "words", "choice")


@dataclass(frozen=True)
class TruthSettings:
    """Images, questions and measures."""

    maps: tuple[str, ...] = tuple(MAPS)
    """Map kinds."""
    data_root: str | None = None
    """Folder that holds spatial_twoshapes/ (default: images generated once in data/generated)."""
    limit: int = 200
    """Maximum number of images."""
    controls: int = 40
    """Number of images whose maps are compared with those of random weights; 0 leaves them out."""
    seed: int = 0
    """Seed of generated images, random cells and random weights."""
    prompt: str = "describe the image ."
    """Prompt whose answer names the shapes."""
    choice: str = "what colour is the shape ?"
    """Question whose answer the image does not determine."""
    hidden: float = 0.05
    """Share of the cells that are hidden."""
    batch_size: int = 32
    """Images with hidden cells per batch."""

    def __post_init__(self) -> None:
        check_at_least(self, limit=1, controls=0, seed=0, batch_size=1)
        if not 0 < self.hidden < 1:
            raise ValueError(f"--hidden {self.hidden} is out of range; give a share of the cells, 0 < share < 1")
        if not self.maps:
            raise ValueError(f"--maps names none; choose from {', '.join(MAPS)}")


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu."""
    truth: TruthSettings = TruthSettings()
    generation: Generation = Generation(max_new_tokens=16)
    settings: MapSettings = MapSettings(general="what is in the image ?")
    output: SampleOutput = SampleOutput()

    def __post_init__(self) -> None:
        check_kinds(self.truth.maps, self.settings.rollout.rows)


class Word(NamedTuple):
    """A word of the answer: indices of its tokens, and the cell weights [row, col] of the boxes of the shape that it
    names and of the other one."""

    text: str
    tokens: tuple[int, ...]
    own: np.ndarray
    other: np.ndarray


class WordScore(NamedTuple):
    """Measures of one word by kind, in the order of MEASURES of `analysis.truth_report`: pointing, own, other, drop."""

    text: str
    values: Mapping[str, tuple[float, float, float, float]]


def words_of(answer: ForcedAnswer, entities: Sequence[Entity], grid) -> list[Word]:
    """The colour and shape words of two entities in an answer; a colour that both have is left out.

    Entities whose box was cropped away have no words. The first occurrence of a word counts.
    """
    boxes = [cell_weights(entity.box, grid) for entity in entities]
    found = []
    for index, entity in enumerate(entities):
        own, other = boxes[index], boxes[1 - index]
        names = [entity.shape] + [entity.colour] * (entities[0].colour != entities[1].colour)
        for name in names:
            span = find_word(answer.text, name)
            if span and own.any() and other.any():
                tokens = (i for i, (a, b) in enumerate(answer.offsets) if a < span[1] and b > span[0])
                found.append(Word(name, tuple(tokens), own, other))
    return found


def draw_kinds(answer: Answer, config: Config) -> dict[str, np.ndarray]:
    """Maps of the first image by kind, [token, row, col]; kinds in the order of the settings."""
    return {kind: MAPS[kind].draw(answer, config.settings).per_token for kind in config.truth.maps}


def word_map(maps: np.ndarray, word: Word) -> np.ndarray:
    """Mean of the maps [token, row, col] of a word's tokens that have one, [row, col]."""
    tokens = [token for token in word.tokens if token < len(maps)]
    return maps[tokens].mean(0) if tokens else np.zeros(maps.shape[1:])


class Truth:
    """A model with its settings; measures single images."""

    def __init__(self, model, processor, config: Config):
        self.model, self.processor, self.config = model, processor, config
        self.options = needs(config.truth.maps, config.settings) | vars(config.generation)

    def answer(self, image, prompt: str) -> Answer:
        """The model's answer, recorded for all kinds."""
        return answer(self.model, self.processor, [image], prompt, **self.options)

    def scores(self, image, answer: Answer, maps: Mapping[str, np.ndarray], words: list[Word], rng) -> list[WordScore]:
        """Measures of every word, for every kind and the controls UNIFORM and RANDOM."""
        cells = next(iter(maps.values())).shape[1:]
        every = [{kind: word_map(of_kind, word) for kind, of_kind in maps.items()} for word in words]
        orders = [{kind: ranking(each, rng) for kind, each in of_word.items()} for of_word in every]
        for of_word in orders:
            of_word[RANDOM] = rng.permutation(cells[0] * cells[1])
        drops = self.drops(image, answer, words, orders, cells)
        found = []
        for word, of_word, fallen in zip(words, every, drops, strict=True):
            placed = of_word | {UNIFORM: np.ones(cells)}
            values = {
                kind: (*(float(value) for value in measures(each, word)), fallen.get(kind, np.nan))
                for kind, each in placed.items()
            }
            values[RANDOM] = (np.nan, np.nan, np.nan, fallen[RANDOM])
            found.append(WordScore(word.text, values))
        return found

    def drops(self, image, answer: Answer, words, orders, cells) -> list[dict[str, float]]:
        """Fall of each word's log-probability when the first cells of each order are hidden, by kind."""
        settings, grid = self.config.truth, answer.layout.grids[0]
        count = max(1, round(settings.hidden * cells[0] * cells[1]))
        window, colour = model_window(image, grid), median_colour(image)
        shown = [window]
        for order in (order for of_word in orders for order in of_word.values()):
            hidden = np.zeros(cells, bool)
            hidden.flat[order[:count]] = True
            shown.append(hide_cells(window, hidden, colour))
        forced = decode_answer(self.processor.tokenizer, answer.ids)
        chances = token_log_probabilities(
            self.model, self.processor, shown, answer.layout.prompt, forced, settings.batch_size
        ).numpy()
        rest = iter(chances[1:])
        return [
            {kind: float((chances[0] - next(rest))[list(word.tokens)].sum()) for kind in of_word}
            for word, of_word in zip(words, orders, strict=True)
        ]

    def choice(self, image, entities: Sequence[Entity], grid) -> dict[str, float]:
        """Per kind 1 if the map of the answered colour favours the shape of that colour, 0 if the other, .5 if neither;
        empty if the shapes have the same colour or the answer names neither or both colours."""
        if entities[0].colour == entities[1].colour:
            return {}
        answer = self.answer(image, self.config.truth.choice)
        forced = decode_answer(self.processor.tokenizer, answer.ids)
        named = [word for word in words_of(forced, entities, grid) if word.text in COLOURS]
        if len(named) != 1:
            return {}
        maps = draw_kinds(answer, self.config) | {UNIFORM: np.ones((len(answer.ids), grid.rows, grid.cols))}
        return {kind: favours(word_map(each, named[0]), named[0]) for kind, each in maps.items()}

    def correlations(self, pair: TwoShapes, ids: Sequence[int], words, maps: Mapping[str, np.ndarray]) -> dict:
        """Mean over words of the correlation of a word's map with that of this model for the same answer, by kind.

        ids, words, maps: tokens, words and maps [token, row, col] by kind of the answer of the trained model.
        """
        image, prompt = read_image(pair.image_path), self.config.truth.prompt
        ours = draw_kinds(forced_answer(self.model, self.processor, [image], prompt, ids, self.options), self.config)
        return {
            kind: float(np.mean([correlation(word_map(theirs, word), word_map(ours[kind], word)) for word in words]))
            for kind, theirs in maps.items()
        }


def measures(cells: np.ndarray, word: Word) -> Iterator[np.ndarray]:
    """Pointing, mass in the own box and in the other box."""
    yield pointing(cells, word.own)
    yield mass(cells, word.own)
    yield mass(cells, word.other)


def favours(cells: np.ndarray, word: Word) -> float:
    """1, 0 or .5 as in `Truth.choice`, of the map's sums per area of the boxes."""
    own, other = ((cells * box).sum() / box.sum() for box in (word.own, word.other))
    return float(own > other) + 0.5 * float(own == other)


class Named(NamedTuple):
    """A sample with its number in the set."""

    name: str
    number: int
    pair: TwoShapes


def main(config: Config) -> int:
    settings = config.truth
    with Run.of(config) as run:
        with run.gathering(), command.setting_up():
            root = find_root(settings.data_root, settings.limit, settings.seed)
            pairs, unusable = read(root.path, limit=settings.limit)
            source = root.source(len(pairs), len(unusable), settings.limit)
            print(source)
            samples = [Named(pair.id, number, pair) for number, pair in enumerate(pairs)]
            if run.claim(config.load.model, samples, data=source.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            model, processor = models.load(config.load.model, **run.load_options)
            check_grid(model, processor)
            truth = Truth(model, processor, config)
            run.start(COLUMNS, model=describe(model))
        run.measure(samples, partial(measure_image, truth), unusable)
        controls = measure_controls(run, truth, samples)
        if not run.leads:
            return 0
        found = by_image(run, controls)
        run.finish(report(run, found, settings.maps, controls, settings.seed) if found else {})
        return command.conclude(run)


def measure_image(truth: Truth, sample: Named) -> Result:
    """Scores of one image; for the first `controls` images also the answer and its maps, for `measure_controls`."""
    settings, pair = truth.config.truth, sample.pair
    image, rng = read_image(pair.image_path), np.random.default_rng([settings.seed, sample.number])
    entities = (pair.first, pair.second)
    answer = truth.answer(image, settings.prompt)
    grid = answer.layout.grids[0]
    words = words_of(decode_answer(truth.processor.tokenizer, answer.ids), entities, grid)
    if not words:
        raise SampleError("answer names no shape", f"the answer {answer.text!r} has no word of the image's shapes")
    maps = draw_kinds(answer, truth.config)
    choice = truth.choice(image, entities, grid)
    values = {"words": truth.scores(image, answer, maps, words, rng), "choice": choice}
    if sample.number < settings.controls:
        values["answer"] = {"ids": list(answer.ids), "words": words, "maps": maps}
    return Result(
        {"image": pair.image_path, "answer": answer.text, "words": len(words), "choice": bool(choice)}, values
    )


def measure_controls(run: Run, truth: Truth, samples: Sequence[Named]) -> list[str]:
    """Store the correlations of the first images with each randomised model; return the names of these controls.

    A model without a vision encoder lacks that one. An image whose activations are not finite under random weights is
    skipped.
    """
    stored = {part.name: part for part in run.results() if part.index < truth.config.truth.controls}
    compared = [sample for sample in samples if sample.name in stored]
    controls = list(get_args(Control)) if compared else []
    if not hasattr(truth.model, "encoder_layers"):
        controls = [control for control in controls if control != "shuffled-encoder"]
    for control in controls:
        other = Truth(randomised(truth.model, control, truth.config.truth.seed), truth.processor, truth.config)

        def measure(sample: Named, other: Truth = other) -> Result:
            held = stored[sample.name].value("answer")
            words = [Word(**word) for word in held["words"]]
            return Result({}, other.correlations(sample.pair, held["ids"], words, held["maps"]))

        print(f"maps of the model with {control} weights")
        run.measure(compared, measure, stage=control)
    return controls


def by_image(run: Run, controls: Sequence[str]) -> list[dict]:
    """The stored values of each image, as `analysis.truth_report.report` takes them."""
    correlations = {control: {part.name: part.values for part in run.results(control)} for control in controls}
    return [
        {
            "name": part.name,
            "words": [WordScore(**word) for word in part.value("words")],
            "choice": part.value("choice"),
            "controls": {control: values.get(part.name, {}) for control, values in correlations.items()},
        }
        for part in run.results()
    ]


if __name__ == "__main__":
    command.run(main, Config, __doc__)
