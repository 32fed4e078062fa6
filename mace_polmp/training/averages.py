"""Atomic energies of the heads of a training, and averages that know of formal charges.

Averages are the least squares of energies by composition. Formal charges are there from the first
step on at their full size, and salts have several eV per atom of their energy: averages then are
those of energies without the long-range energy of the model that is about to be trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from mace_polmp.head.formal_charges import formal_charges
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.graph import Graph
from mace_polmp.training import atomic_energies
from mace_polmp.training.fine_tuning import sample

_MOST_STRUCTURES, _MOST_ATOMS = 100, 10000


class HeadEnergies:
    """Atomic energies of the heads, known by the training data that they are of."""

    def __init__(self) -> None:
        self._isolated: dict[int, dict[int, float]] = {}
        self._averaged: dict[int, list[int]] = {}  # elements whose energies are averages

    def keep_isolated(self, train: Any, known: dict[int, float]) -> None:
        """Energies of the isolated atoms of some elements, eV, of a head's training data."""
        self._isolated[id(train)] = known

    def of(
        self, upstream: Callable[..., dict[int, float]], asked: Any, train: Any, elements: list[int]
    ) -> dict[int, float]:
        """The energies of a head as they were asked for, by element: see atomic_energies.py."""
        known = self._isolated.get(id(train))
        if train is not None and atomic_energies.parse(asked) == atomic_energies.AVERAGE:
            self._averaged[id(train)] = [z for z in elements if z not in (known or {})]
        return atomic_energies.atomic_energies(upstream, asked, train, elements, known)

    def beside_ions(
        self,
        model: MultipoleMACE,
        energies: Any,
        dataset: Any,
        heads: Sequence[str],
        z_table: Any,
        configs: Any,
    ) -> Any:
        """Averages without the long-range energy of a new model, which they become part of.

        Args:
            model: untrained.
            energies: [n_heads, n_elements] or [n_elements], eV.
            dataset: training data of all heads.
            heads: their names, in the order of the energies.
            z_table: upstream's table of elements.
            configs: upstream's, with name and training data of each head.

        Returns:
            The energies, [n_heads, n_elements] if anything has changed.
        """
        if not formal_charges(model.long_range_options.formal_charges):
            return energies
        averaged = [(c.head_name, self._averaged.get(id(c.collections.train))) for c in configs]
        rows = {heads.index(name): elements for name, elements in averaged if elements}
        if not rows:
            return energies
        table = torch.as_tensor(energies, dtype=torch.float64).reshape(len(heads), -1).clone()
        numbers = [int(z) for z in z_table.zs]
        batches = sample(dataset, _MOST_ATOMS, _MOST_STRUCTURES)
        for row, elements in rows.items():
            own = [data for data in batches if int(data["head"]) == row]
            columns = [numbers.index(z) for z in elements]
            if own:
                table[row, columns] -= long_range_by_element(model, own, columns)
                _say(table[row, columns], elements)
        model.atomic_energies_fn.atomic_energies.copy_(
            table.view(model.atomic_energies_fn.atomic_energies.shape)
        )
        return table.numpy()


def long_range_by_element(
    model: MultipoleMACE, batches: list[dict[str, Tensor]], columns: list[int]
) -> Tensor:
    """What atoms of elements have of the long-range energies, by least squares, eV.

    Args:
        model: evaluated as it is.
        batches: one structure each.
        columns: of the elements, in the model's order.
    """
    counts, found = [], []
    for data in batches:
        with torch.no_grad():
            energy = model.long_range(Graph.of(dict(data)))[1].energy
        counts.append(data["node_attrs"].sum(0)[columns].double().numpy())
        found.append(float(energy))
    solution = np.linalg.lstsq(np.array(counts), np.array(found), rcond=None)[0]
    return torch.from_numpy(solution)


def _say(energies: Tensor, elements: list[int]) -> None:
    table = ", ".join(
        f"{chemical_symbols[z]} {energy:.4f}"
        for z, energy in zip(elements, energies.tolist(), strict=True)
    )
    logging.info(
        "--E0s average: with formal charges these are averages of energies without the long-range "
        f"energy, and in place of those above: {table} eV"
    )
