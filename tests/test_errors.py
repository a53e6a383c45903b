"""Classes and reason codes of errors, and the check of settings' minima."""

from types import SimpleNamespace

import pytest

from data.errors import (
    FlagError,
    InputError,
    MissingFileError,
    PositionError,
    SampleError,
    StateError,
    check_at_least,
    reason_of,
)
from tests.errors import refused


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (InputError, (ValueError,)),
        (MissingFileError, (InputError, FileNotFoundError)),
        (PositionError, (IndexError,)),
        (StateError, (RuntimeError,)),
    ],
)
def test_an_error_has_a_code_and_a_sentence(kind, bases):
    error = kind("a-code", "a sentence")
    assert (error.reason, str(error)) == ("a-code", "a sentence") and all(isinstance(error, base) for base in bases)


def test_minimum_names_the_flag():
    check_at_least(SimpleNamespace(batch_size=1), batch_size=1)
    for value in (0, float("nan")):
        with refused("below-minimum", FlagError) as error:
            check_at_least(SimpleNamespace(batch_size=value), batch_size=1)
        assert error.value.flag == "--batch-size"
        assert str(error.value) == f"--batch-size {value} must be at least 1"


def test_code_of_a_wrapped_error():
    """A phrase of SampleError is no code."""
    assert reason_of(InputError("a-code", "a sentence"), "other") == "a-code"
    assert reason_of(SampleError("a phrase"), "other") == reason_of(KeyError(1), "other") == "other"


def test_another_code_is_noticed():
    with pytest.raises(AssertionError, match="'a-code' instead of 'another-code': a sentence"), refused("another-code"):
        raise InputError("a-code", "a sentence")
