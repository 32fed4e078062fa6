"""Sums over the atoms of all processes, of which automatic differentiation gives exact forces.

Each process has a part of the energy. What it takes from others enters as a sum over processes,
whose derivative is such a sum again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.parallel.processes import Processes


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, processes: Processes) -> Tensor:
        if values.is_complex():
            return torch.view_as_complex(
                _summed(torch.view_as_real(values.resolve_conj()), processes)
            )
        return _summed(values, processes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.processes = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.processes), None  # type: ignore[no-untyped-call]


def _summed(values: Tensor, processes: Processes) -> Tensor:
    """In double precision whatever that of the values."""
    exact = values.double() if values.is_floating_point() else values
    return processes.sum(exact).to(values.dtype)


def sum_over(values: Tensor, processes: Processes) -> Tensor:
    """The sum of a tensor over processes, differentiable any number of times."""
    out: Tensor = _Sum.apply(values, processes)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True, eq=False)
class SharedSums(AtomSums):
    """Sums over the atoms of a single structure that processes share.

    Attributes:
        processes: that share it.
        is_empty: whether this process has no atom, and a row that stands for none.
    """

    processes: Processes
    is_empty: bool = False

    def total(self, values: Tensor) -> Tensor:
        """Over the atoms of all processes."""
        return self.add(self.own(values))

    def own(self, values: Tensor) -> Tensor:
        """Over the atoms of this process."""
        found = super().own(values)
        return found * 0 if self.is_empty else found

    def at_atoms(self, values: Tensor) -> Tensor:
        """Values of the structure at own atoms; zero at a row that stands for none."""
        found = super().at_atoms(values)
        return found * 0 if self.is_empty else found

    def add(self, values: Tensor) -> Tensor:
        """Sums over atoms of this process to sums over all."""
        return sum_over(values, self.processes)

    def share(self, values: Tensor) -> Tensor:
        """What every process has of the whole, to the part of this process."""
        return values / self.processes.n_ranks
