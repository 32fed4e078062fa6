"""Conserved energy of NPT dynamics with a sharp and a soft edge of the k-space sphere, beside NVE.

    python scripts/benchmarks/npt.py --model water.model --structure water.xyz

Each run is an ensemble and a taper (`--kspace_taper`), all from one start. In NPT the box changes,
and with a sharp edge the energy jumps where a k-vector enters the sphere. Prints drift and
fluctuation, writes conserved energies as CSV and a plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from common import machine, report
from tqdm import tqdm

from mace_polmp.analysis import plots
from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.simulation.ensembles import Ensemble
from mace_polmp.simulation.temperature import ThermalMotion, draw_momenta
from mace_polmp.unit_names import ENERGY_PER_ATOM, with_unit


def run(
    atoms: Atoms, calc: MultipoleMACECalculator, ensemble: str, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Conserved energies [n], eV, and volumes [n], Å³, every args.every steps."""
    atoms = atoms.copy()
    atoms.calc = calc
    rng = np.random.default_rng(0)
    draw_momenta(atoms, args.temperature, rng)
    coupled = Ensemble(
        ensemble,
        args.timestep,
        args.temperature,
        friction=0.01,
        time_constant=100.0,
        pressure=args.pressure,
        pressure_time=args.pressure_time,
    )
    dynamics = coupled.dynamics(atoms, ThermalMotion.of(atoms), rng)
    conserved = atoms.get_total_energy if ensemble == "nve" else dynamics.get_conserved_energy
    energies, volumes = [conserved()], [atoms.get_volume()]
    progress = tqdm(range(args.steps // args.every), unit="sample", desc=ensemble)
    for _ in progress:
        dynamics.run(args.every)
        energies.append(conserved())
        volumes.append(atoms.get_volume())
    return np.array(energies), np.array(volumes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", type=Path, required=True)
    parser.add_argument(
        "--runs", nargs="+", default=["nve:0.1", "npt:0.1", "npt:0.0"], help="ensemble:taper"
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--pressure", type=float, default=1.0, help="bar")
    parser.add_argument("--pressure_time", type=float, default=1000.0, help="fs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    args = parser.parse_args()
    atoms = ase.io.read(args.structure)
    time = np.arange(args.steps // args.every + 1) * args.every * args.timestep * 1e-3  # ps
    rows: list[dict[str, Any]] = []
    curves = {}
    for name in args.runs:
        ensemble, taper = name.split(":")
        calc = MultipoleMACECalculator(args.model, device=args.device, default_dtype="float64")
        calc.models[0].electrostatics.taper = float(taper)
        energies, volumes = run(atoms, calc, ensemble, args)
        per_atom = 1e3 * (energies - energies[0]) / len(atoms)
        slope, offset = np.polyfit(time, per_atom, 1)
        label = f"{ensemble}, taper {taper}"
        curves[label] = per_atom
        rows.append(
            {
                "run": label,
                "drift / meV/atom/ps": float(slope),
                "fluctuation / meV/atom": float(np.std(per_atom - slope * time - offset)),
                "largest step / meV/atom": float(np.abs(np.diff(per_atom)).max()),
                "volume, start / Å³": float(volumes[0]),
                "volume, end / Å³": float(volumes[-1]),
            }
        )
        report(rows, args.output, f"npt_{len(atoms)}")
    print(f"{machine(args.device)}; {len(atoms)} atoms, {time[-1]:.2f} ps at {args.timestep} fs")
    title = plots.heading(
        "Conserved energy at constant energy and at constant pressure",
        f"model {args.model.name}",
        f"{args.structure.name} ({plots.typeset(atoms.get_chemical_formula())})",
        f"{args.temperature:g} K, {args.pressure:g} bar, steps of {args.timestep:g} fs",
    )
    labels = ("time / ps", with_unit("conserved energy − start", ENERGY_PER_ATOM))
    path = args.output / f"npt_{len(atoms)}.png"
    plots.draw_lines(path, time, curves, labels, title)
    print(f"written: {plots.said(path)}")


if __name__ == "__main__":
    main()
