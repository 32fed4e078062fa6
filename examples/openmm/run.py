"""Molecular dynamics with OpenMM: energies and forces of a model through a PythonForce.

    python run.py --model water.safetensors --structure init.xyz --steps 100

OpenMM has lengths in nm and energies in kJ/mol. Needs OpenMM 8.4 or later.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ase.io
import openmm
from ase import Atoms, units
from openmm import unit

from mace_polmp.calculators import MultipoleMACECalculator

NM = 10.0  # Å


def system_of(atoms: Atoms) -> openmm.System:
    """OpenMM's system of a structure whose calculator gives its energies.

    Args:
        atoms: periodic in three directions, or in none.
    """
    if atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError("OpenMM wraps atoms along all directions: slabs need another program")

    def compute(state: openmm.State) -> tuple[Any, Any]:
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        atoms.set_positions(positions, apply_constraint=False)
        if atoms.pbc.all():
            box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
            atoms.set_cell(box)
        energy = atoms.get_potential_energy() * _kj_per_mol()
        forces = atoms.get_forces() * _kj_per_mol() * NM
        return (
            energy * unit.kilojoule_per_mole,
            forces * unit.kilojoule_per_mole / unit.nanometer,
        )

    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / NM))
    force = openmm.PythonForce(compute)
    force.setUsesPeriodicBoundaryConditions(bool(atoms.pbc.all()))
    system.addForce(force)
    return system


def _kj_per_mol() -> float:
    """1 eV in kJ/mol."""
    return float(units.mol / units.kJ)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help=".model or .safetensors")
    parser.add_argument("--structure", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    args = parser.parse_args()
    atoms = ase.io.read(args.structure)
    atoms.calc = MultipoleMACECalculator(args.model, default_dtype="float64")
    system = system_of(atoms)
    integrator = openmm.LangevinMiddleIntegrator(
        args.temperature, args.friction, args.timestep * 1e-3
    )
    # The model does the work: OpenMM's own part is small on any platform.
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / NM)
    context.setVelocitiesToTemperature(args.temperature)
    print("step, potential energy / eV")
    for step in range(0, args.steps + 1, max(1, args.steps // 10)):
        if step:
            integrator.step(max(1, args.steps // 10))
        state = context.getState(getEnergy=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        print(f"{step}, {energy / _kj_per_mol():.6f}", flush=True)


if __name__ == "__main__":
    main()
