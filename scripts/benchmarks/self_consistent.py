"""The self-consistent response against the one-step response: time of energies and forces.

The electrostatics alone (with gradients to multipoles and coefficients) in both precisions and a
whole model in single precision, each with both responses in turn, so that a busy machine slows both
alike; the ratios of the medians are what counts. Iterations are those to the tolerance of the
precision, one evaluation of the field each.

    python scripts/benchmarks/self_consistent.py [--device cuda]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from common import (
    in_own_process,
    interleaved,
    machine,
    median,
    parse_arguments,
    random_system,
    report,
)
from model import evaluation, load, make_models
from tqdm import tqdm

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.coefficients import bounded
from mace_polmp.electrostatics.equations import Equations, placeholders
from mace_polmp.head import LongRangeOptions
from mace_polmp.modules import MultipoleMACE

CASES = {
    "open 50": (1, 50, False),
    "open 16 x 48": (16, 48, False),
    "periodic 24": (1, 24, True),
    "periodic 192": (1, 192, True),
    "periodic 1536": (1, 1536, True),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def head_steps(
    case: str, dtype: torch.dtype, device: str
) -> tuple[dict[str, Callable[[], Any]], int]:
    """Energies and forces of the head with each response, and the iterations of the second."""
    system = random_system(*CASES[case], dtype=dtype, device=device)
    engine = Electrostatics(taper=0.1)
    coefficients = bounded(system.response, engine.smearing)
    leaves = system.leaves(coefficients)
    counts = [len(system.positions) // len(system.cell)] * len(system.cell)
    plan = engine.plan(system.cell.cpu(), system.pbc.cpu(), counts, device=device, dtype=dtype)

    def step(self_consistent: bool) -> Any:
        positions, charge, dipole, quadrupole, softness, polarizability = leaves
        out = engine(
            positions,
            system.cell,
            system.pbc,
            system.batch,
            Multipoles(charge, dipole, quadrupole),
            ResponseCoefficients(softness, polarizability),
            with_field=False,
            plan=plan,
            self_consistent=self_consistent,
        )
        return torch.autograd.grad(out.energy.sum(), leaves)

    operator = engine.prepare(plan, system.positions, system.cell)
    potential, field = operator.field(system.multipoles)
    equations = Equations.of(operator, system.cell, coefficients, conserve_charge=False)
    rhs = torch.cat([-potential[:, None], field], 1)
    solved = equations.solved(rhs, *placeholders(coefficients, potential))
    return {
        "one_step": lambda: step(False),
        "self_consistent": lambda: step(True),
    }, solved.iterations


def model_steps(case: str, device: str) -> dict[str, Callable[[], Any]]:
    """Energies and forces of a model of 32 channels and two layers with each response."""
    batch = load(case, [], device)
    batch["with_polarizability"] = False  # as in molecular dynamics
    backbone = make_models(device)["without"]
    steps = {}
    for response in ("one_step", "self_consistent"):
        torch.manual_seed(0)
        model = MultipoleMACE.from_mace(backbone, LongRangeOptions(response=response))
        steps[response] = evaluation(model.to(device), batch)
    return steps


def measure(case: str, kind: str, device: str) -> dict[str, Any]:
    """Medians in ms, and their ratio."""
    n_structures, n_atoms, _ = CASES[case]
    iterations = 0
    if kind == "model":
        steps = model_steps(case, device)
    else:
        steps, iterations = head_steps(case, DTYPES[kind], device)
    times = interleaved(steps, 7 if n_structures * n_atoms > 700 else 25, device)
    found = {name: median(values) for name, values in times.items()}
    ratio = median(
        [b / a for a, b in zip(times["one_step"], times["self_consistent"], strict=True)]
    )
    return {**found, "ratio": ratio, "iterations": iterations}


def main() -> None:
    args = parse_arguments(__doc__ or "")
    if args.one:
        print(json.dumps(measure(*args.one, args.device)))
        return
    rows = []
    for case in tqdm(CASES, unit="case"):
        for kind in (*DTYPES, "model"):
            found = in_own_process(__file__, "--one", case, kind, "--device", args.device)
            named = {f"{k} / ms": found[k] for k in ("one_step", "self_consistent")}
            count = found["iterations"] or ""
            what = kind if kind == "model" else f"head, {kind}"
            rows.append(
                {"case": case, "what": what, **named, "ratio": found["ratio"], "iterations": count}
            )
    print(machine(args.device))
    report(rows, args.output, "self_consistent")


if __name__ == "__main__":
    main()
