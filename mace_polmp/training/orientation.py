"""The sign that all multipoles of a model have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.electronegativity import electropositivity

Data = dict[str, Tensor]


class Orientation:
    """Turns the multipoles of a model so that electronegative elements are negative on average.

    Energies and forces do not know this sign, and early in a training it can change.

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
        agreement = 0.0
        with torch.no_grad():
            for data in self._batches:
                charge = self._model.read_multipoles(data)[1].charge
                expected = self._scale.to(charge)[data["node_attrs"].argmax(-1)]
                agreement += float((charge * (expected - expected.mean())).sum())
        if agreement < 0.0:
            self._model.multipole_readouts.turn()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that turns them first."""

        def turned(*args: Any, **kwargs: Any) -> Any:
            self()
            return function(*args, **kwargs)

        return turned


def is_free(model: MultipoleMACE, datasets: Iterable[Any]) -> bool:
    """Whether energies do not depend on the sign: not where charges must sum to some charge."""
    if model.long_range_options.constrain_charge == "none":
        return True
    parts = [
        part
        for dataset in datasets
        for part in (dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset])
    ]
    # Data on disk are not read for this.
    return all(
        isinstance(part, list) and all(float(graph.total_charge) == 0.0 for graph in part)
        for part in parts
    )
