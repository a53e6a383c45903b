"""The layers that a mode stands for."""

import pytest

from analysis.words import THIRDS, check_layers, select_layers
from tests.errors import refused


@pytest.mark.parametrize(
    ("mode", "layers", "expected"),
    [
        ("all", 4, (0, 1, 2, 3)),
        ("first_third", 6, (0, 1)),
        ("mid_third", 6, (2, 3)),
        ("last_third", 6, (4, 5)),
        ("mid_third", 4, (1, 2)),
        ("mid_third", 32, tuple(range(11, 21))),
        ("last_2", 6, (4, 5)),
        ("last_6", 6, tuple(range(6))),
        ("3,0, 3", 4, (0, 3)),
        ("2", 4, (2,)),
    ],
)
def test_modes(mode, layers, expected):
    check_layers(mode)
    assert select_layers(mode, layers) == expected


@pytest.mark.parametrize("layers", [3, 4, 5, 28, 32])
def test_thirds_share_out_all_layers(layers):
    thirds = [select_layers(mode, layers) for mode in THIRDS]
    assert sum(thirds, ()) == tuple(range(layers)) and max(map(len, thirds)) - min(map(len, thirds)) <= 1


@pytest.mark.parametrize("mode", ["", "middle", "last_", "last_0", "last_k", "-1", "1.5", "3,,4", "3;4"])
def test_unknown_modes(mode):
    with refused("unknown-layers"):
        check_layers(mode)
    with refused("unknown-layers"):
        select_layers(mode, 8)


@pytest.mark.parametrize(
    ("mode", "layers", "reason"),
    [
        ("7", 4, "no-such-layer"),
        ("last_5", 4, "too-many-layers"),
        ("mid_third", 2, "no-such-third"),
    ],
)
def test_layers_that_are_not_there(mode, layers, reason):
    check_layers(mode)
    with refused(reason):
        select_layers(mode, layers)
