#!/usr/bin/env python
"""BaTiO3 and SiO2: Born charges from energies, forces and stress, and with a tenth of the labels.

    python scripts/benchmarks/crystals.py --data_dir DATA [--crystals sio2 batio3] [--test]

The last fifth of a file is the test. Of the other frames some validate, and the rest trains:

    alone    energies, forces and stress; bond charges, of BaTiO3 from those of its ions
    tenth    the same model goes on with polarizations and Born charges of a tenth of the frames

errors.csv has a row for each training: errors of the validation frames, with --test those of the
test frames. What is done is not repeated, trainings that were stopped go on. One core needs two
hours for both crystals.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from mace_polmp.analysis.errors import ErrorMeasures
from mace_polmp.analysis.plots import write_csv
from mace_polmp.analysis.tables import text_table
from mace_polmp.analysis.verdict import slope_of
from mace_polmp.calculators.comparison import compare
from mace_polmp.calculators.loading import load_calculator
from mace_polmp.labels import mean_permittivity

LABELS = ("REF_polarization", "REF_polarizability", "REF_born_charges")
COMMON = (
    "--name=m",
    "--model=MultipoleMACE",
    "--loss=stress",
    "--compute_stress=True",
    "--energy_weight=40",
    "--forces_weight=1",
    "--stress_weight=100",
    "--batch_size=1",
    "--valid_batch_size=4",
    "--ema",
    "--no_amsgrad",
    "--scheduler=ExponentialLR",
    "--eval_interval=4",
    "--default_dtype=float32",
    "--restart_latest",
)
NEW = (
    "--E0s=average",
    "--num_channels=32",
    "--max_L=1",
    "--correlation=3",
    "--charge_readout=bond",
    "--induced=none",
    "--multipole_lmax=1",
    "--lr=0.01",
)
GO_ON = (
    "--E0s=foundation",
    "--multiheads_finetuning=False",
    "--polarization_weight=100",
    "--born_charges_weight=10",
)


@dataclass(frozen=True)
class Crystal:
    """A file and the flags of its trainings.

    Attributes:
        n_valid: frames that validate.
        n_labelled: training frames that keep their labels, a tenth of those that are not tested.
        alone: flags of the training on energies, forces and stress.
        tenth: flags of what goes on from there.
    """

    n_valid: int
    n_labelled: int
    alone: tuple[str, ...]
    tenth: tuple[str, ...]


# The permittivities are means of the labels of the frames that are not tested.
CRYSTALS = {
    "batio3": Crystal(
        4,
        4,
        (
            "--formal_charges=Ba:2,Ti:4,O:-2",
            "--epsilon_infinity=4.53",
            "--r_max=4",
            "--max_ell=2",
            "--lr_scheduler_gamma=0.983",
            "--max_num_epochs=260",
        ),
        ("--lr=0.004", "--lr_scheduler_gamma=0.95", "--max_num_epochs=60"),
    ),
    "sio2": Crystal(
        8,
        10,
        (
            "--epsilon_infinity=2.39",
            "--r_max=5",
            "--max_ell=3",
            "--lr_scheduler_gamma=0.96",
            "--max_num_epochs=90",
        ),
        ("--lr=0.005", "--lr_scheduler_gamma=0.92", "--max_num_epochs=40"),
    ),
}


def prepare(data: Path, crystal: Crystal, folder: Path) -> None:
    """Write train.xyz, tenth.xyz (the same with fewer labels), valid.xyz and test.xyz."""
    if (folder / "tenth.xyz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    frames = read(data, ":")
    n_known = round(0.8 * len(frames))
    order = np.random.default_rng(0).permutation(n_known)
    train = [frames[i] for i in sorted(order[crystal.n_valid :])]
    write(folder / "test.xyz", frames[n_known:], format="extxyz")
    write(folder / "valid.xyz", [frames[i] for i in order[: crystal.n_valid]], format="extxyz")
    write(folder / "train.xyz", train, format="extxyz")
    kept = np.random.default_rng(1).permutation(len(train))[: crystal.n_labelled]
    for number, atoms in enumerate(train):
        for key in LABELS if number not in kept else ():
            atoms.info.pop(key, None)
            atoms.arrays.pop(key, None)
    write(folder / "tenth.xyz", train, format="extxyz")


def train(folder: Path, name: str, flags: tuple[str, ...]) -> Path:
    """Train in folder/name unless that is done; the model."""
    work = folder / name
    model = work / "m.model"
    if not model.exists():
        work.mkdir(exist_ok=True)
        file = folder / ("tenth.xyz" if name == "tenth" else "train.xyz")
        data = (f"--train_file={file.resolve()}", f"--valid_file={folder.resolve() / 'valid.xyz'}")
        command = [sys.executable, "-m", "mace_polmp.cli.run_train", *COMMON, *flags, *data]
        print(f"{work}: training, its output is in {work / 'train.out'}", flush=True)
        with (work / "train.out").open("a") as out:
            subprocess.run(command, cwd=work, stdout=out, stderr=subprocess.STDOUT, check=True)
    return model


def errors(model: Path, frames: list[Atoms]) -> dict[str, Any]:
    """Errors of forces, Born charges, polarizations and permittivities."""
    found = compare(load_calculator(model, default_dtype="float64"), frames)
    forces, moments = (ErrorMeasures.of(*found[k].values()) for k in ("forces", "polarization"))
    labels, predicted = born = found["born_charges"].values()
    measures, off = ErrorMeasures.of(*born), ~np.eye(3, dtype=bool).ravel()
    pair = [values.reshape(-1, 9)[:, off].ravel() for values in (labels, predicted)]
    alpha = found["polarizability"]
    volumes = [atoms.get_volume() for atoms in frames]
    ratios = [
        mean_permittivity(p, volume) / mean_permittivity(r, volume)
        for r, p, volume in zip(alpha.reference, alpha.predicted, volumes, strict=True)
    ]
    return {
        "forces MAE / meV/Å": f"{1000 * forces.mae:.1f}",
        "Born charges R2": f"{measures.r2:.4f}",
        "RMSE / e": f"{measures.rmse:.4f}",
        "slope": f"{slope_of(labels, predicted):.3f}",
        "off-diagonal correlation": f"{np.corrcoef(*pair)[0, 1]:.3f}",
        "polarization MAE / e Å": f"{moments.mae:.3f}",
        "permittivity, mean error / %": f"{100 * np.mean(np.abs(np.array(ratios) - 1.0)):.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--crystals", nargs="+", choices=sorted(CRYSTALS), default=sorted(CRYSTALS))
    parser.add_argument("--output", type=Path, default=Path("crystals"))
    parser.add_argument("--test", action="store_true", help="errors of the test frames")
    args = parser.parse_args()
    rows = []
    for name in args.crystals:
        crystal, folder = CRYSTALS[name], args.output / name
        prepare(args.data_dir / f"{name}.xyz", crystal, folder)
        alone = train(folder, "alone", (*NEW, *crystal.alone))
        more = (f"--foundation_model={alone.resolve()}", *GO_ON, *crystal.tenth)
        tenth = train(folder, "tenth", more)
        part = "test" if args.test else "valid"
        frames = read(folder / f"{part}.xyz", ":")
        for variant, model in (("alone", alone), ("tenth", tenth)):
            rows.append({"crystal": name, "training": variant, **errors(model, frames)})
    print(text_table(list(rows[0]), [list(row.values()) for row in rows]))
    write_csv(args.output / "errors.csv", list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    main()
