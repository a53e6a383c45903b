"""Instruction sets of torch's kernels that this processor supports, and the one that a test run uses.

`ATEN_CPU_CAPABILITY` selects kernels of a lower level than torch's default. Torch does not compare it with the
processor, so an unsupported level ends in an illegal instruction; `check` rejects it.

    python -m tests.levels      prints the supported levels below torch's default, one per line
"""

import functools
import os
import subprocess
import sys

NAME = "ATEN_CPU_CAPABILITY"
LEVELS = ("default", "avx2", "avx512")


@functools.cache
def supported():
    """Levels of this processor in rising order; the last is torch's default."""
    environment = {name: value for name, value in os.environ.items() if name != NAME}
    command = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"]
    chosen = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    return LEVELS[: LEVELS.index(chosen) + 1] if chosen in LEVELS else ("default",)  # other processors: one level


def check(level):
    """Raise ValueError for a value of ATEN_CPU_CAPABILITY that torch or this processor does not support."""
    if level not in LEVELS or level not in supported():
        have = ", ".join(supported())
        raise ValueError(f"{NAME} is {level!r}, but this processor has {have}; set one of them or none")


if __name__ == "__main__":
    *others, chosen = supported()
    for level in LEVELS[len(others) + 1 :]:
        print(f"level {level} is left out: this processor lacks it", file=sys.stderr)
    print(f"torch chooses level {chosen}; the numerical tests run again at: {', '.join(others)}", file=sys.stderr)
    print("\n".join(others))
