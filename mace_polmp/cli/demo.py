"""`mace_polmp demo`: what a model gives, in about a minute and without training.

The model is the package's own (mace_polmp/data/DEMO.md): water with Na+, Cl−, H3O+ and OH−,
learned from GFN2-xTB. Steps: a hydrogen bond, vibrations with infrared intensities, Born charges,
and molecular dynamics of an ion with its first waters.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mace_polmp.analysis import modes as analysis
from mace_polmp.analysis import plots
from mace_polmp.analysis.rigid import rigid_motions
from mace_polmp.cli.common import HelpWithDefaults
from mace_polmp.errors import InputError
from mace_polmp.reading import DEMO_MODEL

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.calculators import MultipoleMACECalculator

# Fundamentals of gaseous H2O (Shimanouchi, NSRDS-NBS 39 (1972)), cm⁻¹, and its dipole.
_MEASURED = (1595.0, 3657.0, 3756.0)
_MEASURED_DIPOLE = 1.855 / 4.80320  # e Å, of 1.855 D
_STEP = 0.5  # fs
_EVERY = 2  # steps between rows of md.csv
_COLOURS = {"H2O": "C0", "(H2O)2": "C3"}


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "demo",
        help="vibrations, Born charges and dynamics by the model that comes with the package",
        description="What a model gives, in about a minute and without training.",
        formatter_class=HelpWithDefaults,
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--md_steps", type=int, default=1000, help="steps of 0.5 fs of NVE MD")
    parser.add_argument("--seed", type=int, default=1, help="random seed of the velocities")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run all steps, print what they give, write CSV files and plots."""
    if args.md_steps < 1:
        raise InputError(f"--md_steps must be at least 1, got {args.md_steps}")
    from mace_polmp.calculators.loading import load_calculator

    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    calculator: Any = load_calculator(DEMO_MODEL, default_dtype="float64")
    reference = _reference()
    print(
        "The model of the package (--model demo): water with Na+, Cl-, H3O+ and OH-, "
        "learned from GFN2-xTB; see mace_polmp/data/DEMO.md for what it is not for.\n"
    )
    molecules = _hydrogen_bond(calculator, reference, out)
    _vibrations(calculator, molecules, reference, out)
    _born_charges(calculator, molecules["H2O"], reference, out)
    _dynamics(calculator, args.md_steps, args.seed, out)
    print(
        f"Now with your own structures, for instance:\n"
        f"  mace_polmp modes --model demo --structure {out / 'water_dimer.xyz'} --output modes\n"
        f"  mace_polmp md --model demo --structure {out / 'ions.xyz'} --steps 2000 --output run"
    )


