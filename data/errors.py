"""Errors: a sample that cannot be used, and a setting below its least value."""

from __future__ import annotations

from typing import NamedTuple


class SampleError(ValueError):
    """A sample that cannot be read, put to the model or measured.

    A run counts it under `reason`, a short phrase; the message (default: the reason) is a sentence for the user.
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message or reason)
        self.reason = reason


def check_at_least(settings, **least: float) -> None:
    """Raise ValueError for a field of `settings` below its least value; the message names the flag."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if not value >= bound:  # NaN is below, too
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {bound}")


class Skip(NamedTuple):
    """A sample (or a whole shard) that cannot be used, and the reason."""

    id: str
    reason: str
