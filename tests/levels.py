"""Instruction sets for which torch has kernels: which of them this processor has, and which one a test run uses.

`ATEN_CPU_CAPABILITY` makes torch use the kernels of a lower level than it would choose. Torch does not compare its
value with the processor, so a level that the processor lacks ends in an illegal instruction; `check` refuses it.

    python -m tests.levels      prints the levels of this processor below the one that torch chooses, one per line
"""

import functools
import os
import subprocess
import sys

NAME = "ATEN_CPU_CAPABILITY"
LEVELS = ("default", "avx2", "avx512")


@functools.cache
def supported():
    """The levels of this processor in rising order; torch chooses the last."""
    environment = {name: value for name, value in os.environ.items() if name != NAME}
    command = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"]
    chosen = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    return LEVELS[: LEVELS.index(chosen) + 1] if chosen in LEVELS else ("default",)  # other processors: one level


def check(asked):
    """ValueError for a value of ATEN_CPU_CAPABILITY that torch does not know or this processor does not have."""
    if asked not in LEVELS or asked not in supported():
        have = ", ".join(supported())
        raise ValueError(f"{NAME} is {asked!r}, but this processor has {have}; set one of them or none")


if __name__ == "__main__":
    *others, chosen = supported()
    for level in LEVELS[len(others) + 1 :]:
        print(f"level {level} is left out: this processor lacks it", file=sys.stderr)
    print(f"torch chooses level {chosen}; the numerical tests run again at: {', '.join(others)}", file=sys.stderr)
    print("\n".join(others))
