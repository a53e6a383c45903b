"""Heads that respond to an object in a corner, and the effect of their ablation on the answer.

    python head_attention_stats_qwen2.py --ablate 2
    python head_attention_stats_qwen2.py --dataset data/dataset_topright --corner topright --max-pairs 20 --ablate 2

The model answers a question about each image of a pair, with the object (full) and without it (control). The response
of a head is the difference of its attention to the image, or to one corner of it. Files: heads.csv (response, effect
size and test of each head), count_LHN.npy (pairs in which a head is among the top k of its layer), bar plots and
heads.png; analysis/head_responses.py describes all files. With --ablate, the strongest heads on one half of the pairs
lose their image attention on the other half, compared with random heads of the same layers: ablation.png.

Default --dataset: data/dataset_sample if it exists, else generated pairs with an object at the top left. The same
command continues an unfinished run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import models
from analysis import command, head_responses
from analysis.files import write_table
from analysis.head_responses import AblationSettings, ResponseSettings
from analysis.response_report import (
    COLUMNS,
    Attention,
    ablation_figure,
    ablation_finding,
    answer_rates,
    findings,
    responding_heads,
    sample_row,
    save,
)
from analysis.resume import Result, Run, SampleOutput
from analysis.statistics import halves
from analysis.words import select_layers
from data import counterfactual_pairs
from data.counterfactual_pairs import Pair, Pairs, named, open_pair, question
from data.errors import SampleError, check_at_least
from data.folders import Source, following_links
from models.ablation import HeadAblation
from models.generation import Answer, YesNo, answers
from models.loading import Load, describe


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-qwen2-vl")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu."""
    pairs: Pairs = Pairs(dataset=None, max_pairs=0)
    responses: ResponseSettings = ResponseSettings(layers="all", topk=3, corner=None, max_new_tokens=1)
    ablation: AblationSettings = AblationSettings(ablate=0, draws=19)
    output: SampleOutput = SampleOutput()
    save_diffs: bool = False
    """Also write attention.npz, the attention of each head to both images of every pair."""
    batch_size: int = 8
    """Pairs in a batch."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1)


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.pairs.follow_links):
            pairs, unusable, source = gather(config)
            print(source)
            if run.claim(config.load.model, pairs, data=source.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            model, processor = models.load(config.load.model, **run.load_options)
            layers, yes_no = fit(config, model, processor, pairs)
            run.start(COLUMNS, model=describe(model), layers=layers)

        def measure(batch: list[Pair]) -> list[Result]:
            return measure_pairs(config, model, processor, batch, layers, yes_no)

        run.measure_batches(pairs, measure, config.batch_size, unusable)
        parts = list(run.results())
        attention = Attention([pairs[part.index] for part in parts], [part.values["attention"] for part in parts])
        halves = Halves.of(config, attention, layers) if len(parts) >= head_responses.MIN_PAIRS else None
        if halves and halves.sets:
            ablate(run, config, model, processor, halves, yes_no)
        return report(run, config, attention, layers, halves, source) if run.leads else 0


def report(
    run: Run, config: Config, attention: Attention, layers: tuple[int, ...], halves: Halves | None, source: Source
) -> int:
    """Write the files of all pairs and the page; return the exit status."""
    rows = [part.row for part in run.results()]
    if not rows:
        run.finish({})
        return command.conclude(run)
    region = f"the {named(config.responses.corner)} corner" if config.responses.corner else "the image"
    table = save(run, attention, layers, config.responses.topk, region, config.save_diffs)
    about = {"model": config.load.model}
    about |= {name: getattr(config.responses, name) for name in ("corner", "patch_size", "topk")}
    about |= {"dataset": source.place, "prompt": rows[0]["prompt"], "layers": layers, "pairs": attention.names}
    figures = {"answers": answer_rates(rows), "responding": responding_heads(table)}
    figures["family_of_q"] = table[0]["family_of_q"]
    print(findings(table, halves.held_out if halves else ()))
    run.finish({**about, **figures, **(other_half(run, config, halves) if halves else {})})
    return command.conclude(run)


def gather(config: Config) -> tuple[list[Pair], list, Source]:
    """Pairs to measure, the unusable ones with their reasons, and their source."""
    pairs, unusable, source = counterfactual_pairs.gather(config.pairs.dataset, config.pairs.max_pairs)
    if config.pairs.prompt is None and (lost := [pair.name for pair in pairs if pair.corner is None]):
        raise ValueError(f"the relation of {lost[0]} names no corner to ask about; give a --prompt")
    if config.ablation.ablate and len(pairs) < head_responses.MIN_PAIRS:
        raise ValueError(
            f"--ablate needs at least {head_responses.MIN_PAIRS} pairs, and {source.place} has {len(pairs)} to use"
        )
    return pairs, unusable, source


def fit(config: Config, model, processor, pairs: list[Pair]) -> tuple[tuple[int, ...], YesNo | None]:
    """Layers to measure, and the token sets of yes and no. Raises ValueError for flags that do not fit the model."""
    decoder = model.config.get_text_config()
    heads, layers = decoder.num_attention_heads, select_layers(config.responses.layers, decoder.num_hidden_layers)
    if config.responses.topk > heads:
        raise ValueError(f"--topk {config.responses.topk} is more than the {heads} heads of a layer")
    head_responses.choose(np.ones((len(layers), heads, 1)), config.ablation.ablate)
    if config.responses.corner is not None:
        check_corner(config, model, processor, pairs)
    try:
        return layers, YesNo.of(processor.tokenizer)
    except ValueError:
        if config.ablation.ablate:
            raise
        return layers, None


def check_corner(config: Config, model, processor, pairs: list[Pair]) -> None:
    """Raises ValueError where the corner does not fit the grid of the first pair that has one."""
    for pair in pairs:
        try:
            grid = model.image_grid(processor, *open_pair(pair)[0].size)
        except SampleError:
            continue  # counted when it is measured
        if grid is None:
            name = config.load.model
            raise ValueError(f"the positions of the cells of {name!r} are not known, so leave out --corner")
        head_responses.corner_cells(grid.rows, grid.cols, config.responses.corner, config.responses.patch_size)
        return


def prompt_for(config: Config, pair: Pair) -> str:
    return question(pair.corner) if config.pairs.prompt is None else config.pairs.prompt


def measure_pairs(
    config: Config, model, processor, batch: list[Pair], layers: tuple[int, ...], yes_no: YesNo | None
) -> list[Result]:
    """Rows of a batch of pairs, in order, with their attention, float32 [full or control, layer, head]."""
    images = [[image] for pair in batch for image in open_pair(pair)]
    prompts = [prompt_for(config, pair) for pair in batch for _ in range(2)]
    # of the prompt, only the last row is recorded
    answered = answers(model, processor, images, prompts, max_new_tokens=config.responses.max_new_tokens, rows=[-1])
    for answer in answered:
        if isinstance(answer, SampleError):
            raise answer
    measured = attention_of(answered, config, layers).reshape(len(batch), 2, len(layers), -1)
    results = []
    for place, pair in enumerate(batch):
        both = answered[2 * place : 2 * place + 2]
        margins = [yes_no and float(yes_no.margin(answer.first.log())) for answer in both]
        row = sample_row((pair.full, pair.control), prompts[2 * place], both, measured[place], margins, layers)
        results.append(Result(row, {"attention": measured[place]}))
    return results


def attention_of(answered: list[Answer], config: Config, layers: tuple[int, ...]) -> np.ndarray:
    """Attention of each answer to the image, or to the corner of it: float32 [image, layer, head]."""
    layouts = [answer.layout for answer in answered]
    keys = [layout.images[0] for layout in layouts]
    if config.responses.corner is not None:
        grids = [layout.grids[0] for layout in layouts]
        corner, size = config.responses.corner, config.responses.patch_size
        corners = [head_responses.corner_cells(grid.rows, grid.cols, corner, size) for grid in grids]
        keys = [positions[cells] for positions, cells in zip(keys, corners, strict=True)]
    tokens = [len(answer.tokens) for answer in answered]
    return head_responses.attention_to(answered[0].trace, layouts, keys, tokens, layers)


@dataclass(frozen=True)
class Halves:
    """Heads chosen on one half of the pairs (`chosen_on` pairs), to be ablated on the `pairs` of the other half.

    `sets`: heads (layer, head) by name: none, the chosen ones, and random ones; empty without ablation. `held_out`:
    responses of the chosen heads on the other half.
    """

    chosen_on: int
    pairs: list[Pair]
    held_out: list[dict]
    sets: dict[str, tuple[tuple[int, int], ...]]

    @classmethod
    def of(cls, config: Config, attention: Attention, layers: tuple[int, ...]) -> Halves:
        """Choose heads by their responses; deterministic, so that all processes choose the same."""
        signed, rng = attention.full - attention.control, np.random.default_rng(config.ablation.seed)
        first, second = halves(len(attention.pairs), rng)
        count = config.ablation.ablate or min(config.responses.topk, signed.shape[1] // 2)
        chosen = head_responses.choose(signed[..., first], count)
        rows = head_responses.held_out(signed, chosen, first, second, config.ablation.seed)
        held_out = [{**row, "layer": layers[row["layer"]]} for row in rows]
        sets = {}
        if config.ablation.ablate and chosen:
            drawn = head_responses.random_sets(chosen, signed.shape[1], config.ablation.draws, rng)
            sets = {"none": (), "chosen": chosen, **{f"random {index}": heads for index, heads in enumerate(drawn)}}
            sets = {name: tuple((layers[layer], head) for layer, head in heads) for name, heads in sets.items()}
        return cls(len(first), [attention.pairs[place] for place in second], held_out, sets)


def ablate(run: Run, config: Config, model, processor, halves: Halves, yes_no: YesNo) -> None:
    """Store the margins log p(yes) - log p(no) of both images of each pair, without the image attention of each set of
    heads: {set: float64 [full or control]}."""

    def measure(batch: list[Pair]) -> list[Result]:
        images = [[image] for pair in batch for image in open_pair(pair)]
        prompts = [prompt_for(config, pair) for pair in batch for _ in range(2)]
        inputs, _ = model.prepare(processor, images, prompts)
        margins = {
            name: yes_no.steered_margin(model, inputs, HeadAblation(heads)).numpy().reshape(-1, 2)
            for name, heads in halves.sets.items()
        }
        return [Result({}, {name: both[place] for name, both in margins.items()}) for place in range(len(batch))]

    run.measure_batches(halves.pairs, measure, config.batch_size, stage="ablation")


def other_half(run: Run, config: Config, halves: Halves) -> dict:
    """Write the table and figure of the ablation and print its finding; return the summary of the other half."""
    figures = {"held_out": halves.held_out}
    if not halves.sets:
        return figures
    parts = [(part.name, part.values) for part in run.results("ablation")]
    margins = {name: np.stack([values[name] for _, values in parts]) for name in halves.sets}
    set_names = {name: " ".join(f"{layer}.{head}" for layer, head in heads) for name, heads in halves.sets.items()}
    rows = head_responses.margin_rows([name for name, _ in parts], margins, set_names)
    write_table(run.folder / "ablation.csv", rows)
    summary = head_responses.summarise(margins, config.ablation.seed)
    ablation = {"sets": halves.sets, "chosen_on": halves.chosen_on, **summary}
    run.save(ablation_figure(ablation, set_names["chosen"]), "ablation.png")
    print(ablation_finding(ablation, set_names["chosen"]))
    return figures | {"ablation": ablation}


if __name__ == "__main__":
    command.run(main, Config, __doc__)
