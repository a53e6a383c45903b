"""Check of refused input by the class and the reason code of its error, independent of the sentence's wording."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from data.errors import InputError


@contextmanager
def refused(reason: str, kind: type[Exception] = InputError) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error of class `kind` with this `reason`; gives pytest's information of it."""
    with pytest.raises(kind) as error:
        yield error
    assert error.value.reason == reason, f"{error.value.reason!r} instead of {reason!r}: {error.value}"
