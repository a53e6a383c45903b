"""Throughput of an evaluation in records per second: one at a time, in batches, in two processes.

    python -m benchmarks.evaluation                                   (2 CPU cores, the embedded model)
    python -m benchmarks.evaluation --model CHECKPOINT --device cuda --dtype bfloat16 --batch-sizes 1 8 32

Each record goes through the steps of evaluate.py: images are read, the answer is generated, the line is written and
flushed to disk. Every round runs all conditions on the same records, so that a slow phase of the machine affects all of
them; the table has the medians and their ratios to the first condition. Two processes have half of the records
each, in the largest batch, and the slower one counts; loading is excluded. Prints a table and writes evaluation.csv.
The run fails if two conditions give different answers in float32; in half precision, where rounding depends on the
batch, it prints the number of different answers.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import models
from analysis import command
from analysis.evaluation import Part
from analysis.files import write_table
from analysis.runs import default_out_dir, refuse_existing
from data import spatial_qa, twoshapes_qa
from models.answering import Decoding, ModelBackend
from models.loading import locate, read_config

PROCESSES = 2


@dataclass(frozen=True)
class Config:
    model: str = "tiny-qwen2.5-vl"
    """Embedded model, folder, or hub id."""
    records: int = 80
    """Records of the generated set per condition."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Batch sizes, one condition each."""
    rounds: int = 5
    """Timed rounds; the median is reported."""
    max_new_tokens: int = 32
    """Max new tokens of an answer."""
    device: str = "cpu"
    """cpu | cuda (the second process uses the second GPU where there is one)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the model."""
    threads: int = 1
    """CPU threads per process."""
    out_dir: str | None = None
    """New or empty folder (default: results/evaluation/<model>-<date>)."""


def check(config: Config) -> None:
    """Raise ValueError for a run that measures nothing."""
    counts = (config.records, config.rounds, config.threads, config.max_new_tokens)
    if not config.batch_sizes or min(*config.batch_sizes, *counts) < 1:
        raise ValueError("--batch-sizes, --records, --rounds, --threads and --max-new-tokens must be at least 1")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda is set, but torch finds no GPU; use cpu")
    read_config(locate(config.model), config.model, None)


class Worker:
    """One process of an evaluation with a loaded model."""

    def __init__(self, number: int, config: Config, data_root: str):
        torch.set_num_threads(config.threads)
        gpu = f"cuda:{number % max(torch.cuda.device_count(), 1)}"
        device = gpu if config.device == "cuda" else config.device
        model, processor = models.load(config.model, device=device, dtype=config.dtype)
        self.backend = ModelBackend(model, processor, Decoding(config.max_new_tokens))
        self.questions, _ = spatial_qa.read("blink", data_root, config.records)
        self.folder = Path(data_root)
        self.number = number

    def answer(self, share: slice, size: int) -> tuple[float, list[str]]:
        """Answer a share of the records in batches of `size`: (seconds, answers)."""
        questions, answers = self.questions[share], []
        part = Part(self.folder / f"part-{self.number}.jsonl")
        started = time.perf_counter()
        for first in range(0, len(questions), size):
            batch = questions[first : first + size]
            ids, prompts = [question.id for question in batch], [question.prompt for question in batch]
            replies = self.backend.answer(ids, prompts, [question.load_images() for question in batch])
            part.append({"id": name, "prediction": reply.text} for name, reply in zip(ids, replies, strict=True))
            answers += [reply.text for reply in replies]
        seconds = time.perf_counter() - started
        part.close()
        return seconds, answers


def serve(number: int, config: Config, data_root: str, connection: Connection) -> None:
    """Run a worker in its own process: answer each (share, batch size) received, until None is received."""
    worker = Worker(number, config, data_root)
    while (task := connection.recv()) is not None:
        connection.send(worker.answer(*task))


def run_one(workers: Sequence[Connection], size: int) -> tuple[float, list[str]]:
    """Answer all records in one process: (seconds, answers)."""
    workers[0].send((slice(None), size))
    return workers[0].recv()


def run_all(workers: Sequence[Connection], size: int) -> tuple[float, list[str]]:
    """Share the records among all processes: (seconds of the slowest, answers in the order of the records)."""
    for rank, worker in enumerate(workers):
        worker.send((slice(rank, None, len(workers)), size))
    results = [worker.recv() for worker in workers]
    merged = [""] * sum(len(answers) for _, answers in results)
    for rank, (_, answers) in enumerate(results):
        merged[rank :: len(workers)] = answers
    return max(seconds for seconds, _ in results), merged


@contextmanager
def started(config: Config, data_root: str) -> Iterator[list[Connection]]:
    """Start the processes and yield one connection to each; they end with the block."""
    spawn, workers, processes = multiprocessing.get_context("spawn"), [], []
    try:
        for number in range(PROCESSES):
            here, there = spawn.Pipe()
            processes.append(spawn.Process(target=serve, args=(number, config, data_root, there), daemon=True))
            processes[-1].start()
            there.close()
            workers.append(here)
        yield workers
        for worker in workers:
            worker.send(None)
    finally:
        for worker in workers:
            worker.close()  # a worker that waits for a task ends on the closed connection
        for process in processes:
            process.join(60)


def measure(config: Config, data_root: str) -> dict[str, float]:
    """Median records per second of each condition. Raises RuntimeError if two conditions give different answers in
    float32, EOFError or ConnectionError if a process ends early."""
    variants = {f"batch {size}": partial(run_one, size=size) for size in config.batch_sizes}
    largest = max(config.batch_sizes)
    variants[f"batch {largest}, {PROCESSES} processes"] = partial(run_all, size=largest)
    seconds, reference = {variant: [] for variant in variants}, None
    with started(config, data_root) as workers:
        for number in tqdm(range(1 + config.rounds), unit="round"):  # round 0 loads and warms up
            for variant, run in variants.items():
                taken, answers = run(workers)
                reference = reference or answers
                if number:
                    seconds[variant].append(taken)
                if differing := sum(one != other for one, other in zip(reference, answers, strict=True)):
                    sentence = f"{variant}: {differing} of {len(answers)} answers differ from the first condition's"
                    if config.dtype == "float32":
                        raise RuntimeError(sentence)
                    tqdm.write(sentence)
    return {variant: config.records / statistics.median(taken) for variant, taken in seconds.items()}


def main(config: Config) -> int:
    with command.setting_up():
        check(config)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
    with tempfile.TemporaryDirectory() as folder:
        data_root = str(Path(folder, "set"))
        twoshapes_qa.generate(data_root, config.records, seed=0)
        try:
            rates = measure(config, data_root)
        except (EOFError, ConnectionError):
            return command.stop("a process ended early; its error is above", command.NOTHING_USABLE)
    first = next(iter(rates.values()))
    for variant, rate in rates.items():
        print(f"{variant:24} {rate:8.1f} records per second, {rate / first:5.2f} x {next(iter(rates))}")
    counts = {"records": config.records, "rounds": config.rounds}
    rows = [
        {"way": variant, "records_per_second": round(rate, 2), "ratio": round(rate / first, 3), **counts}
        for variant, rate in rates.items()
    ]
    write_table(out_dir / "evaluation.csv", rows)
    print(f"{config.records} records, medians of {config.rounds} rounds; results in {out_dir}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
