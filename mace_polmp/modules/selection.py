"""Some of the structures of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

_EDGES = ("edge_index", "shifts", "unit_shifts", "edge_vectors", "edge_lengths")
_CELLS = ("cell", "rcell")


def select_structures(data: dict[str, Tensor], chosen: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A batch dictionary of the chosen structures alone.

    Args:
        data: upstream's batch dictionary.
        chosen: [n_structures] bool.

    Returns:
        The smaller dictionary, without entries that belong to neither atoms, edges nor
        structures, and the indices of its atoms in the larger one.
    """
    batch = data["batch"]
    atoms = chosen[batch].nonzero().squeeze(1)
    edges = chosen[batch[data["edge_index"][0]]]
    counts = (data["ptr"][1:] - data["ptr"][:-1])[chosen]
    n_atoms, n_structures = batch.shape[0], chosen.shape[0]
    out = {}
    for name, value in data.items():
        if not isinstance(value, Tensor):
            continue
        if name in _CELLS:
            out[name] = value.reshape(n_structures, 3, 3)[chosen].reshape(-1, 3)
        elif name in _EDGES and name != "edge_index":
            out[name] = value[edges]
        elif value.dim() > 0 and value.shape[0] == n_atoms:
            out[name] = value[atoms]
        elif value.dim() > 0 and value.shape[0] == n_structures:
            out[name] = value[chosen]
    new_atom = torch.cumsum(chosen[batch], 0) - 1
    new_structure = torch.cumsum(chosen, 0) - 1
    out["edge_index"] = new_atom[data["edge_index"][:, edges]]
    out["batch"] = new_structure[batch[atoms]]
    out["ptr"] = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])
    return out, atoms
