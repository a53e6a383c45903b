"""Time and memory of recorded attention, maps, exact rollout and interventions, relative to plain generation and eager.

    python -m benchmarks.attention_cost --ways plain recording words rollout eager-rows eager
    python -m benchmarks.attention_cost --ways plain gaussian eager-gaussian var eager-var
    python -m benchmarks.attention_cost --ways plain gradient eager-gradient relevance eager-relevance
    python -m benchmarks.attention_cost --shapes llava qwen fuyu --lengths 16384 --rounds 2
    python -m benchmarks.attention_cost --device cuda --dtype bfloat16 --lengths 640 4096 16384 32768

benchmarks/decoders.py describes the conditions (--ways) and the decoders (one shape of attention for LLaVA, one for
Qwen2-VL and Qwen2.5-VL, one for Fuyu), benchmarks/maps.py the conditions that draw maps. Times are medians over rounds;
each round measures the conditions in a new random order. A ratio of times is the median, minimum and maximum of the
ratios within a round, so that a temporary slowdown of the machine affects both terms. Peak memory is that of a fresh
process (resident size on a CPU, the allocator's count on a GPU), in total and above the loaded model. `matrices_MB` is
the arithmetic size of the matrices that an eager condition stores; a condition is skipped, and has no other figure, if
1.5 times that size is not free. Prints a table; writes cost.csv and cost.png. The plot has, for each shape of
attention, one row of panels for recording and rollout and one for interventions: time as a multiple of plain
generation, and peak memory, over prompt length. Error bars span the rounds. An open circle marks the size of the
matrices of an eager condition that was not measured. The run fails if the conditions disagree or if an intervention has
no effect.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from analysis import command
from analysis.files import read_table, write_json, write_table, writing
from analysis.plots import Figure
from analysis.runs import default_out_dir, refuse_existing
from benchmarks import decoders
from benchmarks.budget import attempt, free_memory, matrix_memory, peak_memory
from benchmarks.decoders import (
    HEAD_WIDTH,
    INTERVENTIONS,
    LAYERS_FOR_VAR,
    METHODS,
    QUERIES_PER_KEY,
    RECORDING,
    ROLLOUTS,
    Setup,
    Shape,
)
from benchmarks.maps import KINDS, VARIANTS, generate

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # between two rollouts: largest entry; relative norm
LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # between two implementations; share of the largest logit
MAP_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}  # between a kind and its literal way; share of a map's maximum
TICKS = {"few": (0.5, 1, 1.5, 2, 3, 5, 8, 12), "many": (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2)}  # of ratios
OFFSET = 1.03  # factor on x between successive conditions, so that error bars do not overlap
COLOURS = (  # Okabe and Ito (2008), with grey in place of yellow
    "#000000", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#999999",
)  # fmt: skip
INTERVENTION_PANEL = ("plain", *(variant for variant in VARIANTS if variant in INTERVENTIONS))
MAP_PANEL = ("plain", *(variant for variant in VARIANTS if variant.removeprefix("eager-") in KINDS))
DEFAULT_VARIANTS = tuple(variant for variant in VARIANTS if variant not in (*MAP_PANEL[1:], "rollout-gradient"))


@dataclass(frozen=True)
class Config(Setup):
    lengths: tuple[int, ...] = (640, 4096)
    """Prompt lengths T, in tokens."""
    ways: tuple[
        Literal[
            "plain", "recording", "words", "rollout", "rollout-gradient", "eager-rows", "eager",
            "gaussian", "eager-gaussian", "non-gaussian", "eager-non-gaussian",
            "salient-head", "eager-salient-head", "var", "eager-var", "knockout", "eager-knockout",
            "pai", "eager-pai", "vaf", "eager-vaf",
            "attention", "eager-attention", "rollout-corrected", "eager-rollout-corrected",
            "gradient", "eager-gradient", "relevance", "eager-relevance",
            "value", "eager-value", "contrast", "eager-contrast",
        ],
        ...,
    ] = DEFAULT_VARIANTS  # fmt: skip
    """Conditions to compare; plain is always measured."""
    shapes: tuple[Shape, ...] = ("llava",)
    """Attention of the random decoders."""
    rounds: int = 5
    """Timed rounds; the median is reported."""
    out_dir: str | None = None
    """New or empty folder (default: results/attention_cost/<device>-<date>)."""


def check(config: Config) -> None:
    """Raise ValueError for a decoder that cannot be built or a run that measures nothing."""
    if not config.lengths or min(*config.lengths, config.rounds, config.new_tokens, config.layers, config.threads) < 1:
        raise ValueError("--lengths, --rounds, --new-tokens, --layers and --threads must be at least 1")
    if not config.shapes:
        raise ValueError("--shapes names none; give llava, qwen or fuyu")
    if config.width % HEAD_WIDTH or config.width < HEAD_WIDTH:
        raise ValueError(f"--width {config.width} is not a multiple of the head width {HEAD_WIDTH}")
    heads = config.width // HEAD_WIDTH
    if "qwen" in config.shapes and heads > QUERIES_PER_KEY and heads % QUERIES_PER_KEY:
        raise ValueError(f"--width {config.width} makes {heads} heads; qwen needs a multiple of {QUERIES_PER_KEY}")
    if config.layers < LAYERS_FOR_VAR and {"var", "eager-var"} & set(config.ways):
        raise ValueError(f"--layers {config.layers} leaves none for VAR; give {LAYERS_FOR_VAR} or more")
    if min(config.lengths) < 8 and set(INTERVENTIONS) & set(config.ways):
        raise ValueError(f"--lengths {min(config.lengths)} has no room for an image; give 8 or more")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {config.device} is set, but torch finds no GPU; use cpu")


def build(config: Config, shape: Shape):
    """Build the random decoder and set the threads of this process; picklable with its arguments."""
    torch.set_num_threads(config.threads)
    return decoders.build(shape, config.width, config.layers, config.device, config.dtype)


def build_warm(config: Config, shape: Shape):
    """Build a decoder and run it once: libraries allocate their workspaces at the first call."""
    model = build(config, shape)
    generate(model, "plain", 16, config.new_tokens)
    return model


def measure_time(model, variant: str, length: int, config: Config) -> float:
    """Seconds of one generation."""
    synchronise(config.device)
    start = time.perf_counter()
    generate(model, variant, length, config.new_tokens)
    synchronise(config.device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure(model, shape: Shape, length: int, config: Config) -> list[dict]:
    """One row per condition at one prompt length, without figures where memory ran out or would run out."""
    variants = [variant for variant in VARIANTS if variant == "plain" or variant in config.ways]
    stored = {
        variant: matrix_memory(variant, length, config.layers, config.width // HEAD_WIDTH, config.dtype)
        for variant in variants
    }
    free = free_memory(config.device)
    possible = [variant for variant in variants if 1.5 * (stored[variant] or 0) < free]
    check_agreement(model, possible, length, config)
    times = {variant: [] for variant in variants}
    rng = random.Random(0)
    for _ in tqdm(range(config.rounds), desc=f"{shape}, T = {length}", unit="round"):
        for variant in rng.sample(possible, len(possible)):
            times[variant].append(attempt(measure_time, model, variant, length, config))
    rows = []
    free_memory(config.device)  # frees the caches of the rounds for the processes whose memory is measured
    for variant in variants:
        run = partial(generate, variant=variant, length=length, new_tokens=config.new_tokens)
        peaks = variant in possible and peak_memory(partial(build_warm, config, shape), run)
        peak, above = peaks or (None, None)
        rows.append(
            {"shape": shape, "T": length, "way": variant}
            | {"seconds": median(times[variant]), "peak_MB": peak, "above_model_MB": above}
        )
    for row in rows:
        for base, variant in (("plain", "plain"), ("eager", eager_reference(row["way"]))):
            row |= compare(row, next((r for r in rows if r["way"] == variant), {}), base, times)
        row["matrices_MB"] = stored[row["way"]]
    return rows


def compare(row: dict, other: dict, base: str, times: dict[str, list]) -> dict:
    """Ratios of a row to another: median, minimum and maximum over rounds of times; total peak and peak above model."""
    pairs = zip(times[row["way"]], times.get(other.get("way"), ()), strict=False)
    ratios = [a / b if a and b else None for a, b in pairs]
    complete = bool(ratios) and None not in ratios
    comparison = {
        f"time_to_{base}": median(ratios),
        f"lowest_to_{base}": min(ratios) if complete else None,
        f"highest_to_{base}": max(ratios) if complete else None,
    }
    for name, figure in (("memory", "peak_MB"), ("above", "above_model_MB")):
        comparison[f"{name}_to_{base}"] = row[figure] / other[figure] if row[figure] and other.get(figure) else None
    return comparison


def median(values: list[float | None]) -> float | None:
    """Median; None for an empty list or a missing value."""
    return statistics.median(values) if values and None not in values else None


def eager_reference(variant: str) -> str:
    """Eager condition to compare with: for an intervention or a map kind its own eager implementation."""
    method = variant.removeprefix("eager-")
    return f"eager-{method}" if method in (*METHODS, *KINDS) else "eager"


def check_agreement(model, variants: list[str], length: int, config: Config) -> None:
    """Run every condition once, as a warm-up; raise RuntimeError where equivalent conditions disagree."""
    results = {
        variant: result
        for variant in variants
        if (result := attempt(generate, model, variant, length, config.new_tokens))
    }
    generated = [results[variant][0] for variant in RECORDING if variant in results]
    if config.dtype == "float32" and any(not torch.equal(tokens, generated[0]) for tokens in generated):
        raise RuntimeError(f"T = {length}: the conditions generated different tokens")
    rollouts = [results[variant][1] for variant in ROLLOUTS if variant in results]
    gap = max((rollout_difference(rows, rollouts[0], config.dtype) for rows in rollouts), default=0.0)
    if rollouts:
        print(f"T = {length}: largest difference between {len(rollouts)} rollouts {gap:.1e}")
    if gap > TOLERANCE[config.dtype]:
        raise RuntimeError(f"T = {length}: the rollouts differ by {gap:.1e}, more than {TOLERANCE[config.dtype]}")
    for method in METHODS:
        check_intervention(method, results, length, config)
    for kind in KINDS:
        check_maps(kind, results, length, config)


def rollout_difference(rows: torch.Tensor, others: torch.Tensor, dtype: str) -> float:
    """Largest absolute difference of two rollouts [token, key]; in half precision the relative norm of the first row.

    In half precision the conditions may generate different tokens, so only the rows of the first token are comparable.
    """
    if dtype == "float32":
        return float((rows - others).abs().max())
    return float((rows[0] - others[0]).norm() / others[0].norm())


def check_intervention(method: str, results: dict, length: int, config: Config) -> None:
    """Raise RuntimeError unless an intervention changes the logits, by the same amount in both implementations.

    In half precision only the first token's logits are compared, since later tokens may differ.
    """
    tokens = slice(None) if config.dtype == "float32" else slice(1)
    logits = [results[variant][1][tokens] for variant in (method, f"eager-{method}") if variant in results]
    if not logits:
        return
    scale, tolerance = float(logits[0].abs().max()), LOGIT_TOLERANCE[config.dtype]
    gap = float((logits[0] - logits[-1]).abs().max()) / scale
    effect = float((logits[0] - results["plain"][1][tokens]).abs().max()) / scale
    print(f"T = {length}: {method} changes a logit by {effect:.1e} of the largest; {len(logits)} ways, gap {gap:.1e}")
    if gap > tolerance or effect <= gap:
        raise RuntimeError(f"T = {length}: the two implementations of {method} differ, or it has no effect")


def check_maps(kind: str, results: dict, length: int, config: Config) -> None:
    """Raise RuntimeError unless the maps of a kind, [token, key], equal those of its eager implementation.

    In half precision only the first map is compared, since later tokens may differ.
    """
    tokens = slice(None) if config.dtype == "float32" else slice(1)
    maps = [results[variant][1][tokens] for variant in (kind, f"eager-{kind}") if variant in results]
    if len(maps) < 2:
        return
    gap = float(((maps[0] - maps[1]).abs().amax(1) / maps[1].abs().amax(1)).max())
    print(f"T = {length}: {kind} maps, 2 implementations, gap {gap:.1e} of the maximum")
    tolerance = MAP_TOLERANCE[config.dtype]
    if gap > tolerance:
        raise RuntimeError(f"T = {length}: the {kind} maps differ by {gap:.1e}, more than {tolerance}")


def table(rows: list[dict]) -> str:
    """Rows as aligned text."""
    head = list(rows[0])
    cells = [head] + [[format_cell(row[name]) for name in head] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def format_cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return str(value)


def save(out_dir: Path, rows: list[dict], title: str) -> None:
    """Write the rows so far; called after every length, so that a later failure loses nothing."""
    write_table(out_dir / "cost.csv", rows)
    with writing(out_dir):
        plot(rows, title).savefig(out_dir / "cost.png")


def plot(rows: list[dict], title: str) -> Figure:
    """Plot rows of `measure`; both axes are logarithmic."""
    panels = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in rows if row["shape"] == shape]
        measured = {row["way"] for row in of_shape}
        known = (RECORDING, INTERVENTION_PANEL, MAP_PANEL)
        groups = [variants for variants in known if len(measured & set(variants)) > 1]
        panels += [(shape, of_shape, variants) for variants in groups or [("plain",)]]
    figure = Figure(figsize=(7.5, 3 * len(panels)), dpi=160, layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for (shape, of_shape, variants), (time_axes, memory) in zip(panels, grid, strict=True):
        styles = line_styles(of_shape, variants)
        draw_time(time_axes, of_shape, styles)
        draw_memory(memory, of_shape, styles)
        time_axes.set_title(f"attention of {shape}", fontsize=8)
        memory.legend(*memory.get_legend_handles_labels(), fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def line_styles(rows: list[dict], variants: tuple[str, ...]) -> dict[str, dict]:
    """Line style of each measured condition; an intervention and its eager implementation share a colour."""
    colours = dict(zip((variant for variant in variants if not eager_pair(variant)), COLOURS, strict=False))
    measured = {row["way"] for row in rows}
    pairs = {variant: eager_pair(variant) for variant in variants if variant in measured}
    common = {"markersize": 3, "linewidth": 1.2, "marker": "o"}
    return {
        variant: {"color": colours[pair or variant], "linestyle": "--" if pair else "-", **common}
        for variant, pair in pairs.items()
    }


def draw_time(axes, rows: list[dict], styles: dict[str, dict]) -> None:
    """Draw ratios to plain, the line at 1; the tick labels give plain's seconds."""
    for place, (variant, style) in enumerate(styles.items()):
        points = sorted(
            (row for row in rows if row["way"] == variant and row["time_to_plain"]), key=lambda row: row["T"]
        )
        low, ratio, high = ([row[f"{name}_to_plain"] for row in points] for name in ("lowest", "time", "highest"))
        whiskers = [[b - a for a, b in zip(low, ratio, strict=True)], [b - a for a, b in zip(ratio, high, strict=True)]]
        axes.errorbar([row["T"] * OFFSET**place for row in points], ratio, whiskers, elinewidth=0.7, **style)
    seconds = {row["T"]: row["seconds"] for row in rows if row["way"] == "plain"}
    set_length_axis(axes, {length: f"{length}\n{took:.2g} s" for length, took in seconds.items()})
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in TICKS["few" if high > 3 * low else "many"] if low <= tick <= high]
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylabel("time, to plain")
    axes.set_xlabel("prompt length T, and plain's seconds")


