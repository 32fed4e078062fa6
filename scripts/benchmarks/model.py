"""The whole model with and without the long-range head, in the same run.

A MACE with 32x0e + 32x1o features, two layers and r_max 4.5 Å in single precision against the same
MACE with the head at its default settings: energies and forces, and a training step (gradient of a
loss on energies and forces). The two take turns, so that a drift of the machine hits both.

    python scripts/benchmarks/model.py [--device cuda] [--structure FILE ...]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import mace  # noqa: F401  before e3nn
import numpy as np
import torch
from ase import Atoms
from common import (
    CASES,
    in_own_process,
    interleaved,
    machine,
    median,
    parse_arguments,
    peak_memory,
    random_system,
    report,
)
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric
from tqdm import tqdm

from mace_polmp.modules import MultipoleMACE

EVALUATED = (
    "periodic 24",
    "periodic 192",
    "periodic 1536",
    "periodic 8784",
    "open 50",
    "open 400",
)
TRAINED = {
    "training, periodic 4 x 192": "periodic 4 x 192",
    "training, open 16 x 48": "open 16 x 48",
}


def make_models(device: str) -> dict[str, torch.nn.Module]:
    """A MACE for water, and the same with the head."""
    torch.manual_seed(0)
    interaction = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    backbone = modules.ScaleShiftMACE(
        r_max=4.5,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=2,
        num_elements=2,
        hidden_irreps=o3.Irreps("32x0e+32x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(2),
        avg_num_neighbors=38.0,
        atomic_numbers=[1, 8],
        correlation=3,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    models = {"without": backbone, "with": MultipoleMACE.from_mace(backbone)}
    return {name: model.to(device) for name, model in models.items()}


def load(case: str, structures: list[str], device: str) -> dict[str, torch.Tensor]:
    table = tools.AtomicNumberTable([1, 8])
    case = TRAINED.get(case, case)
    if case in CASES:
        n_structures, n_atoms, periodic = CASES[case]
        system = random_system(n_structures, n_atoms, periodic)
        numbers = np.tile([8, 1, 1], n_atoms)[:n_atoms]
        frames = [
            Atoms(
                numbers,
                positions=system.positions[system.batch == n].numpy(),
                cell=system.cell[n].numpy(),
                pbc=periodic,
            )
            for n in range(n_structures)
        ]
    else:
        import ase.io

        frames = [ase.io.read(next(s for s in structures if Path(s).stem == case))]
        frames[0].numbers = np.where(frames[0].numbers == 1, 1, 8)  # as two elements
    graphs = [
        data.AtomicData.from_config(data.config_from_atoms(f), z_table=table, cutoff=4.5)
        for f in frames
    ]
    batch: dict[str, torch.Tensor] = (
        torch_geometric.Batch.from_data_list(graphs).to(device).to_dict()
    )
    return batch


def evaluation(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def step() -> Any:
        return model(dict(batch))["forces"]

    return step


def training(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        out = model(dict(batch), training=True)
        (out["energy"].sum() + (out["forces"] ** 2).sum()).backward()

    return step


def measure(case: str, structures: list[str], device: str, only: str) -> dict[str, Any]:
    """Times of both models, or the memory of one."""
    batch = load(case, structures, device)
    kind = training if case in TRAINED else evaluation
    steps = {name: kind(model, batch) for name, model in make_models(device).items()}
    if only != "both":
        steps[only]()
        return {"peak": peak_memory(device)}
    n_atoms = batch["positions"].shape[0]

    rounds = 5 if n_atoms > 4000 else 15 if n_atoms > 700 else 40
    times = interleaved(steps, rounds, device)
    return {"atoms": n_atoms, **times}


def main() -> None:
    args = parse_arguments(__doc__ or "")
    if args.one:
        case, only = args.one
        print(json.dumps(measure(case, args.structure, args.device, only)))
        return
    rows: list[dict[str, Any]] = []
    cases = [*EVALUATED, *(Path(s).stem for s in args.structure), *TRAINED]
    more = ["--device", args.device, "--structure", *args.structure]
    for case in tqdm(cases, unit="case"):
        found = in_own_process(__file__, "--one", case, "both", *more)
        peaks = {
            name: in_own_process(__file__, "--one", case, name, *more)["peak"]
            for name in ("without", "with")
        }
        pairs = zip(found["with"], found["without"], strict=True)
        rows.append(
            {
                "case": case,
                "without / ms": median(found["without"]),
                "with / ms": median(found["with"]),
                "ratio of minima": min(found["with"]) / min(found["without"]),
                "median ratio": median([a / b for a, b in pairs]),
                "without / MB": peaks["without"],
                "with / MB": peaks["with"],
            }
        )
    print(machine(args.device))
    report(rows, args.output, "model", args.device)
    figures.model(rows, args.output, machine(args.device))


if __name__ == "__main__":
    main()
