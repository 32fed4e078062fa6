"""`mace_polmp quickstart`: train with and without the long-range head, and show the difference.

Both models have the same backbone, data and schedule. The data, GFN2-xTB water and Cl− in pairs and
clusters, come with the package (mace_polmp/data, scripts/make_quickstart_data.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mace_polmp.analysis import plots
from mace_polmp.cli.common import HelpWithDefaults
from mace_polmp.errors import InputError
from mace_polmp.unit_names import with_unit

# GFN2-xTB: Cl− alone, and H and O so that they add up to H2O. An atom without neighbours has the
# energy E0 in a MACE: an average E0, 0.7 eV off that of Cl−, would spoil its dimers.
_E0S = "{1: -10.7, 8: -116.488, 17: -130.21013}"
# Reach of the network: 2 layers × 4 Å = 8 Å, less than the smallest gap of the held-out dimers.
_TRAINING = {
    "r_max": 4.0,
    "num_interactions": 2,
    "num_channels": 32,
    "max_L": 1,
    "max_ell": 2,
    "correlation": 2,
    "batch_size": 16,
    "valid_batch_size": 64,
    "E0s": _E0S,
    "energy_weight": 4,
    "forces_weight": 1,
    "lr": 0.03,
    "scheduler": "ExponentialLR",
    "ema_decay": 0.99,
    "default_dtype": "float32",
    "error_table": "PerAtomRMSE",
    "plot": "False",
}
MODELS = {"short_range": "MACE", "multipole": "MultipoleMACE"}
LABELS = {"short_range": "short range", "multipole": "multipoles"}
LEGENDS = {"short_range": "MACE (short range)", "multipole": "MultipoleMACE"}
STYLES = {"short_range": "C1--", "multipole": "C0-"}
LARGEST_GAP = 6.0  # Å, of the training data
NVE_CLUSTER, NVE_NAME = "H4ClO2", "Cl(H2O)2-"
_STEP = 0.5  # fs


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "quickstart",
        help="train on the embedded data with and without the long-range head, and compare",
        description="Train with and without the long-range head, and show the difference.",
        formatter_class=HelpWithDefaults,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("quickstart"), help="folder to write to"
    )
    parser.add_argument("--epochs", type=int, default=80, help="training epochs of each model")
    parser.add_argument(
        "--seed", type=int, default=1, help="random seed of the training and the velocities"
    )
    parser.add_argument(
        "--md_steps", type=int, default=4000, help="steps of 0.5 fs of NVE MD with each model"
    )
    parser.set_defaults(run=run)


def data_file(name: str, family: str = "water_ions") -> Path:
    """Path of an embedded data set.

    Args:
        name: train, valid, far or curves.
        family: chloride, of the quickstart, or water_ions, of the tutorials.
    """
    return Path(str(resources.files("mace_polmp") / "data" / f"{family}_{name}.xyz"))


def _own_data(name: str) -> Path:
    return data_file(name, "chloride")


def run(args: argparse.Namespace) -> None:
    """Train both models, print the errors, draw the curves, run MD."""
    if args.epochs < 1 or args.md_steps < 1:
        raise InputError("--epochs and --md_steps must be at least 1")
    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    _train_both(out, args.epochs, args.seed)
    print(f"Training took {time.time() - started:.0f} s; models and logs are in {out}/")

    calculators = _calculators(out)
    _print_errors(calculators, out / "errors.csv")
    _draw_curves(calculators, out)
    _nve(out, args.md_steps, args.seed)
    print(f"All of it took {(time.time() - started) / 60:.1f} minutes")


def _train_both(out: Path, epochs: int, seed: int) -> None:
    """Both trainings side by side, each with half of the cores; finished ones are kept."""
    threads = str(max(1, (os.cpu_count() or 2) // len(MODELS)))
    gamma = 0.02 ** (1.0 / epochs)  # the learning rate ends at 2 % of its start
    running: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        for name, model in MODELS.items():
            if (out / f"{name}.model").exists():
                print(f"{out / name}.model is there already; remove it to train again")
                continue
            settings = {
                **_TRAINING,
                "name": name,
                "model": model,
                "work_dir": out,
                "train_file": _own_data("train"),
                "valid_file": _own_data("valid"),
                "max_num_epochs": epochs,
                "lr_scheduler_gamma": gamma,
                "seed": seed,
            }
            if name == "multipole":
                settings["head_lr"] = _TRAINING["lr"]  # faster is worse on these data
                # Total charges are in the data. As a label they keep every fragment's charge where
                # it belongs; constrained, what lacks would be spread over the other fragment too.
                settings["total_charge_weight"] = 100
                settings["induced"] = "dipole"
            command = [
                sys.executable,
                "-m",
                "mace_polmp.cli.run_train",
                "--ema",
                "--no_amsgrad",  # which would keep the steps as small as the first gradients ask
                "--restart_latest",
            ]
            command += [f"--{key}={value}" for key, value in settings.items()]
            log = stack.enter_context(open(out / f"{name}.out", "wb"))
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": threads},
            )
            stack.callback(process.kill)
            running[name] = process
        _show_progress(out, running, epochs, seed)
    for name, process in running.items():
        if process.returncode != 0:
            raise InputError(f"training {name} failed; see {out / name}.out")


def _show_progress(
    out: Path, running: dict[str, subprocess.Popen[bytes]], epochs: int, seed: int
) -> None:
    bars = {
        name: tqdm(
            total=epochs,
            desc=f"training {LABELS[name]:12s}",
            unit="epoch",
            position=i,
            disable=None,
        )
        for i, name in enumerate(running)
    }
    while True:
        alive = [name for name, process in running.items() if process.poll() is None]
        for name, bar in bars.items():
            last = _last_evaluation(out / "results" / f"{name}_run-{seed}_train.txt")
            if last is not None and last["epoch"] is not None:
                bar.set_postfix_str(f"RMSE F {1000 * last['rmse_f']:.0f} meV/Å", refresh=False)
                bar.update(min(int(last["epoch"]) + 1, epochs) - bar.n)
        if not alive:
            break
        time.sleep(0.5)
    for bar in bars.values():
        bar.close()


def _last_evaluation(path: Path) -> dict[str, Any] | None:
    """The last validation in a results file of upstream's, one JSON object per line."""
    if not path.exists():
        return None
    for line in reversed(path.read_text().splitlines()):
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if record.get("mode") == "eval":
                return dict(record)
    return None


