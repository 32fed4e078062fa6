"""What the benchmarks of the electrostatics measure runs as the engine is today."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"

HEAD = """
import head
system = head.load("open 10", [], "cpu")
print(len(head.head_step(system, "auto", False)()), len(head.head_step(system, "auto", True)()))
"""
SELF_CONSISTENT = """
import self_consistent, torch
steps, iterations = self_consistent.head_steps("periodic 24", torch.float64, "cpu")
assert iterations > 3
one, many = (steps[name]() for name in ("one_step", "self_consistent"))
assert all(bool((a - b).abs().max() > 1e-6) for a, b in zip(one, many))
print(len(one), len(many))
"""
SLAB = """
import slab
print(*(tuple(values.shape) for values in slab.evaluate(6.0, 4.0, 2.0, 1.0)))
"""


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        pytest.param(HEAD, "6 5", id="head"),
        pytest.param(SELF_CONSISTENT, "6 6", id="self-consistent"),
        pytest.param(SLAB, "() (14, 3)", id="slab"),
    ],
)
def test_it_runs(code, printed):
    """Gradients by positions, three multipoles and two coefficients."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=BENCHMARKS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == printed
