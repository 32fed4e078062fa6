"""Slabs: how energies and forces approach the limit of growing vacuum.

Random charges, dipoles and quadrupoles with response in a slab; relative deviations of the energy
and of the forces (root mean square) from those with sixteen periods of vacuum, by vacuum in units
of the period within the slab and by kspace_spacing. The check of the vacuum is switched off here.

    python scripts/benchmarks/slab.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import figures
import torch
from common import machine, random_system, report
from tqdm import tqdm

from mace_polmp.electrostatics import Electrostatics, checks

# Period within the slab and thickness, Å.
SLABS = {"thin": (8.0, 6.0), "wide": (16.0, 8.0), "thick": (12.0, 30.0)}
SPACINGS = (2.0, 1.5, 1.2)
VACUUM = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
FAR = 16.0


def evaluate(period: float, thickness: float, vacuum: float, spacing: float) -> list[torch.Tensor]:
    """Energy and forces with this vacuum in units of the period."""
    n_atoms = round(0.1 * period**2 * thickness)
    system = random_system(1, n_atoms, True, dtype=torch.float64)
    edges = torch.tensor([period, period, thickness], dtype=torch.float64)
    positions = (system.positions / system.cell[0, 0, 0] * edges).requires_grad_(True)
    edges[2] += vacuum * period
    engine = Electrostatics(kspace_spacing=spacing, solver="mesh", mesh_accuracy=1e-7)
    pbc = torch.tensor([[True, True, False]])
    rest = (system.batch, system.multipoles, system.response)
    energy = engine(positions, torch.diag(edges)[None], pbc, *rest).energy.sum()
    return [energy.detach(), torch.autograd.grad(energy, positions)[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    cases = [(name, spacing) for spacing in SPACINGS for name in SLABS]
    with mock.patch.object(checks, "required_vacuum", lambda period, smearing: 0.0):
        for name, spacing in tqdm(cases, unit="slab"):
            limit = evaluate(*SLABS[name], FAR, spacing)
            for vacuum in VACUUM:
                found = evaluate(*SLABS[name], vacuum, spacing)
                energy, forces = (
                    float((a - b).norm() / b.norm()) for a, b in zip(found, limit, strict=True)
                )
                rows.append(
                    {
                        "slab": name,
                        "kspace_spacing": spacing,
                        "vacuum / period": vacuum,
                        "energy": energy,
                        "forces": forces,
                    }
                )
    print(machine())
    report(rows, args.output, "slab")
    figures.slab(rows, args.output, machine())


if __name__ == "__main__":
    main()
