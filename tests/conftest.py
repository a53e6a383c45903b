"""Options of the test suite: `--reordered`, and a check of the processor level that ATEN_CPU_CAPABILITY asks for."""

import os

import pytest

from tests import levels
from tests.reordered import Reordered


def pytest_addoption(parser):
    parser.addoption("--reordered", action="store_true", help="sum in another order, as another processor would")


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
