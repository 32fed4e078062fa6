#!/usr/bin/env python
"""Train and compare the multipole hierarchy on data sets: data x variant x seed.

    python scripts/run_benchmarks.py --data water_ions --variants sr les uQiqiu
    python scripts/run_benchmarks.py --data dimers water --seeds 1 2 3 --data_dir DATA --jobs 2

Each run is a mace_run_train with a configuration composed from configs/benchmarks (common, data
set, variant), kept in OUTPUT/DATA/VARIANT/seedN. What is done is not repeated, what was interrupted
goes on; other settings want another OUTPUT. A data set may ask for several starts, of which the one
with the lowest loss goes on. Errors of all that OUTPUT holds go to OUTPUT/errors.csv and errors.md,
plots of errors, learning curves, dissociation curves and parity next to them. To choose settings
give --part valid, which leaves the test frames alone, and flags of mace_run_train after --.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.report import write_report
from benchmarks.suite import (
    PARTS,
    Run,
    finished_runs,
    learning_curve,
    prepare,
    seconds_per_epoch,
    stages,
    stages_of_starts,
    systems_by_name,
    variants,
    write_json,
)
from tqdm import tqdm

from mace_polmp.errors import InputError


def main() -> int:
    args, flags = _arguments()
    if args.evaluate is not None:
        _evaluate(args.evaluate, args.part)
        return 0
    failed = _run_all(_matrix(args), args, flags)
    done = finished_runs(args.output.resolve(), args.part)
    if done:
        write_report(done, args.output)
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    """Parsed arguments, and what comes after --: flags of mace_run_train."""
    words, flags = sys.argv[1:], []
    if "--" in words:
        split = words.index("--")
        words, flags = words[:split], words[split + 1 :]
    known = systems_by_name()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="Flags of mace_run_train that go to every run come after --.",
    )
    parser.add_argument("--data", nargs="+", choices=sorted(known), default=["water_ions"])
    parser.add_argument("--variants", nargs="+", choices=list(variants()), default=list(variants()))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument(
        "--data_dir", type=Path, default=Path("data"), help="folder with the files (default data)"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="test",
        help="frames that errors are given for: test, or valid for choosing settings (default "
        "test, or valid where a data set has no test frames)",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at once, cores are divided among them"
    )
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.jobs < 1:
        parser.error("--jobs must be 1 or more")
    return args, flags


def _matrix(args: argparse.Namespace) -> list[Run]:
    known = systems_by_name()
    systems = {system.name: system for name in args.data for system in known[name]}
    runs = []
    for system in systems.values():
        part = system.part(args.part)
        for seed in dict.fromkeys(args.seeds):
            for variant in dict.fromkeys(args.variants):
                runs.append(Run(system, variant, seed, args.output.resolve(), part))
    return runs


def _run_all(runs: list[Run], args: argparse.Namespace, flags: list[str]) -> dict[str, str]:
    """Train and evaluate what is not done; returns what failed and why."""
    for run in runs:
        run.check_settings(flags)
    files: dict[Path, dict[str, Path]] = {}
    waiting = [run for run in runs if not run.result.exists()]
    for run in waiting:
        folder = run.system.folder(run.output, run.part)
        if folder not in files:
            files[folder] = prepare(run.system, args.data_dir, run.output, run.part)
    failed = {}
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    with ThreadPoolExecutor(args.jobs) as pool, _processes(pool) as start:

        def work(run: Run) -> None:
            data = files[run.system.folder(run.output, run.part)]
            run.note_settings(flags)
            _train(run, data, flags, environment, start)
            command = [sys.executable, __file__, f"--evaluate={run.folder}", f"--part={run.part}"]
            task = {**_description(run), "frames": str(data[run.part])}
            write_json(run.folder / "run.json", task)
            _logged(command, run.folder / "evaluation.out", environment, start)

        futures = {pool.submit(work, run): run for run in waiting}
        bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run", disable=None)
        for future in as_completed(futures):
            run, error = futures[future], future.exception()
            bar.update()
            if error is None:
                bar.write(f"{run.name}: {_summary(run)}")
            elif isinstance(error, subprocess.CalledProcessError):
                failed[run.name] = f"see {run.folder}/*.out"
            else:
                failed[run.name] = f"{type(error).__name__}: {error}"
        bar.close()
    return failed


@contextmanager
def _processes(pool: ThreadPoolExecutor) -> Iterator[Any]:
    """A function that starts processes, which do not survive this one: what interrupts it ends them
    and the pool, whose threads would otherwise start what is still waiting.
    """
    running: list[subprocess.Popen[bytes]] = []
    lock, stopped = threading.Lock(), threading.Event()

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        with lock:
            if stopped.is_set():
                raise CancelledError
            running.append(subprocess.Popen(*args, **kwargs))
            return running[-1]

    try:
        yield start
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        with lock:
            stopped.set()
            for process in running:
                process.kill()
        raise


def _logged(command: list[str], log: Path, environment: dict[str, str], start: Any) -> None:
    with open(log, "ab") as file:
        process = start(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, command)


def _train(
    run: Run, files: dict[str, Path], flags: list[str], environment: dict[str, str], start: Any
) -> None:
    """The stages that are not done yet: the first ones of every start, the others of the best."""
    numbered, shared = list(enumerate(stages(run.system), start=1)), stages_of_starts(run.system)
    for candidate in run.all_starts():
        _train_stages(candidate, numbered[:shared], files, flags, environment, start)
    _train_stages(run.best_start(), numbered[shared:], files, flags, environment, start)


def _train_stages(
    run: Run,
    numbered: list[tuple[int, dict[str, Any]]],
    files: dict[str, Path],
    flags: list[str],
    environment: dict[str, str],
    start: Any,
) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    for number, stage in numbered:
        config = run.folder / f"stage{number}.yaml"
        if run.stage_done(number).exists():
            continue
        config.write_text(yaml.safe_dump(run.settings(files, stage), sort_keys=False))
        command = [sys.executable, "-m", "mace_polmp.cli.run_train", f"--config={config}", *flags]
        _logged(command, run.folder / "training.out", environment, start)
        run.stage_done(number).touch()


def _description(run: Run) -> dict[str, Any]:
    return {
        "data": run.system.name,
        "variant": run.variant,
        "seed": run.seed,
        "part": run.part,
        "energies_per_atom": run.system.energies_per_atom,
        "transposed": run.system.settings.get("transposed_born_charges", False),
        "curve": run.system.settings.get("curve"),
        "model": str(run.best_start().model),
    }


def _evaluate(folder: Path, part: str) -> None:
    """Errors of a trained model on a part of its data; the last thing written is the result."""
    from ase.io import read

    from mace_polmp.analysis.errors import ErrorMeasures
    from mace_polmp.calculators.comparison import compare
    from mace_polmp.calculators.loading import load_calculator

    task = json.loads((folder / "run.json").read_text())
    frames = read(task["frames"], ":")
    trained = Path(task["model"]).parent
    calculator = load_calculator(task["model"])
    found = compare(calculator, frames, where=task["data"])
    if task["transposed"] and "born_charges" in found:
        found["born_charges"].transpose_references()
    arrays, measures = {}, {}
    for name, entry in found.items():
        per_atom = name == "energy" and task["energies_per_atom"]
        values = entry.per_atom() if per_atom else entry.values()
        measures[name] = vars(ErrorMeasures.of(*values))
        if name in ("dipole", "born_charges"):
            arrays[f"{name}_reference"], arrays[f"{name}_predicted"] = values
    if task["curve"]:
        arrays["curve"] = _curve(calculator, task)
    parameters = sum(p.numel() for p in calculator.models[0].parameters())
    np.savez_compressed(folder / f"arrays_{part}.npz", **arrays)
    result = {
        **{key: task[key] for key in ("data", "variant", "seed", "part", "energies_per_atom")},
        "parameters": parameters,
        "seconds_per_epoch": seconds_per_epoch(trained),
        "epochs": learning_curve(trained)[-1]["epoch"] + 1,
        "measures": measures,
    }
    write_json(folder / f"result_{part}.json", result)


def _curve(calculator: Any, task: dict[str, Any]) -> np.ndarray:
    """Rows of distance, reference and predicted interaction energy, seen in training or not."""
    from ase.io import read

    rows, names = [], task["curve"]
    folder = Path(task["frames"]).parent
    seen = "train"
    for part in dict.fromkeys((seen, task["part"])):
        for atoms in read(folder / f"{part}.xyz", ":"):
            reference = atoms.info[names["interaction"]]
            alone = atoms.info["REF_energy"] - reference
            predicted = calculator.get_property("energy", atoms) - alone
            rows.append([atoms.info[names["distance"]], reference, predicted, part == seen])
    return np.array(sorted(rows))


def _summary(run: Run) -> str:
    result = run.load_result()
    unit = "meV/atom" if result["energies_per_atom"] else "meV"
    energy, forces = (1e3 * result["measures"][name]["rmse"] for name in ("energy", "forces"))
    return f"RMSE energy {energy:.3g} {unit}, forces {forces:.3g} meV/Å ({run.part})"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as queues stop jobs
    try:
        sys.exit(main())
    except (InputError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")
