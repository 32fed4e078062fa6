"""Atoms of other processes near the border: who sends what to whom, and back.

A process has own atoms, and rows for the atoms of others that are neighbours of its own: the halo.
Periodic images of own atoms are own rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mace_polmp.parallel.processes import Processes


class Halo:
    """The exchange of rows of atoms between processes.

    Args:
        processes: that share the structure.
        own: [n_own] int64, numbers of the atoms of this process, each in one process only.
        halo: [n_halo] int64, numbers of the atoms of others that are wanted, each once.
        device: of the rows.

    Raises:
        ValueError: a wanted atom that no process has.
    """

    def __init__(
        self,
        processes: Processes,
        own: Tensor,
        halo: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(own) == 0:  # a row that stands for none, see model.py
            own = torch.tensor([-1 - processes.rank])
        self.processes, self.n_own, self.n_halo = processes, len(own), len(halo)
        every, counts = processes.gather(own)
        rank = torch.repeat_interleave(torch.arange(processes.n_ranks), torch.tensor(counts))
        row = torch.cat([torch.arange(n) for n in counts])
        order = torch.argsort(every)
        place = torch.searchsorted(every[order], halo).clamp(max=len(every) - 1)
        at = order[place]
        known = every[at] == halo
        if not bool(known.all()):
            missing = halo[~known].tolist()[:5]
            raise ValueError(f"no process has the atoms {missing}, which are neighbours of others")
        owner = rank[at]
        by_owner = torch.argsort(owner, stable=True)
        self._receive = torch.bincount(owner, minlength=processes.n_ranks).tolist()
        ones = [1] * processes.n_ranks
        self._send = processes.exchange(torch.tensor(self._receive), ones, ones).tolist()
        rows = processes.exchange(row[at][by_owner], self._receive, self._send)
        self._rows, self._order = rows.to(device), by_owner.to(device)

    def fetch(self, own: Tensor) -> Tensor:
        """Rows of the halo from the rows of own atoms, [n_own, …] to [n_halo, …]."""
        got = self.processes.exchange(own.detach()[self._rows], self._send, self._receive)
        out = torch.empty_like(got)
        out[self._order] = got
        return out

    def give_back(self, halo: Tensor, own: Tensor) -> Tensor:
        """Add rows of the halo to those of the atoms they are of, fetch's transpose."""
        got = self.processes.exchange(halo.detach()[self._order], self._receive, self._send)
        return own.detach().index_add(0, self._rows, got)

    def extend(self, own: Tensor) -> Tensor:
        """Own rows and behind them those of the halo; differentiable once."""
        out: Tensor = _Extend.apply(own, self)  # type: ignore[no-untyped-call]
        return out

    # What mace-torch calls before each convolution after the first (mace.tools.utils.LAMMPS_MP).

    def forward_exchange(self, features: Tensor, out: Tensor, width: int) -> None:
        """Write own rows and those of the halo."""
        own = features.detach()[: self.n_own]
        out[: self.n_own] = own
        out[self.n_own :] = self.fetch(own)

    def reverse_exchange(self, grad: Tensor, out: Tensor, width: int) -> None:
        """Its transpose."""
        out[: self.n_own] = self.give_back(grad[self.n_own :], grad[: self.n_own])
        out[self.n_own :] = 0.0


class _Extend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, halo: Halo) -> Tensor:
        ctx.halo = halo
        return torch.cat([own.detach(), halo.fetch(own)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "second derivatives (Hessians, Born charges) need the whole structure on one "
                "process: evaluate it with the calculator"
            )
        n_own = ctx.halo.n_own
        return ctx.halo.give_back(grad[n_own:], grad[:n_own]), None


class _Gather(torch.autograd.Function):
    """The rows of all processes; of their derivatives each keeps its own."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes) -> Tensor:
        out, counts = processes.gather(own)
        ctx.start = sum(counts[: processes.rank])
        ctx.n_own = own.shape[0]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.start : ctx.start + ctx.n_own], None


def gathered(own: Tensor, processes: Processes) -> Tensor:
    """Rows of all processes, for what each evaluates as a whole; differentiable once."""
    out: Tensor = _Gather.apply(own, processes)  # type: ignore[no-untyped-call]
    return out
