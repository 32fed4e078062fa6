#!/usr/bin/env python
"""Make the model of `mace_polmp demo`: water, Na+, Cl−, H3O+ and OH−, of GFN2-xTB.

    python scripts/make_demo_model.py --work_dir demo_training

labels structures with tblite (pip install 'mace-polmp[data]'; minutes), trains with mace_run_train
(one core: half an hour or more), and writes to mace_polmp/data:
    demo.safetensors      the model, single precision
    demo_reference.json   what GFN2-xTB says about H2O and its dimer, to compare with
    DEMO.md               the model card, with errors on structures held out
Run again after an interruption it goes on: data and checkpoints are in the work folder. With
--minutes the training ends in time and takes the best weights so far.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import make_quickstart_data as make
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.optimize import BFGS, FIRE
from tblite.ase import TBLite
from tqdm import tqdm

DATA = Path(__file__).parents[1] / "mace_polmp" / "data"
CLUSTERS = [(n, "") for n in range(2, 9)]
CLUSTERS += [(n, ion) for ion in ("Na", "Cl") for n in range(1, 7)]
CLUSTERS += [(n, "NaCl") for n in range(2, 7)]
CLUSTERS += [(n, ion) for ion in ("H3O", "OH") for n in range(1, 5)]
TEMPERATURES = (150.0, 300.0, 400.0)
# Periodic cells of liquid water (waters, ions; replicas of train, valid and test), sampled by MD
# with an earlier model and labelled with GFN2-xTB: its own MD would take hours.
BULK = [(16, "", (7, 1, 2)), (14, "NaCl", (4, 1, 1))]
LARGEST_BULK_FORCE = 10.0  # eV/Å
VOLUME = 29.9  # Å³ per water, that of 997 kg/m³; an ion takes that of a water
PAIRS = [*make.WATER_IONS.dimers, ((2, ""), (1, "")), ((3, ""), (1, "Cl")), ((4, ""), (2, ""))]
IONS = (("Na", 1), ("Cl", -1))
TRAINING = {
    "model": "MultipoleMACE",
    "induced": "dipole",
    "total_charge_weight": 100,
    "r_max": 4.0,
    "num_interactions": 2,
    "num_channels": 32,
    "max_L": 1,
    "max_ell": 2,
    "correlation": 2,
    "batch_size": 8,
    "valid_batch_size": 64,
    "E0s": "average",
    "energy_weight": 60,
    "forces_weight": 1,
    "dipole_weight": 10,
    "lr": 0.02,
    "head_lr": 0.02,
    "scheduler": "ExponentialLR",
    "ema_decay": 0.995,
    "default_dtype": "float32",
    "error_table": "PerAtomRMSE",
    "plot": "False",
    "seed": 1,
}

# Epochs at the end with a larger weight of energies: a hydrogen bond is a small difference of them.
FINISH, OF_ENERGIES = 15, ["--energy_weight=400"]


def labelled(frames: list[Atoms], kind: str) -> list[Atoms]:
    """The frames whose self-consistent field converges, labelled."""
    found = (make.label(frame, make.total_charge(frame), kind) for frame in frames)
    return [frame for frame in found if frame is not None]


def isolated_ions() -> list[Atoms]:
    """Na+ and Cl− alone, as IsolatedAtom frames: their energies are the E0s of their elements.

    An atom without neighbours has the energy E0 in a MACE and nothing else. An average E0 is 0.7 eV
    off that of Cl−, which would spoil all dimers in which a bare Cl− is beyond the cutoff.
    """
    found = [make.label(make.ION_SHAPES[ion], charge, "IsolatedAtom") for ion, charge in IONS]
    return [atoms for atoms in found if atoms is not None]


def trajectory(
    cluster: make.Fragment, n_frames: int, temperature: float, rng: np.random.Generator
) -> list[Atoms]:
    """Labelled snapshots; of what falls apart or does not converge, none."""
    try:
        return labelled(
            make.cluster_frames(cluster, n_frames, rng, temperature, every=25), "cluster"
        )
    except (CalculationFailed, RuntimeError):
        return []


def build_bulk(n_water: int, ions: str, rng: np.random.Generator) -> Atoms:
    """Waters and ions in random orientations on the points of a cubic lattice, periodic."""
    parts = [shape.copy() for name, shape in make.ION_SHAPES.items() if name in ions]
    parts += [molecule("H2O") for _ in range(n_water)]
    length = (len(parts) * VOLUME) ** (1 / 3)
    per_side = int(np.ceil(len(parts) ** (1 / 3) - 1e-9))
    points = rng.permutation(per_side**3)[: len(parts)]
    bulk = Atoms(cell=[length] * 3, pbc=True)
    for part, point in zip(parts, points, strict=True):
        turned = make.random_rotation(part, rng)
        place = np.array(np.unravel_index(point, (per_side,) * 3)) + 0.5
        turned.positions += place * length / per_side
        bulk += turned
    return bulk


def label_bulk(atoms: Atoms) -> Atoms | None:
    """A labelled copy without dipole, which a periodic cell lacks.

    None where the self-consistent field fails, or where the sampler has let atoms collide.
    """
    atoms = Atoms(atoms.numbers, np.round(atoms.positions, 4), cell=atoms.cell, pbc=True)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    try:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    except CalculationFailed:
        return None
    if np.abs(forces).max() > LARGEST_BULK_FORCE:
        return None
    atoms.calc = None
    atoms.info.update(config_type="bulk", total_charge=0, REF_energy=round(float(energy), 5))
    atoms.arrays["REF_forces"] = np.asarray(forces)
    return atoms


def bulk_frames(
    bulk: make.Fragment, n_frames: int, sampler: str, rng: np.random.Generator
) -> list[Atoms]:
    """Labelled snapshots of 300 K MD with the sampler, 20 fs apart after 50 fs."""
    from mace_polmp.calculators.loading import load_calculator

    atoms = build_bulk(*bulk, rng)
    atoms.calc = load_calculator(sampler, default_dtype="float32")
    FIRE(atoms, logfile=None).run(fmax=1.0, steps=60)
    spread = np.sqrt(atoms.get_masses() * units.kB * 300.0)[:, None]
    atoms.set_momenta(spread * rng.normal(size=(len(atoms), 3)))
    dynamics = Langevin(
        atoms, 1.0 * units.fs, temperature_K=300.0, friction=0.02 / units.fs, rng=rng
    )
    dynamics.run(30)
    frames = []
    for _ in range(n_frames):
        dynamics.run(20)
        frames.append(label_bulk(atoms))
    return [frame for frame in frames if frame is not None]


def make_bulk(folder: Path, sampler: str, seed: int) -> None:
    """bulk_train.xyz, bulk_valid.xyz and bulk_test.xyz, each of replicas of its own."""
    for number, (name, n_frames) in enumerate({"test": 4, "valid": 4, "train": 5}.items()):
        path = folder / f"bulk_{name}.xyz"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, 100 + number])
        frames: list[Atoms] = []
        for n_water, ions, replicas in BULK:
            n_replicas = replicas[("train", "valid", "test").index(name)]
            for _ in tqdm(range(n_replicas), desc=f"{name}: {n_water} waters {ions}"):
                frames += bulk_frames((n_water, ions), n_frames, sampler, rng)
        partial = path.with_suffix(".part.xyz")
        write(partial, frames, format="extxyz")
        partial.rename(path)
        print(f"{path}: {len(frames)} frames, {sum(map(len, frames))} atoms")


def make_data(folder: Path, seed: int) -> None:
    """train.xyz, valid.xyz and test.xyz, each of trajectories and orientations of its own."""
    sizes = {"test": (4, 8), "valid": (3, 6), "train": (18, 60)}  # by trajectory, by pair
    for number, (name, (by_trajectory, by_pair)) in enumerate(sizes.items()):
        path = folder / f"{name}.xyz"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, number])
        frames: list[Atoms] = []
        for cluster in tqdm(CLUSTERS, desc=f"{name}: clusters"):
            for temperature in TEMPERATURES:
                frames += trajectory(cluster, by_trajectory, temperature, rng)
        for temperature in (100.0, 300.0, 600.0, 1000.0):
            frames += trajectory((1, ""), 2 * by_trajectory, temperature, rng)
        for ion in ("H3O", "OH"):
            frames += trajectory((0, ion), by_trajectory, 300.0, rng)
        if name == "train":
            frames = isolated_ions() + frames
        recipe = dataclasses.replace(make.WATER_IONS, dimers=PAIRS)
        frames += make.dimer_frames(recipe, by_pair, (1.9, 7.0), rng, "dimer")
        partial = path.with_suffix(".part.xyz")
        make.write_frames(partial, frames)
        partial.rename(path)
        print(f"{path}: {len(frames)} frames, {sum(map(len, frames))} atoms")


def joined(folder: Path, name: str) -> Path:
    """One file of the clusters and the liquid."""
    path = folder / f"all_{name}.xyz"
    frames = [*read(folder / f"{name}.xyz", ":"), *read(folder / f"bulk_{name}.xyz", ":")]
    for atoms in frames:
        atoms.calc = None
    write(path, frames, format="extxyz")
    return path


def train(folder: Path, epochs: int, minutes: float) -> None:
    """One training, gone on with where it was stopped; a second call takes the best weights."""
    settings = {
        **TRAINING,
        "name": "demo",
        "work_dir": folder,
        "train_file": joined(folder, "train"),
        "valid_file": joined(folder, "valid"),
        "lr_scheduler_gamma": 0.03 ** (1.0 / epochs),
    }
    command = [sys.executable, "-m", "mace_polmp.cli.run_train"]
    command += ["--ema", "--no_amsgrad", "--restart_latest"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    end = time.monotonic() + 60.0 * minutes
    stages = [["--max_num_epochs", epochs], ["--max_num_epochs", epochs + FINISH, *OF_ENERGIES]]
    with open(folder / "demo.out", "ab") as log:
        for stage in stages:
            words = [*command, *map(str, stage)]
            process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
            try:
                if process.wait(timeout=max(1.0, end - time.monotonic())) != 0:
                    raise SystemExit(f"the training failed; see {folder / 'demo.out'}")
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                process.wait()
                print(f"stopped after {minutes:g} minutes; the best weights so far are taken")
                words = [*command, "--max_num_epochs=1"]
                subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=True)
                return


def gfn2(atoms: Atoms) -> Atoms:
    atoms.calc = TBLite(method="GFN2-xTB", charge=0, accuracy=0.01, verbosity=0)
    return atoms


def harmonic(atoms: Atoms) -> dict[str, Any]:
    """Wavenumbers, intensities and Born charges of GFN2-xTB by central differences of 0.005 Å."""
    from mace_polmp.analysis import modes
    from mace_polmp.analysis.rigid import rigid_motions

    step, n = 0.005, len(atoms)
    hessian, born = np.zeros((3 * n, 3 * n)), np.zeros((n, 3, 3))
    for i in range(n):
        for axis in range(3):
            forces, dipoles = [], []
            for sign in (1, -1):
                moved = gfn2(atoms.copy())
                moved.positions[i, axis] += sign * step
                forces.append(moved.get_forces().ravel())
                dipoles.append(moved.get_dipole_moment())
            hessian[3 * i + axis] = -(forces[0] - forces[1]) / (2 * step)
            born[i, :, axis] = (dipoles[0] - dipoles[1]) / (2 * step)
    masses = atoms.get_masses()
    found = modes.normal_modes(
        hessian, masses, rigid_motions(atoms.positions, masses, rotations=True)
    )
    return {
        "wavenumbers_cm-1": np.round(found.frequency, 1).tolist(),
        "intensities_km/mol": np.round(modes.infrared_intensities(found, born), 2).tolist(),
        "mean_born_charges_e": np.round(np.einsum("naa->n", born) / 3, 3).tolist(),
    }


def reference() -> dict[str, Any]:
    """H2O and its dimer relaxed with GFN2-xTB."""
    water = gfn2(molecule("H2O"))
    BFGS(water, logfile=None).run(fmax=0.001)
    dimer = gfn2(
        Atoms(
            "OH2OH2",
            [[-1.46, 0, 0.1], [-1.8, 0.1, -0.8], [-0.5, 0, 0], [1.4, 0, 0], [1.75, 0.75, 0.4],
             [1.75, -0.75, 0.4]],
        )
    )  # fmt: skip
    BFGS(dimer, logfile=None).run(fmax=0.001, steps=1000)
    binding = dimer.get_potential_energy() - 2 * water.get_potential_energy()
    both = {}
    for name, atoms in (("H2O", water), ("(H2O)2", dimer)):
        both[name] = {
            "dipole_eA": round(float(np.linalg.norm(atoms.get_dipole_moment())), 4),
            **harmonic(atoms),
        }
    both["(H2O)2"] |= {
        "binding_energy_eV": round(float(binding), 4),
        "oxygen_distance_A": round(float(dimer.get_distance(0, 3)), 3),
        "symbols": dimer.get_chemical_formula("reduce"),
        "positions_A": np.round(dimer.positions, 4).tolist(),
    }
    return both


def errors(model: Path, folder: Path) -> str:
    """A table of RMSEs on the test frames."""
    from mace_polmp.analysis.errors import ErrorMeasures
    from mace_polmp.calculators.comparison import compare
    from mace_polmp.calculators.loading import load_calculator

    calculator = load_calculator(model, default_dtype="float64")
    frames = [*read(folder / "test.xyz", ":"), *read(folder / "bulk_test.xyz", ":")]
    groups = {
        "water": lambda a: a.info["config_type"] == "cluster" and set(a.symbols) == {"H", "O"}
        and a.info["total_charge"] == 0,
        "H3O+ and OH- in water": lambda a: a.info["config_type"] == "cluster"
        and set(a.symbols) <= {"H", "O"} and a.info["total_charge"] != 0,
        "Na+ and Cl- in water": lambda a: a.info["config_type"] == "cluster"
        and bool({"Na", "Cl"} & set(a.symbols)),
        "two fragments, gaps 1.9-7 Å": lambda a: a.info["config_type"] == "dimer",
        "liquid water, periodic": lambda a: a.pbc.all() and "Na" not in a.symbols,
        "liquid water with Na+ and Cl-": lambda a: a.pbc.all() and "Na" in a.symbols,
        "all": lambda a: True,
    }  # fmt: skip
    lines = ["| structures | frames | energy, meV/atom | forces, meV/Å | dipole, e Å |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, chosen in groups.items():
        mine = [atoms for atoms in frames if chosen(atoms)]
        found = compare(calculator, mine)
        per_atom = [(a.info["REF_energy"], len(a)) for a in mine]
        difference = np.subtract(*found["energy"].values()) / [n for _, n in per_atom]
        energy = 1000.0 * float(np.sqrt(np.mean(difference**2)))
        forces = 1000.0 * ErrorMeasures.of(*found["forces"].values()).rmse
        dipole = "-"
        if "dipole" in found:
            dipole = f"{ErrorMeasures.of(*found['dipole'].values()).rmse:.3f}"
        lines.append(f"| {name} | {len(mine)} | {energy:.2f} | {forces:.1f} | {dipole} |")
    return "\n".join(lines)


def liquid(model: Path, seed: int, steps: int = 1000) -> str:
    """What MD of liquid water at 300 K does, in words; refuses a model whose molecules break."""
    from mace_polmp.calculators.loading import load_calculator

    rng = np.random.default_rng([seed, 200])
    atoms = build_bulk(16, "", rng)
    atoms.calc = load_calculator(model, default_dtype="float32")
    FIRE(atoms, logfile=None).run(fmax=1.0, steps=60)
    spread = np.sqrt(atoms.get_masses() * units.kB * 300.0)[:, None]
    atoms.set_momenta(spread * rng.normal(size=(len(atoms), 3)))
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=300.0, friction=0.02 / units.fs, rng=rng
    )
    temperatures, longest, closest = [], 0.0, np.inf
    for _ in tqdm(range(steps // 10), desc="MD of liquid water", unit="10 steps"):
        dynamics.run(10)
        temperatures.append(atoms.get_temperature())
        distances = atoms.get_all_distances(mic=True)
        own = [distances[3 * i, 3 * i + k] for i in range(16) for k in (1, 2)]
        oxygens = distances[::3, ::3] + 99.0 * np.eye(16)
        longest, closest = max(longest, *own), min(closest, oxygens.min())
    if not (longest < 1.4 and closest > 2.0):
        raise SystemExit(f"liquid water falls apart: O-H {longest:.2f} Å, O-O {closest:.2f} Å")
    half = np.array(temperatures[len(temperatures) // 2 :])
    return (
        f"{steps * 0.0005:g} ps of 16 waters (997 kg/m³, steps of 0.5 fs, thermostat of 300 K): "
        f"mean temperature of the second half {half.mean():.0f} K, O–H bonds below "
        f"{longest:.2f} Å, no two oxygens closer than {closest:.2f} Å"
    )


CARD = """# The demo model

