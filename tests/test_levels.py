"""Processor levels that a test run may ask for, and the mode that sums in another order."""

import os
import subprocess
import sys

import pytest
import torch

from tests import levels
from tests.reordered import Reordered


def test_supported_levels_rise_to_the_one_that_torch_chooses():
    assert levels.supported() == levels.LEVELS[: len(levels.supported())]
    if levels.NAME not in os.environ and sys.platform == "linux":
        assert levels.supported()[-1] == torch.backends.cpu.get_cpu_capability().lower()


def test_a_level_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(levels, "supported", lambda: ("default", "avx2"))
    levels.check("avx2")
    with pytest.raises(ValueError, match="ATEN_CPU_CAPABILITY is 'avx512', but this processor has default, avx2;"):
        levels.check("avx512")


def test_a_run_at_an_unknown_level_stops_before_any_test():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_layers.py"]
    ran = subprocess.run(command, env=os.environ | {levels.NAME: "sse"}, capture_output=True, text=True)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR and "ATEN_CPU_CAPABILITY is 'sse'" in ran.stderr


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_reordered_sums_differ_by_rounding_and_repeat(masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 9, 16, generator=generator) for _ in range(3))
    mask = torch.rand(1, 1, 9, 9, generator=generator) > 0.3 if masked else None
    attend = torch.nn.functional.scaled_dot_product_attention
    calls = (
        lambda: attend(query, key, value, attn_mask=mask, is_causal=not masked),
        lambda: query @ key.transpose(2, 3),
        lambda: torch.nn.Linear(16, 16)(query) if torch.manual_seed(0) else None,
        lambda: query.softmax(-1),
        lambda: query.mean((1, 3)),
    )
    changed = []
    for call in calls:
        plain = call()
        with Reordered():
            first, second = call(), call()
        assert torch.equal(first, second)
        torch.testing.assert_close(first, plain)
        changed.append(not torch.equal(first, plain))
    assert any(changed)


def test_exact_sums_stay_exact():
    counts = torch.arange(24.0).reshape(4, 6)
    with Reordered():
        assert counts.sum(1).tolist() == [15, 51, 87, 123]
        assert (counts @ torch.eye(6)).tolist() == counts.tolist() and counts.mean() == 11.5
