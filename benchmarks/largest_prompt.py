"""Longest prompt within a memory limit above the weights, for this project's rollout and for the eager one.

    python -m benchmarks.largest_prompt
    python -m benchmarks.largest_prompt --limit-mb 1024

Each probe measures the peak above the loaded model of one generation in a fresh process. The next length extrapolates
the measured growth to the limit; the search ends with a length that fills the limit to 95 %, or after ten probes.
Prints every probe and the ratio of the lengths; writes largest.json.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Literal

from analysis import command
from analysis.files import write_json
from analysis.runs import default_out_dir, refuse_existing
from benchmarks import attention_cost as cost
from benchmarks.budget import peak_memory
from benchmarks.decoders import Setup, Shape, generate

FIRST = (1024, 2048)  # lengths of the first two probes
STEP = 64  # lengths are multiples of this
FULL = 0.95  # share of the limit at which the search ends
PROBES = 10


@dataclass(frozen=True)
class Config(Setup):
    limit_mb: float = 4096.0
    """Memory limit above the weights, in MB of 2^20 bytes."""
    ways: tuple[Literal["plain", "recording", "rollout", "eager-rows", "eager"], ...] = ("eager", "rollout")
    """Conditions to find the longest prompt of."""
    shape: Shape = "llava"
    """Attention of the random decoder."""
    out_dir: str | None = None
    """New or empty folder (default: results/largest_prompt/<device>-<date>)."""

    def decoder(self) -> cost.Config:
        shared = {field.name: getattr(self, field.name) for field in fields(Setup)}
        return cost.Config(lengths=FIRST, ways=("plain",), shapes=(self.shape,), **shared)


def largest(need: Callable[[int], float | None], limit: float) -> int | None:
    """Longest prompt length in tokens with need(length) <= limit (MB); fills at least 95 % of the limit where it can.

    need returns None where memory ran out. Growth is a power of T through the two longest measured lengths. Returns
    None if not even the shortest length fits.
    """
    used = {length: need(length) for length in FIRST}
    while len(used) < PROBES:
        fits = longest(used, limit)
        if fits is None or used[fits] >= FULL * limit:
            break
        beyond = min((length for length in used if length > fits), default=math.inf)
        length = next_length(used, limit, fits, beyond)
        if length <= fits:
            break
        used[length] = need(length)
    return longest(used, limit)


def longest(used: dict[int, float | None], limit: float) -> int | None:
    """Longest measured length within the limit; None for none."""
    return max((length for length, peak in used.items() if peak is not None and peak <= limit), default=None)


def next_length(used: dict[int, float | None], limit: float, fits: int, beyond: float) -> int:
    """Length of the next probe, between one that fits and one that does not."""
    known = sorted((length, max(peak, 1.0)) for length, peak in used.items() if peak is not None)[-2:]
    guess = beyond
    if len(known) == 2:
        (short, less), (long, more) = known
        power = max(0.5, math.log(more / less) / math.log(long / short))
        guess = long * (0.98 * limit / more) ** (1 / power)
    if guess >= beyond:
        guess = (fits + beyond) / 2 if math.isfinite(beyond) else 2 * fits
    return int(guess // STEP) * STEP


def main(config: Config) -> int:
    with command.setting_up():
        cost.check(config.decoder())
        if config.limit_mb <= 0 or not config.ways:
            raise ValueError(f"--limit-mb {config.limit_mb} must be above 0, and --ways must name one")
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.device))
    prepare = partial(cost.build_warm, config.decoder(), config.shape)
    probes, lengths = [], {}
    for variant in config.ways:

        def need(length: int, variant: str = variant) -> float | None:
            peaks = peak_memory(
                prepare, partial(generate, variant=variant, length=length, new_tokens=config.new_tokens)
            )
            above = peaks and peaks[1]
            print(
                f"{variant}, T = {length}: " + ("out of memory" if above is None else f"{above:.0f} MB above the model")
            )
            probes.append({"way": variant, "T": length, "above_model_MB": above})
            return above

        lengths[variant] = largest(need, config.limit_mb)
    write_json(
        out_dir / "largest.json",
        {"flags": asdict(config), "command": sys.argv, "longest": lengths, "probes": probes},
    )
    print(f"longest prompt within {config.limit_mb:.0f} MB above the weights: {lengths}")
    if lengths.get("eager") and lengths.get("rollout"):
        print(f"rollout / eager: {lengths['rollout'] / lengths['eager']:.1f}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
