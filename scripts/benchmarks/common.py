"""What the benchmarks share: random systems, timings, memory, tables and CSV files."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from figures import note_machine
from torch import Tensor

from mace_polmp.analysis.tables import significant, text_table
from mace_polmp.electrostatics import Multipoles, ResponseCoefficients

DENSITY = 0.1
"""Atoms per Å³, as in water."""


# Structures in a batch, atoms in each, periodic.
CASES = {
    "open 10": (1, 10, False),
    "open 50": (1, 50, False),
    "open 400": (1, 400, False),
    "open 16 x 48": (16, 48, False),
    "open 2000": (1, 2000, False),
    "periodic 24": (1, 24, True),
    "periodic 192": (1, 192, True),
    "periodic 4 x 192": (4, 192, True),
    "periodic 1536": (1, 1536, True),
    "periodic 3072": (1, 3072, True),
    "periodic 8784": (1, 8784, True),
    "periodic 30000": (1, 30000, True),
}


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """The options of the benchmarks that measure each case in a process of its own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--structure", nargs="*", default=[], help="periodic structure files")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--one", nargs=2, metavar=("CASE", "KIND"), help=argparse.SUPPRESS)
    return parser


def parse_arguments(doc: str) -> argparse.Namespace:
    """argument_parser's, parsed."""
    return argument_parser(doc).parse_args()


@dataclass(frozen=True)
class System:
    """A batch of random structures with random multipoles and response."""

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    multipoles: Multipoles
    response: ResponseCoefficients

    def leaves(self, response: ResponseCoefficients | None = None) -> list[Tensor]:
        """Positions, multipoles and coefficients with derivatives, the latter others if given."""
        known = (self.multipoles, self.response if response is None else response)
        values = [self.positions, *(value for part in known for value in vars(part).values())]
        return [v.detach().clone().requires_grad_(True) for v in values if v is not None]


def random_system(
    n_structures: int,
    n_atoms: int,
    periodic: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> System:
    """Atoms on a jittered lattice at the density of water; multipoles of the size of a model's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    total = n_structures * n_atoms
    edge = (n_atoms / DENSITY) ** (1.0 / 3.0)
    per_edge = 1
    while per_edge**3 < n_atoms:
        per_edge += 1
    lattice = torch.cartesian_prod(*(torch.arange(per_edge, dtype=torch.float64),) * 3)
    chosen = [
        lattice[torch.randperm(len(lattice), generator=generator)[:n_atoms]]
        for _ in range(n_structures)
    ]
    positions = (torch.cat(chosen) + 0.15 * normal(total, 3)) * (edge / per_edge)
    charge = 0.4 * normal(total).view(n_structures, n_atoms)
    charge = (charge - charge.mean(1, keepdim=True)).flatten()
    quadrupole = 0.05 * normal(total, 3, 3)
    quadrupole = quadrupole + quadrupole.transpose(1, 2)
    trace = torch.einsum("nii->n", quadrupole)[:, None, None]
    quadrupole = quadrupole - trace * torch.eye(3, dtype=torch.float64) / 3.0

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype=dtype, device=device)

    return System(
        cast(positions),
        cast(edge * torch.eye(3, dtype=torch.float64).expand(n_structures, 3, 3)).contiguous(),
        torch.full((n_structures, 3), periodic, device=device),
        torch.arange(n_structures, device=device).repeat_interleave(n_atoms),
        Multipoles(cast(charge), cast(0.1 * normal(total, 3)), cast(quadrupole)),
        ResponseCoefficients(cast(0.01 * normal(total).abs()), cast(0.03 * normal(total).abs())),
    )


def timed(function: Callable[[], Any], device: str = "cpu") -> float:
    """The wall time of one call, ms."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def timings(function: Callable[[], Any], seconds: float = 3.0, device: str = "cpu") -> list[float]:
    """Wall times in ms: after two calls to warm up, at least 5 and as many as fit in seconds."""
    timed(function, device)
    first = timed(function, device)
    return [timed(function, device) for _ in range(max(5, min(200, int(1e3 * seconds / first))))]


def interleaved(
    functions: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Wall times in ms of several functions, taken in turn so that drifts hit all alike."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(timed(function, device))
    return times


def peak_memory(device: str = "cpu") -> float:
    """The largest memory this process has held so far, MB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script that prints one line of JSON last, and return that."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def median(times: Sequence[float]) -> float:
    return statistics.median(times)


def machine(device: str = "cpu") -> str:
    """A line that says where and when."""
    where = torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU"
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device == "cpu" else ""
    return f"{where}{threads}, torch {torch.__version__}, {date.today()}"


def report(rows: list[dict[str, Any]], folder: Path, name: str, device: str = "cpu") -> None:
    """Print rows as a table and write them to folder/name.csv."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(text_table(columns, [[_cell(row.get(c, "")) for c in columns] for row in rows]))
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.csv"
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, folder / f"{name}.csv")
    note_machine(folder, name, machine(device))
    print(f"written: {folder / name}.csv")


def _cell(value: Any) -> str:
    return significant(value) if isinstance(value, float) else str(value)
