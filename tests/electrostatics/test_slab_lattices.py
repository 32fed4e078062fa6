"""What a slab needs of its cell does not depend on which vectors its lattice is written with."""

import numpy as np
import pytest
import torch
from ase.build import make_supercell

from mace_polmp.electrostatics.slab import longest_period
from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions
from mace_polmp.structures import check_boundary
from tests.systems import wet_slab

# Integer matrices of determinant 1: another pair of vectors, the same lattice.
WRITTEN = {
    "as it is": [[1, 0], [0, 1]],
    "skewed": [[1, 0], [2, 1]],
    "far skewed": [[1, 0], [-7, 1]],
    "both": [[3, 2], [4, 3]],
    "turned": [[0, 1], [-1, 0]],
}


def period(vectors):
    cell = torch.zeros(1, 3, 3, dtype=torch.float64)
    cell[0, :2, :2] = torch.tensor(vectors, dtype=torch.float64)
    cell[0, 2, 2] = 50.0
    return float(longest_period(cell, torch.tensor([[True, True, False]])))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize(
    ("vectors", "longest"),
    [
        ([[10.0, 0.0], [0.0, 4.0]], 10.0),
        ([[10.0, 0.0], [5.0, 5.0 * np.sqrt(3.0)]], 5.0 * np.sqrt(3.0)),  # height of the triangle
        ([[4.0, 0.0], [1.0, 9.0]], 9.0 * 4.0 / 4.0),
    ],
)
def test_the_longest_period(vectors, longest, name):
    """2π over the shortest vector of the reciprocal lattice, found here among many."""
    written = np.array(WRITTEN[name]) @ np.array(vectors)
    reciprocal = np.linalg.inv(written).T
    n = np.stack(np.meshgrid(range(-30, 31), range(-30, 31)), -1).reshape(-1, 2)
    lengths = np.linalg.norm(n[n.any(1)] @ reciprocal, axis=1)
    assert period(written) == pytest.approx(1.0 / lengths.min())
    assert period(written) == pytest.approx(longest)


def test_a_vector_of_no_use_ends_the_search():
    assert period([[1.0, 0.0], [1e6 + 0.5, 1.0]]) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize(("vacuum", "enough"), [(18.0, True), (10.0, False)])
def test_the_vacuum_is_judged_the_same(vacuum, enough, name):
    slab = wet_slab(vacuum)
    change = np.eye(3, dtype=int)
    change[:2, :2] = WRITTEN[name]
    written = make_supercell(slab, change, wrap=False)
    engine = LongRangeOptions().make_engine()
    assert len(written) == len(slab)
    if enough:
        check_boundary(written, "slab", engine)
    else:
        with pytest.raises(InputError, match=r"leaves 10\.0 Å of vacuum, and 14\.0 Å"):
            check_boundary(written, "slab", engine)
