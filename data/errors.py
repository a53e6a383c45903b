"""Errors of single samples, which a run skips and counts, and of settings below their minimum."""

from __future__ import annotations

from typing import NamedTuple


class SampleError(ValueError):
    """Sample that cannot be read, processed by the model or measured.

    A run counts it under `reason`, a short phrase; the message (default: the reason) is a sentence for the user.
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message or reason)
        self.reason = reason


def check_at_least(settings, **minimum: float) -> None:
    """Raise ValueError for a field of `settings` below its minimum; the message names the flag."""
    for name, bound in minimum.items():
        value = getattr(settings, name)
        if not value >= bound:  # also true for NaN
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {bound}")


class Skip(NamedTuple):
    """Skipped sample or shard, with the reason."""

    id: str
    reason: str
