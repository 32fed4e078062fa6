"""Charges read from the features of each layer by itself, as mace-torch's MACELES has them.

q_i = Σ_l R_l(h_il), with h_il the scalars of atom i after layer l. R_l is linear; that of the last
of several layers is a network with one hidden layer: the form of the energy readouts of MACE.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor

# Of what the layers have beside the charges of atoms, at the start.
_START = 0.1


class LayerCharges(torch.nn.Module):
    """A sum of readouts, one for each layer.

    Args:
        layer_irreps: irreps of each layer's output, in the order of node_feats.
        hidden: width of the last layer's network; 0, or a single layer, for a linear map.

    Attributes:
        parts: the readouts, without biases.
    """

    def __init__(self, layer_irreps: Sequence[o3.Irreps], hidden: int) -> None:
        super().__init__()
        self._columns: list[list[slice]] = []
        start = 0
        for irreps in layer_irreps:
            scalars = [
                slice(start + part.start, start + part.stop)
                for (_, ir), part in zip(irreps, irreps.slices(), strict=True)
                if ir == o3.Irrep("0e")
            ]
            if scalars:
                self._columns.append(scalars)
            start += irreps.dim
        self.parts = torch.nn.ModuleList()
        for number, columns in enumerate(self._columns):
            width = sum(part.stop - part.start for part in columns)
            is_last = number == len(self._columns) - 1
            self.parts.append(_readout(width, hidden if is_last and number > 0 else 0))
        self.rescale(_START)

    def outer(self, number: int) -> torch.nn.Linear:
        """The last linear map of a layer's readout."""
        part = self.parts[number]
        last = part[-1] if isinstance(part, torch.nn.Sequential) else part
        assert isinstance(last, torch.nn.Linear)
        return last

    def rescale(self, scale: float) -> None:
        """Multiply the charges by a factor."""
        with torch.no_grad():
            for number in range(len(self.parts)):
                self.outer(number).weight.mul_(scale)

    def forward(self, node_feats: Tensor) -> Tensor:
        """Charges, [n_atoms], e.

        Args:
            node_feats: [n_atoms, n_features], of all layers.
        """
        total = node_feats.new_zeros(node_feats.shape[0])
        for columns, part in zip(self._columns, self.parts, strict=True):
            scalars = torch.cat([node_feats[:, one] for one in columns], dim=1)
            total = total + part(scalars).squeeze(-1)
        return total


def _readout(width: int, hidden: int) -> torch.nn.Module:
    if hidden == 0:
        return torch.nn.Linear(width, 1, bias=False)
    return torch.nn.Sequential(
        torch.nn.Linear(width, hidden, bias=False),
        torch.nn.SiLU(),
        torch.nn.Linear(hidden, 1, bias=False),
    )
