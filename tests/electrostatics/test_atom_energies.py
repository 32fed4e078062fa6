"""Energies of atoms sum to the energy, and are those of atoms: far apart, each structure's own."""

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics
from tests.electrostatics.common import TRICLINIC, random_system
from tests.electrostatics.test_export import CASES
from tests.electrostatics.test_plan_value import batch_of


@pytest.mark.parametrize("name", CASES)
def test_they_sum_to_the_energy(name):
    kinds, sizes, solver = CASES[name]
    engine = Electrostatics(solver=solver, taper=0.1)
    positions, cell, pbc, batch, multipoles, _ = batch_of(kinds, sizes)
    operator = engine.prepare(engine.plan_of(cell, pbc, batch), positions, cell)
    energies = operator.atom_energies(multipoles)
    total = energies.new_zeros(len(sizes)).index_add(0, batch, energies)
    torch.testing.assert_close(total, operator.energy(multipoles), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cell", [None, TRICLINIC])
def test_they_are_half_the_change_when_an_atom_is_taken_out(cell):
    """The energy is bilinear in the multipoles."""
    positions, multipoles, _ = random_system(8)
    engine = Electrostatics()
    pbc = torch.tensor([[cell is not None] * 3])
    box = (torch.zeros(3, 3, dtype=torch.float64) if cell is None else cell)[None]
    plan = engine.plan(box, pbc, [8])
    operator = engine.prepare(plan, positions, box)
    energies, whole = operator.atom_energies(multipoles), operator.energy(multipoles)
    for atom in range(8):
        keep = torch.ones(8, dtype=torch.float64)
        keep[atom] = 0.0
        scaled = type(multipoles)(
            multipoles.charge * keep,
            multipoles.dipole * keep[:, None],
            multipoles.quadrupole * keep[:, None, None],
        )
        alone = type(multipoles)(
            multipoles.charge - scaled.charge,
            multipoles.dipole - scaled.dipole,
            multipoles.quadrupole - scaled.quadrupole,
        )
        change = whole - operator.energy(scaled) + operator.energy(alone)
        torch.testing.assert_close(2.0 * energies[atom], change[0], rtol=1e-9, atol=1e-9)
