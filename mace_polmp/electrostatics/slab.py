"""Structures periodic in two directions: the dipole correction of Yeh and Berkowitz.

The three-dimensionally periodic sum, with vacuum in the cell, differs from the two-dimensionally
periodic one by the kernel −(z² + σ² + L²/6)/(2 eps0 V), z along the normal of the slab and L the
height of the cell, up to terms that vanish exponentially with the vacuum (Yeh and Berkowitz,
J. Chem. Phys. 111, 3155 (1999), eq. 6 for charges; Ballenegger, Arnold and Cerdà, J. Chem. Phys.
131, 094107 (2009), eq. 9 with a net charge). Multipoles enter through their moments along z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.packing import count_atoms
from mace_polmp.electrostatics.products import cell_volume, small_product
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
    cell = cell.detach().double()
    a, b = _in_plane(cell, open_axis(pbc))
    normal = torch.linalg.cross(a, b)
    area = torch.linalg.vector_norm(normal, dim=-1)
    normal = normal / area[:, None]
    height = cell_volume(cell) / area
    z = (positions.detach().double() * normal[batch]).sum(-1)
    low = torch.full_like(height, torch.inf).scatter_reduce(0, batch, z, "amin")
    high = torch.full_like(height, -torch.inf).scatter_reduce(0, batch, z, "amax")
    return torch.stack([height, high - low], dim=1)


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


def slab_correction(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    multipoles: Multipoles,
    smearing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What to add to the three-dimensionally periodic results; zero for pbc T T T.

    Args:
        positions: [n_atoms, 3], Å; not wrapped along the direction without periodicity.
        cell: [n_structures, 3, 3], Å.
        pbc: [n_structures, 3], two or three of each True.
        batch: [n_atoms] int64.
        multipoles: of the same atoms.
        smearing: σ, Å.

    Returns:
        Energy [n_structures] eV, potential [n_atoms] V, field [n_atoms, 3] V/Å.
    """
    n_structures = cell.shape[0]
    a, b = _in_plane(cell, open_axis(pbc))
    normal = torch.linalg.cross(a, b)
    area = torch.linalg.vector_norm(normal, dim=-1)
    normal = normal / area[:, None]
    volume = cell_volume(cell)
    height = volume / area
    factor = torch.where(pbc.all(1), 0.0, 0.5 / (EPS0 * volume))

    normals = normal[batch]
    z = (positions * normals).sum(-1)
    # The energy does not depend on the origin, but its rounding errors do.
    counts = count_atoms(batch, n_structures).clamp(min=1)
    origin = z.new_zeros(n_structures).index_add(0, batch, z.detach()) / counts
    z = z - origin[batch]
    first, second = multipoles.charge * z, multipoles.charge * z * z
    if multipoles.dipole is not None:
        along = (multipoles.dipole * normals).sum(-1)
        first, second = first + along, second + 2.0 * along * z
    if multipoles.quadrupole is not None:
        bent = small_product(multipoles.quadrupole, normals[..., None]).squeeze(-1)
        second = second + (bent * normals).sum(-1)
    moments = torch.stack([multipoles.charge, first, second], dim=1)
    moments = moments.new_zeros(n_structures, 3).index_add(0, batch, moments)
    m0, m1, m2 = moments.unbind(1)
    width = smearing**2 + height**2 / 6.0

    energy = factor * (m1 * m1 - m0 * m2 - 0.5 * width * m0 * m0)
    constant, linear, square = ((factor * m)[batch] for m in (-(m2 + width * m0), 2.0 * m1, -m0))
    potential = constant + z * (linear + z * square)
    field = -(linear + 2.0 * square * z)[:, None] * normals
    return energy, potential, field
