"""Direct sum against mesh by size and density of the cell: the costs that "auto" decides by.

Prints the time of energy and forces of both solvers, what the cost model of the library says, and
coefficients of a new fit of that model to these timings.

    python scripts/benchmarks/solvers.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import figures
import numpy as np
from common import System, machine, random_system, report, timings
from head import head_step
from scipy.optimize import nnls
from tqdm import tqdm

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.electrostatics.grouping import direct_cost, mesh_cost
from mace_polmp.electrostatics.mesh import DEFAULT_ACCURACY, window_width
from mace_polmp.electrostatics.reciprocal import largest_orders

# Atoms, and edges of cubic cells in Å.
CELLS = {
    20: (12.0, 30.0, 60.0),
    60: (12.0, 30.0, 60.0),
    192: (12.4, 20.0, 35.0),
    400: (16.0, 25.0, 50.0),
    800: (20.0, 30.0),
    1536: (25.0, 40.0),
    3072: (31.0,),
}


def in_cell(n_atoms: int, edge: float) -> System:
    system = random_system(1, n_atoms, True)
    scale = edge / system.cell[0, 0, 0]
    return System(**{**vars(system), "positions": system.positions * scale,
                     "cell": system.cell * scale})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    args = parser.parse_args()
    width = window_width(DEFAULT_ACCURACY)
    rows: list[dict[str, Any]] = []
    terms = []
    cases = [(n, edge) for n, edges in CELLS.items() for edge in edges]
    for n_atoms, edge in tqdm(cases, unit="cell"):
        system = in_cell(n_atoms, edge)
        limits = largest_orders(system.cell, Electrostatics().k_cutoff)[0].int().tolist()
        times = {
            solver: min(timings(head_step(system, solver, False), seconds=1.5))
            for solver in ("ewald", "mesh")
        }
        rows.append(
            {
                "atoms": n_atoms,
                "cell / Å": edge,
                "direct / ms": times["ewald"],
                "its cost": direct_cost(n_atoms, tuple(limits)),
                "mesh / ms": times["mesh"],
                "its cost ": mesh_cost(n_atoms, tuple(limits), width),
            }
        )
        n12 = (2 * limits[0] + 1) * (2 * limits[1] + 1)
        n123 = n12 * (limits[2] + 1)
        terms.append((1.0, n_atoms * n12, n_atoms * n123, n123, n_atoms * width**3))
    print(machine())
    report(rows, args.output, "solvers")
    figures.solvers(rows, args.output, machine())
    table = np.array(terms, dtype=float)
    for name, columns in (("direct / ms", (0, 1, 2, 3)), ("mesh / ms", (0, 4, 3))):
        measured = np.array([row[name] for row in rows])
        # Relative errors count.
        found, _ = nnls(table[:, columns] / measured[:, None], np.ones_like(measured))
        labels = ("1", "N n12", "N n123", "n123", "N w^3")
        terms_text = [f"{c:.2g} [{labels[k]}]" for c, k in zip(found, columns, strict=True)]
        print(f"fit, {name}: {' + '.join(terms_text)}")


if __name__ == "__main__":
    main()
