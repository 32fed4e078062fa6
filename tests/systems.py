"""Structures that several tests use."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk


def rattled(atoms: Atoms, seed: int = 0, stdev: float = 0.15) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=stdev, size=(len(atoms), 3))
    return atoms


def rock_salt(kind: str = "cubic") -> Atoms:
    """Rattled 8-atom NaCl in a cubic, triclinic or left-handed cell."""
    atoms = rattled(bulk("NaCl", "rocksalt", a=5.63, cubic=True))
    if kind != "cubic":
        strain = np.array([[0.03, 0.12, -0.05], [0.0, -0.04, 0.08], [0.0, 0.0, 0.02]])
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    if kind == "left-handed":
        atoms.set_cell(atoms.cell.array[[0, 2, 1]])
    return atoms


def salty_water(periodic: bool = False) -> Atoms:
    """Na+, Cl− and two waters, open or in a 9 Å box."""
    atoms = Atoms(
        "NaClOH2OH2",
        positions=[
            [0.1, 0.2, 0.0],
            [2.6, 0.3, 0.4],
            [-0.7, 2.2, 0.5],
            [-1.4, 2.6, 0.0],
            [-0.5, 2.8, 1.3],
            [0.6, -1.0, 2.1],
            [0.1, -1.7, 2.5],
            [1.5, -0.9, 2.4],
        ],
    )
    if periodic:
        atoms.set_cell([9.0, 9.3, 8.8])
        atoms.pbc = True
    return atoms


def wet_slab(vacuum: float = 18.0) -> Atoms:
    """Na+, Cl− and two waters, periodic along x and y."""
    atoms = salty_water()
    atoms.set_cell([9.0, 9.3, float(np.ptp(atoms.positions[:, 2])) + vacuum])
    atoms.pbc = [True, True, False]
    return atoms
