"""What do recorded attention, exact rollout and steering cost, next to plain generation and next to stored matrices?

    python -m benchmarks.attention_cost --ways plain recording rollout eager-rows eager      (2 CPU cores: 5 minutes)
    python -m benchmarks.attention_cost --ways plain gaussian eager-gaussian var eager-var
    python -m benchmarks.attention_cost --device cuda --dtype bfloat16 --lengths 640 4096 16384

Five ways to generate the same tokens with the same random decoder: `plain` SDPA; `recording` queries; recording and
`rollout` of every generated token; `eager`, the common way: output_attentions, every matrix stored, full T x T
product; and `eager-rows`, which stores the matrices but carries only the generated tokens' rows through them.
Four interventions, `gaussian`, `non-gaussian`, `salient-head` and `var`, each beside the literal eager implementation
of the same formulas (`eager-gaussian`, ...); see benchmarks/steering.py.
Times are medians over rounds that take turns, so that a slow moment of the machine hits all alike; peak memory is
measured in a fresh process each (resident size on a CPU, the allocator's own count on a GPU), as a whole and above what
the loaded model holds. Prints a table, writes cost.csv and cost.png. The run fails if the ways do not agree, or if
steering changes nothing.
"""

from __future__ import annotations

import csv
import multiprocessing
import re
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from analysis import command
from analysis.results import default_out_dir, refuse_existing, write_json, writing
from analysis.rollout import rollout
from benchmarks import steering
from models.trace import AttentionTrace

RECORDING = ("plain", "recording", "rollout", "eager-rows", "eager")
WAYS = RECORDING + tuple(way for method in steering.METHODS for way in (method, f"eager-{method}"))
MEGABYTE = 2**20
HEAD_WIDTH = 64
VOCABULARY = 1000
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # between two rollouts; entries are shares of 1
FIGURES = (("seconds", "seconds"), ("above_model_MB", "peak MB above the model"))
LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # between two ways to steer; of the largest logit


@dataclass(frozen=True)
class Config:
    lengths: tuple[int, ...] = (640, 4096)
    """Prompt lengths T, in tokens."""
    ways: tuple[
        Literal[
            "plain", "recording", "rollout", "eager-rows", "eager",
            "gaussian", "eager-gaussian", "non-gaussian", "eager-non-gaussian",
            "salient-head", "eager-salient-head", "var", "eager-var",
        ],
        ...,
    ] = WAYS  # fmt: skip
    """What to compare; plain is always measured."""
    new_tokens: int = 16
    """Tokens to generate."""
    layers: int = 8
    """Layers of the random decoder."""
    width: int = 512
    """Its hidden size, a multiple of the head width of 64."""
    key_heads: int = 8
    """Its key heads; fewer than width / 64 makes it grouped-query."""
    rounds: int = 5
    """Timed rounds; the median is reported."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of weights and cache."""
    threads: int = 2
    """CPU threads."""
    out_dir: str | None = None
    """New or empty folder (default: results/attention_cost/<device>-<date>)."""


