"""A uniform external field: where charges have an energy in it, and the energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.sums import AtomSums

_ROUNDING = 1e-6  # of the size of a field


def acting_on_charges(external_field: Tensor, cell: Tensor, pbc: Tensor) -> Tensor:
    """The part of a uniform field in which a charge has an energy, [n_structures, 3].

    All of it in open structures, the part along the normal in slabs, none in periodic structures.
    """
    n_periodic = pbc.sum(1)[:, None]
    # The reciprocal vector of the axis that is not periodic is along the normal.
    axis = (~pbc).to(torch.int64).argmax(1)
    first, second = ((axis + 1) % 3, (axis + 2) % 3)
    each = torch.arange(pbc.shape[0], device=pbc.device)
    normal = torch.linalg.cross(cell[each, first], cell[each, second])
    normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True).clamp(min=1e-12)
    along = (external_field * normal).sum(1, keepdim=True) * normal
    in_slab = torch.where(n_periodic == 2, along, torch.zeros_like(along))
    return torch.where(n_periodic == 0, external_field, in_slab)


def is_along_periodic(field: Tensor, cell: Tensor, pbc: Sequence[bool]) -> bool:
    """Whether a field has a part along periodic directions, where a charge has no energy in it.

    Args:
        field: [3], V/Å.
        cell: [3, 3], Å.
        pbc: of x, y and z.
    """
    field = field.detach().cpu().double().view(1, 3)
    flags = torch.tensor([[bool(flag) for flag in pbc]])
    rest = field - acting_on_charges(field, cell.detach().to(field).view(1, 3, 3), flags)
    size = torch.linalg.vector_norm
    return bool(size(rest) > _ROUNDING * size(field))


@dataclass(frozen=True, eq=False)
class ExternalField:
    """A uniform field.

    Attributes:
        whole: what acts on dipoles, [n_structures, 3], V/Å.
        on_charges: the part of it that acts on charges, likewise.
    """

    whole: Tensor
    on_charges: Tensor

    def energy(self, positions: Tensor, sums: AtomSums, multipoles: Multipoles) -> Tensor:
        """−Σ μ_i·F − Σ q_i r_i·F, the second with what acts on charges: [n_structures] eV."""
        along = (positions * sums.at_atoms(self.on_charges)).sum(-1)
        per_atom = -multipoles.charge * along
        if multipoles.dipole is not None:
            per_atom = per_atom - (multipoles.dipole * sums.at_atoms(self.whole)).sum(-1)
        return sums.own(per_atom)

    def drive(self, positions: Tensor, sums: AtomSums) -> Tensor:
        """r_i·F and F at the atoms, [n_atoms, 4]: minus the potential, and the field."""
        along = (positions * sums.at_atoms(self.on_charges)).sum(-1, keepdim=True)
        return torch.cat([along, sums.at_atoms(self.whole)], 1)
