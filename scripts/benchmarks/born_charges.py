"""Born charges: what they cost, and how the exact formula and the published one do on real data.

The model of model.py (two layers of 32x0e + 32x1o, r_max 4.5 Å, all multipoles, induced charges and
dipoles) in double precision: time and memory of the Born charges of a periodic box over those of
energy and forces, in the same run.

    python scripts/benchmarks/born_charges.py [--device cuda] [--structure FILE ...]

With a model and a file of orthorhombic periodic structures with labels REF_born_charges: errors of

- the exact formula (mace_polmp/modules/born_charges.py),
- the published one, which replaces the vector between two atoms by sin(k (r_j − r_i))/k at the
  smallest k of the cell.

    python scripts/benchmarks/born_charges.py --model ice.model --labels test.xyz
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mace  # noqa: F401  before e3nn
import numpy as np
import torch
from common import (
    argument_parser,
    in_own_process,
    interleaved,
    machine,
    median,
    peak_memory,
    report,
)
from model import load, make_models
from torch import Tensor
from tqdm import tqdm

from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.born_charges import born_charges, enforce_sum_rule
from mace_polmp.modules.graph import Graph

TIMED = ("periodic 24", "periodic 192", "periodic 1536")


def smallest_k_born_charges(model: MultipoleMACE, data: dict[str, Tensor]) -> Tensor:
    """Re[e^{−ikr_ia} ∂P_a/∂r_ib], P_a = Σ q_j e^{ikr_ja}/(ik) with k = 2π/L_a, and dipoles.

    One structure in an orthorhombic cell.
    """
    data = dict(data)
    positions = data["positions"].detach().clone().requires_grad_(True)
    data["positions"] = positions
    out = model.long_range(Graph.of(data))[1]
    charge, dipole = out.charges, out.atomic_dipoles.sum(0)
    rows = []
    for a, length in enumerate(data["cell"].view(3, 3).diagonal()):
        k = 2.0 * math.pi / length
        angle = k * positions[:, a]
        real, imaginary = (charge * angle.sin()).sum() / k, -(charge * angle.cos()).sum() / k
        slopes = [
            torch.autograd.grad(value, positions, retain_graph=True)[0]
            for value in (real, imaginary, dipole[a])
        ]
        angle = angle.detach()[:, None]
        rows.append(angle.cos() * slopes[0] + angle.sin() * slopes[1] + slopes[2])
    return torch.stack(rows, dim=1)


def measure(case: str, structures: list[str], device: str, only: str) -> dict[str, Any]:
    """Times of Born charges and of energy and forces, or the memory of one."""
    batch = load(case, structures, device)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    model = make_models(device)["with"].double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    steps: dict[str, Callable[[], Any]] = {
        "energy and forces": lambda: model(dict(batch))["forces"],
        "born charges": lambda: born_charges(model, dict(batch)),
    }
    if only != "both":
        before = peak_memory(device)
        steps[only]()
        return {"added": peak_memory(device) - before}
    n_atoms = batch["positions"].shape[0]
    return {"atoms": n_atoms, **interleaved(steps, 4 if n_atoms > 700 else 15, device)}


def cost(args: Any) -> None:
    rows = []
    more = ["--device", args.device, "--structure", *args.structure]
    for case in tqdm([*TIMED, *(Path(s).stem for s in args.structure)], unit="case"):
        found = in_own_process(__file__, "--one", case, "both", *more)
        names = ("energy and forces", "born charges")
        added = {
            name: in_own_process(__file__, "--one", case, name, *more)["added"] for name in names
        }
        pairs = zip(found[names[1]], found[names[0]], strict=True)
        rows.append(
            {
                "case": case,
                "energy and forces / ms": median(found[names[0]]),
                "Born charges / ms": median(found[names[1]]),
                "median ratio": median([a / b for a, b in pairs]),
                "energy and forces / MB": added[names[0]],
                "Born charges / MB": added[names[1]],
                "ratio of memory": added[names[1]] / added[names[0]],
            }
        )
    print(machine(args.device))
    report(rows, args.output, "born_charges_cost")


def accuracy(args: Any) -> None:
    """Errors of both formulas, with the sum rule enforced and not, and with a fitted factor."""
    import ase.io

    from mace_polmp.calculators import MultipoleMACECalculator

    calc = MultipoleMACECalculator(args.model, device=args.device, default_dtype="float64")
    model = calc.models[0]
    found: dict[str, list[np.ndarray]] = {"exact": [], "smallest k": []}
    labels, chi = [], []
    functions = {"exact": born_charges, "smallest k": smallest_k_born_charges}
    frames = ase.io.read(args.labels, ":")
    for atoms in tqdm(frames, unit="structure"):
        labels.append(atoms.arrays["REF_born_charges"].reshape(-1, 3, 3))
        chi.append(np.trace(calc.get_property("electronic_permittivity", atoms)) / 3)
        data = calc._atoms_to_batch(atoms).to_dict()
        for name, function in functions.items():
            charges = function(model, dict(data)).detach()
            found[name].append(enforce_sum_rule(charges, data["batch"], 1).cpu().numpy())
    reference = np.concatenate(labels)
    double = calc._atoms_to_batch(frames[0].repeat((2, 1, 1))).to_dict()
    rows = []
    for name, values in found.items():
        doubled = enforce_sum_rule(functions[name](model, dict(double)), double["batch"], 1)
        change = doubled.detach().cpu().numpy()[: len(frames[0])] - values[0]
        predicted = np.concatenate(values)
        factor = float((reference * predicted).sum() / (predicted**2).sum())
        for words, used in (("as it is", 1.0), ("best factor", factor)):
            error = used * predicted - reference
            rows.append(
                {
                    "formula": name,
                    "scale": f"{words}, {used:.3f}",
                    "RMSE / e": float(np.sqrt((error**2).mean())),
                    "R2": 1.0
                    - float((error**2).sum() / ((reference - reference.mean()) ** 2).sum()),
                    "RMS change in a 2x1x1 cell / e": float(np.sqrt((change**2).mean())),
                    "correlation": float(np.corrcoef(predicted.ravel(), reference.ravel())[0, 1]),
                }
            )
    print(
        f"{machine(args.device)}; {args.labels}; model's electronic permittivity {np.mean(chi):.3f}"
    )
    report(rows, args.output, "born_charges_accuracy")


def main() -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--model", help="a .model file to compare with labels")
    parser.add_argument("--labels", help="structures with REF_born_charges")
    args = parser.parse_args()
    if args.one:
        case, only = args.one
        print(json.dumps(measure(case, args.structure, args.device, only)))
    elif args.model:
        accuracy(args)
    else:
        cost(args)


if __name__ == "__main__":
    main()
