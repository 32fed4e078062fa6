"""A calculator step with and without the head, in the same run.

ASE's calculators of the two models of model.py; before every step the atoms move a little, as in a
simulation, and energy and forces are asked for. The two take turns.

    python scripts/benchmarks/calculator.py
    python scripts/benchmarks/calculator.py --compiled --sizes 24 192

With --compiled the model with the head takes turns with the same one compiled (compile_mode).
"""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from common import argument_parser, random_system, report
from mace.calculators import MACECalculator
from model import make_models
from tqdm import tqdm

from mace_polmp.calculators import MultipoleMACECalculator

SIZES = (9, 24, 48, 192)
STEPS = 60


def structure(n_atoms: int, periodic: bool) -> Atoms:
    """Random atoms at the density of water."""
    system = random_system(1, n_atoms, periodic)
    return Atoms(
        np.tile([8, 1, 1], n_atoms)[:n_atoms],
        positions=system.positions.numpy(),
        cell=system.cell[0].numpy() if periodic else None,
        pbc=periodic,
    )


def step(atoms: Atoms, rng: np.random.Generator) -> float:
    """Seconds of one step."""
    atoms.positions += 1e-3 * rng.normal(size=atoms.positions.shape)
    started = time.perf_counter()
    atoms.get_forces()
    return time.perf_counter() - started


def main() -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="atoms")
    parser.add_argument("--compiled", action="store_true", help="compare with compile_mode")
    args = parser.parse_args()
    models = make_models(args.device)
    kinds: dict[str, Any] = {"without": MACECalculator, "with": MultipoleMACECalculator}
    first, second = "without", "with"
    if args.compiled:
        kinds = {
            "with": MultipoleMACECalculator,
            "compiled": partial(MultipoleMACECalculator, compile_mode="default"),
        }
        first, second = "with", "compiled"
    rows: list[dict[str, Any]] = []
    cases = [(n, periodic) for periodic in (True, False) for n in args.sizes]
    for n_atoms, periodic in tqdm(cases, unit="case"):
        runs = {}
        for name, kind in kinds.items():
            atoms = structure(n_atoms, periodic)
            model = deepcopy(models["without" if name == "without" else "with"])
            atoms.calc = kind(models=model, device=args.device, default_dtype="float32")
            runs[name] = (atoms, np.random.default_rng(0), [])
        for number in range(STEPS):
            for atoms, rng, seconds in runs.values():
                taken = step(atoms, rng)
                if number >= 5:
                    seconds.append(taken)
        times = {name: run[2] for name, run in runs.items()}
        pairs = [b / a for a, b in zip(times[first], times[second], strict=True)]
        rows.append(
            {
                "case": f"{'periodic' if periodic else 'open'} {n_atoms}",
                f"{first}, ms": 1e3 * statistics.median(times[first]),
                f"{second}, ms": 1e3 * statistics.median(times[second]),
                "ratio (median of pairs)": statistics.median(pairs),
                "ratio of minima": min(times[second]) / min(times[first]),
            }
        )
    report(rows, args.output, "compiled" if args.compiled else "calculator")


if __name__ == "__main__":
    main()
