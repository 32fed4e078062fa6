"""Branches of the polarization: the nearest lattice vector, however skewed the cell is."""

import itertools

import numpy as np
import pytest

from mace_polmp.branches import are_far, lattice_of, nearest, said_of
from tests.helpers import rock_salt, wet_slab

CUBE = np.diag([4.0, 5.0, 6.0])
# The same lattice as the cube's, with cell vectors that are far from the shortest.
SKEWED = np.array([[1, 0, 0], [5, 1, 0], [-7, 3, 1]]) @ CUBE


@pytest.mark.parametrize("cell", [CUBE, SKEWED, -SKEWED, rock_salt("left-handed").cell.array])
def test_no_other_lattice_vector_is_nearer(cell):
    random = np.random.default_rng(0)
    lattice = lattice_of(cell, [True] * 3)
    differences = random.normal(size=(40, 3)) * 12.0
    found = nearest(differences, np.repeat(lattice[None], 40, axis=0))
    whole = np.linalg.solve(np.asarray(cell).T, found.T).T
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-9)
    # Neighbours of the found one, among short vectors and among those of the cell itself.
    for steps in itertools.product(range(-3, 4), repeat=3):
        for vectors in (lattice, np.asarray(cell)):
            other = np.linalg.norm(differences - found - np.array(steps) @ vectors, axis=1)
            assert (other >= np.linalg.norm(differences - found, axis=1) - 1e-9).all()


def test_along_open_directions_there_is_one_branch():
    slab = wet_slab()
    lattice = lattice_of(slab.cell, slab.pbc)
    assert not lattice[2].any()
    moved = np.array([0.3, -0.2, 50.0]) + slab.cell.array[0] - 2 * slab.cell.array[1]
    np.testing.assert_allclose(
        moved - nearest(moved[None], lattice[None])[0], [0.3, -0.2, 50.0], atol=1e-12
    )
    nothing = lattice_of(np.zeros((3, 3)), [False] * 3)
    assert not nearest(np.ones((1, 3)), nothing[None]).any()


def test_errors_of_a_quarter_of_the_shortest_vector_are_large():
    """The shortest is 4 Å, whatever vectors the cell was given by; slabs have no third one."""
    errors = np.array([[0.9, 0.0, 0.0], [0.0, 0.0, 1.1]])
    for cell in (CUBE, SKEWED):
        lattices = np.repeat(lattice_of(cell, [True] * 3)[None], 2, axis=0)
        assert are_far(errors, lattices).tolist() == [False, True]
    assert not are_far(errors, np.zeros((2, 3, 3))).any()
    assert said_of(0, 5) is None and "errors of 2 of 5 structures" in str(said_of(2, 5))
