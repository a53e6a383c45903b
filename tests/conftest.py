"""Options of the test suite."""

import pytest

from tests.reordered import Reordered


def pytest_addoption(parser):
    parser.addoption("--reordered", action="store_true", help="sum in another order, as another processor would")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    if not item.config.getoption("reordered"):
        return (yield)
    with Reordered():
        return (yield)
