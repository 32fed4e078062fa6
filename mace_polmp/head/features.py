"""Where the features of each degree lie among the node features of all layers."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor


def gathered(
    node_feats: Tensor, slices: list[tuple[slice, int]], degree: int, layout: str
) -> Tensor:
    """All features of one degree, [n_atoms, channels, 2l + 1].

    Args:
        node_feats: [n_atoms, n_features].
        slices: of the degree, see feature_slices.
        degree: l.
        layout: of features, "mul_ir" or "ir_mul".
    """
    width = 2 * degree + 1
    parts = []
    for s, multiplicity in slices:
        if layout == "ir_mul":
            parts.append(node_feats[:, s].view(-1, width, multiplicity).transpose(1, 2))
        else:
            parts.append(node_feats[:, s].view(-1, multiplicity, width))
    return torch.cat(parts, dim=1)


def feature_slices(layer_irreps: list[o3.Irreps]) -> dict[int, list[tuple[slice, int]]]:
    """Where in the concatenated features 0e, 1o and 2e lie: {l: [(slice, multiplicity)]}."""
    out: dict[int, list[tuple[slice, int]]] = {0: [], 1: [], 2: []}
    start = 0
    for irreps in layer_irreps:
        for (multiplicity, irrep), part in zip(irreps, irreps.slices(), strict=True):
            if irrep.l <= 2 and irrep.p == (-1) ** irrep.l:
                out[irrep.l].append((slice(start + part.start, start + part.stop), multiplicity))
        start += irreps.dim
    return out
