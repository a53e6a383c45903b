"""What do recorded attention, maps, exact rollout and steering cost, next to plain generation and to stored matrices?

    python -m benchmarks.attention_cost --ways plain recording words rollout eager-rows eager
    python -m benchmarks.attention_cost --ways plain gaussian eager-gaussian var eager-var
    python -m benchmarks.attention_cost --shapes llava qwen fuyu --lengths 16384 --rounds 2
    python -m benchmarks.attention_cost --device cuda --dtype bfloat16 --lengths 640 4096 16384 32768

The ways are those of benchmarks/ways.py, the decoders (one shape of
attention for LLaVA, one for Qwen2-VL and Qwen2.5-VL, one for Fuyu) those of benchmarks/decoders.py. Times are medians
over rounds, in each of which the ways take turns in another order; a ratio of times is the median of the rounds' own
ratios, beside the lowest and the highest, so that a slow moment of the machine is seen and hits all alike. Peak memory
is that of a fresh process (resident size on a CPU, the allocator's own count on a GPU), as a whole and above what the
loaded model holds.
`matrices_MB` is what an eager way must store, by arithmetic; where that and half as much again is not free, it is not
run, and has no other figure. Prints a table, writes cost.csv and cost.png. The run fails if the ways do not agree, or
if steering changes nothing.
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
from analysis.runs import default_out_dir, refuse_existing, write_json, write_table, writing
from benchmarks import decoders, steering
from benchmarks.cost_plot import plot, title
from benchmarks.decoders import HEAD_WIDTH, Setup, Shape, attempt, free_memory, matrices, peak_memory
from benchmarks.ways import RECORDING, ROLLOUTS, WAYS, generate

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # between two rollouts: largest entry, and relative norm
LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # between two ways to steer; of the largest logit
EVERYDAY = tuple(way for way in WAYS if way != "rollout-gradient")


@dataclass(frozen=True)
class Config(Setup):
    lengths: tuple[int, ...] = (640, 4096)
    """Prompt lengths T, in tokens."""
    ways: tuple[
        Literal[
            "plain", "recording", "words", "rollout", "rollout-gradient", "eager-rows", "eager",
            "gaussian", "eager-gaussian", "non-gaussian", "eager-non-gaussian",
            "salient-head", "eager-salient-head", "var", "eager-var",
        ],
        ...,
    ] = EVERYDAY  # fmt: skip
    """What to compare; plain is always measured."""
    shapes: tuple[Shape, ...] = ("llava",)
    """Whose attention the random decoder has."""
    rounds: int = 5
    """Timed rounds; the median is reported."""
    out_dir: str | None = None
    """New or empty folder (default: results/attention_cost/<device>-<date>)."""


def check(config: Config) -> None:
    """Raises ValueError for a decoder that cannot be built or a run that measures nothing."""
    if not config.lengths or min(*config.lengths, config.rounds, config.new_tokens, config.layers, config.threads) < 1:
        raise ValueError("--lengths, --rounds, --new-tokens, --layers and --threads must be at least 1")
    if not config.shapes:
        raise ValueError("--shapes names none; give llava, qwen or fuyu")
    if config.width % HEAD_WIDTH or config.width < HEAD_WIDTH:
        raise ValueError(f"--width {config.width} is not a multiple of the head width {HEAD_WIDTH}")
    heads = config.width // HEAD_WIDTH
    if "qwen" in config.shapes and heads > decoders.SHARED and heads % decoders.SHARED:
        raise ValueError(f"--width {config.width} makes {heads} heads; qwen needs a multiple of {decoders.SHARED}")
    if config.layers < steering.LAYERS_FOR_VAR and {"var", "eager-var"} & set(config.ways):
        raise ValueError(f"--layers {config.layers} leaves none for VAR; give {steering.LAYERS_FOR_VAR} or more")
    if min(config.lengths) < 8 and set(steering.WAYS) & set(config.ways):
        raise ValueError(f"--lengths {min(config.lengths)} has no room for an image to steer by; give 8 or more")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {config.device} was asked for, but torch sees no GPU; use cpu")


def build(config: Config, shape: Shape):
    """The random decoder, in the process that it is built in; picklable with its arguments."""
    torch.set_num_threads(config.threads)
    return decoders.build(shape, config.width, config.layers, config.device, config.dtype)


def warmed(config: Config, shape: Shape):
    """A decoder that has run once: libraries take their workspaces at the first call."""
    model = build(config, shape)
    generate(model, "plain", 16, config.new_tokens)
    return model


def timed(model, way: str, length: int, config: Config) -> float:
    synchronise(config.device)
    start = time.perf_counter()
    generate(model, way, length, config.new_tokens)
    synchronise(config.device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure(model, shape: Shape, length: int, config: Config) -> list[dict]:
    """One row per way at one prompt length; a way that runs out of memory, or would, has no figures."""
    ways = [way for way in WAYS if way == "plain" or way in config.ways]
    held = {way: matrices(way, length, config.layers, config.width // HEAD_WIDTH, config.dtype) for way in ways}
    free = free_memory(config.device)
    possible = [way for way in ways if 1.5 * (held[way] or 0) < free]
    agree(model, possible, length, config)
    times = {way: [] for way in ways}
    turns = random.Random(0)
    for _ in tqdm(range(config.rounds), desc=f"{shape}, T = {length}", unit="round"):
        for way in turns.sample(possible, len(possible)):
            times[way].append(attempt(timed, model, way, length, config))
    rows = []
    free_memory(config.device)  # gives back what the rounds left, for the processes whose memory is measured
    for way in ways:
        run = partial(generate, way=way, length=length, new_tokens=config.new_tokens)
        peaks = way in possible and peak_memory(partial(warmed, config, shape), run)
        peak, above = peaks or (None, None)
        rows.append(
            {"shape": shape, "T": length, "way": way}
            | {"seconds": middle(times[way]), "peak_MB": peak, "above_model_MB": above}
        )
    for row in rows:
        for base, way in (("plain", "plain"), ("eager", eager_of(row["way"]))):
            row |= compare(row, next((r for r in rows if r["way"] == way), {}), base, times)
        row["matrices_MB"] = held[row["way"]]
    return rows


def compare(row: dict, other: dict, base: str, times: dict[str, list]) -> dict:
    """Ratios of a row's figures to those of another: of times the median over rounds, and the lowest and highest round;
    of memory the whole peak's, and that above the model."""
    both = zip(times[row["way"]], times.get(other.get("way"), ()), strict=False)
    ratios = [a / b if a and b else None for a, b in both]
    complete = bool(ratios) and None not in ratios
    found = {
        f"time_to_{base}": middle(ratios),
        f"lowest_to_{base}": min(ratios) if complete else None,
        f"highest_to_{base}": max(ratios) if complete else None,
    }
    for name, figure in (("memory", "peak_MB"), ("above", "above_model_MB")):
        found[f"{name}_to_{base}"] = row[figure] / other[figure] if row[figure] and other.get(figure) else None
    return found