def check(config: Config) -> None:
    """Raises ValueError for a decoder that cannot be built or a run that measures nothing."""
    if not config.lengths or min(*config.lengths, config.rounds, config.new_tokens, config.layers, config.threads) < 1:
        raise ValueError("--lengths, --rounds, --new-tokens, --layers and --threads must be at least 1")
    if config.width % HEAD_WIDTH or config.width < HEAD_WIDTH:
        raise ValueError(f"--width {config.width} is not a multiple of the head width {HEAD_WIDTH}")
    if config.key_heads < 1 or (config.width // HEAD_WIDTH) % config.key_heads:
        raise ValueError(f"--key-heads {config.key_heads} does not divide the {config.width // HEAD_WIDTH} heads")
    if config.layers < steering.LAYERS_FOR_VAR and {"var", "eager-var"} & set(config.ways):
        raise ValueError(f"--layers {config.layers} leaves none for VAR; give {steering.LAYERS_FOR_VAR} or more")
    if min(config.lengths) < 8 and set(steering.WAYS) & set(config.ways):
        raise ValueError(f"--lengths {min(config.lengths)} has no room for an image to steer by; give 8 or more")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {config.device} was asked for, but torch sees no GPU; use cpu")


def build(config: Config) -> LlamaForCausalLM:
    """The random decoder, its queries scaled up so that attention is as uneven as a trained model's."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=config.width,
        intermediate_size=config.width * 8 // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=config.width // HEAD_WIDTH,
        num_key_value_heads=config.key_heads,
        max_position_embeddings=2**17,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(settings).eval().to(config.device, getattr(torch, config.dtype))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 4
    steering.plant_sinks(model)
    return model


@torch.no_grad()
def generate(model, way: str, length: int, config: Config) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs one way on the same prompt: (tokens [1, position], what else it makes).

    That is rollout rows [token, key], or, of `plain` and of ways that steer, logits [token, vocabulary], or None.
    """
    prompt = torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1)).to(model.device)
    options = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": config.new_tokens,
        "min_new_tokens": config.new_tokens,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    if way == "plain" or way in steering.WAYS:
        with steering.WAYS[way](model, length=length) if way in steering.WAYS else nullcontext():
            output = model.generate(prompt, **options)
        return output.sequences, torch.cat(output.logits).float().cpu()
    if way.startswith("eager"):
        model.set_attn_implementation("eager")
        output = model.generate(prompt, output_attentions=True, **options)
        model.set_attn_implementation("sdpa")
        roll = full_product if way == "eager" else stored_rows
        return output.sequences, roll(output.attentions, length)
    with AttentionTrace(model) as trace:
        tokens = model.generate(prompt, **options).sequences
    layout = SimpleNamespace(sample=0, start=0, length=length)
    return tokens, rollout(trace, layout).relevance if way == "rollout" else None


def whole_matrix(steps, layer: int) -> torch.Tensor:
    """A_l = (mean over heads + I) / 2, [key, key], from `output_attentions` of prefill and decode steps."""
    length = steps[-1][0].shape[-1]
    whole = torch.eye(length, device=steps[0][0].device)
    row = 0
    for step in steps:
        weights = step[layer][0].float().mean(0)
        whole[row : row + weights.shape[0], : weights.shape[1]] += weights
        row += weights.shape[0]
    return whole.div_(2)


def full_product(steps, length: int) -> torch.Tensor:
    """The literal A_L ... A_1 of full matrices; the generated tokens' rows of it."""
    product = whole_matrix(steps, 0)
    for layer in range(1, len(steps[0])):
        product = whole_matrix(steps, layer) @ product
    return product[length - 1 :].cpu()


def stored_rows(steps, length: int) -> torch.Tensor:
    """The same rows, carried as vectors from the last layer to the first."""
    rows = torch.eye(steps[-1][0].shape[-1], device=steps[0][0].device)[length - 1 :]
    for layer in reversed(range(len(steps[0]))):
        rows = rows @ whole_matrix(steps, layer)
    return rows.cpu()


