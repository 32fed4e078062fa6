"""The loss of a training: upstream's of the labels that count, and that of electrical labels."""

from __future__ import annotations

import numpy as np
import torch
from mace import modules
from mace.modules.loss import reduce_loss
from mace.tools import TensorDict
from mace.tools.torch_geometric import Batch
from numpy.typing import NDArray
from torch import Tensor

from mace_polmp.branches import lattice_of, nearest
from mace_polmp.quantities import LABELS

# Weights that some of upstream's losses do not look at: config_weight alone, or that of the label
# (0 where there is none) as well.
_CONFIG, _BOTH = ("weight",), ("weight", "label")
_IGNORED: dict[type, dict[str, tuple[str, ...]]] = {
    modules.UniversalLoss: {name: _CONFIG for name in ("energy", "forces", "stress")},
    modules.WeightedHuberEnergyForcesStressLoss: {
        name: _BOTH for name in ("energy", "forces", "stress")
    },
    modules.WeightedEnergyForcesL1L2Loss: {"forces": _BOTH},
}


# What a model gives to be compared with a label, where its own output is another.
_PHYSICAL = {"polarizability": "cell_polarizability", "charges": "physical_charges"}


class ElectricalLoss(torch.nn.Module):
    """Upstream's loss plus weighted squared errors of dipoles, polarizabilities and charges.

    In the losses of upstream that do not know a weight (universal, huber, l1l2energyforces) errors
    are multiplied by it before they enter, so that a label of weight 0 counts for nothing.

    Each of the electrical terms is a mean over the structures of a batch, zero where a structure
    has no label: of the squared components of the dipole and the polarization (e Å)², the
    polarizability (e² Å²/eV)² and the total charge e², divided by the number of atoms; of Born
    charges and charges of atoms e² the mean over atoms and components. All charges are physical
    ones (labelled_outputs), those that sum to the total charge too. Labels of the polarization
    are moved to the branch that is nearest to the prediction. Weights of structures and labels
    (config_weight, config_dipole_weight, …) multiply them.

    Args:
        base: upstream's loss.
        weights: by name of the label.
    """

    def __init__(self, base: torch.nn.Module, weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.base = base
        self.weights = weights or {}
        self._ignored = _IGNORED.get(type(base), {})

    def forward(self, ref: Batch, pred: TensorDict, ddp: bool | None = None) -> Tensor:
        exact_energies(ref)
        total = self.base(ref=ref, pred=self._weighted(ref, pred), ddp=ddp)
        for name, weight in self.weights.items():
            if weight > 0:
                total = total + weight * reduce_loss(squared_errors(ref, pred, name), ddp)
        return total

    def _weighted(self, ref: Batch, pred: TensorDict) -> TensorDict:
        """Predictions whose errors are multiplied by the weights that the loss does not know."""
        out = dict(pred)
        for name, unknown in self._ignored.items():
            if pred.get(name) is None:
                continue
            factor = ref.weight
            if "label" in unknown:
                factor = factor * ref[f"{name}_weight"].view(-1)
            if name == "forces":
                factor = factor[ref.batch]
            label, predicted = ref[name], pred[name]
            factor = factor.view(-1, *([1] * (predicted.dim() - 1)))
            scaled = label + factor * (predicted - label)
            out[name] = torch.where(factor == 1.0, predicted, scaled)
        return out

    def __repr__(self) -> str:
        if not self.weights:
            return repr(self.base)
        extra = ", ".join(f"{name}_weight={weight:.3f}" for name, weight in self.weights.items())
        return f"{self.base!r} + {type(self).__name__}({extra})"


def exact_energies(batch: Batch) -> None:
    """Put the energies of a batch together from the parts that fit into single precision.

    A total energy of 10⁵ eV has steps of 0.01 eV there; the model's is in double precision too.
    """
    rest = batch["energy_rest"] if "energy_rest" in batch.keys else None
    if rest is not None and batch.energy.dtype != torch.float64:
        batch.energy = batch.energy.double() + rest.view(-1).double()


def squared_errors(ref: Batch, pred: TensorDict, name: str) -> Tensor:
    """Weighted squared errors of a label, [n_atoms] for those of atoms, else [n_structures]."""
    reference, predicted, weight = label_pair(ref, pred, name)
    error = torch.square(reference - predicted).view(len(predicted), -1)
    if LABELS[name].per_atom:
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
        charges = pred.get("physical_charges")
        charges = pred["charges"] if charges is None else charges
        predicted = charges.new_zeros(n_structures).index_add(0, ref.batch, charges)
        return ref["total_charge"].view(-1, 1), predicted[:, None], weight
    physical = pred.get(_PHYSICAL.get(name, name))
    predicted = pred[name] if physical is None else physical
    reference = ref[name].view(predicted.shape)
    if name == "polarization":
        reference = on_nearest_branch(reference, predicted, lattices_of(ref))
    return reference, predicted, weight


def lattices_of(ref: Batch) -> NDArray[np.float64]:
    """Short lattice vectors of the structures of a batch, [n_structures, 3, 3], Å."""
    cells, flags = ref.cell.view(-1, 3, 3).cpu().double().numpy(), ref.pbc.view(-1, 3).cpu().numpy()
    return np.array([lattice_of(cell, pbc) for cell, pbc in zip(cells, flags, strict=True)])


def on_nearest_branch(
    reference: Tensor, predicted: Tensor, lattices: NDArray[np.float64]
) -> Tensor:
    """Labels of the polarization on the branches of the predictions, [n_structures, 3], e Å.

    Args:
        reference, predicted: [n_structures, 3], e Å.
        lattices: of lattices_of.
    """
    differences = (predicted - reference).detach().cpu().double().numpy()
    return reference + torch.from_numpy(nearest(differences, lattices)).to(reference)