`demo.safetensors` is a small MultipoleMACE of water with Na+, Cl−, H3O+ and OH−, in clusters and as a liquid. `mace_polmp demo` shows what it does, and every
command takes it as `--model demo` (Python: `mace_polmp.load_model("demo")`). MIT licence, like the package.

- **Reference:** GFN2-xTB (Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019)) as in tblite, with the errors of that method: H2O bends
  at {bend:.0f} and stretches at {stretch} cm⁻¹ (measured, with anharmonicity: 1595, 3657 and 3756).
- **Data:** {n_train} structures with energies, forces and dipoles: clusters of up to 8 waters, alone or with up to 6 waters around Na+, Cl− or
  both, up to 4 around H3O+ or OH−, from MD at 150, 300 and 400 K; H2O up to 1000 K; pairs of fragments with gaps of 1.9–7 Å; and {n_bulk}
  snapshots (energies and forces) of 16 molecules of liquid water, or 14 with Na+ and Cl−, in a periodic cell, drawn from MD with an earlier model at 300 K.
- **Model:** r_max 4 Å, two layers of 32 channels, multipoles up to quadrupoles and induced dipoles. It tells the charge of
  a fragment from its atoms (total charges were labels), and needs no `total_charge`; {parameters} parameters, {size:.2f} MB. Trained by `scripts/make_demo_model.py` on one core
  ({epochs} epochs, {late} of them with a larger weight of energies at the end).