def _calculators(out: Path) -> dict[str, Any]:
    from mace_polmp.calculators.loading import load_calculator

    # Trained in float32, evaluated in float64.
    return {
        name: load_calculator(out / f"{name}.model", default_dtype="float64")
        for name in ("short_range", "multipole")
    }


def _print_errors(calculators: dict[str, Any], path: Path) -> None:
    from ase.io import read

    from mace_polmp.analysis.errors import ErrorMeasures
    from mace_polmp.analysis.tables import significant, text_table
    from mace_polmp.calculators.comparison import compare
    from mace_polmp.quantities import QUANTITIES

    sets = {"valid": "validation, gaps below 6 Å", "far": "held out, gaps 8.5-14 Å"}
    columns = ["RMSE", "quantity", *(LABELS[name] for name in calculators)]
    texts: list[list[str]] = []
    rows: list[list[Any]] = []
    for key, words in sets.items():
        frames = read(_own_data(key), ":")
        found = {
            name: compare(calculator, frames, description=f"evaluating {key}")
            for name, calculator in calculators.items()
        }
        for name in ("energy", "forces", "dipole"):
            quantity = QUANTITIES[name]
            entries = [comparisons.get(name) for comparisons in found.values()]
            values = [
                None if e is None else quantity.factor * ErrorMeasures.of(*e.values()).rmse
                for e in entries
            ]
            label = with_unit(name, quantity.unit)
            texts.append([words, label, *("-" if v is None else significant(v) for v in values)])
            rows.append([words, label, *values])
    print(text_table(columns, texts))
    plots.write_csv(path, ["set", "quantity", *calculators], rows)
    print(f"Errors: {path}")


def _draw_curves(calculators: dict[str, Any], out: Path) -> None:
    from ase.io import read

    frames = read(_own_data("curves"), ":")
    names = list(dict.fromkeys(atoms.info["curve"] for atoms in frames))
    figure, axes = plots.figure(len(names), size=(4.4 * len(names), 4.2))
    figure.suptitle(
        "Two fragments pulled apart: MACE with and without multipoles, trained on GFN2-xTB "
        "energies and forces of gaps below 6 Å (same network, data and schedule)",
        fontsize=11,
    )
    rows = []
    for axis, name in zip(axes, names, strict=True):
        mine = [atoms for atoms in frames if atoms.info["curve"] == name]
        gaps = [atoms.info["gap"] for atoms in mine]
        reference = [atoms.info["REF_interaction"] for atoms in mine]
        axis.axvspan(0, LARGEST_GAP, color="0.93", zorder=0, label="gaps trained on")
        axis.axhline(0.0, color="0.6", lw=0.8, zorder=1)
        columns = [reference]
        for key in ("short_range", "multipole"):
            columns.append([_interaction(atoms, calculators[key]) for atoms in mine])
            axis.plot(gaps, columns[-1], STYLES[key], lw=2.0, label=LEGENDS[key])
        axis.plot(gaps, reference, "ko", mfc="none", markersize=4.5, label="GFN2-xTB")
        rows += [[name, *row] for row in zip(gaps, *columns, strict=True)]
        low, high = min(*reference, 0.0), max(*reference, 0.0)
        margin = 0.1 * (high - low)
        axis.set(
            title=plots.typeset(name),
            xlabel="gap between the closest atoms / Å",
            xlim=(min(gaps) - 0.3, max(gaps) + 0.3),
            ylim=(low - margin, high + margin),
        )
    axes[0].set_ylabel("interaction energy / eV")
    axes[-1].legend(frameon=False)
    plots.save(figure, out / "curves.png")
    plots.write_csv(out / "curves.csv", ["dimer", "gap_A", "reference_eV", *calculators], rows)
    print(f"Dissociation curves: {plots.said(out / 'curves.png')}, {out / 'curves.csv'}")


