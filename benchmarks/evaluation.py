"""How many records a second does an evaluation answer: one by one, in batches, in two processes?

    python -m benchmarks.evaluation                                   (2 CPU cores, the embedded model)
    python -m benchmarks.evaluation --model CHECKPOINT --device cuda --dtype bfloat16 --batch-sizes 1 8 32

What evaluate.py does for a record is done here: its pictures are read, the question is answered, the line is written
and on disk. Each way answers the same records in each of several rounds, in turn, so that a slow moment of the machine
hits all alike; the medians are reported, and their ratio to one record at a time in the same run. The two processes
have half of the records each, in the largest batch, and the slower one counts; loading is not counted. Prints a table
and writes evaluation.csv. The run fails if the ways do not answer alike; in half precision, where a batch may round
otherwise, it says how many answers differ.
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
from analysis.runs import default_out_dir, refuse_existing, write_table
from data import spatial_qa, twoshapes_qa
from models.answering import Decoding, ModelAsked
from models.loading import locate, read_config

PROCESSES = 2


@dataclass(frozen=True)
class Config:
    model: str = "tiny-qwen2.5-vl"
    """Embedded model, folder, or hub id."""
    records: int = 80
    """Records of the generated set that each way answers."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Records answered together."""
    rounds: int = 5
    """Timed rounds; the median is reported."""
    max_new_tokens: int = 32
    """Longest answer, in tokens."""
    device: str = "cpu"
    """cpu | cuda (the second process takes the second GPU where there is one)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type of the model."""
    threads: int = 1
    """CPU threads of a process."""
    out_dir: str | None = None
    """New or empty folder (default: results/evaluation/<model>-<date>)."""


def check(config: Config) -> None:
    """Raises ValueError for a run that measures nothing."""
    counts = (config.records, config.rounds, config.threads, config.max_new_tokens)
    if not config.batch_sizes or min(*config.batch_sizes, *counts) < 1:
        raise ValueError("--batch-sizes, --records, --rounds, --threads and --max-new-tokens must be at least 1")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch sees no GPU; use cpu")
    read_config(locate(config.model), config.model, None)


class Worker:
    """One process of an evaluation, with its model loaded."""

    def __init__(self, number: int, config: Config, data_root: str):
        torch.set_num_threads(config.threads)
        gpu = f"cuda:{number % max(torch.cuda.device_count(), 1)}"
        device = gpu if config.device == "cuda" else config.device
        model, processor = models.load(config.model, device=device, dtype=config.dtype)
        self.asker = ModelAsked(model, processor, Decoding(config.max_new_tokens))
        self.questions, _ = spatial_qa.read("blink", data_root, config.records)
        self.folder = Path(data_root)
        self.number = number

    def answer(self, share: slice, size: int) -> tuple[float, list[str]]:
        """Seconds for a share of the records in batches, and the answers."""
        questions, said = self.questions[share], []
        part = Part(self.folder / f"part-{self.number}.jsonl")
        started = time.perf_counter()
        for first in range(0, len(questions), size):
            batch = questions[first : first + size]
            ids, prompts = [each.id for each in batch], [each.prompt for each in batch]
            replies = self.asker.ask(ids, prompts, [each.pictures() for each in batch])
            part.append({"id": name, "prediction": reply.text} for name, reply in zip(ids, replies, strict=True))
            said += [reply.text for reply in replies]
        seconds = time.perf_counter() - started
        part.close()
        return seconds, said


def serve(number: int, config: Config, data_root: str, connection: Connection) -> None:
    """A worker in a process of its own: answers each (share, batch size) that it is sent, until it is sent None."""
    worker = Worker(number, config, data_root)
    while (task := connection.recv()) is not None:
        connection.send(worker.answer(*task))


def alone(workers: Sequence[Connection], size: int) -> tuple[float, list[str]]:
    """Seconds and answers of all records in one process."""
    workers[0].send((slice(None), size))
    return workers[0].recv()


def together(workers: Sequence[Connection], size: int) -> tuple[float, list[str]]:
    """Seconds of the slower process, and the answers of both, as they were shared out."""
    for rank, worker in enumerate(workers):
        worker.send((slice(rank, None, len(workers)), size))
    found = [worker.recv() for worker in workers]
    said = [""] * sum(len(answers) for _, answers in found)
    for rank, (_, answers) in enumerate(found):
        said[rank :: len(workers)] = answers
    return max(seconds for seconds, _ in found), said


@contextmanager
def started(config: Config, data_root: str) -> Iterator[list[Connection]]:
    """The processes, one connection to each; they end with the block."""
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
            worker.close()  # a worker that waits for its next task then ends, too
        for process in processes:
            process.join(60)


def measure(config: Config, data_root: str) -> dict[str, float]:
    """Median records a second of each way. Raises RuntimeError where two ways do not answer alike in float32, EOFError
    or ConnectionError where a process ends before its time."""
    ways = {f"batch {size}": partial(alone, size=size) for size in config.batch_sizes}
    largest = max(config.batch_sizes)
    ways[f"batch {largest}, {PROCESSES} processes"] = partial(together, size=largest)
    seconds, answers = {way: [] for way in ways}, None
    with started(config, data_root) as workers:
        for turn in tqdm(range(1 + config.rounds), unit="round"):  # the first one loads and warms up
            for way, run in ways.items():
                taken, said = run(workers)
                answers = answers or said
                if turn:
                    seconds[way].append(taken)
                if differing := sum(one != other for one, other in zip(answers, said, strict=True)):
                    sentence = f"{way} answers {differing} of {len(said)} records otherwise"
                    if config.dtype == "float32":
                        raise RuntimeError(sentence)
                    tqdm.write(sentence)
    return {way: config.records / statistics.median(taken) for way, taken in seconds.items()}


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
            return command.stop("a process ended before it had answered; why stands above", command.NOTHING_USABLE)
    first = next(iter(rates.values()))
    for way, rate in rates.items():
        print(f"{way:24} {rate:8.1f} records a second, {rate / first:5.2f} x {next(iter(rates))}")
    counts = {"records": config.records, "rounds": config.rounds}
    rows = [
        {"way": way, "records_per_second": round(rate, 2), "ratio": round(rate / first, 3), **counts}
        for way, rate in rates.items()
    ]
    write_table(out_dir / "evaluation.csv", rows)
    print(f"{config.records} records, medians of {config.rounds} rounds; results in {out_dir}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