def middle(values: list[float | None]) -> float | None:
    """The median; None of no values, and where one of them is missing."""
    return statistics.median(values) if values and None not in values else None


def eager_of(way: str) -> str:
    """The eager way that a way is compared with: for an intervention its own."""
    method = way.removeprefix("eager-")
    return f"eager-{method}" if method in steering.METHODS else "eager"


def agree(model, ways: list[str], length: int, config: Config) -> None:
    """Warms every way up; raises RuntimeError unless those that should agree do, or the comparison means nothing."""
    results = {way: found for way in ways if (found := attempt(generate, model, way, length, config.new_tokens))}
    alike = [results[way][0] for way in RECORDING if way in results]
    if config.dtype == "float32" and any(not torch.equal(tokens, alike[0]) for tokens in alike):
        raise RuntimeError(f"T = {length}: the ways did not generate the same tokens")
    rollouts = [results[way][1] for way in ROLLOUTS if way in results]
    gap = max((apart(rows, rollouts[0], config.dtype) for rows in rollouts), default=0.0)
    if rollouts:
        print(f"T = {length}: largest difference between {len(rollouts)} rollouts {gap:.1e}")
    if gap > TOLERANCE[config.dtype]:
        raise RuntimeError(f"T = {length}: the rollouts differ by {gap:.1e}, more than {TOLERANCE[config.dtype]}")
    for method in steering.METHODS:
        steers_alike(method, results, length, config)


def apart(rows: torch.Tensor, others: torch.Tensor, dtype: str) -> float:
    """How far two rollouts [token, key] are apart: the largest entry, or in half precision the first row's norm.

    The ways may then well write different words, so only the first token's row answers one and the same question.
    """
    if dtype == "float32":
        return float((rows - others).abs().max())
    return float((rows[0] - others[0]).norm() / others[0].norm())


def steers_alike(method: str, results: dict, length: int, config: Config) -> None:
    """Raises RuntimeError unless an intervention changes the logits, and in both ways alike.

    Of half precision only the first token's are compared: after that the two may well write different words.
    """
    tokens = slice(None) if config.dtype == "float32" else slice(1)
    found = [results[way][1][tokens] for way in (method, f"eager-{method}") if way in results]
    if not found:
        return
    scale, tolerance = float(found[0].abs().max()), LOGIT_TOLERANCE[config.dtype]
    gap = float((found[0] - found[-1]).abs().max()) / scale
    effect = float((found[0] - results["plain"][1][tokens]).abs().max()) / scale
    print(f"T = {length}: {method} moves a logit by {effect:.1e} of the largest; {len(found)} ways differ by {gap:.1e}")
    if gap > tolerance or effect <= gap:
        raise RuntimeError(f"T = {length}: {method} is not the same in both ways, or it changes nothing")


def table(rows: list[dict]) -> str:
    head = list(rows[0])
    cells = [head] + [[shown(row[name]) for name in head] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def shown(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return str(value)


def save(out_dir: Path, rows: list[dict], title: str) -> None:
    """The table so far; written after every length, so that a later failure loses nothing."""
    write_table(out_dir / "cost.csv", rows)
    with writing(out_dir):
        plot(rows, title).savefig(out_dir / "cost.png")


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
