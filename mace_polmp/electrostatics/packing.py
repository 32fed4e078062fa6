"""Atoms of a batch as a rectangular table, one row per structure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.sums import AtomSums


def blocks(n: int, elements: int, device: torch.device, on_cpu: int, on_gpu: int) -> list[slice]:
    """0 … n − 1 in slices whose temporary arrays stay below a limit; at least one, if empty.

    Args:
        n: how many items there are.
        elements: of the largest array, for each item.
        device: where the work is done.
        on_cpu, on_gpu: the limit there, in elements.
    """
    step = max(1, (on_cpu if device.type == "cpu" else on_gpu) // elements)
    return [slice(start, min(start + step, n)) for start in range(0, max(1, n), step)]


@dataclass(frozen=True)
class Packing:
    """Where the atoms of a batch lie in a table [n_structures, n_largest]."""

    index: Tensor | None  # [n_atoms] into the flattened table; None: one structure, all atoms
    n_structures: int
    n_largest: int

    @classmethod
    def of(cls, batch: Tensor, n_structures: int, n_largest: int) -> Packing:
        """The packing of atoms with these structures, in any order.

        Args:
            batch: [n_atoms] int64.
            n_structures: the number of structures.
            n_largest: atoms of the largest structure.
        """
        if n_structures == 1:
            return cls(None, 1, batch.shape[0])
        counts = AtomSums(batch, n_structures).counts()
        order = torch.argsort(batch, stable=True)
        starts = torch.cumsum(counts, 0) - counts
        rank = torch.empty_like(batch)
        rank[order] = torch.arange(batch.shape[0], device=batch.device) - starts[batch[order]]
        return cls(batch * n_largest + rank, n_structures, n_largest)

    def pack(self, x: Tensor) -> Tensor:
        """[n_atoms, …] to [n_structures, n_largest, …], empty places zero."""
        if self.index is None:
            return x.unsqueeze(0)
        table = x.new_zeros((self.n_structures * self.n_largest, *x.shape[1:]))
        table = table.index_put((self.index,), x)
        return table.view(self.n_structures, self.n_largest, *x.shape[1:])

    def unpack(self, table: Tensor) -> Tensor:
        """[n_structures, n_largest, …] to [n_atoms, …]."""
        flat = table.flatten(0, 1)
        return flat if self.index is None else flat[self.index]
