#!/usr/bin/env python
"""Add the head to a trained MACE: from energies and forces, with dipoles, with Born charges.

    python scripts/benchmarks/fine_tuning.py --foundation mace_dipeptides_64x0e_r4.5.model \
        --train dipeptides_train.xyz --valid dipeptides_valid.xyz

fine-tunes on energies and forces (plain), with dipoles as well (dipole, and on from there with a
larger weight), and with the first 20 structures of the validation set and their Born charges
(born), and compares the time per epoch of the whole model and of the head alone (timing). Steps
that are done are not repeated. The errors of each model are printed and written as CSV; "rest" are
the validation structures but those 20.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase.io import read, write
from suite import seconds_per_epoch

from mace_polmp.analysis.errors import ErrorMeasures
from mace_polmp.analysis.plots import write_csv
from mace_polmp.analysis.tables import text_table
from mace_polmp.calculators.comparison import compare
from mace_polmp.calculators.loading import load_calculator
from mace_polmp.quantities import QUANTITIES

N_BORN = 20
COMMON = (
    "--model=MultipoleMACE",
    "--charge_readout=atomic",  # along edges as well: dipoles of R² 0.43 instead of 0.65 (plain)
    "--E0s=foundation",
    "--multiheads_finetuning=False",
    "--constrain_charge=softness",
    "--default_dtype=float32",
    "--batch_size=5",
    "--valid_batch_size=11",
    "--scheduler=ExponentialLR",
    "--ema",
    "--ema_decay=0.99",
    "--error_table=PerAtomMAE",
)
WEIGHTS = ("--energy_weight=1000", "--forces_weight=100")
PLAIN = (
    "--max_num_epochs=30",
    "--lr=1e-2",
    "--head_lr=1e-3",
    "--head_growth_epochs=8",
    "--lr_scheduler_gamma=0.87",
)
# Labels pull the charges from the start.
LABELS = (
    "--max_num_epochs=14",
    "--lr=5e-3",
    "--head_lr=1e-2",
    "--head_growth_epochs=2",
    "--lr_scheduler_gamma=0.75",
)
MORE = (
    "--max_num_epochs=5",
    "--lr=1e-3",
    "--head_lr=2e-3",
    "--lr_scheduler_gamma=0.6",
    "--dipole_weight=1000",
)


def train(name: str, args: argparse.Namespace, *flags: str) -> Path:
    """Run a training that is not done yet; returns the model file."""
    folder = args.output / name
    path = folder / f"{name}.model"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mace_polmp.cli.run_train", f"--name={name}"]
        command += [f"--work_dir={folder}", f"--seed={args.seed}", "--restart_latest"]
        with open(folder / f"{name}.out", "a") as log:
            subprocess.run(
                [*command, *COMMON, *flags], check=True, stdout=log, stderr=subprocess.STDOUT
            )
    return path


def errors(name: str, model: Path, frames: list[Any]) -> list[list[Any]]:
    """Rows of name, quantity, unit, MAE, RMSE and R² of a model."""
    return [row for row, _ in errors_and_values(name, model, frames)]


def errors_and_values(
    name: str, model: Path, frames: list[Any]
) -> Iterator[tuple[list[Any], tuple[Any, Any]]]:
    """Rows of errors, each with what it is of: references and predictions."""
    calculator = load_calculator(model, default_dtype="float32")
    for quantity, found in compare(calculator, frames, where=name).items():
        values = found.per_atom() if quantity == "energy" else found.values()
        measures, factor = ErrorMeasures.of(*values), QUANTITIES[quantity].factor
        unit = QUANTITIES[quantity].unit + ("/atom" if quantity == "energy" else "")
        numbers = [f"{x:.4g}" for x in (factor * measures.mae, factor * measures.rmse, measures.r2)]
        yield [name, quantity, unit, *numbers], values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--foundation", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("fine_tuning"))
    parser.add_argument("--seed", type=int, default=1)
    steps = ("plain", "dipole", "born", "timing")
    parser.add_argument("--steps", nargs="+", choices=steps, default=steps)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    valid = read(args.valid, ":")
    new = (f"--foundation_model={args.foundation}", *WEIGHTS)
    files = (f"--train_file={args.train}", f"--valid_file={args.valid}")
    rows = []
    if "plain" in args.steps:
        plain = train("plain", args, *new, *files, *PLAIN)
        rows += errors("plain", plain, valid) + errors("plain, rest", plain, valid[N_BORN:])
    if "dipole" in args.steps:
        model = train("dipole", args, *new, *files, *LABELS, "--dipole_weight=100")
        rows += errors("dipole", model, valid)
        go_on = (f"--foundation_model={model}", *WEIGHTS, *files, *MORE)
        rows += errors("dipole_more", train("dipole_more", args, *go_on), valid)
    if "born" in args.steps:
        parts = [args.output / f"{part}.xyz" for part in ("first", "rest")]
        write(parts[0], [*read(args.train, ":"), *valid[:N_BORN]], format="extxyz")
        write(parts[1], valid[N_BORN:], format="extxyz")
        data = (f"--train_file={parts[0]}", f"--valid_file={parts[1]}")
        model = train("born", args, *new, *data, *LABELS, "--born_charges_weight=100")
        rows += errors("born, rest", model, valid[N_BORN:])
    if rows:
        header = ["model", "quantity", "unit", "MAE", "RMSE", "R2"]
        print(text_table(header, rows))
        write_csv(args.output / "errors.csv", header, rows)
    if "timing" in args.steps:
        short = ("--max_num_epochs=3", "--lr=1e-4", "--head_growth_epochs=0")
        times = {}
        for mode in ("all", "head_only"):
            train(mode, args, *new, *files, *short, f"--training_mode={mode}")
            times[mode] = seconds_per_epoch(args.output / mode)
            print(f"{mode}: {times[mode]:.1f} s per epoch of training steps")
        print(f"ratio {times['all'] / times['head_only']:.1f}")


if __name__ == "__main__":
    main()
