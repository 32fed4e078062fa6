"""Loaders of structures: plans of the electrostatics, structures with a label, what counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mace.tools import torch_geometric

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.errors import InputError
from mace_polmp.reading import shown
from mace_polmp.training.orientation import in_memory


class PlannedLoader:
    """A loader whose batches carry the plan of their electrostatics, made before they are moved.

    Args:
        loader: upstream's.
        engine: of the model.
        device: where the model is.
        words: for a bar on a terminal; None for none.
    """

    def __init__(
        self, loader: Any, engine: Electrostatics, device: torch.device, words: str | None = None
    ) -> None:
        self._loader = loader
        self._engine = engine
        self._device = device
        self._words = words

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in shown(self._loader, self._words or "", self._words is not None):
            counts = batch.ptr[1:] - batch.ptr[:-1]
            batch["plan"] = self._engine.plan(
                batch.cell.view(-1, 3, 3), batch.pbc.view(-1, 3), counts, device=self._device
            )
            yield batch


def check_counts(dataset: Any, kind: str, used: list[str]) -> None:
    """Refuse data in which nothing counts: the loss would be 0, and the first epoch the best.

    Raises:
        InputError: no structure has a label with a weight. Data on disk are not looked at.
    """
    graphs = in_memory(dataset)
    if graphs is None:
        return
    names = [f"{name}_weight" for name in ("energy", "forces", "stress", "virials", *used)]
    for graph in graphs:
        weights = (graph[name] for name in names if name in graph.keys)
        if float(graph.weight) > 0 and any(float(w.max()) > 0 for w in weights if w is not None):
            return
    raise InputError(
        f"no label of the {kind} structures has a weight: config_weight, config_energy_weight and "
        "so on, or --config_type_weights, are 0 for all of them; give some a weight above 0, or "
        "other data"
    )


def with_label(loader: Any, name: str) -> Any:
    """A loader of the structures that have a label with a weight; itself if all have."""
    dataset = loader.dataset
    chosen = []
    for index in range(len(dataset)):
        graph = dataset[index]
        if float(graph.weight * graph[f"{name}_weight"]) > 0:
            chosen.append(index)
    if len(chosen) in (0, len(dataset)):
        return loader
    return torch_geometric.dataloader.DataLoader(
        dataset=torch.utils.data.Subset(dataset, chosen), batch_size=loader.batch_size
    )
