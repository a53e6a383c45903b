"""Layers in which an answer reads its shape: attention to one shape's cells is knocked out, window by window.

    python attention_knockout_llava.py --limit 270
    python attention_knockout_llava.py --model llava-hf/llava-1.5-7b-hf --widths 1 5 10 --rows question

Each image shows two shapes of different kind and colour; the question asks the colour of one. In every window of
layers the rows of the asked word (--rows) do not attend to the cells of the asked shape, or, as a control, to those of
the other shape (attention knockout, Geva et al. 2023). samples.csv has every answer; summary.json the rates of right
answers with Wilson's intervals and the paired differences to the plain answer; knockout.png draws the rates over the
windows. Images that cannot be asked about are counted by reason. The embedded model takes some minutes for 270 images.
"""

from __future__ import annotations

from dataclasses import dataclass

import models
from analysis import command
from analysis.knockout import (
    PLAIN,
    Condition,
    Rows,
    columns,
    knockout,
    sentence,
    summarise,
    table_row,
    window_figure,
    windows_of,
)
from analysis.resume import Result, Run, SampleOutput
from data.colour_questions import ColourQuestion, ColourQuestions, gather
from data.errors import FlagError, check_at_least
from data.folders import following_links
from data.images import read_image
from models.answering import Decoding, ModelBackend
from models.generation import check_grid
from models.loading import Load, describe


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Model: LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Fuyu."""
    samples: ColourQuestions = ColourQuestions(limit=100)
    output: SampleOutput = SampleOutput()
    widths: tuple[int, ...] = (1, 2, 4)
    """Widths of the windows, in layers."""
    rows: Rows = "word"
    """Rows that lose the cells: word (of the asked shape), question (the text after the image), last (of the
    prompt)."""
    max_new_tokens: int = 8
    """Max new tokens of an answer; answers are greedy."""
    batch_size: int = 16
    """Samples generated together."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, max_new_tokens=1)
        if not self.widths or min(self.widths) < 1:
            raise FlagError("--widths", "window-width", "--widths must hold numbers of layers of at least 1")


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.samples.follow_links):
            questions, unusable, source = gather(config.samples)
            print(source)
            if run.claim(config.load.model, questions, data=source.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            model, processor = models.load(config.load.model, **run.load_options)
            check_grid(model, processor)
            chosen = windows_of(model.config.get_text_config(decoder=True).num_hidden_layers, config.widths)
            run.start(columns(chosen), model=describe(model))

        def measure(batch: list[ColourQuestion]) -> list[Result]:
            images = [[read_image(question.path)] for question in batch]
            answers = {PLAIN: answered(model, processor, batch, images, None, config)}
            answers |= {window.name: answered(model, processor, batch, images, window, config) for window in chosen}
            return [
                Result(table_row(question, {name: texts[index] for name, texts in answers.items()}))
                for index, question in enumerate(batch)
            ]

        run.measure_batches(questions, measure, config.batch_size, unusable)
        return report(run, chosen, config) if run.leads else 0


def report(run: Run, chosen: list[Condition], config: Config) -> int:
    """Write the summary, figure and page; return the exit status."""
    rows = [part.row for part in run.results()]
    summary = summarise(rows, chosen) if rows else {}
    if summary:
        run.save(window_figure(summary, f"rows of the {config.rows}, {config.load.model}"), "knockout.png")
        print(sentence(summary))
    run.finish(summary)
    return command.conclude(run)


def answered(model, processor, batch, images, condition: Condition | None, config: Config) -> list[str]:
    """Answers of a batch under one condition, or without knockout."""

    def steer(keys, inputs, layouts):
        steering = None if condition is None else knockout(condition, config.rows, batch, layouts)
        return steering, [{} for _ in keys]

    backend = ModelBackend(model, processor, Decoding(config.max_new_tokens), steer)
    keys = [question.name for question in batch]
    return [reply.text for reply in backend.answer(keys, [question.prompt for question in batch], images)]


if __name__ == "__main__":
    command.run(main, Config, __doc__)
