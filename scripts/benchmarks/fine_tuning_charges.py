#!/usr/bin/env python
"""Charges of a fine-tuned MACE: from energies and forces, with borrowed labels, with a few true.

    python scripts/benchmarks/fine_tuning_charges.py --foundation mace.model --data frames.xyz

splits the frames that the foundation model knows the elements of by molecule (by formula) into
test, validation and training ones, computes GFN2-xTB labels for them (pip install
'mace-polmp[data]'), and fine-tunes:

    plain     energies and forces
    dipole    and GFN2-xTB dipoles, times --scale
    born      and GFN2-xTB dipoles and Born charges, times --scale
    few       born, then a quarter as many epochs with true labels of 20 frames and, at a tenth of
              their weight, GFN2-xTB labels of the others times the factor that fits those 20
    released  born, then a quarter as many epochs on energies and forces alone

Born charges of GFN2-xTB are changes of forces in six uniform fields: Z*[i, a, b] = ∂F_ib/∂E_a.
Those in files are [polarization, displacement], or with --transposed the other way round. What is
done is not repeated, trainings that were stopped go on. errors.csv has a row for each variant and
quantity; those of the test frames with --test only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.units import Bohr
from fine_tuning import errors
from numpy.typing import NDArray

from mace_polmp.analysis.plots import write_csv
from mace_polmp.analysis.tables import text_table
from mace_polmp.modules.io import load_any

FIELD = 0.002  # Hartree/(e Bohr), 0.1 V/Å
N_FEW = 20
COMMON = (
    "--model=MultipoleMACE",
    "--E0s=estimated",
    "--multiheads_finetuning=False",
    "--constrain_charge=softness",
    "--default_dtype=float32",
    "--batch_size=4",
    "--valid_batch_size=6",
    "--energy_weight=100",
    "--scheduler=ExponentialLR",
    "--ema",
    "--ema_decay=0.99",
    "--error_table=PerAtomMAE",
)
LABELS = ("--dipole_weight=500", "--head_lr=1e-2", "--head_growth_epochs=2")
BORN = ("--born_charges_weight=50",)
TRUE = ("--dipole_weight=1000", "--born_charges_weight=150")
OF_BORROWED = 0.1  # weight of borrowed labels next to true ones
MORE = ("--lr=2e-3", "--head_lr=5e-3")
_END = 0.09  # of the learning rate, in units of the first


@dataclass(frozen=True)
class Variant:
    """A training.

    Attributes:
        flags: besides the common ones.
        borrowed: labels of GFN2-xTB.
        true: whether the first frames have true labels.
        after: the variant that it goes on from.
    """

    flags: tuple[str, ...] = ("--lr=5e-3",)
    borrowed: tuple[str, ...] = ()
    true: bool = False
    after: str | None = None


VARIANTS = {
    "plain": Variant(),
    "dipole": Variant(("--lr=5e-3", *LABELS), ("dipole",)),
    "born": Variant(("--lr=5e-3", *LABELS, *BORN), ("dipole", "born_charges")),
    "few": Variant((*MORE, *TRUE), ("dipole", "born_charges"), True, "born"),
    "released": Variant(MORE, after="born"),
}


def borrowed_labels(atoms: Atoms) -> dict[str, NDArray[np.float64]]:
    """Dipole, e Å, and Born charges [n, 3, 3], e, of an open structure by GFN2-xTB."""
    from tblite.interface import Calculator

    def result(field: NDArray[np.float64] | None = None) -> Any:
        charge = float(atoms.info.get("total_charge", 0.0))
        calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / Bohr, charge=charge)
        calculator.set("verbosity", 0)
        calculator.set("accuracy", 0.01)
        if field is not None:
            calculator.add("electric-field", field.tolist())
        return calculator.singlepoint()

    born = np.empty((len(atoms), 3, 3))
    for axis, field in enumerate(FIELD * np.eye(3)):
        change = result(field)["gradient"] - result(-field)["gradient"]
        born[:, axis] = -change / (2 * FIELD)
    return {"dipole": result()["dipole"] * Bohr, "born_charges": born}


def prepare(args: argparse.Namespace) -> dict[str, list[Atoms]]:
    """Frames by part, with true labels, and borrowed ones under GFN2_ names."""
    path = args.output / "frames.xyz"
    if not path.exists():
        known = set(load_any(args.foundation).atomic_numbers.tolist())
        frames = [atoms for atoms in read(args.data, ":") if set(atoms.numbers) <= known]
        for atoms in frames:
            if args.transposed and "REF_born_charges" in atoms.arrays:
                born = atoms.arrays["REF_born_charges"].reshape(-1, 3, 3)
                atoms.arrays["REF_born_charges"] = born.transpose(0, 2, 1).reshape(-1, 9)
            try:
                found = borrowed_labels(atoms)
            except RuntimeError as error:  # of tblite: not converged
                print(f"a frame of {atoms.symbols} has no borrowed labels: {error}")
                continue
            atoms.info["GFN2_dipole"] = found["dipole"]
            atoms.arrays["GFN2_born_charges"] = found["born_charges"].reshape(-1, 9)
        _split(frames, args.held_out, args.seed)
        write(path, frames, format="extxyz")
    parts: dict[str, list[Atoms]] = {"test": [], "valid": [], "train": []}
    for atoms in read(path, ":"):
        parts[atoms.info["part"]].append(atoms)
    return parts


def _split(frames: list[Atoms], held_out: int, seed: int) -> None:
    """Say in each frame which part it belongs to; a formula is in one part only."""
    groups: dict[str, list[Atoms]] = {}
    for atoms in frames:
        groups.setdefault(atoms.get_chemical_formula(), []).append(atoms)
    formulas = sorted(groups)
    np.random.default_rng(seed).shuffle(formulas)
    room = {"test": held_out, "valid": held_out, "train": len(frames)}
    for formula in formulas:
        group = groups[formula]
        part = next(name for name, left in room.items() if len(group) <= left)
        room[part] -= len(group)
        for atoms in group:
            atoms.info["part"] = part


def with_labels(frames: list[Atoms], variant: Variant, scale: float) -> list[Atoms]:
    """Frames with the labels that a variant is trained on."""
    out = []
    for number, frame in enumerate(frames):
        atoms = frame.copy()
        if not (variant.true and number < N_FEW):
            for name, place in (("dipole", atoms.info), ("born_charges", atoms.arrays)):
                place.pop(f"REF_{name}", None)
                if name in variant.borrowed and f"GFN2_{name}" in place:
                    place[f"REF_{name}"] = scale * place[f"GFN2_{name}"]
                    atoms.info[f"config_{name}_weight"] = OF_BORROWED if variant.true else 1.0
        out.append(atoms)
    return out


def fitted_scale(frames: list[Atoms]) -> float:
    """The factor of GFN2-xTB's dipoles that fits true ones."""
    frames = [atoms for atoms in frames if "GFN2_dipole" in atoms.info]
    true = np.concatenate([atoms.info["REF_dipole"] for atoms in frames])
    borrowed = np.concatenate([atoms.info["GFN2_dipole"] for atoms in frames])
    return float(true @ borrowed / (borrowed @ borrowed))


