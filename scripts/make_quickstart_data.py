#!/usr/bin/env python
"""Make the embedded data: water with Cl−, and water with Na+ and Cl−, and dimers pulled apart.

Labels: GFN2-xTB energies, forces and dipoles from tblite (pip install 'mace-polmp[data]').
Run from the root of the repository; it rewrites mace_polmp/data/ (about three minutes):

    python scripts/make_quickstart_data.py

Sets: chloride, of `mace_polmp quickstart`; water_ions, of the demo model, examples and benchmarks.
Files of a set (extended XYZ; eV, eV/Å, e Å; the dipole of a charged system is about the coordinate
origin):
    …_train.xyz    clusters from MD, and dimers with gaps of about 2 to 6 Å
    …_valid.xyz    the same kind, other trajectories and orientations
    …_far.xyz      dimers with gaps of 8.5 to 14 Å: beyond the training range and the reach (8 Å) of
                   the quickstart's network
    …_curves.xyz   dimers pulled apart along a line, for the plot
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.io import write
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from scipy.spatial.transform import Rotation
from tblite.ase import TBLite
from tqdm import tqdm

OXIDATION_NUMBERS = {"Na": 1, "Cl": -1, "H": 1, "O": -2}  # their sum is the total charge
ION_SHAPES = {
    "Na": Atoms("Na", [[0, 0, 0]]),
    "Cl": Atoms("Cl", [[0, 0, 0]]),
    "H3O": Atoms("OH3", [[0, 0, 0], [0.95, 0, 0.2], [-0.47, 0.82, 0.2], [-0.47, -0.82, 0.2]]),
    "OH": Atoms("OH", [[0, 0, 0], [0, 0, 0.97]]),
}
TEMPERATURE = 200.0  # K, of clusters
Fragment = tuple[int, str]  # number of waters, ion


@dataclass(frozen=True)
class Recipe:
    """What a set consists of.

    Attributes:
        clusters: all fragments of the dimers but bare ions are among them: their own energies, and
            those of their vibrations, are what a curve of interaction energies is measured from.
        dimers: pairs of fragments.
        curves: pairs of fragments by the name of their curve; True for one that is upside down.
        fragment_temperature: K, of the fragments of dimers.
        cluster_temperature: K, of trajectories from random arrangements; None for trajectories from
            the relaxed cluster, at fragment_temperature.
        frames: of a trajectory, for training and for validation.
        trajectories: for training and for validation.
        counts: of each dimer, for training, validation and held out.
        smallest_gap: Å, of dimers.
        largest_force: eV/Å, of dimers: close contacts that no simulation reaches are left out.
        is_cut: whether curves leave them out as well.
    """

    clusters: list[Fragment]
    dimers: list[tuple[Fragment, Fragment]]
    curves: dict[str, tuple[tuple[Fragment, bool], tuple[Fragment, bool]]]
    fragment_temperature: float
    cluster_temperature: float | None
    frames: tuple[int, int]
    trajectories: tuple[int, int]
    counts: tuple[int, int, int]
    smallest_gap: float
    largest_force: float
    is_cut: bool


WATER, CHLORIDE, SODIUM = (1, ""), (0, "Cl"), (3, "Na")
# GFN2-xTB keeps the charge of like ions and of hydrated Na+ however far apart; for Na+ and Cl− it
# does not (the electron goes back, as it would in vacuum), and bare Na+ takes charge from a distant
# water, so those pairs are left out.
WATER_IONS = Recipe(
    clusters=[(n, ion) for ion in ("", "Na", "Cl") for n in (1, 2, 3)],
    dimers=[
        (WATER, WATER),
        ((2, "Na"), WATER),
        (SODIUM, WATER),
        (CHLORIDE, WATER),
        ((1, "Cl"), WATER),
        (SODIUM, (2, "Na")),
        ((2, "Cl"), CHLORIDE),
    ],
    curves={
        "Na(H2O)3+ ... OH2": ((SODIUM, False), (WATER, True)),
        "Cl- ... HOH": ((CHLORIDE, False), (WATER, False)),
        "Na(H2O)3+ ... Na(H2O)2+": ((SODIUM, False), ((2, "Na"), False)),
    },
    fragment_temperature=150.0,
    cluster_temperature=TEMPERATURE,
    frames=(7, 3),
    trajectories=(10, 2),
    counts=(110, 6, 8),
    smallest_gap=1.9,
    largest_force=2.5,
    is_cut=False,
)
# Little enough that a network learns it to some meV in minutes. Two Cl− are left out: GFN2-xTB
# damps the law of Coulomb (0.1 eV less than 14.4 eV Å/r at 6 Å), and multipoles do not.
CHLORIDE_WATER = Recipe(
    clusters=[WATER, (2, "Cl")],
    dimers=[(WATER, WATER), (CHLORIDE, WATER)],
    curves={
        "H2O ... HOH": ((WATER, True), (WATER, True)),
        "Cl- ... HOH": ((CHLORIDE, False), (WATER, False)),
        "Cl- ... OH2": ((CHLORIDE, False), (WATER, True)),
    },
    fragment_temperature=100.0,
    cluster_temperature=None,
    frames=(10, 4),
    trajectories=(10, 3),
    counts=(400, 40, 20),
    smallest_gap=2.0,
    largest_force=0.9,
    is_cut=True,
)
RECIPES = {"water_ions": WATER_IONS, "chloride": CHLORIDE_WATER}


def label(atoms: Atoms, charge: int, config_type: str) -> Atoms | None:
    """A labelled copy, or None where the self-consistent field does not converge.

    Positions are rounded to the four decimals that the files have.
    """
    atoms = atoms.copy()
    atoms.positions = np.round(atoms.positions, 4)
    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    try:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        dipole = atoms.get_dipole_moment()
    except CalculationFailed:
        return None
    out = Atoms(atoms.numbers, positions=atoms.positions)
    out.info.update(
        config_type=config_type,
        total_charge=charge,
        REF_energy=round(float(energy), 5),
        REF_dipole=np.round(dipole, 4),
    )
    out.arrays["REF_forces"] = np.asarray(forces)
    return out


def total_charge(atoms: Atoms) -> int:
    return sum(OXIDATION_NUMBERS[symbol] for symbol in atoms.get_chemical_symbols())


def random_rotation(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    atoms = atoms.copy()
    centre = atoms.positions.mean(0)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    atoms.positions = (atoms.positions - centre) @ turn.T
    return atoms


def closest(a: Atoms, b: Atoms) -> float:
    return float(np.linalg.norm(a.positions[:, None] - b.positions[None], axis=-1).min())


def place(a: Atoms, b: Atoms, gap: float, direction: np.ndarray) -> Atoms:
    """a and b with a distance `gap` between their closest atoms, b along direction."""
    low, high = 0.0, gap + 30.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        moved = b.copy()
        moved.positions += middle * direction
        low, high = (middle, high) if closest(a, moved) < gap else (low, middle)
    moved = b.copy()
    moved.positions += high * direction
    return a + moved


def build_cluster(n_water: int, ions: str, rng: np.random.Generator) -> Atoms:
    parts = [ION_SHAPES[name].copy() for name in ION_SHAPES if name in ions]
    parts += [molecule("H2O") for _ in range(n_water)]
    cluster = random_rotation(parts[0], rng)
    for part in parts[1:]:
        direction = rng.normal(size=3)
        cluster = place(
            cluster, random_rotation(part, rng), 2.1, direction / np.linalg.norm(direction)
        )
    return cluster


def relax(atoms: Atoms, fmax: float, steps: int = 300) -> None:
    """Relax in place with GFN2-xTB, which stays the calculator."""
    atoms.calc = TBLite(method="GFN2-xTB", charge=total_charge(atoms), verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps)


def run_md(
    atoms: Atoms, n_frames: int, temperature: float, rng: np.random.Generator, every: int = 60
) -> list[Atoms]:
    """Relax, then Langevin MD with a frame after every so many fs."""
    atoms = atoms.copy()
    relax(atoms, fmax=0.05, steps=200)
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(spread * rng.normal(size=(len(atoms), 3)))
    dynamics = Langevin(
        atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng
    )
    frames = []
    dynamics.run(200)
    for _ in range(n_frames):
        dynamics.run(every)
        frames.append(Atoms(atoms.numbers, atoms.positions - atoms.positions.mean(0)))
    return frames


def cluster_frames(
    cluster: Fragment,
    n_frames: int,
    rng: np.random.Generator,
    temperature: float = TEMPERATURE,
    every: int = 60,
) -> list[Atoms]:
    """MD of a cluster from the first random arrangement whose self-consistent field converges."""
    for _ in range(20):
        try:
            return run_md(build_cluster(*cluster, rng), n_frames, temperature, rng, every)
        except CalculationFailed:
            continue
    raise RuntimeError(f"no arrangement of {cluster} converges")


def relaxed_fragment(fragment: Fragment) -> Atoms:
    """The relaxed fragment, centred; the same at every call."""
    atoms = build_cluster(*fragment, np.random.default_rng(3))
    relax(atoms, fmax=0.01)
    return Atoms(atoms.numbers, positions=atoms.positions - atoms.positions.mean(0))


def fragment_name(fragment: Fragment) -> str:
    n_water, ion = fragment
    water = {0: "", 1: "H2O" if not ion else "(H2O)"}.get(n_water, f"(H2O){n_water}")
    return ion + water + {"": "", "Na": "+", "Cl": "-"}[ion]


def dimer_frames(
    recipe: Recipe,
    n_each: int,
    gaps: tuple[float, float],
    rng: np.random.Generator,
    config_type: str,
) -> list[Atoms]:
    frames = []
    pools = {
        fragment: run_md(relaxed_fragment(fragment), 40, recipe.fragment_temperature, rng)
        if fragment[0] > 0
        else [relaxed_fragment(fragment)]
        for fragment in sorted({f for names in recipe.dimers for f in names})
    }
    for names in tqdm(recipe.dimers, desc=config_type):
        made = 0
        while made < n_each:
            a, b = (
                random_rotation(pools[name][rng.integers(len(pools[name]))], rng) for name in names
            )
            gap = gaps[0] + (gaps[1] - gaps[0]) * rng.random() ** 1.5  # more contacts
            pair = place(a, b, gap, np.array([0.0, 0.0, 1.0]))
            frame = label(pair, total_charge(pair), config_type)
            if frame is None or largest_force(frame) > recipe.largest_force:
                continue
            frame.info.update(dimer=" ... ".join(map(fragment_name, names)), gap=round(gap, 4))
            frames.append(frame)
            made += 1
    return frames


def largest_force(frame: Atoms) -> float:
    """Largest component of the labels, eV/Å."""
    return float(np.abs(frame.arrays["REF_forces"]).max())


def curve_frames(recipe: Recipe) -> list[Atoms]:
    """Dimers pulled apart along z in a fixed orientation, against their free fragments."""
    frames = []
    gaps = np.concatenate([np.arange(2.0, 6.0, 0.25), np.arange(6.0, 14.5, 0.5)])
    for name, (first, second) in recipe.curves.items():
        a, b = (_of_curve(*part, recipe.is_cut) for part in (first, second))
        free = sum(label(part, total_charge(part), "").info["REF_energy"] for part in (a, b))
        for gap in gaps:
            pair = place(a, b, float(gap), np.array([0.0, 0.0, 1.0]))
            frame = label(pair, total_charge(pair), "curve")
            if frame is None or (recipe.is_cut and largest_force(frame) > recipe.largest_force):
                continue
            frame.info.update(
                curve=name,
                n_first=len(a),
                gap=float(gap),
                REF_interaction=frame.info["REF_energy"] - free,
            )
            frames.append(frame)
    return frames


def _of_curve(fragment: Fragment, is_flipped: bool, is_relaxed: bool) -> Atoms:
    """Water with oxygen up and hydrogens down the z axis, as built or relaxed; others relaxed."""
    if fragment == WATER:
        atoms = molecule("H2O")
        if is_relaxed:  # as built it has forces near the limit already
            relax(atoms, fmax=0.001)
    else:
        atoms = relaxed_fragment(fragment)
    if is_flipped:
        atoms.positions[:, 2] *= -1
    return atoms


def write_frames(path: Path, frames: list[Atoms]) -> None:
    """Extended XYZ with four decimals and single spaces."""
    write(path, frames, format="extxyz")
    lines = []
    for line in path.read_text().splitlines():
        if "Properties=" not in line:
            line = re.sub(r" +", " ", re.sub(r"(\.\d{4})\d+", r"\1", line)).strip()
        lines.append(line + "\n")
    path.write_text("".join(lines))


def trajectories(recipe: Recipe, rng: np.random.Generator) -> tuple[list[Atoms], list[Atoms]]:
    """Labelled snapshots of clusters, for training and for validation."""
    made: tuple[list[Atoms], list[Atoms]] = ([], [])
    for cluster in tqdm(recipe.clusters, desc="clusters"):
        start = None if recipe.cluster_temperature else relaxed_fragment(cluster)
        for target, count, n_frames in zip(made, recipe.trajectories, recipe.frames, strict=True):
            for _ in range(count):
                if start is not None:
                    frames = run_md(start, n_frames, recipe.fragment_temperature, rng, every=40)
                else:
                    assert recipe.cluster_temperature is not None
                    frames = cluster_frames(
                        cluster, n_frames, rng, recipe.cluster_temperature, every=40
                    )
                labelled = (label(frame, total_charge(frame), "cluster") for frame in frames)
                target.extend(frame for frame in labelled if frame is not None)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("mace_polmp/data"))
    parser.add_argument("--sets", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES))
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        make(name, RECIPES[name], args.output, np.random.default_rng(args.seed))


def make(name: str, recipe: Recipe, output: Path, rng: np.random.Generator) -> None:
    """Write the files of a set."""
    near, (n_train, n_valid, n_far) = (recipe.smallest_gap, 6.0), recipe.counts
    train, valid = trajectories(recipe, rng)
    train += dimer_frames(recipe, n_train, near, rng, "dimer")
    valid += dimer_frames(recipe, n_valid, near, rng, "dimer")
    far = dimer_frames(recipe, n_far, (8.5, 14.0), rng, "far")
    parts = {"train": train, "valid": valid, "far": far, "curves": curve_frames(recipe)}
    for part, frames in parts.items():
        path = output / f"{name}_{part}.xyz"
        write_frames(path, frames)
        print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
