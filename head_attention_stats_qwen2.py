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

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

import models
from analysis import command, head_responses
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
from analysis.runs import RunFolder, default_out_dir, measure_batches, refuse_existing, write_table
from analysis.statistics import halves
from analysis.words import check_layers, select_layers
from data import counterfactual_pairs
from data.counterfactual_pairs import CORNERS, Pair, named, open_pair, question
from data.errors import SampleError
from data.folders import LinkFlags, Source, following_links
from models.ablation import HeadAblation
from models.generation import Answer, YesNo, answers
from models.loading import LoadFlags, describe


@dataclass(frozen=True)
class Config(LoadFlags, LinkFlags):
    model: str = "tiny-qwen2-vl"
    """Embedded model, folder, or hub id; of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Fuyu."""
    dataset: str | None = None
    """Folder of pairs, as data.counterfactual_pairs makes it (default: data/dataset_sample where it lies, else pairs
    made here, once, in data/generated)."""
    prompt: str | None = None
    """What to ask (default: is there anything in the ... corner ?, of the corner in which the object lies)."""
    layers: str = "all"
    """all | first_third | mid_third | last_third | last_K | 3,7,12 (0-based)."""
    max_pairs: int = 0
    """Use at most so many pairs; 0 uses all."""
    max_new_tokens: int = 1
    """Longest answer, in tokens; attention is averaged over them. The second token follows another first one where the
    answers to full and control differ, "yes" and "no", so that with 2 and more a response mixes text with picture."""
    topk: int = 3
    """Heads of a layer that count for a pair: those whose attention changes most."""
    corner: Literal["topleft", "topright", "bottomleft", "bottomright"] | None = None
    """Sum attention over the cells of this corner only (default: over the whole image)."""
    patch_size: int | None = None
    """Cells on each side of that corner (default: a third of the grid)."""
    ablate: int = 0
    """Take the image attention from so many of the heads that respond most, at most half of a layer's; 0: from none."""
    draws: int = 19
    """Different random sets of heads to compare the ablated ones with, or all there are; with 19, the fewest that can
    do so, the first of all sets stands out at p = 0.05."""
    save_diffs: bool = False
    """Also write attention.npz, what each head attends to in both pictures of every pair."""
    batch_size: int = 8
    """Pairs put to the model together."""
    seed: int = 0
    """Seed of the halves and of the random heads."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    def check(self) -> None:
        """Raises ValueError for flags that cannot work with any model."""
        check_layers(self.layers)
        for name, least in (
            ("max_pairs", 0), ("max_new_tokens", 1), ("topk", 1), ("ablate", 0), ("draws", 1), ("batch_size", 1),
            ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least {least}")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt is empty; write a question")
        if self.corner is not None and self.corner not in CORNERS:
            raise ValueError(f"--corner {self.corner!r} is unknown; choose {', '.join(CORNERS)}")
        if self.patch_size is not None and self.corner is None:
            raise ValueError("--patch-size is the size of a --corner; give that, too")


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.follow_links):
        config.check()
        pairs, unusable, source = gather(config)
        print(source)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        model, processor = models.load(config.model, **config.loading)
        layers, yes_no = fit(config, model, processor, pairs)
    settings = {"flags": asdict(config), "model": describe(model), "layers": layers, "data": source.facts()}
    run = RunFolder.create(out_dir, settings, COLUMNS)
    measured = Measured()

    def measure(batch: list[Pair]) -> list[dict]:
        pictures = [picture for pair in batch for picture in open_pair(pair)]
        prompts = [asked(config, pair) for pair in batch for _ in range(2)]
        answering = {"max_new_tokens": config.max_new_tokens, "rows": [-1]}  # of the prompt, the last row alone
        said = answers(model, processor, [[p] for p in pictures], prompts, **answering)
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
    where = f"the {named(config.corner)} corner" if config.corner else "the image"
    table = save(run, measured, layers, config.topk, where, config.save_diffs)
    about = {name: getattr(config, name) for name in ("model", "corner", "patch_size", "topk")}
    about |= {"dataset": source.place, "prompt": rows[0]["prompt"], "layers": layers, "pairs": measured.names}
    found = {"answers": says(rows), "responding": responding(table)}
    found["family_of_q"] = table[0]["family_of_q"]
    run.finish({**about, **found, **other_half(run, config, model, processor, measured, layers, yes_no, table)})
    return command.conclude(run)


def gather(config: Config) -> tuple[list[Pair], list, Source]:
    """Pairs to measure, the unusable ones with their reasons, and their source."""
    pairs, unusable, source = counterfactual_pairs.gather(config.dataset, config.max_pairs)
    if config.prompt is None and (lost := [pair.name for pair in pairs if pair.corner is None]):
        raise ValueError(f"the relation of {lost[0]} names no corner to ask about; give a --prompt")
    if config.ablate and len(pairs) < head_responses.LEAST:
        raise ValueError(
            f"--ablate needs at least {head_responses.LEAST} pairs, and {source.place} has {len(pairs)} to use"
        )
    return pairs, unusable, source


def fit(config: Config, model, processor, pairs: list[Pair]) -> tuple[tuple[int, ...], YesNo | None]:
    """The layers to measure, and the words to compare. Raises ValueError for flags that do not fit the model."""
    decoder = model.config.get_text_config()
    heads, layers = decoder.num_attention_heads, select_layers(config.layers, decoder.num_hidden_layers)
    if config.topk > heads:
        raise ValueError(f"--topk {config.topk} is more than the {heads} heads of a layer")
    head_responses.choose(np.ones((len(layers), heads, 1)), config.ablate)
    if config.corner is not None:
        check_corner(config, model, processor, pairs)
    try:
        return layers, YesNo.of(processor.tokenizer)
    except ValueError:
        if config.ablate:
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
            raise ValueError(f"where the cells of {config.model!r} lie is not known, so leave out --corner")
        head_responses.corner_cells(grid.rows, grid.cols, config.corner, config.patch_size)
        return


def asked(config: Config, pair: Pair) -> str:
    return question(pair.corner) if config.prompt is None else config.prompt


def attention_of(said: list[Answer], config: Config, layers: tuple[int, ...]) -> np.ndarray:
    """Attention of each answer to the image, or to the corner of it: float32 [picture, layer, head]."""
    layouts = [answer.layout for answer in said]
    keys = [layout.images[0] for layout in layouts]
    if config.corner is not None:
        grids = [layout.grids[0] for layout in layouts]
        corners = [head_responses.corner_cells(g.rows, g.cols, config.corner, config.patch_size) for g in grids]
        keys = [positions[cells] for positions, cells in zip(keys, corners, strict=True)]
    tokens = [len(answer.tokens) for answer in said]
    return head_responses.attention_to(said[0].trace, layouts, keys, tokens, layers)


def other_half(run: RunFolder, config: Config, model, processor, measured: Measured, layers, yes_no, table) -> dict:
    """Heads chosen on one half of the pairs, their responses and the effect of their ablation on the other half. Prints
    the findings, those of `table` (heads.csv) with them."""
    if len(measured.pairs) < head_responses.LEAST:
        print(findings(table, ()))
        return {}
    signed, rng = measured.full - measured.control, np.random.default_rng(config.seed)
    first, second = halves(len(measured.pairs), rng)
    chosen = head_responses.choose(signed[..., first], config.ablate or min(config.topk, signed.shape[1] // 2))
    held = head_responses.held_out(signed, chosen, first, second, config.seed)
    found = {"held_out": [{**row, "layer": layers[row["layer"]]} for row in held]}
    print(findings(table, found["held_out"]))
    if not (config.ablate and chosen):
        return found
    drawn = head_responses.random_sets(chosen, signed.shape[1], config.draws, rng)
    sets = {"none": (), "chosen": chosen, **{f"random {index}": heads for index, heads in enumerate(drawn)}}
    sets = {name: tuple((layers[layer], head) for layer, head in heads) for name, heads in sets.items()}
    pairs = [measured.pairs[place] for place in second]
    margins = ablate(config, model, processor, pairs, sets, yes_no)
    spelt = {name: " ".join(f"{layer}.{head}" for layer, head in heads) for name, heads in sets.items()}
    write_table(run.folder / "ablation.csv", head_responses.margin_rows([pair.name for pair in pairs], margins, spelt))
    ablation = {"sets": sets, "chosen_on": len(first), **head_responses.summarise(margins, config.seed)}
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
