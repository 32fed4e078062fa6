"""64 structures in one batch of torch-sim against 64 calls of the ASE calculator, in the same run.

The model with the head of model.py; before every step all atoms move a little, as in a simulation.
The two take turns. The calculator evaluates stresses as well, the batch has them of periodic
structures only. Needs torch-sim (pip install '.[torch-sim]'), whose name this file must not have:
Python would import it instead.

    python scripts/benchmarks/molecule_batches.py [--device cuda] [--structures 64]
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
import torch_sim as ts
from ase import Atoms
from common import argument_parser, machine, random_system, report, timed
from model import make_models
from tqdm import tqdm

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.interfaces.torch_sim import MultipoleMACEModel
from mace_polmp.modules import MultipoleMACE

CASES = {"open 3": (3, False), "open 9": (9, False), "open 24": (24, False), "box 24": (24, True)}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def structures(number: int, n_atoms: int, periodic: bool) -> list[Atoms]:
    """Random atoms at the density of water, different ones in each."""
    system = random_system(number, n_atoms, periodic, torch.float64)
    numbers = np.tile([8, 1, 1], n_atoms)[:n_atoms]
    return [
        Atoms(
            numbers,
            positions=system.positions[system.batch == n].numpy(),
            cell=system.cell[n].numpy() if periodic else None,
            pbc=periodic,
        )
        for n in range(number)
    ]


def measure(model: MultipoleMACE, case: str, dtype: str, args: Any) -> dict[str, float | str]:
    """Times of both, and by how much their forces differ."""
    frames = structures(args.structures, *CASES[case])
    adapter = MultipoleMACEModel(model, device=args.device, dtype=DTYPES[dtype])
    state = ts.io.atoms_to_state(frames, adapter.device, adapter.dtype)
    calculator = MultipoleMACECalculator(
        models=adapter.model, device=args.device, default_dtype=dtype
    )
    for atoms in frames:
        atoms.calc = calculator
    forces: dict[str, Any] = {}
    rng = np.random.default_rng(0)

    def move() -> None:
        for atoms in frames:
            atoms.positions += 1e-3 * rng.normal(size=atoms.positions.shape)
        moved = np.concatenate([atoms.positions for atoms in frames])
        state.positions = torch.from_numpy(moved).to(state.positions)

    def batch() -> None:
        forces["batch"] = adapter(state)["forces"].cpu().numpy()

    def calls() -> None:
        forces["calls"] = np.concatenate([atoms.get_forces() for atoms in frames])

    times: dict[str, list[float]] = {"batch": [], "calls": []}
    for number in range(args.steps + 1):
        move()  # without which the calculator would not evaluate again
        for name, step in (("batch", batch), ("calls", calls)):
            taken = timed(step, args.device)
            if number > 0:
                times[name].append(taken)
    pairs = [b / a for a, b in zip(times["batch"], times["calls"], strict=True)]
    return {
        "case": f"{args.structures} x {case}",
        "dtype": dtype,
        "one batch, ms": statistics.median(times["batch"]),
        "calls, ms": statistics.median(times["calls"]),
        "calls / batch (median of pairs)": statistics.median(pairs),
        "of minima": min(times["calls"]) / min(times["batch"]),
        "largest difference of forces, eV/Å": float(
            np.abs(forces["batch"] - forces["calls"]).max()
        ),
    }


def main() -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    args = parser.parse_args()
    model: Any = make_models(args.device)["with"]
    rows: list[dict[str, Any]] = []
    for case, dtype in tqdm([(c, d) for d in args.dtypes for c in args.cases], unit="case"):
        rows.append(measure(model, case, dtype, args))
        report(rows, args.output, "molecule_batches")
    print(machine(args.device))


if __name__ == "__main__":
    main()