def draw_memory(axes, rows: list[dict], styles: dict[str, dict]) -> None:
    """Draw peaks above the model, with a dotted line to the arithmetic size of unmeasured eager matrices."""
    for variant, style in styles.items():
        of_variant = sorted((row for row in rows if row["way"] == variant), key=lambda row: row["T"])
        points = [(row["T"], row["above_model_MB"]) for row in of_variant if row["above_model_MB"]]
        axes.plot([x for x, _ in points], [y for _, y in points], label=variant, **style)
        needed = [
            (row["T"], row["matrices_MB"]) for row in of_variant if row["matrices_MB"] and not row["above_model_MB"]
        ]
        if needed:
            axes.plot(*zip(*points[-1:], *needed, strict=True), **style | {"linestyle": ":", "markerfacecolor": "none"})
    set_length_axis(axes, {row["T"]: str(row["T"]) for row in rows})
    axes.set_yscale("log")
    axes.set_ylabel("peak MB above the model")
    axes.set_xlabel("prompt length T")


def set_length_axis(axes, labels: dict[int, str]) -> None:
    """Make x a logarithmic axis with one labelled tick per measured length."""
    axes.set_xscale("log")
    axes.set_xticks(list(labels), labels=list(labels.values()), fontsize=7)
    axes.set_xticks([], minor=True)
    axes.grid(True, which="both", linewidth=0.4, alpha=0.4)


