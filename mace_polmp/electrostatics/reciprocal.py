"""Three-dimensionally periodic structures, tin-foil: the sum over wave vectors 0 < |k| ≤ k_c.

The structure factor comes from a solver, the direct sum of ewald.py or the mesh of mesh.py; the
rest is here. k and −k give the same term, so n_3 runs over 0 … N_3 only. The geometry of the
cells is computed in double precision: it is small, and which wave vectors lie within the sphere
must not depend on the precision of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mace_polmp.electrostatics.moments import source_moments
from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.products import cell_volume, small_product
from mace_polmp.units import EPS0

# A k-vector that lies on the sphere |k| = k_c but for rounding counts as inside, whatever the
# orientation of the cell.
SPHERE_TOLERANCE = 1e-6


class Solver(Protocol):
    """Sums over the atoms of a batch of structures at given sites, and their transpose."""

    def structure_factor(self, sites: Tensor, moments: Tensor) -> Tensor:
        """S(n) = Σ_iα m_iα (2πi n)^α e^{2πi n·s_i}, [n_structures, n_1 n_2, n_3 ≥ 0], complex."""
        ...

    def at_sites(self, sites: Tensor, waves: Tensor, order: int) -> Tensor:
        """∂^β Re Σ_n Γ(n)* e^{2πi n·s_i}, [n_atoms, n_moments(order)], of Γ like S."""
        ...


def wave_vector_limits(cell: Tensor, k_cutoff: float) -> Tensor:
    """The largest |n_a| of a wave vector within the sphere, [n_structures, 3], as doubles.

    |n_a| ≤ |k| |a_a| / 2π, since k·a_a = 2π n_a.
    """
    lengths = torch.linalg.vector_norm(cell.detach().double(), dim=-1)
    limits: Tensor = lengths * (k_cutoff / (2.0 * math.pi) * (1.0 + SPHERE_TOLERANCE))
    return limits.floor()


def _weights(
    reciprocal: Tensor,
    volume: Tensor,
    limits: tuple[int, int, int],
    smearing: float,
    k_cutoff: float,
) -> tuple[Tensor, Tensor]:
    """e^{−σ²k²/2}/(k² eps0 V), doubled where −k is left out, 0 outside the sphere; and k².

    Both [S, n12, n3]; k² is 1 outside the sphere.

    Args:
        reciprocal: rows are the reciprocal vectors without 2π, [S, 3, 3], double precision.
        volume: [S], double precision.
        limits: the largest |n_a|.
        smearing: σ, Å.
        k_cutoff: k_c, 1/Å.
    """
    n1, n2, n3 = (
        torch.arange(low, n + 1, dtype=volume.dtype, device=volume.device)
        for low, n in zip((-limits[0], -limits[1], 0), limits, strict=True)
    )
    # k² = 4π² Σ_ab n_a n_b g_ab with the metric of the reciprocal lattice.
    metric = (2.0 * math.pi) ** 2 * torch.matmul(reciprocal, reciprocal.transpose(-1, -2))
    n12 = torch.cartesian_prod(n1, n2)  # [n12, 2]
    square = (torch.matmul(n12, metric[:, :2, :2]) * n12).sum(-1)
    cross = 2.0 * torch.matmul(n12, metric[:, :2, 2, None])  # [S, n12, 1]
    k2 = square[..., None] + n3 * (cross + n3 * metric[:, 2, 2, None, None])
    found = k2.detach()
    inside = (found <= (k_cutoff * (1.0 + SPHERE_TOLERANCE)) ** 2) & (found > 0)
    # Exactly zero only at n = 0.
    inside[:, limits[0] * n2.numel() + limits[1], 0] = False
    k2 = torch.where(inside, k2, 1.0)
    doubled = torch.where(n3 > 0, 2.0, 1.0) * inside
    return torch.exp(-0.5 * smearing**2 * k2) / k2 * (doubled / (EPS0 * volume)[:, None, None]), k2


@dataclass(frozen=True)
class Lattice:
    """The wave vectors of a batch of cells, and its atoms and multipoles in their coordinates.

    Attributes:
        weight: e^{−σ²k²/2}/(k² eps0 V), [n_structures, n_1 n_2, n_3 ≥ 0].
        square: k², 1/Å², alike.
        inverse: of the cells, [n_structures, 3, 3], 1/Å.
        fraction: fractional coordinates of the atoms, −½ … ½.
    """

    weight: Tensor
    square: Tensor
    inverse: Tensor
    fraction: Tensor

    @classmethod
    def of(
        cls,
        positions: Tensor,
        cell: Tensor,
        batch: Tensor,
        limits: tuple[int, int, int],
        smearing: float,
        k_cutoff: float,
    ) -> Lattice:
        """Arguments as of reciprocal_sum."""
        dtype = positions.dtype
        exact_cell = cell.double()
        inverse = torch.linalg.inv_ex(exact_cell).inverse
        volume = cell_volume(exact_cell)
        reciprocal = inverse.transpose(-1, -2)
        weight, square = _weights(reciprocal, volume, limits, smearing, k_cutoff)
        fraction = _per_atom(positions.double(), inverse, batch)
        fraction = (fraction - fraction.detach().round()).to(dtype)
        return cls(weight.to(dtype), square.to(dtype), inverse.to(dtype), fraction)

    def moments(self, multipoles: Multipoles, batch: Tensor) -> Tensor:
        """The sources of a structure factor, [n_atoms, n_moments]."""
        dipole, quadrupole = multipoles.dipole, multipoles.quadrupole
        if dipole is not None:
            dipole = _per_atom(dipole, self.inverse, batch)
        if quadrupole is not None:
            here = self.inverse if self.inverse.shape[0] == 1 else self.inverse[batch]
            quadrupole = small_product(small_product(here.transpose(-1, -2), quadrupole), here)
        return source_moments(Multipoles(multipoles.charge, dipole, quadrupole))


def reciprocal_sum(
    positions: Tensor,
    cell: Tensor,
    batch: Tensor,
    multipoles: Multipoles,
    limits: tuple[int, int, int],
    make_solver: Callable[[Tensor], Solver],
    smearing: float,
    k_cutoff: float,
    with_field: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Energy, and potential and field at the atoms, of periodic structures.

    E = 1/(2 eps0 V) Σ_k e^{−σ²k²/2}/k² |S(k)|² − E_self, S(k) = Σ_i L_i e^{ik·r_i}
    (arXiv:2605.05746).

    Args:
        positions: [n_atoms, 3], Å, anywhere: not only inside the cell.
        cell: [n_structures, 3, 3], Å, rows are lattice vectors, right- or left-handed, regular.
        batch: [n_atoms] int64.
        multipoles: of the same atoms.
        limits: the largest |n_a| of a wave vector of any of the structures.
        make_solver: gives the solver for fractional coordinates [n_atoms, 3].
        smearing: σ, Å.
        k_cutoff: k_c, 1/Å.
        with_field: whether potential and field are wanted.

    Returns:
        Energy [n_structures] eV; potential [n_atoms] V and field [n_atoms, 3] V/Å, each without
        the atom's own Gaussian, or None.
    """
    lattice = Lattice.of(positions, cell, batch, limits, smearing, k_cutoff)
    fraction, weight = lattice.fraction, lattice.weight
    moments = lattice.moments(multipoles, batch)

    solver = make_solver(fraction)
    factor = solver.structure_factor(fraction, moments)
    energy = 0.5 * (weight * (factor.real**2 + factor.imag**2)).sum((1, 2))
    energy = energy - _self_energy(multipoles, batch, cell.shape[0], smearing)
    if not with_field:
        return energy, None, None

    values = solver.at_sites(fraction, weight * factor, 1)
    potential = values[:, 0] - _self_potential(multipoles.charge, smearing)
    field = -_per_atom(values[:, 1:], lattice.inverse.transpose(-1, -2), batch)
    if multipoles.dipole is not None:
        field = field + _self_field(multipoles.dipole, smearing)
    return energy, potential, field


