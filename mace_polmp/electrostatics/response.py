"""One-step linear response: charges and dipoles induced by the field of the permanent multipoles.

Δq_i = −κ_i φ_i, U_i = −½ κ_i φ_i²; Δμ_i = α_i·E_i, U_i = −½ E_i·α_i·E_i (arXiv:2605.05746).
"""

from __future__ import annotations

import torch
from torch import Tensor


def induced_charges(
    softness: Tensor, potential: Tensor, batch: Tensor, n_structures: int, conserve_charge: bool
) -> tuple[Tensor, Tensor]:
    """Induced charges [n_atoms] e and their energy [n_structures] eV.

    Args:
        softness: κ, [n_atoms], e²/eV.
        potential: φ, [n_atoms], V.
        batch: [n_atoms] int64.
        n_structures: the number of structures.
        conserve_charge: measure φ from its κ-weighted mean over the structure, so that the
            induced charges of a structure sum to zero.
    """
    if conserve_charge:
        total = softness.new_zeros(n_structures).index_add(0, batch, softness)
        weighted = softness.new_zeros(n_structures).index_add(0, batch, softness * potential)
        # A structure without any softness has no induced charge and any mean will do.
        mean = weighted / torch.where(total > 0, total, torch.ones_like(total))
        potential = potential - mean[batch]
    charge = -softness * potential
    energy = softness.new_zeros(n_structures).index_add(0, batch, 0.5 * charge * potential)
    return charge, energy


def induced_dipoles(
    polarizability: Tensor, field: Tensor, batch: Tensor, n_structures: int
) -> tuple[Tensor, Tensor]:
    """Induced dipoles [n_atoms, 3] e Å and their energy [n_structures] eV.

    Args:
        polarizability: α, [n_atoms] or [n_atoms, 3, 3], e² Å²/eV.
        field: [n_atoms, 3], V/Å, the external field included.
        batch: [n_atoms] int64.
        n_structures: the number of structures.
    """
    if polarizability.dim() == 1:
        dipole = polarizability[:, None] * field
    else:
        dipole = (polarizability * field[:, None, :]).sum(-1)
    per_atom = -0.5 * (dipole * field).sum(-1)
    return dipole, field.new_zeros(n_structures).index_add(0, batch, per_atom)
