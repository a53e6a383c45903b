"""Which heads answer to an object in a corner, and does the answer depend on them?

    python head_attention_stats_qwen2.py --ablate 2
    python head_attention_stats_qwen2.py --dataset data/dataset_topright --corner topright --max-pairs 20 --ablate 2

Each picture of a pair, with the object (full) and without it (control), is asked about; a head responds by how much
more it attends to the image, or to one corner of it, when the object is there. heads.csv has every head's response
with effect size and test, count_LHN.npy for which pairs it is among the top k of its layer, beside bar plots and
heads.png (analysis/head_responses.py describes all files). With --ablate, the heads that respond most on one half of
the pairs lose their image attention on the other half, beside random heads of the same layers: ablation.png.
Without --dataset it takes data/dataset_sample where that lies, else it makes pairs with an object at the top left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

import models
from analysis import command, head_responses
from analysis.head_responses import AblationSettings, ResponseSettings
from analysis.response_report import (
    COLUMNS,
    Measured,
    ablation_figure,
    ablation_finding,
    findings,
    responding,
    sample_row,
    save,
    says,
)
from analysis.runs import Output, RunFolder, flat_flags, measure_batches, write_table
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
    output: Output = Output()
    save_diffs: bool = False
    """Also write attention.npz, what each head attends to in both pictures of every pair."""
    batch_size: int = 8
    """Pairs put to the model together."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1)


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.pairs.follow_links):
        pairs, unusable, source = gather(config)
        print(source)
        out_dir = config.output.folder(config, config.load.model)
        model, processor = models.load(config.load.model, **config.load.options)
        layers, yes_no = fit(config, model, processor, pairs)
    settings = {"flags": flat_flags(config), "model": describe(model), "layers": layers, "data": source.facts()}
    run = RunFolder.create(out_dir, settings, COLUMNS)
    measured = Measured()

    def measure(batch: list[Pair]) -> list[dict]:
        pictures = [picture for pair in batch for picture in open_pair(pair)]
        prompts = [asked(config, pair) for pair in batch for _ in range(2)]
        limit = config.responses.max_new_tokens
        said = answers(model, processor, [[p] for p in pictures], prompts, max_new_tokens=limit, rows=[-1])
        for answer in said:
            if isinstance(answer, SampleError):
                raise answer
        attention = attention_of(said, config, layers).reshape(len(batch), 2, len(layers), -1)
        rows = []
        for place, pair in enumerate(batch):
            both = said[2 * place : 2 * place + 2]
            margins = [yes_no and float(yes_no.margin(answer.first.log())) for answer in both]
            paths, prompt = (pair.full, pair.control), prompts[2 * place]
            rows.append(sample_row(paths, prompt, both, attention[place], margins, layers))
            measured.add(pair, attention[place])
        return rows

    rows = measure_batches(run, pairs, measure, config.batch_size, unusable)
    if not rows:
        run.finish({})
        return command.conclude(run)
    responses = config.responses
    where = f"the {named(responses.corner)} corner" if responses.corner else "the image"
    table = save(run, measured, layers, responses.topk, where, config.save_diffs)
    about = {"model": config.load.model, "dataset": source.place, "prompt": rows[0]["prompt"], "layers": layers}
    about |= {name: getattr(responses, name) for name in ("corner", "patch_size", "topk")} | {"pairs": measured.names}
    found = {"answers": says(rows), "responding": responding(table)}
    found["family_of_q"] = table[0]["family_of_q"]
    run.finish({**about, **found, **other_half(run, config, model, processor, measured, layers, yes_no, table)})
    return command.conclude(run)


def gather(config: Config) -> tuple[list[Pair], list, Source]:
    """Pairs to measure, the unusable ones with their reasons, and their source."""
    pairs, unusable, source = counterfactual_pairs.gather(config.pairs.dataset, config.pairs.max_pairs)
    if config.pairs.prompt is None and (lost := [pair.name for pair in pairs if pair.corner is None]):
        raise ValueError(f"the relation of {lost[0]} names no corner to ask about; give a --prompt")
    if config.ablation.ablate and len(pairs) < head_responses.LEAST:
        raise ValueError(
            f"--ablate needs at least {head_responses.LEAST} pairs, and {source.place} has {len(pairs)} to use"
        )
    return pairs, unusable, source