def _interaction(atoms: Any, calculator: Any) -> float:
    """E(pair) − E(first) − E(second) of the model, eV."""
    n_first = int(atoms.info["n_first"])
    energies = []
    for part in (atoms[:], atoms[:n_first], atoms[n_first:]):
        part.calc = calculator
        energies.append(part.get_potential_energy())
    return float(energies[0] - energies[1] - energies[2])


def _nve(out: Path, steps: int, seed: int) -> None:
    """The same NVE run with both models side by side, drawn; prints the drift of the energy."""
    jobs = [(out / f"{name}.model", steps, seed, i) for i, name in enumerate(MODELS)]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        tables = dict(zip(MODELS, pool.starmap(_nve_run, jobs), strict=True))
    figure, axes = plots.figure(2, size=(11.0, 3.8))
    rows = []
    for (name, (formula, n_atoms, table)), style in zip(
        tables.items(), STYLES.values(), strict=True
    ):
        time_ps, energy = table[:, 0] / 1000.0, table[:, 1] * 1000.0 / n_atoms
        slope = np.polyfit(time_ps, energy, 1)[0] if len(table) > 1 else 0.0
        print(
            f"NVE MD of {formula}, {LABELS[name]}, {steps * _STEP / 1000:.2f} ps, mean temperature "
            f"{table[:, 2].mean():.0f} K: drift {slope:+.3f} meV/atom/ps, fluctuation "
            f"{energy.std():.3f} meV/atom"
        )
        words = f"{LEGENDS[name]}: drift {slope:+.3f} meV/atom/ps"
        axes[0].plot(time_ps, energy - energy.mean(), style[:2], lw=0.9, label=words)
        axes[1].plot(time_ps, table[:, 2], style[:2], lw=0.9, label=LEGENDS[name])
        rows += [[name, *row] for row in table.tolist()]
    axes[0].set(
        title=f"{plots.typeset(NVE_NAME)} at constant energy", ylabel="ΔE total / (meV/atom)"
    )
    axes[0].set_ylim(*(np.array([-1.0, 1.6]) * max(1.0, np.abs(axes[0].get_ylim()).max())))
    axes[1].set(title="temperature", ylabel="temperature / K")
    for axis in axes:
        axis.set_xlabel("time / ps")
        axis.legend(frameon=False)
        axis.grid(True, alpha=0.25)
    plots.save(figure, out / "nve.png")
    plots.write_csv(out / "nve.csv", ["model", "time_fs", "total_energy_eV", "temperature_K"], rows)
    print(f"{plots.said(out / 'nve.png')}, {out / 'nve.csv'}")


def _nve_run(model: Path, steps: int, seed: int, position: int) -> tuple[str, int, np.ndarray]:
    """Formula, number of atoms, and rows of time (fs), total energy (eV) and temperature (K)."""
    import torch
    from ase import units
    from ase.io import read
    from ase.md.verlet import VelocityVerlet

    from mace_polmp.calculators.loading import load_calculator
    from mace_polmp.simulation.temperature import ThermalMotion, draw_momenta

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // len(MODELS)))
    clusters = [a for a in read(_own_data("valid"), ":") if a.info["config_type"] == "cluster"]
    atoms = next(a for a in clusters if a.get_chemical_formula() == NVE_CLUSTER)
    atoms.calc = load_calculator(model, default_dtype="float64")
    draw_momenta(atoms, 250.0, np.random.default_rng(seed))
    motion = ThermalMotion.of(atoms)
    dynamics = VelocityVerlet(atoms, _STEP * units.fs)
    rows = []
    words = f"NVE MD {LABELS[model.stem]:12s}"
    for done in tqdm(
        range(0, steps, 5), desc=words, unit="5 steps", position=position, disable=None
    ):
        rows.append([done * _STEP, atoms.get_total_energy(), motion.temperature(atoms)])
        dynamics.run(5)
    return atoms.get_chemical_formula(), len(atoms), np.array(rows)
