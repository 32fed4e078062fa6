#!/usr/bin/env python
"""Extrapolate the interaction of two molecules pulled apart, with and without the long-range head.

    python scripts/benchmarks/dimers.py --train dimers_CC_train.xyz --test dimers_CC_test.xyz

trains both models on the training frames (so few that the checkpoint is chosen by the training
loss), evaluates them on the test frames at larger distances, prints a table and writes it as CSV.
Further options go to the training of the multipole model, for instance --multipole_lmax 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from mace_polmp.analysis.errors import ErrorMeasures
from mace_polmp.analysis.plots import write_csv
from mace_polmp.calculators.comparison import compare

# Adam gets near, L-BFGS finishes: with ten frames it costs little and the energies keep one
# stiff direction, the size of the charges, that Adam follows slowly. L-BFGS stops at absolute
# tolerances, hence the large weights of the same ratio.
STAGES = (
    ["--max_num_epochs=600", "--eval_interval=5", "--ema", "--ema_decay=0.99"]
    + ["--energy_weight=300", "--forces_weight=1"],
    ["--max_num_epochs=660", "--lbfgs", "--clip_grad=1e12"]
    + ["--energy_weight=3e7", "--forces_weight=1e5"],
)
CONFIG = Path(__file__).parents[2] / "configs" / "dimers.yaml"


def train(name: str, model: str, args: argparse.Namespace, more: list[str]) -> Path:
    """Run the stages that are not done yet; returns the model file."""
    path = args.output / f"{name}.model"
    args.output.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "mace_polmp.cli.run_train",
        f"--config={CONFIG}",
        f"--name={name}",
        f"--model={model}",
        f"--train_file={args.train}",
        f"--valid_file={args.train}",
        f"--work_dir={args.output}",
        f"--seed={args.seed}",
        "--restart_latest",
        *more,
    ]
    for number, stage in enumerate(STAGES, start=1):
        done = args.output / f"{name}_stage{number}.done"
        if not done.exists():
            with open(args.output / f"{name}.out", "a") as log:
                subprocess.run(command + stage, check=True, stdout=log, stderr=subprocess.STDOUT)
            done.touch()
    return path


def errors(calculator: Any, path: Path) -> tuple[float, float]:
    """RMSE of the total energy, meV, and of force components, meV/Å."""
    from ase.io import read

    found = compare(calculator, read(path, ":"))
    energy, forces = (ErrorMeasures.of(*found[name].values()).rmse for name in ("energy", "forces"))
    return 1000.0 * energy, 1000.0 * forces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("dimers"))
    parser.add_argument("--seed", type=int, default=1)
    args, more = parser.parse_known_args()
    more = [option for option in more if option != "--"]

    from mace.calculators import MACECalculator

    from mace_polmp.calculators import MultipoleMACECalculator

    dtype = yaml.safe_load(CONFIG.read_text())["default_dtype"]
    rows = []
    for name, model, calculator, extra in (
        ("short_range", "MACE", MACECalculator, []),
        ("multipole", "MultipoleMACE", MultipoleMACECalculator, more),
    ):
        path = train(name, model, args, extra)
        loaded = calculator(model_paths=str(path), default_dtype=dtype)
        rows.append([name, *errors(loaded, args.train), *errors(loaded, args.test)])
    header = ["model", "train E meV", "train F meV/A", "test E meV", "test F meV/A"]
    print("  ".join(f"{h:>14s}" for h in header))
    for row in rows:
        print("  ".join([f"{row[0]:>14s}", *(f"{x:14.2f}" for x in row[1:])]))
    write_csv(args.output / "errors.csv", header, rows)


if __name__ == "__main__":
    main()
