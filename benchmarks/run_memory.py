"""Peak memory of a run by its number of samples: results are stored one by one, so it hardly grows.

    python -m benchmarks.run_memory                                              (minutes)
    python -m benchmarks.run_memory --script attention_rollout_llava.py --counts 50 200

Each run is a separate process, in a temporary folder; the embedded models generate at most two tokens.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    """Measure the peak memory of runs of a script."""

    script: str = "text_only_llm_analysis_llava.py"
    counts: tuple[int, ...] = (50, 200, 400)
    """Numbers of samples."""


def main(config: Config) -> int:
    flags = ["--max-new-tokens", "2"] if "rollout" in config.script else []
    for count in config.counts:
        with tempfile.TemporaryDirectory() as here:
            command = [sys.executable, str(ROOT / config.script), *flags, "--limit", str(count), "--out-dir", "run"]
            with open(os.devnull, "w") as nowhere:
                process = subprocess.Popen(command, cwd=here, stdout=nowhere, stderr=nowhere)
                _, status, usage = os.wait4(process.pid, 0)
            if status:
                print(f"error: {config.script} with {count} samples ended with status {status}", file=sys.stderr)
                return 1
            print(f"{config.script} {count:5} samples: peak {usage.ru_maxrss / 1024:.0f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
