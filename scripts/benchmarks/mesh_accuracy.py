"""Accuracy against cost of three ways to a particle mesh, and of ours on a model's structure.

Three roads to the same sum over wave vectors, all with exact derivatives, by the width w of the
window in mesh points:

- kaiser-bessel: one mesh; multipoles act on the generalized Kaiser–Bessel window (the library);
- b-spline: the same with derivative B-splines of order w (smooth particle mesh Ewald);
- channels: one mesh for each of the 1 + 3 + 6 moments and derivatives, combined in k-space.

Error: relative force error (root mean square) on random multipoles against the direct sum. A second
table has the largest error of each window of the library over cells, spacings and seeds. With
--model and --structure: the error of a trained model's long-range forces on that structure.

    python scripts/benchmarks/mesh_accuracy.py [--model FILE --structure FILE]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import figures
import torch
from common import System, machine, median, random_system, report, timings
from torch import Tensor
from tqdm import tqdm

from mace_polmp.electrostatics import Electrostatics, engine, mesh, operator
from mace_polmp.electrostatics.mesh import Mesh
from mace_polmp.electrostatics.moments import all_monomials, order_of
from mace_polmp.modules.graph import Graph

WIDTHS = range(5, 14)


@cache
def _spline_pieces(width: int) -> Tensor:
    """B-spline of order w: values of its pieces, coefficients of t^p, t in [−½, ½): [w, w]."""
    # M_1 = 1 on its support; M_n(u) = [u M_{n−1}(u) + (n − u) M_{n−1}(u − 1)]/(n − 1).
    pieces = torch.ones(1, 1, dtype=torch.float64)  # [piece, power], power of u − piece
    for n in range(2, width + 1):
        new = torch.zeros(n, n, dtype=torch.float64)
        for k in range(n):
            if k < n - 1:  # u = x + k
                new[k, :-1] += k * pieces[k]
                new[k, 1:] += pieces[k]
            if k > 0:  # n − u = n − k − x
                new[k, :-1] += (n - k) * pieces[k - 1]
                new[k, 1:] -= pieces[k - 1]
        pieces = new / (n - 1)
    shifted = torch.zeros_like(pieces)
    for power in range(width):  # x = t + ½
        for p in range(power + 1):
            shifted[:, p] += pieces[:, power] * math.comb(power, p) * 0.5 ** (power - p)
    return shifted


def _spline_polynomials(
    width: int, band: float, order: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    pieces = _spline_pieces(width).flip(0).t()  # the stencil runs against the offset
    return mesh._with_derivatives(pieces, order).to(dtype=dtype, device=device)


def _spline_deconvolution(limit: int, size: int, width: int, band: float) -> Tensor:
    n = torch.arange(-limit, limit + 1, dtype=torch.float64)
    return 1.0 / torch.sinc(n / size) ** width


class ChannelMesh(Mesh):
    """One mesh for each moment and each derivative."""

    def _powers(self, order: int, like: Tensor) -> Iterator[Tensor]:
        (l1, l2, l3) = self.shape.limits
        n1, n2, n3 = (
            2j * math.pi * torch.arange(low, high + 1, dtype=torch.float64, device=like.device)
            for low, high in ((-l1, l1), (-l2, l2), (0, l3))
        )
        dtype = torch.complex128 if like.dtype in (torch.float64, torch.complex128) else None
        for a, b, c in all_monomials(order):
            power = (n1**a)[:, None, None] * (n2**b)[:, None] * n3**c
            yield power.flatten(0, 1).to(dtype or torch.complex64)

    def structure_factor(self, sites: Tensor, moments: Tensor) -> Tensor:
        powers = self._powers(order_of(moments), moments)
        return sum(  # type: ignore[return-value]
            power * super(ChannelMesh, self).structure_factor(sites, moments[:, n, None])
            for n, power in enumerate(powers)
        )

    def at_sites(self, sites: Tensor, waves: Tensor, order: int) -> Tensor:
        columns = [
            super(ChannelMesh, self).at_sites(sites, waves * power.conj(), 0)
            for power in self._powers(order, waves)
        ]
        return torch.cat(columns, dim=1)


@contextmanager
def road(name: str, width: int) -> Iterator[None]:
    """Let the library take another road."""
    mesh._window_correction.cache_clear()
    with mock.patch.object(engine, "window_width", lambda accuracy: width):
        if name == "b-spline":
            with (
                mock.patch.object(mesh, "_window_polynomials", _spline_polynomials),
                mock.patch.object(mesh, "_deconvolution", _spline_deconvolution),
            ):
                yield
        elif name == "channels":
            with mock.patch.object(operator, "Mesh", ChannelMesh):
                yield
        else:
            yield
    mesh._window_correction.cache_clear()


def step(system: System, solver: str, spacing: float = 2.0) -> Callable[[], Tensor]:
    positions = system.positions.clone().requires_grad_(True)
    electrostatics = Electrostatics(kspace_spacing=spacing, solver=solver)
    rest = (system.cell, system.pbc, system.batch, system.multipoles, system.response)

    def forces() -> Tensor:
        energy = electrostatics(positions, *rest, with_field=False).energy.sum()
        return -torch.autograd.grad(energy, positions)[0]

    return forces


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def roads(device: str) -> tuple[list[dict[str, Any]], dict[str, list[tuple[float, float]]]]:
    small = random_system(1, 300, True, dtype=torch.float64)
    large = random_system(1, 1536, True, device=device)
    reference = step(small, "ewald")()
    rows: list[dict[str, Any]] = []
    series: dict[str, list[tuple[float, float]]] = {}
    for name in tqdm(("kaiser-bessel", "b-spline", "channels"), unit="road"):
        for width in WIDTHS:
            known = width in mesh._WINDOWS
            if name != "b-spline" and not known:
                continue
            with road(name, width):
                error = relative(step(small, "mesh")(), reference)
                times = timings(step(large, "mesh"), seconds=2.0, device=device)
            rows.append(
                {
                    "road": name,
                    "w": width,
                    "force error": error,
                    "min / ms": min(times),
                    "median / ms": median(times),
                }
            )
            series.setdefault(name, []).append((min(times), error))
    return rows, series


def windows() -> list[dict[str, Any]]:
    """The largest force error of each window, by number of atoms and spacing."""
    rows = []
    for width in tqdm(mesh._WINDOWS, unit="window"):
        row: dict[str, Any] = {"w": width, "of the library": mesh._WINDOWS[width][0]}
        for n_atoms in (6, 40):
            for spacing in (2.0, 1.3, 1.0):
                errors = []
                for seed in range(4):
                    system = random_system(1, n_atoms, True, dtype=torch.float64, seed=seed)
                    for edges in ((12.0, 12.0, 12.0), (11.0, 13.0, 17.0), (12.4, 10.0, 11.0)):
                        cell = torch.diag(torch.tensor(edges, dtype=torch.float64))
                        cell = cell + 0.15 * cell.roll(1, 0)  # oblique
                        fraction = system.positions @ system.cell[0].inverse()
                        parts = {"positions": fraction @ cell, "cell": cell[None]}
                        moved = System(**{**vars(system), **parts})
                        with road("kaiser-bessel", width):
                            found = step(moved, "mesh", spacing)()
                        errors.append(relative(found, step(moved, "ewald", spacing)()))
                row[f"{n_atoms} atoms, {spacing} Å"] = max(errors)
        rows.append(row)
    return rows


def of_model(model_file: Path, structure: Path) -> list[dict[str, Any]]:
    """Errors of a trained model's long-range energy and forces by the mesh's accuracy."""
    import ase.io
    import mace  # noqa: F401  before e3nn
    from mace import data, tools
    from mace.tools import torch_geometric

    from mace_polmp.modules.io import load_model

    model = load_model(model_file).double()
    table = tools.AtomicNumberTable(model.atomic_numbers.tolist())
    with tools.torch_tools.default_dtype(torch.float64):
        graph = data.AtomicData.from_config(
            data.config_from_atoms(ase.io.read(structure)), table, cutoff=float(model.r_max)
        )
    batch = torch_geometric.Batch.from_data_list([graph]).to_dict()

    def long_range(solver: str, accuracy: float) -> tuple[Tensor, Tensor, Tensor]:
        model.electrostatics.solver = solver
        model.electrostatics.mesh_accuracy = accuracy
        batch["positions"].requires_grad_(True)
        energy = model.long_range(Graph.of(batch))[1].energy
        (gradient,) = torch.autograd.grad(energy.sum(), batch["positions"])
        forces = model(dict(batch))["forces"]
        return energy.detach(), gradient, forces

    energy, gradient, forces = long_range("ewald", mesh.DEFAULT_ACCURACY)
    rows = []
    for accuracy in (1e-3, 1e-4, mesh.DEFAULT_ACCURACY, 1e-6, 1e-7):
        found = long_range("mesh", accuracy)
        rows.append(
            {
                "mesh_accuracy": accuracy,
                "long-range energy": relative(found[0], energy),
                "long-range forces": relative(found[1], gradient),
                "all forces": relative(found[2], forces),
                "largest / eV/Å": float((found[2] - forces).abs().max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", type=Path, help="a MultipoleMACE")
    parser.add_argument("--structure", type=Path, help="a periodic structure for it")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    args = parser.parse_args()
    print(machine(args.device))
    if args.model is not None:
        report(of_model(args.model, args.structure), args.output, "mesh_accuracy_model")
        return
    rows, series = roads(args.device)
    report(rows, args.output, "mesh_accuracy", args.device)
    report(windows(), args.output, "mesh_windows")
    figures.mesh_accuracy(rows, args.output, machine(args.device))


if __name__ == "__main__":
    main()