def eager_pair(variant: str) -> str | None:
    """Intervention or map kind of an eager implementation; None for other conditions."""
    method = variant.removeprefix("eager-")
    return method if variant != method and method in (*METHODS, *KINDS) else None


def read(path: Path) -> list[dict]:
    """Rows of a cost.csv; numbers are parsed, empty cells become None."""
    return [{name: parse_cell(cell) for name, cell in row.items()} for row in read_table(path)]


def parse_cell(cell: str) -> str | float | None:
    try:
        return float(cell) if "." in cell else int(cell)
    except ValueError:
        return cell or None


def title(flags: dict) -> str:
    """Plot title: decoder, device and threads of a run's flags."""
    size = f"{flags['layers']} layers, width {flags['width']}, {flags['new_tokens']} new tokens"
    return f"{size}, {flags['device']} {flags['dtype']}, {flags['threads']} threads"


def main(config: Config) -> int:
    with command.setting_up():
        check(config)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.device))
    write_json(out_dir / "settings.json", {"flags": asdict(config), "torch": torch.__version__, "command": sys.argv})
    rows = []
    for shape in config.shapes:
        model = build(config, shape)
        for length in config.lengths:
            rows += measure(model, shape, length, config)
            save(out_dir, rows, title(asdict(config)))
    print(f"{title(asdict(config))}, torch {torch.__version__}\n{table(rows)}\nwritten to {out_dir}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
