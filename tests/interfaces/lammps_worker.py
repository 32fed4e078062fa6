"""One of the MPI processes that run LAMMPS for test_lammps.py.

mpiexec -n 2 python -m tests.interfaces.lammps_worker FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_masses
from lammps import lammps
from mpi4py import MPI

from mace_polmp.interfaces.lammps import attach
from tests.helpers import random_model
from tests.interfaces.lammps_cases import CASES

COMM = MPI.COMM_WORLD


def start(case):
    """LAMMPS with the atoms of a case, and the elements of its types."""
    atoms = case.atoms()
    numbers = sorted(set(atoms.numbers.tolist()), reverse=True)
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"], comm=COMM)
    cell, low = atoms.cell.array, case.low
    high = low + np.diag(cell)
    sides = " ".join(f"{a:.17g} {b:.17g}" for a, b in zip(low, high, strict=True))
    tilts = f"{cell[1, 0]:.17g} {cell[2, 0]:.17g} {cell[2, 1]:.17g}"
    lmp.commands_string(
        f"""units metal
atom_style atomic
boundary {" ".join("p" if p else "f" for p in atoms.pbc)}
box tilt large
region box prism {sides} {tilts} units box
create_box {len(numbers)} box"""
    )
    types = [numbers.index(z) + 1 for z in atoms.numbers]
    ids = list(range(1, len(atoms) + 1))
    lmp.create_atoms(len(atoms), ids, types, atoms.positions.reshape(-1).tolist())
    for number, z in enumerate(numbers, start=1):
        lmp.command(f"mass {number} {atomic_masses[z]}")
    return lmp, numbers


def gathered(lmp, numbers):
    """Everything that LAMMPS knows of the atoms, sorted."""
    n = lmp.extract_setting("nlocal")
    rows = np.zeros((n, 12))
    for name, columns in (("id", 0), ("type", 1), ("x", slice(2, 5)), ("f", slice(5, 8))):
        if n:
            values = np.array(lmp.numpy.extract_atom(name)[:n])
            rows[:, columns] = values if isinstance(columns, slice) else values.reshape(-1)
    if n:
        rows[:, 8] = lmp.numpy.extract_atom("d_polmp_charge", nelem=n)[:n]
        rows[:, 9:] = lmp.numpy.extract_atom("d2_polmp_dipole", nelem=n, dim=3)[:n]
    every = np.concatenate(COMM.allgather(rows))
    every = every[np.argsort(every[:, 0])]
    low, high, xy, yz, xz, *_ = lmp.extract_box()
    x, y, z = np.array(high) - np.array(low)
    return dict(
        numbers=np.array(numbers)[every[:, 1].astype(int) - 1],
        positions=every[:, 2:5],
        forces=every[:, 5:8],
        charges=every[:, 8],
        dipoles=every[:, 9:],
        cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]],
        energy=lmp.get_thermo("pe"),
        pressure=[lmp.get_thermo(f"p{ab}") for ab in ("xx", "yy", "zz", "yz", "xz", "xy")],
        long_range=lmp.extract_variable("polmp_long_range"),
        deviation=lmp.extract_variable("polmp_deviation"),
        dipole=[lmp.extract_variable(f"polmp_dipole_{axis}") for axis in "xyz"],
        n_own=COMM.allgather(n),
    )


def main(folder):
    torch.set_num_threads(1)
    for name, case in CASES.items():
        lmp, numbers = start(case)
        symbols = [{1: "H", 8: "O", 11: "Na", 17: "Cl"}[z] for z in numbers]
        models = [random_model(case.options, seed=seed) for seed in range(case.n_models)]
        driver = attach(lmp, models, symbols, **case.settings)
        lmp.commands_string(
            f"velocity all create {case.kelvin} 7 loop geom\n{case.commands}\nrun 0"
        )
        start_energy = lmp.get_thermo("etotal")
        lmp.command(f"run {case.steps}")
        change = lmp.get_thermo("etotal") - start_energy
        lmp.commands_string("velocity all set 0 0 0\nrun 0")
        found = gathered(lmp, numbers)
        if COMM.rank == 0:
            file = Path(folder) / f"{name}_{COMM.size}.npz"
            np.savez(file, change=change, **found)
        assert len(driver.last) == case.n_models
        lmp.close()


if __name__ == "__main__":
    main(sys.argv[1])
