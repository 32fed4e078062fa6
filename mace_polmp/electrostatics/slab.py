"""Structures periodic in two directions: the dipole correction of Yeh and Berkowitz.

The three-dimensionally periodic sum, with vacuum in the cell, differs from the two-dimensionally
periodic one by the kernel −(z² + σ² + L²/6)/(2 eps0 V), z along the normal of the slab and L the
height of the cell, up to terms that vanish exponentially with the vacuum (Yeh and Berkowitz,
J. Chem. Phys. 111, 3155 (1999), eq. 6 for charges; Ballenegger, Arnold and Cerdà, J. Chem. Phys.
131, 094107 (2009), eq. 9 with a net charge). Multipoles enter through their moments along z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.products import cell_volume, small_product
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.units import EPS0

VACUUM_OVER_PERIOD = 1.5
"""The least vacuum in units of the longest period within the slab: see required_vacuum."""

_TAIL = 6.0  # σ: where the Gaussians of two facing surfaces no longer overlap


def open_axis(pbc: Tensor) -> Tensor:
    """The axis that is not periodic, [n_structures] int64; 0 where all three are."""
    return (~pbc).long().argmax(1)


def _in_plane(cell: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """The two periodic lattice vectors, [n_structures, 3] each."""
    row = torch.arange(cell.shape[0], device=cell.device)
    return cell[row, (axis + 1) % 3], cell[row, (axis + 2) % 3]


def slab_geometry(positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor) -> Tensor:
    """Height of the cell and extent of the atoms along the normal, [n_structures, 2], Å."""
    height, normal = slab_frame(cell, pbc)
    z = (positions.detach().double() * normal[batch]).sum(-1)
    low = torch.full_like(height, torch.inf).scatter_reduce(0, batch, z, "amin")
    high = torch.full_like(height, -torch.inf).scatter_reduce(0, batch, z, "amax")
    return torch.stack([height, high - low], dim=1)


def slab_frame(cell: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
    """Heights of the cells along their normals, [n_structures], Å, and these, [n_structures, 3]."""
    cell = cell.detach().double()
    a, b = _in_plane(cell, open_axis(pbc))
    normal = torch.linalg.cross(a, b)
    area = torch.linalg.vector_norm(normal, dim=-1)
    return cell_volume(cell) / area, normal / area[:, None]


def longest_period(cell: Tensor, pbc: Tensor) -> Tensor:
    """2π over the shortest wave vector within the plane of a slab, [n_structures], Å.

    It does not depend on which vectors the lattice is written with.

    Args:
        cell: [n_structures, 3, 3], Å, on the CPU, of slabs only.
        pbc: [n_structures, 3] bool, likewise.
    """
    a, b = _in_plane(cell.double(), open_axis(pbc))
    area: Tensor = torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=-1)
    # Reduction of Lagrange and Gauss: from the longer vector as many of the shorter are taken off
    # as make it shortest, until none are left to take (some ten times at most).
    for _ in range(200):
        swap = (a * a).sum(-1, keepdim=True) > (b * b).sum(-1, keepdim=True)
        a, b = torch.where(swap, b, a), torch.where(swap, a, b)
        times = ((a * b).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True)).round()
        if not bool(times.any()):
            break
        b = b - times * a
    # The reciprocal vectors of the plane are those of the lattice, turned and over the area.
    period: Tensor = area / torch.linalg.vector_norm(a, dim=-1)
    return period


def required_vacuum(period: float, smearing: float) -> float:
    """The least vacuum between a slab and its image, Å, for an error of the order of 1e-4.

    Waves of the longest period within the slab decay as e^{−2π d/period} in the vacuum.
    """
    return max(VACUUM_OVER_PERIOD * period, _TAIL * smearing)


@dataclass(frozen=True, eq=False)
class SlabCorrection:
    """What to add to three-dimensionally periodic results; zero of structures that are no slabs.

    Attributes:
        sums: over the atoms.
        normals: of the planes, [n_structures, 3].
        height: of the atoms above their mean, [n_atoms], Å.
        factor: 1/(2 eps0 V) of slabs, [n_structures], eV/(e² Å²).
        width: σ² + L²/6, [n_structures], Å².
    """

    sums: AtomSums
    normals: Tensor
    height: Tensor
    factor: Tensor
    width: Tensor

    @classmethod
    def of(
        cls,
        positions: Tensor,
        cell: Tensor,
        axes: Tensor,
        is_slab: Tensor,
        sums: AtomSums,
        smearing: float,
    ) -> SlabCorrection:
        """The correction of structures, slabs among others.

        Args:
            positions: [n_atoms, 3], Å; not wrapped along the direction without periodicity.
            cell: [n_structures, 3, 3], Å.
            axes: [n_structures] int64, which lattice vector crosses the vacuum.
            is_slab: [n_structures] bool.
            sums: over the atoms.
            smearing: σ, Å.
        """
        a, b = _in_plane(cell, axes)
        normal = torch.linalg.cross(a, b)
        area = torch.linalg.vector_norm(normal, dim=-1)
        normal = normal / area[:, None]
        volume = cell_volume(cell)
        factor = torch.where(is_slab, 0.5 / (EPS0 * volume), 0.0)
        z = (positions * sums.at_atoms(normal)).sum(-1)
        # The energy does not depend on the origin, but its rounding errors do.
        origin = sums.total(z.detach()) / sums.counts().clamp(min=1)
        width = smearing**2 + (volume / area) ** 2 / 6.0
        return cls(sums, normal, z - sums.at_atoms(origin), factor, width)

    def evaluate(self, multipoles: Multipoles) -> tuple[Tensor, Tensor, Tensor]:
        """Energy [n_structures] eV, potential [n_atoms] V, field [n_atoms, 3] V/Å."""
        sums, z, factor = self.sums, self.height, self.factor
        normals = sums.at_atoms(self.normals)
        first, second = multipoles.charge * z, multipoles.charge * z * z
        if multipoles.dipole is not None:
            along = (multipoles.dipole * normals).sum(-1)
            first, second = first + along, second + 2.0 * along * z
        if multipoles.quadrupole is not None:
            bent = small_product(multipoles.quadrupole, normals[..., None]).squeeze(-1)
            second = second + (bent * normals).sum(-1)
        moments = sums.total(torch.stack([multipoles.charge, first, second], dim=1))
        m0, m1, m2 = moments.unbind(1)

        energy = sums.share(factor * (m1 * m1 - m0 * m2 - 0.5 * self.width * m0 * m0))
        coefficients = factor * torch.stack([-(m2 + self.width * m0), 2.0 * m1, -m0])
        constant, linear, square = sums.at_atoms(coefficients.t()).unbind(1)
        potential = constant + z * (linear + z * square)
        field = -(linear + 2.0 * square * z)[:, None] * normals
        return energy, potential, field

    def atom_energies(self, multipoles: Multipoles) -> Tensor:
        """Each atom's part of the energy, ½ (q φ − μ·E + ½ Q:∇∇φ), [n_atoms], eV."""
        _, potential, field = self.evaluate(multipoles)
        energies = multipoles.charge * potential
        if multipoles.dipole is not None:
            energies = energies - (multipoles.dipole * field).sum(-1)
        if multipoles.quadrupole is not None:
            # Of the potential, a polynomial of second degree along the normal.
            normals = self.sums.at_atoms(self.normals)
            bent = small_product(multipoles.quadrupole, normals[..., None]).squeeze(-1)
            m0 = self.sums.total(multipoles.charge[:, None]).squeeze(1)
            square = self.sums.at_atoms(-self.factor * m0)
            energies = energies + (bent * normals).sum(-1) * square
        out: Tensor = 0.5 * energies
        return out
