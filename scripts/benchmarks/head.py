"""The long-range head alone: time and memory from one molecule to 30 000 atoms.

Charges, dipoles, quadrupoles, softness and isotropic polarizability; energies and forces, with
gradients to all of them, and a training step on forces (one derivative more). With torch-pme
installed (pip install -e '.[benchmarks]') its particle mesh with charges alone runs side by side.
Every case runs in a process of its own, whose peak memory over that of its inputs is reported.

    python scripts/benchmarks/head.py [--device cuda] [--structure FILE ...]
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import torch
from common import (
    CASES,
    System,
    in_own_process,
    machine,
    median,
    parse_arguments,
    peak_memory,
    random_system,
    report,
    timings,
)
from tqdm import tqdm

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients

KINDS = ("auto", "ewald", "mesh", "training", "torch-pme")
# The direct sum beyond this is only slow; it is timed up to here.
LARGEST_DIRECT = 8784


def head_step(system: System, solver: str, training: bool) -> Callable[[], Any]:
    """Energy and forces, or the gradient of a loss on them, with respect to everything."""
    engine = Electrostatics(solver=solver)
    leaves = system.leaves()

    def step() -> Any:
        positions, charge, dipole, quadrupole, softness, polarizability = leaves
        out = engine(
            positions,
            system.cell,
            system.pbc,
            system.batch,
            Multipoles(charge, dipole, quadrupole),
            ResponseCoefficients(softness, polarizability),
            with_field=False,
        )
        energy = out.energy.sum()
        if not training:
            return torch.autograd.grad(energy, leaves)
        forces = torch.autograd.grad(energy, leaves, create_graph=True)
        # In a model the gradients by multipoles go on into forces too.
        loss = energy + sum((f**2).sum() for f in forces)
        return torch.autograd.grad(loss, leaves[1:])

    return step


def torch_pme_step(system: System) -> Callable[[], Any]:
    """The k-space part of torch-pme's P3M with charges alone, σ = 1 Å, no neighbours."""
    import torchpme

    calculator = torchpme.P3MCalculator(
        torchpme.InversePowerLawPotential(exponent=1, smearing=1.0),
        mesh_spacing=0.7,
        interpolation_nodes=5,
    ).to(dtype=system.positions.dtype, device=system.positions.device)
    positions = system.positions.clone().requires_grad_(True)
    charges = system.multipoles.charge[:, None].clone().requires_grad_(True)
    nothing = torch.zeros(0, 2, dtype=torch.int64, device=positions.device)

    def step() -> Any:
        potential = calculator(charges, system.cell[0], positions, nothing, positions.new_zeros(0))
        return torch.autograd.grad((charges * potential).sum(), [positions, charges])

    return step


def load(case: str, structures: list[str], device: str) -> System:
    """A named random case, or the positions and cell of a file with random multipoles."""
    if case in CASES:
        return random_system(*CASES[case], device=device)
    import ase.io

    atoms = ase.io.read(next(s for s in structures if Path(s).stem == case))
    system = random_system(1, len(atoms), bool(atoms.pbc.all()), device=device)
    kept = {k: v for k, v in vars(system).items() if k not in ("positions", "cell")}
    return System(
        positions=torch.tensor(atoms.positions, dtype=torch.float32, device=device),
        cell=torch.tensor(atoms.cell.array, dtype=torch.float32, device=device)[None],
        **kept,
    )


def measure(case: str, kind: str, structures: list[str], device: str) -> dict[str, float]:
    system = load(case, structures, device)
    if kind == "torch-pme":
        step = torch_pme_step(system)
    else:
        solver = kind if kind in ("ewald", "mesh") else "auto"
        step = head_step(system, solver, kind == "training")
    before = peak_memory(device)
    times = timings(step, device=device)
    return {
        "minimum": min(times),
        "median": median(times),
        "memory": peak_memory(device) - before,
        "peak": peak_memory(device),
        "atoms": float(system.positions.shape[0]),
    }


def skipped(case: str, kind: str) -> bool:
    if case not in CASES:
        return kind == "ewald"
    n_structures, n_atoms, periodic = CASES[case]
    if kind == "ewald":
        return not periodic or n_atoms > LARGEST_DIRECT
    if kind == "mesh":
        return not periodic or n_atoms < 100
    if kind == "torch-pme":
        found = importlib.util.find_spec("torchpme") is not None
        return not (found and periodic and n_structures == 1)
    return False


def main() -> None:
    args = parse_arguments(__doc__ or "")
    if args.one:
        print(json.dumps(measure(*args.one, args.structure, args.device)))
        return
    cases = [*CASES, *(Path(s).stem for s in args.structure)]
    rows: list[dict[str, Any]] = []
    growth: list[tuple[float, float]] = []  # of periodic structures
    runs = [(c, k) for c in cases for k in KINDS if not skipped(c, k)]
    for case, kind in tqdm(runs, unit="case"):
        found = in_own_process(
            __file__, "--one", case, kind, "--device", args.device, "--structure", *args.structure
        )
        rows.append(
            {
                "case": case,
                "what": kind,
                "min / ms": found["minimum"],
                "median / ms": found["median"],
                "memory / MB": found["memory"],
                "of the process / MB": found["peak"],
            }
        )
        if case in CASES and CASES[case][0] == 1 and CASES[case][2] and kind == "auto":
            growth.append((found["atoms"], found["minimum"]))
    print(machine(args.device))
    report(rows, args.output, "head", args.device)
    large = [p for p in growth if p[0] >= 1500]
    exponent = math.log(large[-1][1] / large[0][1]) / math.log(large[-1][0] / large[0][0])
    print(
        f"exponent of the growth from {large[0][0]:.0f} to {large[-1][0]:.0f} atoms: {exponent:.2f}"
    )
    figures.head(rows, args.output, machine(args.device))


if __name__ == "__main__":
    main()
