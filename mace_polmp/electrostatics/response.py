"""One-step linear response: charges and dipoles induced by the field of the permanent multipoles.

Δq_i = −κ_i φ_i, U_i = −½ κ_i φ_i²; Δμ_i = α_i·E_i, U_i = −½ E_i·α_i·E_i (arXiv:2605.05746).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mace_polmp.electrostatics.sums import AtomSums


def induced_charges(
    softness: Tensor, potential: Tensor, sums: AtomSums, conserve_charge: bool
) -> tuple[Tensor, Tensor]:
    """Induced charges [n_atoms] e and their energy [n_structures] eV.

    Args:
        softness: κ, [n_atoms], e²/eV.
        potential: φ, [n_atoms], V.
        sums: over the atoms.
        conserve_charge: measure φ from its κ-weighted mean over the structure, so that the
            induced charges of a structure sum to zero.
    """
    if conserve_charge:
        total, weighted = sums.total(torch.stack([softness, softness * potential], 1)).unbind(1)
        # A structure without any softness has no induced charge and any mean will do.
        mean = weighted / torch.where(total > 0, total, torch.ones_like(total))
        potential = potential - sums.at_atoms(mean)
    charge = -softness * potential
    return charge, sums.own(0.5 * charge * potential)


def induced_dipoles(polarizability: Tensor, field: Tensor, sums: AtomSums) -> tuple[Tensor, Tensor]:
    """Induced dipoles [n_atoms, 3] e Å and their energy [n_structures] eV.

    Args:
        polarizability: α, [n_atoms] or [n_atoms, 3, 3], e² Å²/eV.
        field: [n_atoms, 3], V/Å, the external field included.
        sums: over the atoms.
    """
    if polarizability.dim() == 1:
        dipole = polarizability[:, None] * field
    else:
        dipole = (polarizability * field[:, None, :]).sum(-1)
    return dipole, sums.own(-0.5 * (dipole * field).sum(-1))
