"""The gradients at the messages of a MACE, which Born charges add to: see born_charges.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from mace.modules.blocks import RealAgnosticAttResidualInteractionBlock
from torch import Tensor

from mace_polmp.errors import InputError

if TYPE_CHECKING:
    from mace_polmp.modules.model import MultipoleMACE


class Tangents:
    """The gradients at the messages: noted in one backward pass, added in others.

    Args:
        model: whose messages to follow.
        n_edges: the number of edges.

    Attributes:
        projected: ε·D_e of the edges, [n_edges], in passes that add; None in the one that notes.
        finished: later passes, those of a training, are left alone.
    """

    def __init__(self, model: MultipoleMACE, n_edges: int) -> None:
        self.projected: Tensor | None = None
        self.finished = False
        self._model = model
        self._n_edges = n_edges
        self._count = 0
        self._noted: dict[int, Tensor] = {}

    @contextmanager
    def on_messages(self) -> Iterator[Tangents]:
        """Follow the messages of the forward passes in this context."""
        hooks = [module.register_forward_hook(self._follow) for module in _carriers(self._model)]
        for block in self._model.interactions:
            if isinstance(block, RealAgnosticAttResidualInteractionBlock):
                take_back = partial(self._take_back, block.node_feats_down_irreps.dim)
                hooks.append(block.conv_tp_weights.register_forward_pre_hook(take_back))
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

        The weights of an attention block read features of edge, sender and receiver, the last
        n_receiver of them; what was added at the message arrives there as well.
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


def _carriers(model: MultipoleMACE) -> list[torch.nn.Module]:
    """The modules whose outputs, one row per edge, are next summed over the edges of a receiver."""
    carriers: list[torch.nn.Module] = []
    for interaction in model.interactions:
        children = dict(interaction.named_children())
        carriers.append(children["conv_tp"])
        if "density_fn" in children:
            if not model.apply_cutoff:
                raise InputError(
                    "born_charges: density-normalised blocks with --apply_cutoff False are not "
                    "supported in periodic structures"
                )
            carriers.append(children["density_fn"])
    readouts = model.multipole_readouts
    carriers += [part.messages for part in (readouts.lift, readouts.transfer) if part is not None]
    return carriers
