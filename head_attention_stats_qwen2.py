"""Heads that respond to an object in a corner, and the effect of their ablation on the answer.

    python head_attention_stats_qwen2.py --ablate 2
    python head_attention_stats_qwen2.py --dataset data/dataset_topright --corner topright --max-pairs 20 --ablate 2

The model answers a question about each image of a pair, with the object (full) and without it (control). The response
of a head is the difference of its attention to the image, or to one corner of it. Files: heads.csv (response, effect
size and test of each head), count_LHN.npy (pairs in which a head is among the top k of its layer), bar plots and
heads.png; analysis/head_responses.py describes all files. With --ablate, the strongest heads on one half of the pairs
lose their image attention on the other half, compared with random heads of the same layers: ablation.png.

Default --dataset: data/dataset_sample if it exists, else generated pairs with an object at the top left. An unfinished
run in --out-dir begins anew under the same settings; a finished one is kept.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import models
from analysis import command, head_responses
from analysis.head_responses import AblationSettings, ResponseSettings
from analysis.processes import claim
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
from analysis.runs import Output, RunFolder, flat_flags, measure_batches, write_table
from analysis.statistics import halves
from analysis.words import select_layers
from data import counterfactual_pairs
from data.counterfactual_pairs import Pair, Pairs, named, open_pair, question
from data.errors import SampleError, check_at_least
from data.folders import Source, following_links
from models.ablation import HeadAblation
from models.folders import fingerprint
from models.generation import Answer, YesNo, answers
from models.loading import Load, describe, locate


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-qwen2-vl")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu."""
    pairs: Pairs = Pairs(dataset=None, max_pairs=0)
    responses: ResponseSettings = ResponseSettings(layers="all", topk=3, corner=None, max_new_tokens=1)
    ablation: AblationSettings = AblationSettings(ablate=0, draws=19)
    output: Output = Output()
    save_diffs: bool = False
    """Also write attention.npz, the attention of each head to both images of every pair."""
    batch_size: int = 8
    """Pairs in a batch."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1)


def main(config: Config) -> int:
    with ExitStack() as held:
        with command.setting_up(), following_links(config.pairs.follow_links):
            pairs, unusable, source = gather(config)
            print(source)
            out_dir = config.output.place(config, config.load.model)
            fingerprints = {
                "weights": fingerprint(locate(config.load.model)),  # of a model on the hub: None
                "pairs": fingerprint(Path(source.place) / "metadata.jsonl"),
            }
            settings = {"flags": flat_flags(config), "fingerprints": fingerprints}
            if held.enter_context(claim(out_dir, settings)):
                return command.conclude_finished(out_dir)
            model, processor = models.load(config.load.model, **config.load.options)
            layers, yes_no = fit(config, model, processor, pairs)
        settings |= {"model": describe(model), "layers": layers, "data": source.facts()}
        run = RunFolder.create(out_dir, settings, COLUMNS)
        attention = Attention()

        def measure(batch: list[Pair]) -> list[dict]:
            return measure_pairs(config, model, processor, batch, layers, yes_no, attention)

        rows = measure_batches(run, pairs, measure, config.batch_size, unusable)
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
        run.finish({**about, **figures, **other_half(run, config, model, processor, attention, layers, yes_no, table)})
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
    config: Config, model, processor, batch: list[Pair], layers: tuple[int, ...], yes_no: YesNo | None,
    attention: Attention,
) -> list[dict]:  # fmt: skip
    """Rows of a batch of pairs, in order; adds their attention to `attention`."""
    images = [[image] for pair in batch for image in open_pair(pair)]
    prompts = [prompt_for(config, pair) for pair in batch for _ in range(2)]
    # of the prompt, only the last row is recorded
    answered = answers(model, processor, images, prompts, max_new_tokens=config.responses.max_new_tokens, rows=[-1])
    for answer in answered:
        if isinstance(answer, SampleError):
            raise answer
    measured = attention_of(answered, config, layers).reshape(len(batch), 2, len(layers), -1)
    rows = []
    for place, pair in enumerate(batch):
        both = answered[2 * place : 2 * place + 2]
        margins = [yes_no and float(yes_no.margin(answer.first.log())) for answer in both]
        rows.append(sample_row((pair.full, pair.control), prompts[2 * place], both, measured[place], margins, layers))
        attention.add(pair, measured[place])
    return rows


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


def other_half(
    run: RunFolder, config: Config, model, processor, attention: Attention, layers: tuple[int, ...],
    yes_no: YesNo | None, table: list[dict],
) -> dict:  # fmt: skip
    """Heads chosen on one half of the pairs, their responses and the effect of their ablation on the other half; prints
    the findings, with those of `table` (heads.csv)."""
    if len(attention.pairs) < head_responses.MIN_PAIRS:
        print(findings(table, ()))
        return {}
    signed, rng = attention.full - attention.control, np.random.default_rng(config.ablation.seed)
    first, second = halves(len(attention.pairs), rng)
    count = config.ablation.ablate or min(config.responses.topk, signed.shape[1] // 2)
    chosen = head_responses.choose(signed[..., first], count)
    held_out = head_responses.held_out(signed, chosen, first, second, config.ablation.seed)
    figures = {"held_out": [{**row, "layer": layers[row["layer"]]} for row in held_out]}
    print(findings(table, figures["held_out"]))
    if not (config.ablation.ablate and chosen):
        return figures
    drawn = head_responses.random_sets(chosen, signed.shape[1], config.ablation.draws, rng)
    sets = {"none": (), "chosen": chosen, **{f"random {index}": heads for index, heads in enumerate(drawn)}}
    sets = {name: tuple((layers[layer], head) for layer, head in heads) for name, heads in sets.items()}
    pairs = [attention.pairs[place] for place in second]
    margins = ablate(config, model, processor, pairs, sets, yes_no)
    set_names = {name: " ".join(f"{layer}.{head}" for layer, head in heads) for name, heads in sets.items()}
    write_table(
        run.folder / "ablation.csv", head_responses.margin_rows([pair.name for pair in pairs], margins, set_names)
    )
    ablation = {"sets": sets, "chosen_on": len(first), **head_responses.summarise(margins, config.ablation.seed)}
    run.save(ablation_figure(ablation, set_names["chosen"]), "ablation.png")
    print(ablation_finding(ablation, set_names["chosen"]))
    return figures | {"ablation": ablation}


def ablate(config: Config, model, processor, pairs: list[Pair], sets: dict, yes_no: YesNo) -> dict[str, np.ndarray]:
    """Margins log p(yes) - log p(no) of both images of each pair, without the image attention of each set of heads:
    float64 [pair, full or control] by set."""
    margins = {name: [] for name in sets}
    for start in tqdm(range(0, len(pairs), config.batch_size), desc="ablating", unit="batch"):
        batch = pairs[start : start + config.batch_size]
        images = [[image] for pair in batch for image in open_pair(pair)]
        prompts = [prompt_for(config, pair) for pair in batch for _ in range(2)]
        inputs, _ = model.prepare(processor, images, prompts)
        for name, heads in sets.items():
            margins[name].append(yes_no.steered_margin(model, inputs, HeadAblation(heads)).numpy().reshape(-1, 2))
    return {name: np.concatenate(parts) for name, parts in margins.items()}


if __name__ == "__main__":
    command.run(main, Config, __doc__)