- **Liquid water at 300 K:** {liquid}.
- **Energies of periodic boxes** are off by an amount that depends on the box and is the same in all its frames. Forces and differences of energies in one box are not affected.
  The table has boxes of 16 molecules; smaller boxes are farther off. Charges of a neutral molecule sum to some hundredths of e, not to zero.
- **Errors (RMSE)** on trajectories and orientations that were not trained on:

{table}

**Not for** research: properties of the liquid, pressures and densities (there were few snapshots of it and no stresses), other elements, ions of unlike charge that leave each
other, reactions other than proton transfer, Raman spectra (there were no labels of polarizabilities), temperatures above 400 K. Its ions are those of GFN2-xTB.
"""  # noqa: E501


def publish(folder: Path, epochs: int) -> None:
    """Write the model, the reference and the model card to mace_polmp/data."""
    from mace_polmp.modules.io import load_model, write_model

    model = load_model(folder / "demo.model").float()
    target = DATA / "demo.safetensors"
    write_model(model, target)
    found = reference()
    (DATA / "demo_reference.json").write_text(json.dumps(found, indent=1) + "\n")
    waves = found["H2O"]["wavenumbers_cm-1"]
    results = (folder / "results" / "demo_run-1_train.txt").read_text().splitlines()
    evaluations = [json.loads(line) for line in results if '"eval"' in line]
    done = 1 + max(e["epoch"] for e in evaluations if e["epoch"] is not None)
    card = CARD.format(
        bend=waves[0],
        stretch=" and ".join(f"{wave:.0f}" for wave in waves[1:]),
        n_train=len(read(folder / "train.xyz", ":")),
        n_bulk=len(read(folder / "bulk_train.xyz", ":")),
        parameters=sum(p.numel() for p in model.parameters()),
        size=target.stat().st_size / 1e6,
        epochs=done,
        late=max(0, done - epochs),
        liquid=liquid(target, 1),
        table=errors(target, folder),
    )
    (DATA / "DEMO.md").write_text(card)
    print(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work_dir", type=Path, default=Path("demo_training"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=60.0, help="of training in this call")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--sampler", default="demo", help="model of the MD of liquid water")
    parser.add_argument("--only", choices=("data", "train", "publish"), help="one step of three")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.only in (None, "data"):
        make_data(args.work_dir, args.seed)
        make_bulk(args.work_dir, args.sampler, args.seed)
    if args.only in (None, "train"):
        train(args.work_dir, args.epochs, args.minutes)
    if args.only in (None, "publish"):
        publish(args.work_dir, args.epochs)


if __name__ == "__main__":
    main()
