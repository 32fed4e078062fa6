"""Three-dimensionally periodic structures, tin-foil: the sum over wave vectors 0 < |k| ≤ k_c.

The structure factor comes from a solver, the direct sum of ewald.py or the mesh of mesh.py; the
rest is here. k and −k give the same term, so n_3 runs over 0 … N_3 only. The geometry of the
cells is computed in double precision: it is small, and which wave vectors lie within the sphere
must not depend on the precision of the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mace_polmp.electrostatics.constants import numbers, remembered
from mace_polmp.electrostatics.moments import cartesian, order_of, symmetric_rows
from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.once import computed_once
from mace_polmp.electrostatics.products import cell_volume, small_product
from mace_polmp.electrostatics.settings import Settings
from mace_polmp.electrostatics.sums import AtomSums
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


def largest_orders(cell: Tensor, k_cutoff: float) -> Tensor:
    """The largest |n_a| of a wave vector within the sphere, [n_structures, 3], as doubles.

    |n_a| ≤ |k| |a_a| / 2π, since k·a_a = 2π n_a.
    """
    lengths = torch.linalg.vector_norm(cell.detach().double(), dim=-1)
    limits: Tensor = lengths * (k_cutoff / (2.0 * math.pi) * (1.0 + SPHERE_TOLERANCE))
    return limits.floor()


def _wave_vectors(
    inverse: Tensor, limits: tuple[int, int, int], k_cutoff: float
) -> tuple[Tensor, Tensor]:
    """k², 1 outside the sphere, [S, n12, n3]; and 2 inside, 1 where n_3 = 0, 0 outside.

    Args:
        inverse: of the cells, [S, 3, 3], double precision.
        limits: the largest |n_a|.
        k_cutoff: k_c, 1/Å.
    """
    n1, n2, n3 = (
        torch.arange(low, n + 1, dtype=inverse.dtype, device=inverse.device)
        for low, n in zip((-limits[0], -limits[1], 0), limits, strict=True)
    )
    # k² = 4π² Σ_ab n_a n_b g_ab with the metric of the reciprocal lattice.
    metric = (2.0 * math.pi) ** 2 * torch.matmul(inverse.transpose(-1, -2), inverse)
    n12 = torch.cartesian_prod(n1, n2)  # [n12, 2]
    square = (torch.matmul(n12, metric[:, :2, :2]) * n12).sum(-1)
    cross = 2.0 * torch.matmul(n12, metric[:, :2, 2, None])  # [S, n12, 1]
    k2 = square[..., None] + n3 * (cross + n3 * metric[:, 2, 2, None, None])
    found = k2.detach()
    inside = (found <= (k_cutoff * (1.0 + SPHERE_TOLERANCE)) ** 2) & (found > 0)
    # Exactly zero only at n = 0.
    inside[:, limits[0] * n2.numel() + limits[1], 0] = False
    return torch.where(inside, k2, 1.0), torch.where(n3 > 0, 2.0, 1.0) * inside


def _smooth_step(u: Any) -> Any:
    """From 0 to 1 for u from 0 to 1, with two vanishing derivatives at both ends."""
    return u**3 * (10.0 - 15.0 * u + 6.0 * u**2)


def taper_of(k: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The soft edge s(k) of the sphere of wave vectors, and −ds/dk.

    It falls from 1 to 0 over the last fraction of k_c, twice differentiable at both ends.
    """
    # The distance from the edge, so that nothing cancels where s is small.
    width = settings.taper * settings.k_cutoff
    inward = ((settings.k_cutoff - k) / width).clamp(0.0, 1.0)
    fall = 30.0 * (inward * (1.0 - inward)) ** 2 / width
    return _smooth_step(inward), fall


