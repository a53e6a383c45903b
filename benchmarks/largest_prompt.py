"""How long a prompt fits into so much memory above the weights, rolled out our way and the eager way?

    python -m benchmarks.largest_prompt
    python -m benchmarks.largest_prompt --limit-mb 1024

Each probe is a generation in a fresh process, whose peak above the loaded model is measured. The next length is where
the growth seen so far would meet the limit; the search ends with a length that fits and fills it to 95 %, or after
ten probes. Prints every probe, and the ratio of the lengths; writes largest.json.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Literal

from analysis import command
from analysis.runs import default_out_dir, refuse_existing, write_json
from benchmarks import attention_cost as cost
from benchmarks.decoders import Setup, Shape, peak_memory
from benchmarks.ways import generate

FIRST = (1024, 2048)  # lengths to see the growth from
STEP = 64  # lengths are multiples of this
FULL = 0.95  # of the limit: near enough
PROBES = 10


@dataclass(frozen=True)
class Config(Setup):
    limit_mb: float = 4096.0
    """Memory that may be taken above the weights."""
    ways: tuple[Literal["plain", "recording", "rollout", "eager-rows", "eager"], ...] = ("eager", "rollout")
    """Whose longest prompt to find."""
    shape: Shape = "llava"
    """Whose attention the random decoder has."""
    out_dir: str | None = None
    """New or empty folder (default: results/largest_prompt/<device>-<date>)."""

    def decoder(self) -> cost.Config:
        shared = {each.name: getattr(self, each.name) for each in fields(Setup)}
        return cost.Config(lengths=FIRST, ways=("plain",), shapes=(self.shape,), **shared)


def largest(need: Callable[[int], float | None], limit: float) -> int | None:
    """The longest prompt, in tokens, whose need(length) in MB stays within the limit, and fills 95 % of it if it can.

    need is None where memory ran out. Growth is read off the two longest lengths that were measured, as a power of T.
    Returns None where not even the shortest fits.
    """
    found = {length: need(length) for length in FIRST}
    while len(found) < PROBES:
        fits = longest(found, limit)
        if fits is None or found[fits] >= FULL * limit:
            break
        beyond = min((length for length in found if length > fits), default=math.inf)
        length = following(found, limit, fits, beyond)
        if length <= fits:
            break
        found[length] = need(length)
    return longest(found, limit)


def longest(found: dict[int, float | None], limit: float) -> int | None:
    """The longest of the measured lengths that stayed within the limit."""
    return max((length for length, used in found.items() if used is not None and used <= limit), default=None)


def following(found: dict[int, float | None], limit: float, fits: int, beyond: float) -> int:
    """The next length to try, between one that fits and one that does not."""
    known = sorted((t, max(used, 1.0)) for t, used in found.items() if used is not None)[-2:]
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
    prepare = partial(cost.warmed, config.decoder(), config.shape)
    probes, found = [], {}
    for way in config.ways:

        def need(length: int, way: str = way) -> float | None:
            peaks = peak_memory(prepare, partial(generate, way=way, length=length, new_tokens=config.new_tokens))
            used = peaks and peaks[1]
            print(f"{way}, T = {length}: " + ("out of memory" if used is None else f"{used:.0f} MB above the model"))
            probes.append({"way": way, "T": length, "above_model_MB": used})
            return used

        found[way] = largest(need, config.limit_mb)
    write_json(
        out_dir / "largest.json",
        {"flags": asdict(config), "command": sys.argv, "longest": found, "probes": probes},
    )
    print(f"longest prompt within {config.limit_mb:.0f} MB above the weights: {found}")
    if found.get("eager") and found.get("rollout"):
        print(f"rollout / eager: {found['rollout'] / found['eager']:.1f}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
