"""Errors of input, each with a reason code, errors of single samples, and the check of settings' minima."""

from __future__ import annotations

from typing import NamedTuple


class ReasonMixin:
    """`reason`: short code of the kind of error, such as "lora-adapter"; the message is a sentence for the user.

    Programs and tests check the code, which stays when the wording of the sentence changes.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class InputError(ReasonMixin, ValueError):
    """Input, setting or checkpoint that cannot be used."""


class MissingFileError(InputError, FileNotFoundError):
    """File, folder or data set that does not exist."""


class FlagError(InputError):
    """Value of a flag that cannot be used; `flag` is its name, such as "--batch-size"."""

    def __init__(self, flag: str, reason: str, message: str):
        super().__init__(reason, message)
        self.flag = flag


class PositionError(ReasonMixin, IndexError):
    """Layer, head, token or image that does not exist or was not recorded."""


class StateError(ReasonMixin, RuntimeError):
    """Call in a state that does not allow it, such as reading a trace before the model ran."""


def reason_of(error: Exception, otherwise: str) -> str:
    """Reason code of an error that another one wraps; `otherwise` for an error without a code."""
    return error.reason if isinstance(error, ReasonMixin) else otherwise


class SampleError(ValueError):
    """Sample that cannot be read, processed by the model or measured.

    A run counts it under `reason`, a short phrase; the message (default: the reason) is a sentence for the user.
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message or reason)
        self.reason = reason


def check_at_least(settings, **minimum: float) -> None:
    """Raise FlagError ("below-minimum") for a field of `settings` below its minimum; the message names the flag."""
    for name, bound in minimum.items():
        value, flag = getattr(settings, name), f"--{name.replace('_', '-')}"
        if not value >= bound:  # also true for NaN
            raise FlagError(flag, "below-minimum", f"{flag} {value} must be at least {bound}")


class Skip(NamedTuple):
    """Skipped sample or shard, with the reason."""

    id: str
    reason: str