@dataclass(frozen=True, eq=False)
class CellGeometry:
    """What depends on the cells alone.

    Attributes:
        cell: [n_structures, 3, 3], Å, double precision.
        exact_inverse, inverse: of the cells, 1/Å, in double precision and in that of positions.
        weight: s(k) e^{−σ²k²/2}/(k² eps0 V), doubled where −k is left out, 0 outside the sphere;
            [n_structures, n_1 n_2, n_3 ≥ 0].
        to_moments: from charge, dipole and the nine elements of a quadrupole to moments in
            fractional coordinates, [n_structures, 13, 10].
        limits: the largest |n_a| of a wave vector.
        fits: [n_structures] bool, whether the limits suffice for the cell.
        square, sharp: k², 1/Å², and the weight without s(k), in double precision; alike.
        settings: of the sum.
    """

    cell: Tensor
    exact_inverse: Tensor
    inverse: Tensor
    weight: Tensor
    to_moments: Tensor
    limits: tuple[int, int, int]
    fits: Tensor
    square: Tensor
    sharp: Tensor
    settings: Settings

    @classmethod
    def of(
        cls,
        cell: Tensor,
        limits: tuple[int, int, int],
        settings: Settings,
        dtype: torch.dtype,
    ) -> CellGeometry:
        """Of cells [n_structures, 3, 3], Å, differentiable in them.

        Args:
            cell: any precision; the geometry is computed in double.
            limits: the largest |n_a| of a wave vector of any of the structures.
            settings: of the sum.
            dtype: of the tables.
        """
        exact = cell.double()
        inverse = torch.linalg.inv_ex(exact).inverse
        volume = cell_volume(exact)
        square, doubled = _wave_vectors(inverse, limits, settings.k_cutoff)
        sigma = settings.smearing
        weight = torch.exp(-0.5 * sigma**2 * square) / square
        weight = weight * (doubled / (EPS0 * volume)[:, None, None])
        sharp = weight.detach()
        if settings.taper > 0:
            weight = weight * taper_of(square.sqrt(), settings)[0]
        most = numbers(limits, torch.float64, exact.device)
        fits = (largest_orders(exact, settings.k_cutoff) <= most).all(1)
        own = inverse.to(dtype)
        return cls(
            cell=exact.detach(),
            exact_inverse=inverse,
            inverse=own,
            weight=weight.to(dtype),
            to_moments=_to_moments(own),
            limits=limits,
            fits=fits,
            square=square.detach(),
            sharp=sharp,
            settings=settings,
        )

    def without_derivatives(self) -> CellGeometry:
        """The same numbers."""
        if not self.weight.requires_grad:
            return self
        return replace(
            self,
            exact_inverse=self.exact_inverse.detach(),
            inverse=self.inverse.detach(),
            weight=self.weight.detach(),
            to_moments=self.to_moments.detach(),
        )

    @computed_once
    def slope(self) -> Tensor:
        """−(d weight/dk)/k, like weight; for charges in the long-wavelength limit."""
        slope = self.settings.smearing**2 + 2.0 / self.square
        if self.settings.taper > 0:
            k = self.square.sqrt()
            soft, fall = taper_of(k, self.settings)
            slope = slope * soft + fall / k
        return (slope * self.sharp).to(self.weight.dtype)


def _to_moments(inverse: Tensor) -> Tensor:
    """See CellGeometry.to_moments; the moments in the order of moments.all_monomials."""
    n = inverse.shape[0]
    pairs = inverse[:, :, None, :, None] * inverse[:, None, :, None, :]  # [S, i, j, a, b]
    upper = small_product(pairs.reshape(n, 9, 9), symmetric_rows(inverse.dtype, inverse.device))
    out = inverse.new_zeros(n, 13, 10)
    out[:, 0, 0] = 1.0
    out[:, 1:4, 1:4] = inverse
    out[:, 4:, 4:] = upper
    return out


@dataclass(frozen=True, eq=False)
class Lattice:
    """Cells, and the atoms in their coordinates.

    Attributes:
        geometry: of the cells.
        fraction: fractional coordinates of the atoms, −½ … ½.
        sums: over the atoms.
        invalid: zero, or NaN of structures that a plan does not cover, [n_structures].
    """

    geometry: CellGeometry
    fraction: Tensor
    sums: AtomSums
    invalid: Tensor

    @classmethod
    def of(
        cls,
        positions: Tensor,
        cell: Tensor,
        sums: AtomSums,
        limits: tuple[int, int, int],
        settings: Settings,
        kept: CellGeometry | None = None,
    ) -> Lattice:
        """The lattice of structures.

        Args:
            positions: [n_atoms, 3], Å, anywhere: not only inside the cell.
            cell: [n_structures, 3, 3], Å, rows are lattice vectors, right- or left-handed, regular.
            sums: over the atoms.
            limits: the largest |n_a| of a wave vector of any of the structures.
            settings: of the sum.
            kept: the geometry of the same cells, where it is known; it has no derivatives.
        """
        dtype = positions.dtype
        geometry = kept
        if geometry is None:
            geometry = CellGeometry.of(cell, limits, settings, dtype)
            fits = geometry.fits
        else:
            same = (cell.detach().double() == geometry.cell).flatten(1).all(1)
            fits = same & geometry.fits
        one = fits.to(dtype)
        invalid = one / one - 1.0  # 0, or NaN
        fraction = _per_atom(positions.double(), geometry.exact_inverse, sums)
        fraction = (fraction - fraction.detach().round()).to(dtype)
        return cls(geometry, fraction, sums, invalid)

    def moments(self, multipoles: Multipoles) -> Tensor:
        """The sources of a structure factor in fractional coordinates, [n_atoms, n_moments]."""
        return self.of_cartesian(cartesian(multipoles))

    def of_cartesian(self, table: Tensor) -> Tensor:
        """The same of a table of charge, dipole and elements of the quadrupole, [n_atoms, 1 … 13].

        Structures that are not valid become NaN here.
        """
        if table.shape[1] == 1:
            moments = table
        else:
            width = {4: 4, 13: 10}[table.shape[1]]
            matrix = self.geometry.to_moments[:, : table.shape[1], :width]
            moments = _per_atom(table, matrix, self.sums)
        return moments + self.sums.at_atoms(self.invalid[:, None])