def train(name: str, parts: dict[str, list[Atoms]], args: argparse.Namespace) -> Path:
    """Run a variant, after the one that it goes on from, where that was not done; its model."""
    variant, folder = VARIANTS[name], args.output / name
    path: Path = folder / f"{name}.model"
    start = args.foundation if variant.after is None else train(variant.after, parts, args)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    scale = fitted_scale(parts["train"][:N_FEW]) if variant.true else args.scale
    epochs = args.epochs if variant.after is None else max(1, args.epochs // 4)
    command = [sys.executable, "-m", "mace_polmp.cli.run_train", f"--name={name}"]
    command += [f"--work_dir={folder}", f"--seed={args.seed}", "--restart_latest"]
    command += [f"--foundation_model={start}", f"--max_num_epochs={epochs}"]
    command += [f"--lr_scheduler_gamma={_END ** (1 / epochs):.4f}"]
    for part in ("train", "valid"):
        file = folder / f"{part}.xyz"
        write(file, with_labels(parts[part], variant, scale), format="extxyz")
        command.append(f"--{part}_file={file}")
    began = time.time()
    with open(folder / f"{name}.out", "a") as log:
        command += [*COMMON, *variant.flags]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    print(f"{name}: {(time.time() - began) / 60:.1f} minutes", flush=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--foundation", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--transposed", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("fine_tuning_charges"))
    parser.add_argument("--held_out", type=int, default=12, help="frames for validation, for test")
    parser.add_argument("--scale", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--test", action="store_true", help="errors on the test frames as well")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    parts = prepare(args)
    print(", ".join(f"{len(frames)} {name}" for name, frames in parts.items()))
    print(f"GFN2-xTB's dipoles fit those of {N_FEW} frames times", end=" ")
    print(f"{fitted_scale(parts['train'][:N_FEW]):.3f}")
    rows = []
    for name in args.variants:
        model = train(name, parts, args)
        for part in ("valid", "test")[: 1 + args.test]:
            rows += errors(f"{name}, {part}", model, parts[part])
    header = ["model", "quantity", "unit", "MAE", "RMSE", "R2"]
    print(text_table(header, rows))
    write_csv(args.output / "errors.csv", header, rows)


if __name__ == "__main__":
    main()
