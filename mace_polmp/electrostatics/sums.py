"""Sums over the atoms of each structure, the one place where atoms are added up.

Several processes that share a structure give the engine sums that add over the processes as well:
parallel/sums.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AtomSums:
    """Sums over atoms by structure, and values of structures at their atoms.

    What is differentiated is an energy of which each process has a part: own sums of atoms, and a
    share of what all processes know.

    Attributes:
        batch: [n_atoms] int64, the structure of each atom.
        n_structures: the number of structures.
    """

    batch: Tensor
    n_structures: int

    def total(self, values: Tensor) -> Tensor:
        """Over all atoms of each structure, [n_atoms, …] to [n_structures, …]."""
        return self.own(values)

    def own(self, values: Tensor) -> Tensor:
        """Over the atoms that this process has, [n_atoms, …] to [n_structures, …]."""
        if self.n_structures == 1:
            return values.sum(0, keepdim=True)
        zero = values.new_zeros((self.n_structures, *values.shape[1:]))
        return zero.index_add(0, self.batch, values)

    def add(self, values: Tensor) -> Tensor:
        """Sums over atoms of this process, of any shape, to those over all atoms."""
        return values

    def share(self, values: Tensor) -> Tensor:
        """What every process has of the whole, to the part of this process."""
        return values

    def at_atoms(self, values: Tensor) -> Tensor:
        """[n_structures, …] to [n_atoms, …]."""
        if self.n_structures == 1:
            return values.expand(self.batch.shape[0], *values.shape[1:])
        return values[self.batch]

    def counts(self) -> Tensor:
        """Atoms of each structure, [n_structures] int64. (torch.bincount waits for a GPU.)"""
        return self.total(torch.ones_like(self.batch))