@dataclass(frozen=True, eq=False)
class ReciprocalSpace:
    """The sum over wave vectors of periodic structures, for any multipoles.

    E = 1/(2 eps0 V) Σ_k e^{−σ²k²/2}/k² |S(k)|² − E_self, S(k) = Σ_i L_i e^{ik·r_i}
    (arXiv:2605.05746).

    Attributes:
        lattice: cells and atoms.
        solver: of structure factors.
        settings: of the sum.
    """

    lattice: Lattice
    solver: Solver
    settings: Settings

    def evaluate(
        self, multipoles: Multipoles, with_field: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Energy, and potential and field at the atoms.

        Returns:
            Energy [n_structures] eV; potential [n_atoms] V and field [n_atoms, 3] V/Å, each
            without the atom's own Gaussian, or None.
        """
        lattice, sums = self.lattice, self.lattice.sums
        fraction, weight = lattice.fraction, lattice.geometry.weight
        table = cartesian(multipoles)
        factor = self.solver.structure_factor(fraction, lattice.of_cartesian(table))
        factor = sums.add(factor)
        parts = torch.view_as_real(factor)
        weighted = weight[..., None] * parts
        energy = sums.share(0.5 * (weighted * parts).sum((1, 2, 3)))
        settings = self.settings
        own = own_terms(settings.smearing, settings.k_cutoff, settings.taper)
        squares = table * table * numbers(own[: table.shape[1]], table.dtype, table.device)
        energy = energy - sums.own(squares.sum(1))
        if not with_field:
            return energy, None, None

        values = self.solver.at_sites(fraction, torch.view_as_complex(weighted), 1)
        at_atoms, slopes = values.split([1, 3], dim=1)
        potential = at_atoms.squeeze(1) - (2.0 * own[0]) * multipoles.charge
        field = -_per_atom(slopes, lattice.geometry.inverse.transpose(-1, -2), sums)
        if multipoles.dipole is not None:
            field = field + (2.0 * own[1]) * multipoles.dipole
        return energy, potential, field

    def atom_energies(self, multipoles: Multipoles) -> Tensor:
        """Each atom's part of the energy, ½ Σ_α m_α ∂^α φ, [n_atoms], eV."""
        lattice, sums = self.lattice, self.lattice.sums
        table = cartesian(multipoles)
        moments = lattice.of_cartesian(table)
        factor = sums.add(self.solver.structure_factor(lattice.fraction, moments))
        weighted = lattice.geometry.weight[..., None] * torch.view_as_real(factor)
        order = order_of(moments)
        values = self.solver.at_sites(lattice.fraction, torch.view_as_complex(weighted), order)
        settings = self.settings
        own = own_terms(settings.smearing, settings.k_cutoff, settings.taper)
        squares = table * table * numbers(own[: table.shape[1]], table.dtype, table.device)
        return 0.5 * (moments * values).sum(1) - squares.sum(1)


def _per_atom(vectors: Tensor, matrices: Tensor, sums: AtomSums) -> Tensor:
    """v_i M of the atom's structure: [n_atoms, n] and [n_structures, n, m] to [n_atoms, m]."""
    if matrices.shape[0] == 1:
        return small_product(vectors, matrices[0])
    return small_product(vectors[:, None], matrices[sums.batch]).squeeze(1)


@remembered
def own_terms(smearing: float, k_cutoff: float, taper: float) -> tuple[float, ...]:
    """The interaction of each Gaussian multipole with itself, which the k-space sum contains.

    Coefficients of q², of each μ_a² and each Q_ab², eV per e², e² Å² and e² Å⁴: integrals of
    (1, k²/3, k⁴/30) s(k) e^{−σ²k²/2} over k, over 4π² eps0. Those of a sharp sphere are for all k:
    what lies beyond k_c is small.
    """
    root = math.sqrt(math.pi / 2.0)
    integrals = [root / smearing, root / smearing**3, 3.0 * root / smearing**5]
    if taper > 0:
        integrals = _tapered_integrals(smearing, k_cutoff, taper)
    scale = 1.0 / (4.0 * math.pi**2 * EPS0)
    q, mu, quadrupole = (
        scale * integrals[0],
        scale * integrals[1] / 3.0,
        scale * integrals[2] / 30.0,
    )
    return (q, mu, mu, mu, *[quadrupole] * 9)


def _tapered_integrals(smearing: float, k_cutoff: float, taper: float) -> list[float]:
    """∫ k^{2n} s(k) e^{−σ²k²/2} dk for n = 0, 1, 2, by Gauss-Legendre in the two pieces."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    edge, totals = (1.0 - taper) * k_cutoff, [0.0, 0.0, 0.0]
    for low, high in ((0.0, edge), (edge, k_cutoff)):
        k = 0.5 * (high - low) * nodes + 0.5 * (high + low)
        inward = np.clip((k_cutoff - k) / (k_cutoff - edge), 0.0, 1.0)
        value = _smooth_step(inward) * np.exp(-0.5 * (smearing * k) ** 2)
        value = value * 0.5 * (high - low) * weights
        for n in range(3):
            totals[n] += float((value * k ** (2 * n)).sum())
    return totals
