"""A sample that cannot be used, as opposed to a setting or a model that cannot work."""

from __future__ import annotations

from typing import NamedTuple


class SampleError(ValueError):
    """A sample that cannot be read, put to the model or measured.

    A run counts it under `reason`, a short phrase; the message (default: the reason) is a sentence for the user.
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message or reason)
        self.reason = reason


class Skip(NamedTuple):
    """A sample (or a whole shard) that cannot be used, and the reason."""

    id: str
    reason: str
