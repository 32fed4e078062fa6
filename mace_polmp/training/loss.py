"""The loss of electrical labels, added to upstream's of energies, forces and stress."""

from __future__ import annotations

import torch
from mace.modules.loss import reduce_loss
from mace.tools import TensorDict
from mace.tools.torch_geometric import Batch
from torch import Tensor


class ElectricalLoss(torch.nn.Module):
    """A loss plus weighted squared errors of dipoles, polarizabilities, Born and total charges.

    Each is a mean over the structures of a batch, zero where a structure has no label: of the
    squared components of the dipole (e Å)², the polarizability (e² Å²/eV)² and the total charge
    e², divided by the number of atoms; of Born charges e² the mean over atoms and components.
    Weights of structures and labels (config_weight, config_dipole_weight, …) multiply them.

    Args:
        base: upstream's loss.
        weights: by name of the label.
    """

    def __init__(self, base: torch.nn.Module, weights: dict[str, float]) -> None:
        super().__init__()
        self.base = base
        self.weights = weights

    def forward(self, ref: Batch, pred: TensorDict, ddp: bool | None = None) -> Tensor:
        total = self.base(ref=ref, pred=pred, ddp=ddp)
        for name, weight in self.weights.items():
            if weight > 0:
                total = total + weight * reduce_loss(squared_errors(ref, pred, name), ddp)
        return total

    def __repr__(self) -> str:
        extra = ", ".join(f"{name}_weight={weight:.3f}" for name, weight in self.weights.items())
        return f"{self.base!r} + {type(self).__name__}({extra})"


def squared_errors(ref: Batch, pred: TensorDict, name: str) -> Tensor:
    """Weighted squared errors of a label, [n_atoms] for Born charges, else [n_structures]."""
    reference, predicted, weight = label_pair(ref, pred, name)
    error = torch.square(reference - predicted).flatten(1)
    if name == "born_charges":
        return (ref.weight * weight)[ref.batch] * error.mean(1)
    counts = ref.ptr[1:] - ref.ptr[:-1]
    return ref.weight * weight * error.mean(1) / counts


def label_pair(ref: Batch, pred: TensorDict, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Label and prediction, [n_atoms or n_structures, …], and the weight of each structure.

    Args:
        ref: a batch of upstream's.
        pred: what the model returned for it.
        name: of the label.
    """
    n_structures = ref.ptr.numel() - 1
    weight = ref[f"{name}_weight"].view(n_structures, -1)[:, 0]
    if name == "total_charge":
        predicted = pred["charges"].new_zeros(n_structures).index_add(0, ref.batch, pred["charges"])
        return ref["total_charge"].view(-1, 1), predicted[:, None], weight
    predicted = pred[name]
    return ref[name].view(predicted.shape), predicted, weight
