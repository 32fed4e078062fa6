"""What processes that share a structure tell each other, by MPI or torch.distributed."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import torch
from torch import Tensor


class Processes(Protocol):
    """Collective operations: every process calls each of them, in the same order.

    Attributes:
        rank: of this process.
        n_ranks: the number of processes.
    """

    rank: int
    n_ranks: int

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of tensors of the same shape, without derivatives."""

    def gather(self, rows: Tensor) -> tuple[Tensor, list[int]]:
        """The rows of all processes, one after the other, and how many each has."""

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Rows from others for rows to others.

        Args:
            rows: [sum of send, …], sorted by the process they go to.
            send, receive: the number of rows to and from each process.

        Returns:
            [sum of receive, …], sorted by the process they come from.
        """


class OneProcess:
    """A process that has the whole structure."""

    rank, n_ranks = 0, 1

    def sum(self, values: Tensor) -> Tensor:
        """See Processes."""
        return values.clone()

    def gather(self, rows: Tensor) -> tuple[Tensor, list[int]]:
        """See Processes."""
        return rows.clone(), [rows.shape[0]]

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """See Processes."""
        return rows.clone()


class MPIProcesses:
    """The processes of an MPI communicator of mpi4py; tensors of a GPU pass through the host.

    Args:
        comm: the communicator.
    """

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._mpi, self.comm = MPI, comm
        self.rank, self.n_ranks = comm.Get_rank(), comm.Get_size()

    def in_machine(self) -> tuple[int, int]:
        """The number of this process among those of its machine, and how many those are."""
        here = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        found = int(here.Get_rank()), int(here.Get_size())
        here.Free()
        return found

    def sum(self, values: Tensor) -> Tensor:
        """See Processes."""
        out = _on_host(values).clone()
        self.comm.Allreduce(self._mpi.IN_PLACE, out.numpy(), op=self._mpi.SUM)
        return out.to(values.device)

    def gather(self, rows: Tensor) -> tuple[Tensor, list[int]]:
        """See Processes."""
        mine = _on_host(rows)
        counts = self.comm.allgather(mine.shape[0])
        out = mine.new_empty((sum(counts), *mine.shape[1:]))
        width = mine.shape[1:].numel()
        sizes = [n * width for n in counts]
        self.comm.Allgatherv(mine.numpy(), [out.numpy(), sizes])
        return out.to(rows.device), counts

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """See Processes."""
        mine = _on_host(rows)
        width = mine.shape[1:].numel()
        out = mine.new_empty((sum(receive), *mine.shape[1:]))
        self.comm.Alltoallv(
            [mine.numpy(), [n * width for n in send]],
            [out.numpy(), [n * width for n in receive]],
        )
        return out.to(rows.device)


def end_all(comm: Any) -> None:
    """End all processes of MPI with exit status 1, after what was printed has come out.

    Args:
        comm: of mpi4py.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(1.0)  # mpiexec drops what it has not yet passed on
    comm.Abort(1)


class TorchProcesses:
    """The processes of a group of torch.distributed.

    Args:
        group: None for all processes.
    """

    def __init__(self, group: Any = None) -> None:
        import torch.distributed as dist

        self._dist, self._group = dist, group
        self.rank, self.n_ranks = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, values: Tensor) -> Tensor:
        """See Processes."""
        out = values.detach().contiguous().clone()
        self._dist.all_reduce(out, group=self._group)
        return out

    def gather(self, rows: Tensor) -> tuple[Tensor, list[int]]:
        """See Processes."""
        counts = torch.zeros(self.n_ranks, dtype=torch.int64, device=rows.device)
        counts[self.rank] = rows.shape[0]
        found = [int(n) for n in self.sum(counts).tolist()]
        padded = rows.new_zeros((max(found), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows.detach()
        parts = [torch.empty_like(padded) for _ in found]
        self._dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:n] for part, n in zip(parts, found, strict=True)]), found

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """See Processes."""
        out = rows.new_empty((sum(receive), *rows.shape[1:]))
        self._dist.all_to_all_single(
            out, rows.detach().contiguous(), receive, send, group=self._group
        )
        return out


def _on_host(values: Tensor) -> Tensor:
    return values.detach().cpu().contiguous()