def fit(config: Config, model, processor, pairs: list[Pair]) -> tuple[tuple[int, ...], YesNo | None]:
    """The layers to measure, and the words to compare. Raises ValueError for flags that do not fit the model."""
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
            raise ValueError(f"where the cells of {config.load.model!r} lie is not known, so leave out --corner")
        head_responses.corner_cells(grid.rows, grid.cols, config.responses.corner, config.responses.patch_size)
        return


def asked(config: Config, pair: Pair) -> str:
    return question(pair.corner) if config.pairs.prompt is None else config.pairs.prompt


def attention_of(said: list[Answer], config: Config, layers: tuple[int, ...]) -> np.ndarray:
    """Attention of each answer to the image, or to the corner of it: float32 [picture, layer, head]."""
    layouts = [answer.layout for answer in said]
    keys = [layout.images[0] for layout in layouts]
    if config.responses.corner is not None:
        grids = [layout.grids[0] for layout in layouts]
        corner, size = config.responses.corner, config.responses.patch_size
        corners = [head_responses.corner_cells(grid.rows, grid.cols, corner, size) for grid in grids]
        keys = [positions[cells] for positions, cells in zip(keys, corners, strict=True)]
    tokens = [len(answer.tokens) for answer in said]
    return head_responses.attention_to(said[0].trace, layouts, keys, tokens, layers)


def other_half(run: RunFolder, config: Config, model, processor, measured: Measured, layers, yes_no, table) -> dict:
    """Heads chosen on one half of the pairs, their responses and the effect of their ablation on the other half. Prints
    the findings, those of `table` (heads.csv) with them."""
    if len(measured.pairs) < head_responses.LEAST:
        print(findings(table, ()))
        return {}
    settings = config.ablation
    signed, rng = measured.full - measured.control, np.random.default_rng(settings.seed)
    first, second = halves(len(measured.pairs), rng)
    count = settings.ablate or min(config.responses.topk, signed.shape[1] // 2)
    chosen = head_responses.choose(signed[..., first], count)
    held = head_responses.held_out(signed, chosen, first, second, settings.seed)
    found = {"held_out": [{**row, "layer": layers[row["layer"]]} for row in held]}
    print(findings(table, found["held_out"]))
    if not (settings.ablate and chosen):
        return found
    drawn = head_responses.random_sets(chosen, signed.shape[1], settings.draws, rng)
    sets = {"none": (), "chosen": chosen, **{f"random {index}": heads for index, heads in enumerate(drawn)}}
    sets = {name: tuple((layers[layer], head) for layer, head in heads) for name, heads in sets.items()}
    pairs = [measured.pairs[place] for place in second]
    margins = ablate(config, model, processor, pairs, sets, yes_no)
    spelt = {name: " ".join(f"{layer}.{head}" for layer, head in heads) for name, heads in sets.items()}
    write_table(run.folder / "ablation.csv", head_responses.margin_rows([pair.name for pair in pairs], margins, spelt))
    ablation = {"sets": sets, "chosen_on": len(first), **head_responses.summarise(margins, settings.seed)}
    run.save(ablation_figure(ablation, spelt["chosen"]), "ablation.png")
    print(ablation_finding(ablation, spelt["chosen"]))
    return found | {"ablation": ablation}


def ablate(config: Config, model, processor, pairs: list[Pair], sets: dict, yes_no: YesNo) -> dict[str, np.ndarray]:
    """Margins log p(yes) - log p(no) of both pictures of each pair, without the image attention of each set of heads:
    float64 [pair, full or control] by set."""
    margins = {name: [] for name in sets}
    for start in tqdm(range(0, len(pairs), config.batch_size), desc="ablating", unit="batch"):
        batch = pairs[start : start + config.batch_size]
        pictures = [[picture] for pair in batch for picture in open_pair(pair)]
        inputs, _ = model.prepare(processor, pictures, [asked(config, pair) for pair in batch for _ in range(2)])
        for name, heads in sets.items():
            margins[name].append(yes_no.ask(model, inputs, HeadAblation(heads)).numpy().reshape(-1, 2))
    return {name: np.concatenate(found) for name, found in margins.items()}


if __name__ == "__main__":
    command.run(main, Config, __doc__)
