"""The sign that all multipoles of a model have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from mace_polmp.errors import InputError
from mace_polmp.head.electronegativity import electropositivity
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.born_charges import born_charges

Data = dict[str, Tensor]

MOST_ATOMS = 300  # Judging comes with every checkpoint and takes four evaluations.


class Orientation:
    """Turns the multipoles of a model so that electronegative elements are negative on average.

    Energies and forces do not know this sign, and early in a training it can change. Judged are the
    diagonals of Born charges: latent charges alone may say the opposite where dipoles outweigh
    them. Where there are no Born charges (slabs, backbones converted for accelerators) latent
    charges have to do.

    Args:
        model: the model.
        batches: structures that it is judged by.
        device: where the model is.
    """

    def __init__(self, model: MultipoleMACE, batches: list[Data], device: Any) -> None:
        self._model = model
        self._batches = [{key: value.to(device) for key, value in d.items()} for d in batches]
        self._scale = torch.tensor(electropositivity(model.atomic_numbers.tolist()), device=device)

    def __call__(self) -> None:
        """Turn them where they point the other way."""
        if sum(self._agreement(data) for data in self._batches) < 0.0:
            self._model.multipole_readouts.turn()

    def _agreement(self, data: Data) -> float:
        charges = self._charges(data)
        expected = self._scale.to(charges)[data["node_attrs"].argmax(-1)]
        return float((charges.detach() * (expected - expected.mean())).sum())

    def _charges(self, data: Data) -> Tensor:
        try:
            return born_charges(self._model, data).diagonal(dim1=-2, dim2=-1).mean(-1)
        except InputError:
            with torch.no_grad():
                return self._model.read_multipoles(data)[1].charge


def is_free(model: MultipoleMACE, datasets: Iterable[Any], labels: Iterable[str] = ()) -> bool:
    """Whether neither energies nor labels depend on the sign.

    They do where charges must sum to some charge. Polarizabilities and ε∞ do not.

    Args:
        model: the model.
        datasets: of training and validation.
        labels: names of those in the loss besides energies, forces and stress.
    """
    labels = set(labels)
    formal = model.long_range_options.formal_charges
    if formal or labels - {"polarizability", "total_charge"}:  # they say the sign
        return False
    if model.long_range_options.constrain_charge == "none" and "total_charge" not in labels:
        return True
    found = [in_memory(dataset) for dataset in datasets]
    return all(
        graphs is not None and all(float(graph.total_charge) == 0.0 for graph in graphs)
        for graphs in found
    )


def in_memory(dataset: Any) -> list[Any] | None:
    """The graphs of a data set; None for data on disk, which are not read to look at them."""
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    if not all(isinstance(part, list) for part in parts):
        return None
    return [graph for part in parts for graph in part]