def timed(model, way: str, length: int, config: Config) -> float:
    synchronise(config.device)
    start = time.perf_counter()
    generate(model, way, length, config)
    synchronise(config.device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(way: str, length: int, config: Config) -> tuple[float, float]:
    """(peak, peak above what the loaded model holds) in MB; run in a process of its own."""
    model = build(config)
    generate(model, "plain", 16, config)  # libraries take their workspaces at the first call
    if config.device != "cpu":
        held = torch.cuda.memory_allocated() / MEGABYTE
        torch.cuda.reset_peak_memory_stats()
        generate(model, way, length, config)
        peak = torch.cuda.max_memory_allocated() / MEGABYTE
        return peak, peak - held
    held = resident("VmRSS")
    generate(model, way, length, config)
    return resident("VmHWM"), resident("VmHWM") - held


def resident(field: str) -> float:
    """This process's resident size now (VmRSS) or at its highest (VmHWM), in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux keeps ru_maxrss across exec, so a child would start at its parent's peak; these belong to the process.
        return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def measure(model, length: int, config: Config) -> list[dict]:
    """One row per way at one prompt length; a way that runs out of memory has no figures."""
    ways = [way for way in WAYS if way == "plain" or way in config.ways]
    agree(model, ways, length, config)
    times = {way: [] for way in ways}
    for _ in tqdm(range(config.rounds), desc=f"T = {length}", unit="round"):
        for way in ways:
            times[way].append(attempt(timed, model, way, length, config))
    rows = []
    for way in ways:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
            peak, above = attempt(fresh.submit(peak_memory, way, length, config).result) or (None, None)
        seconds = None if None in times[way] else statistics.median(times[way])
        rows.append({"T": length, "way": way, "seconds": seconds, "peak_MB": peak, "above_model_MB": above})
    for row in rows:
        for base, way in (("plain", "plain"), ("eager", eager_of(row["way"]))):
            other = next((r for r in rows if r["way"] == way), {})
            for name, figure in (("time", "seconds"), ("memory", "peak_MB"), ("above", "above_model_MB")):
                row[f"{name}_to_{base}"] = row[figure] / other[figure] if row[figure] and other.get(figure) else None
    return rows


def eager_of(way: str) -> str:
    """The eager way that a way is compared with: for an intervention its own."""
    method = way.removeprefix("eager-")
    return f"eager-{method}" if method in steering.METHODS else "eager"


def attempt(call, *arguments):
    """The result of a call, or None where memory ran out (in a process of its own: where it was killed for it)."""
    try:
        return call(*arguments)
    except (torch.OutOfMemoryError, MemoryError, BrokenProcessPool):
        return None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch's CPU allocator has no exception of its own
            return None
        raise


def agree(model, ways: list[str], length: int, config: Config) -> None:
    """Warms every way up; raises RuntimeError unless those that should agree do, or the comparison means nothing."""
    results = {way: found for way in ways if (found := attempt(generate, model, way, length, config))}
    alike = [results[way][0] for way in RECORDING if way in results]
    if config.dtype == "float32" and any(not torch.equal(tokens, alike[0]) for tokens in alike):
        raise RuntimeError(f"T = {length}: the ways did not generate the same tokens")
    rollouts = [results[way][1] for way in RECORDING[2:] if way in results]
    gap = max((float((rows - rollouts[0]).abs().max()) for rows in rollouts), default=0.0)
    print(f"T = {length}: largest difference between {len(rollouts)} rollouts {gap:.1e}")
    if gap > TOLERANCE[config.dtype]:
        raise RuntimeError(f"T = {length}: the rollouts differ by {gap:.1e}, more than {TOLERANCE[config.dtype]}")
    for method in steering.METHODS:
        steers_alike(method, results, length, config)


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


def plot(rows: list[dict], title: str) -> Figure:
    """Time and memory against T, one line per way, both axes logarithmic; recording above, steering below."""
    measured = {row["way"] for row in rows}
    groups = [ways for ways in (RECORDING, ("plain", *WAYS[len(RECORDING) :])) if len(measured & set(ways)) > 1]
    groups = groups or [("plain",)]
    figure = Figure(figsize=(7, 3 * len(groups)), dpi=200, layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for ways, line in zip(groups, grid, strict=True):
        for axes, (name, label) in zip(line, FIGURES, strict=True):
            draw(axes, rows, ways, name)
            axes.set(ylabel=label)
    return figure


def draw(axes, rows: list[dict], ways: tuple[str, ...], name: str) -> None:
    """One figure of some ways against T."""
    for way in ways:
        points = [(row["T"], row[name]) for row in rows if row["way"] == way and row[name]]
        if points:
            style = "--" if way.startswith("eager-") else "-"
            axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=way)
    lengths = sorted({row["T"] for row in rows})
    axes.set(xscale="log", yscale="log", xlabel="prompt length T")
    axes.set_xticks(lengths, labels=[str(length) for length in lengths])
    axes.set_xticks([], minor=True)
    axes.grid(True, which="both", linewidth=0.4, alpha=0.4)
    axes.legend(fontsize=6)


def save(out_dir: Path, rows: list[dict], title: str) -> None:
    """The table so far; written after every length, so that a later failure loses nothing."""
    with writing(out_dir), open(out_dir / "cost.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with writing(out_dir):
        plot(rows, title).savefig(out_dir / "cost.png")


def main(config: Config) -> int:
    with command.setting_up():
        check(config)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.device))
    write_json(out_dir / "settings.json", {"flags": asdict(config), "torch": torch.__version__, "command": sys.argv})
    shape = f"{config.layers} layers, width {config.width}, {config.new_tokens} new tokens"
    title = f"{shape}, {config.device} {config.dtype}"
    model = build(config)
    rows = []
    for length in config.lengths:
        rows += measure(model, length, config)
        save(out_dir, rows, title)
    print(f"{title}, {config.threads} threads, torch {torch.__version__}\n{table(rows)}\nwritten to {out_dir}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
