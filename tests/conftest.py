"""Test suite options: `--reordered`, and a check of the instruction set in ATEN_CPU_CAPABILITY."""

import os

import pytest

from tests import levels
from tests.reordered import Reordered


def pytest_addoption(parser):
    parser.addoption("--reordered", action="store_true", help="sum in another order, as on another processor")


def pytest_configure(config):
    if levels.NAME in os.environ and not hasattr(config, "workerinput"):  # once, not in every worker
        try:
            levels.check(os.environ[levels.NAME])
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    if not item.config.getoption("reordered"):
        return (yield)
    with Reordered():
        return (yield)
