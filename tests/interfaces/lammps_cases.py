"""What LAMMPS runs in the tests."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mace_polmp.head import LongRangeOptions
from tests.helpers import rock_salt, salty_water, wet_slab


@dataclass(frozen=True)
class Case:
    """A structure, a model, and commands that move it."""

    atoms: Callable
    commands: str = "fix move all nve"
    options: LongRangeOptions = field(default_factory=LongRangeOptions)
    settings: dict = field(default_factory=dict)
    n_models: int = 1
    steps: int = 20
    kelvin: float = 300.0
    low: np.ndarray = field(default_factory=lambda: np.zeros(3))


def _wrapped(atoms):
    atoms.rattle(0.03, seed=5)
    atoms.wrap()
    return atoms


def _triclinic():
    """As LAMMPS wants it: a along x, b in the plane of x and y."""
    atoms = rock_salt() * (2, 1, 1)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 1.1, -0.7, 0.9
    atoms.set_cell(cell, scale_atoms=True)
    return _wrapped(atoms)


def _upright_slab():
    """Its atoms well inside the box, which ends where the vacuum does."""
    atoms = wet_slab()
    atoms.positions[:, 2] += 0.5 * atoms.cell[2, 2] - atoms.positions[:, 2].mean()
    scaled = atoms.get_scaled_positions()
    scaled[:, :2] %= 1.0
    atoms.set_scaled_positions(scaled)
    return atoms


def _molecules():
    atoms = salty_water()
    atoms.cell = np.diag(np.ptp(atoms.positions, axis=0) + 20.0)
    atoms.positions += 10.0 - atoms.positions.min(0)
    return atoms


CONSTRAINED = LongRangeOptions(constrain_charge="softness", conserve_charge=True)

CASES = {
    # Hot, so that atoms change from one process to the other.
    "nve": Case(lambda: _wrapped(rock_salt() * (2, 1, 1)), kelvin=3000.0, steps=60),
    "triclinic": Case(
        _triclinic,
        "fix move all npt temp 300 300 0.05 tri 0 0 0.3",
        options=LongRangeOptions(charge_readout="transfer"),
    ),
    "bonds": Case(
        lambda: _wrapped(rock_salt()),
        options=LongRangeOptions(
            charge_readout="bond", induced="bond_dipole", epsilon_infinity=2.0
        ),
        settings={"external_field": [0.05, -0.02, 0.03]},
        kelvin=3000.0,
    ),
    "small cell": Case(lambda: _wrapped(rock_salt()), options=CONSTRAINED, n_models=2),
    "slab": Case(_upright_slab, settings={"external_field": [0.0, 0.0, 0.02]}, steps=5),
    "molecules": Case(
        _molecules, options=CONSTRAINED, settings={"total_charge": 1.0}, steps=5, kelvin=50.0
    ),
}