def _per_atom(vectors: Tensor, matrices: Tensor, batch: Tensor) -> Tensor:
    """v_i M of the atom's structure: [n_atoms, 3] and [n_structures, 3, 3] to [n_atoms, 3]."""
    if matrices.shape[0] == 1:
        return small_product(vectors, matrices[0])
    return small_product(vectors[:, None], matrices[batch]).squeeze(1)


# The interaction of each Gaussian multipole with itself, which the k-space sum contains.
_SELF: float = 1.0 / (2.0 * EPS0 * (2.0 * math.pi) ** 1.5)


def _self_energy(
    multipoles: Multipoles, batch: Tensor, n_structures: int, smearing: float
) -> Tensor:
    per_atom = multipoles.charge**2 / smearing
    if multipoles.dipole is not None:
        per_atom = per_atom + multipoles.dipole.square().sum(-1) / (3.0 * smearing**3)
    if multipoles.quadrupole is not None:
        per_atom = per_atom + multipoles.quadrupole.square().sum((-1, -2)) / (10.0 * smearing**5)
    return per_atom.new_zeros(n_structures).index_add(0, batch, _SELF * per_atom)


def _self_potential(charge: Tensor, smearing: float) -> Tensor:
    return charge * (2.0 * _SELF / smearing)


def _self_field(dipole: Tensor, smearing: float) -> Tensor:
    return dipole * (2.0 * _SELF / (3.0 * smearing**3))
