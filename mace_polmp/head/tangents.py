"""The gradients at the messages of a backbone, which Born charges add to: see born_charges.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mace_polmp.errors import InputError


class Tangents:
    """The gradients at the messages: noted in one backward pass, added in others.

    Args:
        carriers: modules whose outputs, one row per edge, are next summed over the edges of a
            receiver.
        readers: modules whose inputs, one row per edge, end with so many features of the receiver.
        n_edges: the number of edges.

    Attributes:
        projected: ε·D_e of the edges, [n_edges], in passes that add; None in the one that notes.
        finished: later passes, those of a training, are left alone.
    """

    def __init__(
        self,
        carriers: Sequence[torch.nn.Module],
        readers: Sequence[tuple[torch.nn.Module, int]],
        n_edges: int,
    ) -> None:
        self.projected: Tensor | None = None
        self.finished = False
        self._carriers = carriers
        self._readers = readers
        self._n_edges = n_edges
        self._count = 0
        self._noted: dict[int, Tensor] = {}

    @contextmanager
    def on_messages(self) -> Iterator[Tangents]:
        """Follow the messages of the forward passes in this context."""
        hooks = [module.register_forward_hook(self._follow) for module in self._carriers]
        for module, width in self._readers:
            hooks.append(module.register_forward_pre_hook(partial(self._take_back, width)))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _follow(self, module: Any, inputs: Any, output: Tensor) -> None:
        if output.shape[0] != self._n_edges:
            raise InputError(
                "born_charges: this backbone fuses its messages over edges; use a model that is "
                "not converted for an accelerator"
            )
        self._watch(output, output.new_ones(()))

    def _take_back(self, n_receiver: int, module: Any, inputs: Any) -> None:
        """Where a message depends on its receiver, that path has no vector between atoms.

        What was added at the message arrives at the receiver's features as well.
        """
        width = inputs[0].shape[1]
        columns = torch.arange(width, device=inputs[0].device) >= width - n_receiver
        self._watch(inputs[0], -columns.to(inputs[0].dtype))

    def _watch(self, tensor: Tensor, factor: Tensor) -> None:
        if not tensor.requires_grad:
            return
        number = self._count
        self._count += 1

        def change(gradient: Tensor) -> Tensor | None:
            if self.finished:
                return None
            if self.projected is None:
                self._noted[number] = gradient
            if self.projected is None or number not in self._noted:
                return None
            along = self.projected.view(-1, *([1] * (gradient.dim() - 1)))
            return torch.addcmul(gradient, along * factor, self._noted[number])

        tensor.register_hook(change)