def _reference() -> dict[str, Any]:
    """What GFN2-xTB says, written by scripts/make_demo_model.py."""
    path = Path(str(resources.files("mace_polmp") / "data" / "demo_reference.json"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def relaxed(atoms: Atoms, fmax: float, what: str) -> Atoms:
    """The atoms at a minimum of their calculator.

    Raises:
        InputError: forces that stay larger than fmax.
    """
    from ase.optimize import BFGS

    with tqdm(desc=f"relaxing {what}", unit="step", leave=False, disable=None) as bar:
        optimizer = BFGS(atoms, logfile=None)
        optimizer.attach(lambda: bar.update(1))
        if not optimizer.run(fmax=fmax, steps=1000):
            raise InputError(f"{what} does not relax to forces below {fmax} eV/Å; report this")
    return atoms


def _hydrogen_bond(
    calculator: MultipoleMACECalculator, reference: dict[str, Any], out: Path
) -> dict[str, Atoms]:
    """Relax H2O and its dimer; print the hydrogen bond."""
    from ase import Atoms
    from ase.build import molecule
    from ase.io import write

    water = molecule("H2O")
    known = reference["(H2O)2"]
    dimer = Atoms(known["symbols"], known["positions_A"])
    dimer.rattle(0.05, seed=1)
    for atoms, name in ((water, "H2O"), (dimer, "the water dimer")):
        atoms.calc = calculator
        relaxed(atoms, 0.001, name)
    write(out / "water.xyz", water, columns=["symbols", "positions"], write_results=False)
    write(out / "water_dimer.xyz", dimer, columns=["symbols", "positions"], write_results=False)
    binding = dimer.get_potential_energy() - 2.0 * water.get_potential_energy()
    dipoles = [float(np.linalg.norm(a.get_dipole_moment())) for a in (water, dimer)]
    rows = [
        ("H2O: dipole / e Å", dipoles[0], reference["H2O"]["dipole_eA"], f"{_MEASURED_DIPOLE:.3f}"),
        ("(H2O)2: dipole / e Å", dipoles[1], known["dipole_eA"], "-"),
        ("(H2O)2: binding energy / eV", binding, known["binding_energy_eV"], "-"),
        ("(H2O)2: O-O distance / Å", dimer.get_distance(0, 3), known["oxygen_distance_A"], "2.98"),
    ]
    table = [(name, f"{mine:.3f}", f"{theirs:.3f}", seen) for name, mine, theirs, seen in rows]
    _show("1. A hydrogen bond", ["", "model", "GFN2-xTB", "measured"], table)
    plots.write_csv(out / "hydrogen_bond.csv", ["quantity", "model", "gfn2", "measured"], rows)
    return {"H2O": water, "(H2O)2": dimer}


def _vibrations(
    calculator: MultipoleMACECalculator,
    molecules: dict[str, Atoms],
    reference: dict[str, Any],
    out: Path,
) -> None:
    """Normal modes and infrared intensities, as a table, a CSV file and a plot."""
    rows: list[tuple[Any, ...]] = []
    found = {}
    for name, atoms in tqdm(molecules.items(), desc="normal modes", leave=False, disable=None):
        found[name] = normal_modes(atoms, calculator)
        known = reference[name]
        pairs = zip(
            *found[name], known["wavenumbers_cm-1"], known["intensities_km/mol"], strict=True
        )
        measured = _MEASURED if name == "H2O" else (None,) * len(found[name][0])
        rows += [(name, *values, seen) for values, seen in zip(pairs, measured, strict=True)]
    header = ["molecule", "model_cm-1", "model_km/mol", "gfn2_cm-1", "gfn2_km/mol", "measured_cm-1"]
    plots.write_csv(out / "vibrations.csv", header, rows)
    texts = [
        (row[0], *(f"{x:.0f}" if i % 2 == 0 else f"{x:.1f}" for i, x in enumerate(row[1:5])),
         "-" if row[5] is None else f"{row[5]:.0f}")
        for row in rows
    ]  # fmt: skip
    columns = [
        "molecule",
        "model / cm⁻¹",
        "IR / (km/mol)",
        "GFN2-xTB / cm⁻¹",
        "its IR / (km/mol)",
        "measured*",
    ]
    _show("2. Vibrations and infrared intensities", columns, texts)
    print("* fundamentals, which contain anharmonicity; the others are harmonic")
    _draw_spectrum(found, reference, out / "spectrum.png")
    print(f"{out / 'vibrations.csv'}, {plots.said(out / 'spectrum.png')}\n")


def normal_modes(
    atoms: Atoms, calculator: MultipoleMACECalculator
) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers (cm⁻¹) and infrared intensities (km/mol) of a relaxed molecule."""
    placed = atoms.copy()
    placed.positions -= placed.get_center_of_mass()
    size = 3 * len(placed)
    hessian = np.asarray(calculator.get_hessian(placed)).reshape(size, size)
    masses = placed.get_masses()
    modes = analysis.normal_modes(
        hessian, masses, rigid_motions(placed.positions, masses, rotations=True)
    )
    born = calculator.get_property("born_charges", placed)
    return modes.frequency, analysis.infrared_intensities(modes, born)


def _draw_spectrum(found: dict[str, Any], reference: dict[str, Any], path: Path) -> None:
    """Broadened lines with sticks; those of GFN2-xTB downwards."""
    figure, axes = plots.figure(len(found), size=(11.0, 4.4))
    figure.suptitle("Model demo next to GFN2-xTB, relaxed molecules in vacuum", fontsize=11)
    grid = np.linspace(0.0, 4200.0, 4200)
    for axis, (name, (waves, intensities)) in zip(axes, found.items(), strict=True):
        known = reference[name]
        theirs = (np.array(known["wavenumbers_cm-1"]), np.array(known["intensities_km/mol"]))
        sets = (
            ("model", waves, intensities, 1.0, _COLOURS[name]),
            ("GFN2-xTB, what it learned from", *theirs, -1.0, "0.4"),
        )
        top = max(float(intensities.max()), float(theirs[1].max()))
        for label, centres, heights, sign, colour in sets:
            real = centres > 1.0
            lines = analysis.broadened(centres[real], heights[real], 30.0, grid)
            lines *= top / max(lines.max(), 1e-12)
            axis.fill_between(grid, sign * lines, color=colour, alpha=0.25, lw=0)
            axis.plot(grid, sign * lines, color=colour, lw=1.0, label=label)
            axis.vlines(centres, 0.0, sign * heights, color=colour, lw=2.0)
        if name == "H2O":
            for number, wave in enumerate(_MEASURED):
                words = "measured fundamentals" if number == 0 else None
                axis.axvline(wave, color="k", ls=":", lw=0.9, label=words)
        axis.axhline(0.0, color="k", lw=0.8)
        axis.set(
            title=f"{plots.typeset(name)}: infrared spectrum of the normal modes",
            xlabel="wavenumber / cm⁻¹",
            xlim=(0.0, 4200.0),
            ylim=(-1.15 * top, 1.45 * top),
        )
        axis.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.63, 1.0), fontsize=9)
    axes[0].set_ylabel("intensity of sticks / (km/mol)")
    plots.save(figure, path)


def _born_charges(
    calculator: MultipoleMACECalculator, water: Atoms, reference: dict[str, Any], out: Path
) -> None:
    """Born charges of H2O next to its latent charges."""
    born = calculator.get_property("born_charges", water)
    charges = calculator.get_property("charges", water)
    known = reference["H2O"]["mean_born_charges_e"]
    mean = np.einsum("naa->n", born) / 3.0
    rows = []
    texts = []
    for i, symbol in enumerate(water.symbols):
        principal = np.sort(np.linalg.eigvalsh(0.5 * (born[i] + born[i].T)))
        rows.append([symbol, *born[i].ravel(), mean[i], known[i], charges[i]])
        three = " ".join(f"{x:+.3f}" for x in principal)
        texts.append((symbol, three, f"{mean[i]:+.3f}", f"{known[i]:+.3f}", f"{charges[i]:+.3f}"))
    header = ["atom", *(f"Z_{a}{b}" for a in "xyz" for b in "xyz"), "mean", "gfn2_mean", "latent"]
    plots.write_csv(out / "born_charges.csv", header, rows)
    columns = ["atom", "principal values of Z*", "mean", "GFN2-xTB mean", "latent charge"]
    _show("3. Born charges of H2O, e: how the dipole changes when an atom moves", columns, texts)
    print(f"They sum to {np.abs(born.sum(0)).max():.0e} e. {out / 'born_charges.csv'}\n")


def ion_cluster() -> Atoms:
    """Na+ with three waters, to be relaxed."""
    from ase import Atoms
    from ase.build import molecule

    atoms = Atoms("Na", [[0.0, 0.0, 0.0]])
    for angle in (0.0, 120.0, 240.0):
        water = molecule("H2O")
        water.positions -= water.positions[0]
        towards = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0.0])
        water.rotate(water.positions[1:].mean(0), towards)  # hydrogens away from Na+
        water.positions += 2.25 * towards
        atoms += water
    return atoms


def _dynamics(calculator: MultipoleMACECalculator, steps: int, seed: int, out: Path) -> None:
    """NVE dynamics of the ions in water, its energies and temperature."""
    from ase import units
    from ase.io import write
    from ase.io.trajectory import Trajectory
    from ase.md.verlet import VelocityVerlet

    from mace_polmp.simulation.temperature import ThermalMotion, draw_momenta

    atoms = ion_cluster()
    atoms.calc = calculator
    relaxed(atoms, 0.05, "Na+(H2O)3")
    write(out / "ions.xyz", atoms, columns=["symbols", "positions"], write_results=False)
    draw_momenta(atoms, 400.0, np.random.default_rng(seed))  # half of it becomes potential energy
    motion = ThermalMotion.of(atoms)
    dynamics = VelocityVerlet(atoms, _STEP * units.fs)
    start = atoms.get_potential_energy()
    oxygens = np.flatnonzero(atoms.symbols == "O")
    rows = []
    with Trajectory(str(out / "md.traj"), "w", atoms) as trajectory:
        rounds = range(0, steps, _EVERY)
        for done in tqdm(rounds, desc="NVE MD", unit=f"{_EVERY} steps", leave=False, disable=None):
            trajectory.write()
            kinetic, potential = atoms.get_kinetic_energy(), atoms.get_potential_energy() - start
            # of a charged cluster about its centre of mass
            moment = atoms.get_dipole_moment() - atoms.get_center_of_mass()
            dipole = float(np.linalg.norm(moment))
            rows.append(
                (done * _STEP, potential, kinetic, potential + kinetic, motion.temperature(atoms),
                 atoms.get_distances(0, oxygens).mean(), dipole)
            )  # fmt: skip
            dynamics.run(min(_EVERY, steps - done))
    header = ["time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K", "NaO_A"]
    plots.write_csv(out / "md.csv", [*header, "dipole_eA"], rows)
    table = np.array(rows)
    spread = 1000.0 * table[:, 3].std() / len(atoms)
    print(
        f"4. Molecular dynamics of Na+(H2O)3, {steps * _STEP / 1000:g} ps at constant energy\n"
        f"mean temperature {table[:, 4].mean():.0f} K, Na-O distance {table[:, 5].mean():.2f} Å, "
        f"dipole {table[:, 6].mean():.2f} e Å\nfluctuation of the total energy {spread:.3f} "
        f"meV/atom, of the potential energy {1000 * table[:, 1].std() / len(atoms):.1f}"
    )
    _draw_dynamics(table, out / "md.png")
    print(f"{out / 'md.csv'}, {out / 'md.traj'}, {plots.said(out / 'md.png')}\n")


def _draw_dynamics(table: np.ndarray, path: Path) -> None:
    figure, axes = plots.figure(3, size=(12.0, 3.8))
    figure.suptitle("Model demo, steps of 0.5 fs", fontsize=11)
    time = table[:, 0]
    for column, label in ((1, "potential"), (2, "kinetic"), (3, "total")):
        axes[0].plot(time, table[:, column], label=label, lw=2.0 if column == 3 else 1.0)
    axes[0].set(title="Na⁺(H₂O)₃, constant energy", ylabel="energy / eV")
    axes[0].set_ylim(top=1.25 * float(table[:, 1:4].max()) + 0.01)
    axes[0].legend(frameon=False, ncols=3, loc="upper center")
    axes[1].plot(time, table[:, 4], color="C3", lw=1.0)
    mean = float(table[:, 4].mean())
    axes[1].axhline(mean, color="k", ls="--", lw=0.9, label=f"mean {mean:.0f} K")
    axes[1].set(title="temperature", ylabel="temperature / K")
    axes[1].legend(frameon=False)
    axes[2].plot(time, table[:, 6], color="C4", lw=1.0)
    axes[2].set(title="dipole of the cluster", ylabel="|dipole| / e Å")
    for axis in axes:
        axis.set_xlabel("time / fs")
        axis.grid(True, alpha=0.25)
    plots.save(figure, path)


def _show(title: str, columns: list[str], rows: list[tuple[str, ...]]) -> None:
    from mace_polmp.analysis.tables import text_table

    print(f"{title}\n{text_table(columns, rows)}")
