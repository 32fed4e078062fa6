"""Open boundary: the sum over all pairs of atoms of the same structure, without a cutoff.

Components stand first and pairs last ([3, n_pairs], [3, 3, n_pairs]), so that every operation
runs over contiguous pairs. Each unordered pair appears once; r = r_i − r_j.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.kernels import smeared_kernels
from mace_polmp.electrostatics.multipoles import Multipoles


@dataclass(frozen=True)
class _Sources:
    """Multipoles of one side of every pair and their contractions with the pair vector."""

    charge: Tensor  # [P]
    dipole: Tensor | None  # [3, P]
    quadrupole: Tensor | None  # [3, 3, P]
    dipole_r: Tensor | None  # μ·r [P]
    quadrupole_r: Tensor | None  # Q·r [3, P]
    r_quadrupole_r: Tensor | None  # r·Q·r [P]


def pair_indices(batch: Tensor, n_structures: int) -> tuple[Tensor, Tensor]:
    """Every unordered pair of atoms of the same structure, once.

    Args:
        batch: [n_atoms] int64, the structure of each atom, in any order.
        n_structures: the number of structures.

    Returns:
        Two index tensors [n_pairs].
    """
    n_atoms = batch.shape[0]
    order = torch.argsort(batch, stable=True)
    counts = torch.bincount(batch, minlength=n_structures)
    ends = torch.cumsum(counts, 0)
    rank = torch.arange(n_atoms, device=batch.device)
    partners = ends[batch[order]] - rank - 1
    first = torch.repeat_interleave(rank, partners)
    starts = torch.cumsum(partners, 0) - partners
    second = first + 1 + torch.arange(first.shape[0], device=batch.device) - starts[first]
    return order[first], order[second]


def open_boundary(
    positions: Tensor,
    batch: Tensor,
    n_structures: int,
    multipoles: Multipoles,
    smearing: float,
    with_field: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Energy, and potential and field at the atoms, of isolated structures.

    Args:
        positions: [n_atoms, 3], Å.
        batch: [n_atoms] int64.
        n_structures: the number of structures.
        multipoles: of the same atoms.
        smearing: σ, Å.
        with_field: whether potential and field are wanted.

    Returns:
        Energy [n_structures] eV; potential [n_atoms] V and field [n_atoms, 3] V/Å, each without
        the atom's own Gaussian, or None.
    """
    index_i, index_j = pair_indices(batch, n_structures)
    r = (positions[index_i] - positions[index_j]).t().contiguous()
    lmax = _lmax(multipoles)
    order = max(2 * lmax, lmax + 1 if with_field else 0)
    kernels = smeared_kernels((r * r).sum(0), smearing, order).unbind(0)
    at_i = _gather(multipoles, index_i, r)
    at_j = _gather(multipoles, index_j, r)

    pair_energy = _pair_energy(at_i, at_j, kernels)
    energy = positions.new_zeros(n_structures).index_add(0, batch[index_i], pair_energy)
    if not with_field:
        return energy, None, None

    n_atoms = positions.shape[0]
    # Seen from i the sources lie at −r, seen from j at +r: swapping the two ends flips r.
    phi_i, field_i = _potential_and_field(at_j, r, kernels, sign=1.0)
    phi_j, field_j = _potential_and_field(at_i, r, kernels, sign=-1.0)
    potential = _sum_to_atoms(n_atoms, index_i, phi_i, index_j, phi_j)
    field = torch.stack(
        [_sum_to_atoms(n_atoms, index_i, field_i[a], index_j, field_j[a]) for a in range(3)], dim=1
    )
    return energy, potential, field


def _lmax(multipoles: Multipoles) -> int:
    if multipoles.quadrupole is not None:
        return 2
    return 1 if multipoles.dipole is not None else 0


def _gather(multipoles: Multipoles, index: Tensor, r: Tensor) -> _Sources:
    dipole = dipole_r = quadrupole = quadrupole_r = r_quadrupole_r = None
    if multipoles.dipole is not None:
        dipole = multipoles.dipole[index].t().contiguous()
        dipole_r = (dipole * r).sum(0)
    if multipoles.quadrupole is not None:
        quadrupole = multipoles.quadrupole[index].permute(1, 2, 0).contiguous()
        quadrupole_r = (quadrupole * r).sum(1)
        r_quadrupole_r = (quadrupole_r * r).sum(0)
    return _Sources(
        multipoles.charge[index], dipole, quadrupole, dipole_r, quadrupole_r, r_quadrupole_r
    )


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
            + 0.5 * (i.quadrupole * j.quadrupole).sum((0, 1))
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


def _potential_and_field(
    source: _Sources, r: Tensor, b: tuple[Tensor, ...], sign: float
) -> tuple[Tensor, Tensor]:
    """Potential [P] and field [3, P] of the sources at a site that lies at sign·r from them."""
    potential = source.charge * b[0]
    along_r = sign * source.charge * b[1]
    field = None
    if source.dipole is not None:
        assert source.dipole_r is not None
        potential = potential + sign * source.dipole_r * b[1]
        along_r = along_r + source.dipole_r * b[2]
        field = -source.dipole * b[1]
    if source.quadrupole is not None:
        assert source.quadrupole_r is not None and source.r_quadrupole_r is not None
        potential = potential + 0.5 * source.r_quadrupole_r * b[2]
        along_r = along_r + sign * 0.5 * source.r_quadrupole_r * b[3]
        transverse = -sign * source.quadrupole_r * b[2]
        field = transverse if field is None else field + transverse
    field = along_r * r if field is None else field + along_r * r
    return potential, field


def _sum_to_atoms(
    n_atoms: int, index_i: Tensor, value_i: Tensor, index_j: Tensor, value_j: Tensor
) -> Tensor:
    return value_i.new_zeros(n_atoms).index_add(0, index_i, value_i).index_add(0, index_j, value_j)
