"""Operations and host synchronisations of energy and forces, with and without the head.

On a GPU each operation that is not a view is one launch, and a synchronisation lets the host wait
for the device. Both are counted on a CPU, with the blocks of pairs and atoms that a GPU takes (with
--cpu_blocks those of a CPU). The model is that of model.py.

    python scripts/benchmarks/launches.py
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from common import CASES, argument_parser, report
from model import load, make_models
from torch.utils._python_dispatch import TorchDispatchMode

from mace_polmp.electrostatics import direct, ewald, mesh, pairs

COUNTED = [("open", n, "auto") for n in (24, 192)]
COUNTED += [("periodic", n, solver) for solver in ("ewald", "mesh") for n in (24, 192, 1536)]
_WAITS = {
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.equal",
    "aten._unique2",
    "aten.masked_select",
    "aten.bincount",
    "aten.is_nonzero",
}
# What only changes how memory is read, or allocates it.
_FREE = {
    "aten.detach",
    "aten._unsafe_view",
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty",
}


class Count(TorchDispatchMode):
    """Counts what passes, by name.

    Attributes:
        operations: those that are no views.
        waits: those that wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        if name in _WAITS or (name.startswith("aten.index") and _by_mask(args)):
            self.waits[name] += 1
        if not func.is_view and name not in _FREE:
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)


def count(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Count:
    """Of one evaluation, after one that fills what is kept."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model(dict(batch))
    with Count() as found:
        model(dict(batch))
    return found


def main() -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--list", action="store_true", help="print what the head adds")
    parser.add_argument("--cpu_blocks", action="store_true", help="count what a CPU does")
    args = parser.parse_args()
    if not args.cpu_blocks:
        for module in (pairs, ewald, mesh):
            module._BLOCK_CPU = module._BLOCK_GPU
        direct._FEW_CPU = direct._FEW_GPU
    models = make_models("cpu")
    rows: list[dict[str, Any]] = []
    for kind, n_atoms, solver in COUNTED:
        case = f"{kind} {n_atoms}"
        CASES[case] = (1, n_atoms, kind == "periodic")
        models["with"].electrostatics.solver = solver
        batch = load(case, [], "cpu")
        without, alone = (count(models[name], batch) for name in ("without", "with"))
        # As the calculator does it while a cell stays: with the plan and its cells.
        cell = batch["cell"].view(1, 3, 3)
        plan = models["with"].electrostatics.plan(cell, batch["pbc"].view(1, 3), [n_atoms])
        with_head = count(models["with"], {**batch, "plan": plan.for_cells(cell, cell.dtype)})
        n, m = without.operations.total(), with_head.operations.total()
        rows.append(
            {
                "case": f"{case}, {solver}",
                "backbone": n,
                "with head": m,
                "ratio": m / n,
                "without a plan": alone.operations.total() / n,
                "waits": with_head.waits.total(),
            }
        )
        if args.list:
            added = with_head.operations - without.operations
            print(case, solver, dict(added.most_common()), dict(with_head.waits))
    report(rows, args.output, "launches")


if __name__ == "__main__":
    main()
