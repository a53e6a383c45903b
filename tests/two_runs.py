"""Start two runs of evaluate.py in one new folder: a program, also for tests/test_evaluate_processes.py.

    python -m tests.two_runs FOLDER TRIES [OFFSET ...]

Generates its data in FOLDER. Each run loads the model itself, during which another run could start undetected. Per
offset (seconds; default 0 0.2 0.5 1 3) and try, two processes with different --method start that long after each other.
One of each pair must be refused with a one-line message and status 2, and the folder must contain the other's answers,
with its method and equal to those of a single run. The parent does not use torch, since a child would inherit its
thread pool, which does not survive a fork. Prints the outcome of each pair, then the counts as JSON; the exit status is
1 if a pair failed.
"""

import json
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import evaluate
from tests.evaluation import generated, predictions
from tests.settings import changed, configure

OFFSETS = (0, 0.2, 0.5, 1, 3)


def main(folder: Path, tries: int, offsets: tuple[float, ...]) -> int:
    config = configure(evaluate, dataset="blink", data_root=generated(folder), batch_size=2, max_new_tokens=6)
    configs = [config, changed(config, method="adapt-vis", adapt_threshold=0.95)]
    alone = {}
    for each in configs:
        method = each.steering.method
        wait, errors = start(each, folder / method)
        status = wait()
        if status != 0:
            raise SystemExit(f"the run alone with --method {method} ended with {status}: {errors.read_text()}")
        alone[method] = predictions(folder / method)
    assert len(set(alone.values())) == len(configs), "the methods answer alike, so a mixture would not show"
    counts = Counter()
    for offset in offsets:
        for number in range(tries):
            fault, first = pair(configs, alone, folder / f"{offset}-{number}", offset)
            print(f"{offset} s, try {number}: {fault or f'one refused, the folder is of {first}'}", flush=True)
            counts[fault or "one refused"] += 1
    print(json.dumps(counts))
    return int(counts.keys() != {"one refused"})


def pair(configs, alone: dict[str, bytes], out_dir: Path, offset: float) -> tuple[str, str]:
    """(fault, "" for none; method of the accepted run) of two runs with the same `out_dir`."""
    runs = []
    for config in configs:
        runs.append(start(config, out_dir))
        time.sleep(offset if len(runs) == 1 else 0)
    ends = [(wait(), errors.read_text()) for wait, errors in runs]
    statuses = [status for status, _ in ends]
    if sorted(statuses) != [0, 2]:
        return f"statuses {statuses}: {ends}", ""
    refusal, method = ends[statuses.index(2)][1], configs[statuses.index(0)].steering.method
    if not (refusal.startswith("error: ") and refusal.count("\n") == 1):
        return f"the refusal is not one sentence: {refusal!r}", method
    if json.loads((out_dir / "settings.json").read_text())["flags"]["method"] != method:
        return "mislabelled", method
    if predictions(out_dir) != alone[method]:
        return "answers of the other method", method
    return "", method


def start(config: evaluate.Config, out_dir: Path):
    """Start a run in a child process: (function that waits for its exit status, file of its stderr)."""
    errors = out_dir.with_name(f"{out_dir.name}-{config.steering.method}.txt")
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        try:
            status = evaluate.main(changed(config, out_dir=str(out_dir)))
        except SystemExit as end:
            status = end.code
        except BaseException:  # a child must not continue in the parent's code
            traceback.print_exc()
            status = 1
        sys.stderr.flush()
        os._exit(status)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), errors


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), tuple(map(float, sys.argv[3:])) or OFFSETS))
