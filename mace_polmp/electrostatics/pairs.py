"""Every unordered pair of atoms of the same structure, once, as numbers 0 … n_pairs − 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.packing import blocks
from mace_polmp.electrostatics.sums import AtomSums

# Pairs whose intermediate results are in memory at one time.
_BLOCK_CPU = 2**18
_BLOCK_GPU = 2**21


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a batch of structures.

    Attributes:
        count: how many there are.
        order: [n_atoms]: the atoms sorted by structure.
        starts: [n_atoms]: the number of the first pair of each, with those after it.
        all: the two atoms of every pair, [n_pairs] each, where one block holds them; else None.
    """

    count: int
    order: Tensor
    starts: Tensor
    all: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, batch: Tensor, n_structures: int, count: int) -> Pairs:
        """The pairs of atoms with these structures, in any order."""
        order = torch.argsort(batch, stable=True)
        ends = torch.cumsum(AtomSums(batch, n_structures).counts(), 0)
        partners = ends[batch[order]] - torch.arange(1, batch.shape[0] + 1, device=batch.device)
        found = cls(count, order, torch.cumsum(partners, 0) - partners)
        if len(found.blocks()) > 1:
            return found
        return cls(count, order, found.starts, found.indices(slice(0, count)))

    def blocks(self) -> list[slice]:
        """Their numbers in blocks that fit into memory; at least one, if empty."""
        return blocks(self.count, 1, self.order.device, _BLOCK_CPU, _BLOCK_GPU)

    def indices(self, block: slice) -> tuple[Tensor, Tensor]:
        """The two atoms of the pairs of a block, [n] each."""
        if self.all is not None:
            return self.all
        number = torch.arange(block.start, block.stop, device=self.starts.device)
        first = torch.searchsorted(self.starts, number, right=True) - 1
        second = first + 1 + number - self.starts[first]
        return self.order[first], self.order[second]
