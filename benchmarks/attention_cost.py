"""What do recorded attention and exact rollout cost, next to plain generation and next to stored matrices?

    python -m benchmarks.attention_cost                       (2 CPU cores: about 3 minutes)
    python -m benchmarks.attention_cost --device cuda --dtype bfloat16 --lengths 640 4096 16384

Four ways to generate the same tokens with the same random decoder: `plain` SDPA; `recording` queries; recording and
`rollout` of every generated token; and `eager`, the common way: output_attentions, every matrix stored, full T x T
product. Times are medians over rounds that take turns, so that a slow moment of the machine hits all alike; peak memory
is measured in a fresh process each (resident size on a CPU, the allocator's own count on a GPU). Prints a table, writes
cost.csv and cost.png.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from analysis import command
from analysis.results import default_out_dir, refuse_existing, write_json, writing
from analysis.rollout import rollout
from models.trace import AttentionTrace

WAYS = ("plain", "recording", "rollout", "eager")
MEGABYTE = 2**20


@dataclass(frozen=True)
class Config:
    lengths: tuple[int, ...] = (640, 4096)
    """Prompt lengths T, in tokens."""
    ways: tuple[str, ...] = WAYS
    """Which of plain, recording, rollout, eager; plain is always measured."""
    new_tokens: int = 16
    """Tokens to generate."""
    layers: int = 8
    """Layers of the random decoder."""
    width: int = 512
    """Its hidden size; the head width is 64."""
    key_heads: int = 8
    """Its key heads; fewer than width / 64 makes it grouped-query."""
    rounds: int = 5
    """Timed rounds; the median is reported."""
    device: str = "cpu"
    """cpu | cuda."""
    dtype: str = "float32"
    """float32 | bfloat16."""
    threads: int = 2
    """CPU threads."""
    out_dir: str | None = None
    """New or empty folder (default: results/attention_cost/<device>-<date>)."""


def build(config: Config):
    """The random decoder, its queries scaled up so that attention is as uneven as a trained model's."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    heads = config.width // 64
    settings = LlamaConfig(
        vocab_size=1000,
        hidden_size=config.width,
        intermediate_size=config.width * 8 // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        num_key_value_heads=config.key_heads,
        max_position_embeddings=2**17,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
    )
    model = LlamaForCausalLM(settings).eval().to(config.device, getattr(torch, config.dtype))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 4
    return model


@torch.no_grad()
def generate(model, way: str, length: int, config: Config):
    """Runs one way on the same prompt; returns the rollout rows [token, key], where the way makes some."""
    prompt = torch.randint(0, 1000, (1, length), generator=torch.Generator().manual_seed(1)).to(model.device)
    options = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": config.new_tokens,
        "min_new_tokens": config.new_tokens,
        "do_sample": False,
    }
    if way == "plain":
        model.generate(prompt, **options)
        return None
    if way == "eager":
        model.set_attn_implementation("eager")
        output = model.generate(prompt, output_attentions=True, return_dict_in_generate=True, **options)
        model.set_attn_implementation("sdpa")
        return stored_rollout(output.attentions)[length - 1 :].cpu()
    with AttentionTrace(model) as trace:
        model.generate(prompt, **options)
    return rollout(trace, SimpleNamespace(sample=0)).relevance if way == "rollout" else None


def stored_rollout(steps) -> torch.Tensor:
    """The literal product of full matrices [key, key], from `output_attentions` of prefill and decode steps."""
    length = steps[-1][0].shape[-1]
    product = torch.eye(length, device=steps[0][0].device)
    for layer in range(len(steps[0])):
        whole = torch.zeros(length, length, device=product.device)
        row = 0
        for step in steps:
            weights = step[layer][0].float().mean(0)
            whole[row : row + weights.shape[0], : weights.shape[1]] = weights
            row += weights.shape[0]
        product = ((whole + torch.eye(length, device=product.device)) / 2) @ product
    return product


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
    if config.device != "cpu":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        generate(model, way, length, config)
        peak = torch.cuda.max_memory_allocated()
        return peak / MEGABYTE, (peak - held) / MEGABYTE
    generate(model, "plain", 16, config)
    held = peak_resident()
    generate(model, way, length, config)
    return peak_resident(), peak_resident() - held


