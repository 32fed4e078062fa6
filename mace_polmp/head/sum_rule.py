"""The acoustic sum rule of Born charges: moving all atoms together changes no polarization."""

from __future__ import annotations

import torch
from torch import Tensor

from mace_polmp.electrostatics.sums import AtomSums


def acoustic_sum(charges: Tensor, batch: Tensor, n_structures: int) -> Tensor:
    """Σ_i Z*_i, [n_structures, 3, 3], e: zero for a neutral structure, else its charge times 1."""
    return AtomSums(batch, n_structures).total(charges)


def enforce_sum_rule(
    charges: Tensor, batch: Tensor, n_structures: int, total_charge: Tensor | None = None
) -> Tensor:
    """Subtract from every atom the same tensor, so that Σ_i Z*_i is the total charge times 1.

    Args:
        charges: [n_atoms, 3, 3], e.
        batch: [n_atoms] int64.
        n_structures: the number of structures.
        total_charge: [n_structures], e; None for neutral structures.
    """
    sums = AtomSums(batch, n_structures)
    excess = sums.total(charges)
    if total_charge is not None:
        excess = excess - torch.diag_embed(total_charge[:, None].expand(-1, 3))
    counts = sums.counts().clamp(min=1)
    return charges - sums.at_atoms(excess / counts[:, None, None])
