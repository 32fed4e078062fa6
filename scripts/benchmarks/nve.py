"""Total energy of NVE dynamics with the direct sum and with the mesh, from the same start.

    python scripts/benchmarks/nve.py --model water.model --structure water.xyz

With --slab a fully periodic structure with vacuum is made a slab first: pbc T T F, all atoms on one
side of the vacuum. Prints drift and fluctuation, writes energies as CSV and a plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from common import machine, report
from tqdm import tqdm

from mace_polmp.analysis import plots
from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.simulation.temperature import draw_momenta
from mace_polmp.structures import as_slab
from mace_polmp.unit_names import ENERGY_PER_ATOM, with_unit


def run(atoms: Atoms, calc: MultipoleMACECalculator, args: argparse.Namespace) -> np.ndarray:
    """Total energies [n], eV, every args.every steps."""
    atoms = atoms.copy()
    atoms.calc = calc
    draw_momenta(atoms, args.temperature, np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, args.timestep * units.fs)
    energies = [atoms.get_total_energy()]
    for _ in tqdm(range(args.steps // args.every), unit="sample"):
        dynamics.run(args.every)
        energies.append(atoms.get_total_energy())
    return np.array(energies)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", type=Path, required=True)
    parser.add_argument("--slab", action="store_true", help="make it a slab, pbc T T F")
    parser.add_argument("--solvers", nargs="+", default=["ewald", "mesh"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    args = parser.parse_args()
    atoms = ase.io.read(args.structure)
    if args.slab:
        atoms = as_slab(atoms)
    calc = MultipoleMACECalculator(args.model, device=args.device, default_dtype=args.dtype)
    time = np.arange(args.steps // args.every + 1) * args.every * args.timestep * 1e-3  # ps
    rows: list[dict[str, Any]] = []
    energies = {}
    for solver in args.solvers:
        calc.models[0].electrostatics.solver = solver
        energies[solver] = run(atoms, calc, args)
        per_atom = 1e3 * (energies[solver] - energies[solver][0]) / len(atoms)
        slope, offset = np.polyfit(time, per_atom, 1)
        rows.append(
            {
                "solver": solver,
                "drift / meV/atom/ps": float(slope),
                "fluctuation / meV/atom": float(np.std(per_atom - slope * time - offset)),
                "start / eV": float(energies[solver][0]),
            }
        )
    print(f"{machine(args.device)}; {len(atoms)} atoms, {time[-1]:.2f} ps at {args.timestep} fs")
    name = f"nve_{'slab_' if args.slab else ''}{len(atoms)}"
    report(rows, args.output, name, args.device)
    lines = {n: 1e3 * (e - e[0]) / len(atoms) for n, e in energies.items()}
    title = plots.heading(
        "Total energy at constant energy and volume",
        f"model {args.model.name}",
        f"{args.structure.name} ({plots.typeset(atoms.get_chemical_formula())})",
        f"{args.temperature:g} K at the start, steps of {args.timestep:g} fs",
    )
    labels = ("time / ps", with_unit("total energy − start", ENERGY_PER_ATOM))
    path = args.output / f"{name}.png"
    plots.draw_lines(path, time, lines, labels, title)
    print(f"written: {plots.said(path)}")


if __name__ == "__main__":
    main()
