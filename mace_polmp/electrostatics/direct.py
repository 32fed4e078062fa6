"""Open boundary: the sum over all pairs of atoms of the same structure, without a cutoff.

Each unordered pair appears once, r = r_i − r_j. Components stand first and pairs last
([3, n_pairs]), so that every operation runs over contiguous pairs; of a quadrupole its six
different components are looked up, no pair holds a matrix. More pairs than fit in a block are
summed block by block and evaluated anew in the backward pass, so that memory stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.kernels import smeared_kernels
from mace_polmp.electrostatics.moments import cartesian, to_moments
from mace_polmp.electrostatics.multipoles import Multipoles, symmetric_components
from mace_polmp.electrostatics.pair_values import pair_values
from mace_polmp.electrostatics.pairs import Pairs
from mace_polmp.electrostatics.recompute import recomputed
from mace_polmp.electrostatics.sums import AtomSums

# Up to so many pairs the closed forms cost more for being many than for being evaluated.
_FEW_CPU = 300
_FEW_GPU = 2**17


@dataclass(frozen=True)
class _Sources:
    """Multipoles of one side of every pair and their contractions with the pair vector."""

    charge: Tensor  # [P]
    dipole: Tensor | None  # [3, P]
    quadrupole: Tensor | None  # [6, P]: xx, yy, zz, xy, xz, yz
    dipole_r: Tensor | None  # μ·r [P]
    quadrupole_r: Tensor | None  # Q·r [3, P]
    r_quadrupole_r: Tensor | None  # r·Q·r [P]


@dataclass(frozen=True)
class _Block:
    """The sums over some of the pairs, as a function of positions and component table."""

    pairs: Pairs
    part: slice
    sums: AtomSums
    lmax: int
    has_dipole: bool
    smearing: float
    with_field: bool

    def __call__(self, positions: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        """Energy [n_structures] and, if wanted, potential and field [4, n_atoms]."""
        index_i, index_j = self.pairs.indices(self.part)
        # Not by _look_up: forces that are the transpose of a table cannot be viewed flat upstream.
        r = (positions[index_i] - positions[index_j]).t().contiguous()
        order = max(2 * self.lmax, self.lmax + 1 if self.with_field else 0)
        kernels = smeared_kernels((r * r).sum(0), self.smearing, order).unbind(0)
        at_i = _contract(_look_up(table, index_i), self.lmax, self.has_dipole, r)
        at_j = _contract(_look_up(table, index_j), self.lmax, self.has_dipole, r)

        pair_energy = _pair_energy(at_i, at_j, kernels)
        n_structures = self.sums.n_structures
        if n_structures == 1:
            energy = pair_energy.sum(0, keepdim=True)
        else:
            energy = positions.new_zeros(n_structures)
            energy = energy.index_add(0, self.sums.batch[index_i], pair_energy)
        if not self.with_field:
            return (energy,)
        # Seen from i the sources lie at −r, seen from j at +r: swapping the two ends flips r.
        at_sites = positions.new_zeros(4, positions.shape[0])
        for index, source, sign in ((index_i, at_j, 1.0), (index_j, at_i, -1.0)):
            values = _potential_and_field(source, r, kernels, sign)
            at_sites = at_sites.index_add(1, index, values)
        return energy, at_sites


@dataclass(frozen=True, eq=False)
class OpenBoundary:
    """Isolated structures at given positions, for any multipoles.

    Attributes:
        positions: [n_atoms, 3], Å.
        pairs: of the atoms.
        sums: over the atoms.
        smearing: σ, Å.
    """

    positions: Tensor
    pairs: Pairs
    sums: AtomSums
    smearing: float

    def evaluate(
        self, multipoles: Multipoles, with_field: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Energy, and potential and field at the atoms.

        Returns:
            Energy [n_structures] eV; potential [n_atoms] V and field [n_atoms, 3] V/Å, each
            without the atom's own Gaussian, or None.
        """
        few = _FEW_CPU if self.positions.device.type == "cpu" else _FEW_GPU
        # A compiler fuses the closed forms, and takes minutes for the many terms of moments.
        if self.pairs.count <= few and not torch.compiler.is_dynamo_compiling():
            return self._by_moments(multipoles, with_field)
        table = _component_table(multipoles)
        parts = self.pairs.blocks()
        lmax, has_dipole = _lmax(multipoles), multipoles.dipole is not None
        totals: tuple[Tensor, ...] | None = None
        for part in parts:
            block = _Block(self.pairs, part, self.sums, lmax, has_dipole, self.smearing, with_field)
            if len(parts) == 1:
                totals = block(self.positions, table)
            else:
                sums = recomputed(block, self.positions, table)
                totals = sums if totals is None else tuple(map(torch.add, totals, sums))
        assert totals is not None
        if not with_field:
            return totals[0], None, None
        energy, at_sites = totals
        return energy, at_sites[0], at_sites[1:].t().contiguous()

    def at(self, positions: Tensor, cell: Tensor, part: Any, kept: Any) -> OpenBoundary:
        """The same at a tensor with the same values and other derivatives."""
        return replace(self, positions=positions)

    def atom_energies(self, multipoles: Multipoles) -> Tensor:
        """Each atom's part of the energy, ½ Σ_α m_α ∂^α φ, [n_atoms], eV."""
        moments = to_moments(cartesian(multipoles))
        values = pair_values(
            self.positions, moments[None], _lmax(multipoles), self.pairs, self.smearing
        ).squeeze(0)
        out: Tensor = 0.5 * (moments * values[:, : moments.shape[1]]).sum(1)
        return out

    def _by_moments(
        self, multipoles: Multipoles, with_field: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same in a third of the operations, each of which has more to do."""
        moments = to_moments(cartesian(multipoles))
        order = max(_lmax(multipoles), 1 if with_field else 0)
        values = pair_values(
            self.positions, moments[None], order, self.pairs, self.smearing
        ).squeeze(0)
        energy = self.sums.total(0.5 * (moments * values[:, : moments.shape[1]]).sum(1))
        if not with_field:
            return energy, None, None
        return energy, values[:, 0].contiguous(), -values[:, 1:4]


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Columns of a table [n_components, n_atoms]: [n_components, n_pairs]."""
    return torch.gather(table, 1, index.expand(table.shape[0], -1))


def _component_table(multipoles: Multipoles) -> Tensor:
    """Charge, dipole and the six components of the quadrupole as rows, [n_components, n_atoms]."""
    rows = [multipoles.charge[None]]
    if multipoles.dipole is not None:
        rows.append(multipoles.dipole.t())
    if multipoles.quadrupole is not None:
        rows.append(symmetric_components(multipoles.quadrupole).t())
    return torch.cat(rows)


def _lmax(multipoles: Multipoles) -> int:
    if multipoles.quadrupole is not None:
        return 2
    return 1 if multipoles.dipole is not None else 0


def _contract(components: Tensor, lmax: int, has_dipole: bool, r: Tensor) -> _Sources:
    """The sources from looked-up components [n_components, P]."""
    dipole = dipole_r = quadrupole = quadrupole_r = r_quadrupole_r = None
    if has_dipole:
        dipole = components[1:4]
        dipole_r = (dipole * r).sum(0)
    if lmax == 2:
        quadrupole = components[-6:]
        diagonal, xy, xz, yz = quadrupole[:3], quadrupole[3], quadrupole[4], quadrupole[5]
        x, y, z = r.unbind(0)
        mixed = torch.stack([xy * y + xz * z, xy * x + yz * z, xz * x + yz * y])
        quadrupole_r = diagonal * r + mixed
        r_quadrupole_r = (quadrupole_r * r).sum(0)
    return _Sources(components[0], dipole, quadrupole, dipole_r, quadrupole_r, r_quadrupole_r)


def _pair_energy(i: _Sources, j: _Sources, b: tuple[Tensor, ...]) -> Tensor:
    """u_ij, the closed form of L_i L_j f(r) of arXiv:2605.05746."""
    energy = i.charge * j.charge * b[0]
    if i.dipole is not None and j.dipole is not None:
        assert i.dipole_r is not None and j.dipole_r is not None
        energy = energy + b[1] * (
            i.charge * j.dipole_r - j.charge * i.dipole_r + (i.dipole * j.dipole).sum(0)
        )
        energy = energy - b[2] * i.dipole_r * j.dipole_r
    if i.quadrupole is not None and j.quadrupole is not None:
        assert i.r_quadrupole_r is not None and j.r_quadrupole_r is not None
        assert i.quadrupole_r is not None and j.quadrupole_r is not None
        energy = energy + b[2] * (
            0.5 * (j.charge * i.r_quadrupole_r + i.charge * j.r_quadrupole_r)
            + 0.5 * _double_dot(i.quadrupole, j.quadrupole)
        )
        energy = energy - b[3] * (i.quadrupole_r * j.quadrupole_r).sum(0)
        energy = energy + 0.25 * b[4] * i.r_quadrupole_r * j.r_quadrupole_r
        if i.dipole is not None and j.dipole is not None:
            assert i.dipole_r is not None and j.dipole_r is not None
            energy = energy + b[2] * (i.dipole * j.quadrupole_r - j.dipole * i.quadrupole_r).sum(0)
            energy = energy + 0.5 * b[3] * (
                j.dipole_r * i.r_quadrupole_r - i.dipole_r * j.r_quadrupole_r
            )
    return energy


def _double_dot(a: Tensor, b: Tensor) -> Tensor:
    """A:B of symmetric tensors given by six components, [6, P] to [P]."""
    product = a * b
    return product[:3].sum(0) + 2.0 * product[3:].sum(0)


def _potential_and_field(source: _Sources, r: Tensor, b: tuple[Tensor, ...], sign: float) -> Tensor:
    """Potential and field [4, P] of the sources at a site that lies at sign·r from them."""
    potential = source.charge * b[0]
    along_r = sign * source.charge * b[1]
    if source.dipole_r is not None:
        potential = potential + sign * source.dipole_r * b[1]
        along_r = along_r + source.dipole_r * b[2]
    if source.r_quadrupole_r is not None:
        potential = potential + 0.5 * source.r_quadrupole_r * b[2]
        along_r = along_r + sign * 0.5 * source.r_quadrupole_r * b[3]
    field = along_r * r
    if source.dipole is not None:
        field = field - source.dipole * b[1]
    if source.quadrupole_r is not None:
        field = field - sign * source.quadrupole_r * b[2]
    return torch.cat([potential[None], field])