def peak_resident() -> float:
    """Highest resident size of this process so far, in MB."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE
    # Linux keeps ru_maxrss across exec, so a child would start at its parent's peak; VmHWM belongs to the process.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def measure(config: Config) -> list[dict]:
    """One row per length and way: seconds, peak memory, both as ratios to plain and to eager."""
    model = build(config)
    spawn = multiprocessing.get_context("spawn")
    ways = tuple(way for way in WAYS if way == "plain" or way in config.ways)
    rows = []
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as fresh:
        for length in config.lengths:
            times = {way: [] for way in ways}
            for number in tqdm(range(config.rounds + 1), desc=f"T = {length}"):
                for way in ways:
                    seconds = timed(model, way, length, config)
                    if number:  # the first round warms up
                        times[way].append(seconds)
            memory = {way: fresh.submit(peak_memory, way, length, config).result() for way in ways}
            for way in ways:
                rows.append(
                    {
                        "T": length,
                        "way": way,
                        "seconds": statistics.median(times[way]),
                        "peak_MB": memory[way][0],
                        "above_model_MB": memory[way][1],
                    }
                )
            check_agreement(model, length, config, ways)
    for row in rows:
        for base in ("plain", "eager"):
            other = next((r for r in rows if r["T"] == row["T"] and r["way"] == base), None)
            row[f"time_to_{base}"] = row["seconds"] / other["seconds"] if other else None
            row[f"memory_to_{base}"] = row["peak_MB"] / other["peak_MB"] if other else None
    return rows


def check_agreement(model, length: int, config: Config, ways) -> None:
    """Both rollouts are the same numbers, or the comparison means nothing."""
    if not {"rollout", "eager"} <= set(ways):
        return
    ours, stored = (generate(model, way, length, config) for way in ("rollout", "eager"))
    gap = float((ours - stored).abs().max())
    print(f"T = {length}: largest difference between the two rollouts {gap:.1e}")


def table(rows: list[dict]) -> str:
    head = ["T", "way", "seconds", "peak_MB", "above_model_MB"]
    head += ["time_to_plain", "memory_to_plain", "time_to_eager", "memory_to_eager"]
    cells = [head] + [[shown(row[name]) for name in head] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def shown(value) -> str:
    return (
        "-"
        if value is None
        else f"{value:.3g}"
        if isinstance(value, float) and value < 10
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )


def plot(rows: list[dict], title: str) -> Figure:
    """Time and memory against T, one line per way, both axes logarithmic."""
    figure = Figure(figsize=(7, 3), dpi=200, layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes, (name, label) in zip(
        figure.subplots(1, 2),
        (("seconds", "seconds"), ("above_model_MB", "peak memory above the model, MB")),
        strict=True,
    ):
        for way in WAYS:
            points = [(row["T"], row[name]) for row in rows if row["way"] == way]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=way)
        axes.set(xscale="log", yscale="log", xlabel="prompt length T", ylabel=label)
        axes.grid(True, which="both", linewidth=0.4, alpha=0.4)
        axes.legend(fontsize=8)
    return figure


def main(config: Config) -> int:
    with command.setting_up():
        if unknown := set(config.ways) - set(WAYS):
            raise ValueError(f"unknown ways {sorted(unknown)}; choose from {', '.join(WAYS)}")
        if config.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"device {config.device!r} was asked for, but torch sees no GPU; use cpu")
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.device))
    rows = measure(config)
    title = (
        f"{config.layers} layers, width {config.width}, {config.new_tokens} new tokens, {config.device} {config.dtype}"
    )
    print(f"{title}, {config.threads} threads, torch {torch.__version__}\n{table(rows)}")
    with writing(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        with open(out_dir / "cost.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        plot(rows, title).savefig(out_dir / "cost.png")
    write_json(out_dir / "settings.json", {"flags": asdict(config), "torch": torch.__version__})
    print(f"written to {out_dir}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
