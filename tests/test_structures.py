"""Structures that can be evaluated, and those that are refused."""

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from mace_polmp.errors import InputError
from mace_polmp.structures import (
    as_slab,
    check_structure,
    read_structures,
    total_charge,
    with_total_charge,
)
from tests.helpers import rock_salt


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_from_a_periodic_structure(axis):
    """Atoms that left through the vacuum or lie on its other side come back to the slab."""
    reference = rock_salt("triclinic")
    cell = reference.cell.array.copy()
    cell[axis] *= 6.0
    reference.set_cell(cell)
    atoms = reference.copy()
    atoms.positions += 0.95 * cell[axis]  # across the boundary
    atoms.positions[1] += 2 * cell[axis]
    atoms.positions[3] -= cell[axis]
    slab = as_slab(atoms, axis)
    assert slab.pbc.tolist() == [n != axis for n in range(3)]
    shape = slab.positions - slab.positions[0]
    np.testing.assert_allclose(shape, reference.positions - reference.positions[0], atol=1e-9)
    check_structure(slab, "slab")
    assert atoms.pbc.all()


def test_refusals():
    atoms = rock_salt()
    with pytest.raises(InputError, match="axis must be 0, 1 or 2, got 3"):
        as_slab(atoms, axis=3)
    with pytest.raises(InputError, match="the cell is singular"):
        as_slab(Atoms("Na", pbc=True))
    with pytest.raises(InputError, match="frame 7: has pbc T T F, and its atoms extend over"):
        check_structure(as_slab(atoms), "frame 7")


def test_reading_changes_nothing(tmp_path):
    atoms = Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 2.5]], info={"total_charge": -1})
    write(tmp_path / "a.xyz", atoms)
    (again,) = read_structures(tmp_path / "a.xyz")
    assert again.info == {"total_charge": -1}
    assert total_charge(again) == -1.0


def test_one_accessor_of_the_total_charge():
    """The key of the training, then the two usual ones; they must agree."""
    atoms = Atoms("Na", info={"ionized": 2, "charge": 2})
    assert total_charge(atoms) == 2.0 and total_charge(atoms, key="ionized") == 2.0
    atoms.info["charge"] = 1
    assert total_charge(atoms) == 1.0
    assert total_charge(atoms, key="ionized", alone=True) == 2.0
    with pytest.raises(InputError, match="info.'ionized'. is 2 e and info.'charge'. 1 e; both"):
        total_charge(atoms, key="ionized")
    given = with_total_charge(Atoms("Na"), 1.0, key="ionized")
    assert given.info == {"ionized": 1.0}
    with pytest.raises(InputError, match="--total_charge 0: frame 2 says 1 e"):
        with_total_charge(given, 0.0, "frame 2", "ionized")
    assert with_total_charge(atoms, None) is atoms


def test_a_total_charge_must_be_one_number():
    assert total_charge(Atoms("Na")) is None
    assert total_charge(Atoms("Na", info={"charge": np.int64(1)})) == 1.0
    for value in ("plus", float("nan"), [1, 2]):
        with pytest.raises(InputError, match="total charge 'charge' must be one finite"):
            total_charge(Atoms("Na", info={"charge": value}), "frame 3")
    with pytest.raises(InputError, match="total_charge'. is 0 e and info.'charge'. 1 e"):
        total_charge(Atoms("Na", info={"charge": 1, "total_charge": 0}))
