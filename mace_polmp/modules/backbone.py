"""What the model knows of MACE itself: edges, messages, layout of features, atomic energies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mace.modules.blocks import RealAgnosticAttResidualInteractionBlock
from mace.modules.utils import get_edge_vectors_and_lengths
from torch import Tensor

from mace_polmp.errors import InputError
from mace_polmp.head import Edges
from mace_polmp.modules.graph import Graph

_ONE_PASS = threading.RLock()


@contextmanager
def edges_of_pass(model: Any, index: Tensor) -> Iterator[list[Edges]]:
    """The edges as a forward pass of the backbone sees them, for the head to share.

    Yields:
        A list that the pass fills with one item.
    """
    found: list[Edges] = []
    harmonics: list[tuple[Tensor, Tensor]] = []
    own = threading.get_ident()

    def after_harmonics(module: Any, inputs: Any, output: Tensor) -> None:
        if threading.get_ident() == own:
            harmonics.append((inputs[0], output))

    def after_radial(module: Any, inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        if threading.get_ident() != own:
            return
        vectors, values = harmonics[-1]
        found.append(Edges(index, vectors, output[0], output[1], values, inputs[0]))

    # The modules may be shared by models and threads: hooks are theirs, one pass at a time.
    with _ONE_PASS:
        hooks = [
            model.spherical_harmonics.register_forward_hook(after_harmonics),
            model.radial_embedding.register_forward_hook(after_radial),
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def edges_of(model: Any, graph: Graph) -> Edges:
    """The edges where no forward pass of the backbone is needed."""
    vectors, lengths = get_edge_vectors_and_lengths(
        positions=graph.positions, edge_index=graph.edge_index, shifts=graph.shifts
    )
    features, cutoff = model.radial_embedding(
        lengths, graph.node_attrs, graph.edge_index, model.atomic_numbers
    )
    return Edges(graph.edge_index, vectors, features, cutoff, lengths=lengths)


def carriers(model: Any) -> list[torch.nn.Module]:
    """The modules whose outputs, one row per edge, are next summed over the edges of a receiver."""
    found: list[torch.nn.Module] = []
    for interaction in model.interactions:
        children = dict(interaction.named_children())
        found.append(children["conv_tp"])
        if "density_fn" in children:
            if not model.apply_cutoff:
                raise InputError(
                    "born_charges: density-normalised blocks with --apply_cutoff False are not "
                    "supported in periodic structures"
                )
            found.append(children["density_fn"])
    return [*found, *model.multipole_readouts.messages()]


def readers(model: Any) -> list[tuple[torch.nn.Module, int]]:
    """The modules whose inputs, one row per edge, end with so many features of the receiver.

    The weights of an attention block read features of edge, sender and receiver.
    """
    return [
        (block.conv_tp_weights, block.node_feats_down_irreps.dim)
        for block in model.interactions
        if isinstance(block, RealAgnosticAttResidualInteractionBlock)
    ]


def exact_energy(
    model: Any, data: dict[str, Tensor], energy: Tensor, interaction: Tensor
) -> Tensor:
    """The short-range energy, [n_structures], eV, with atomic energies summed in double precision.

    In single precision a total energy of 10⁵ eV has steps of 0.01 eV.

    Args:
        model: the backbone.
        data: upstream's batch dictionary.
        energy, interaction: what the backbone returns, with and without atomic energies.
    """
    if energy.dtype == torch.float64 or hasattr(model, "embedding_readout"):
        return energy
    table = torch.atleast_2d(double_e0s(model))
    batch, head = data["batch"], data.get("head")
    heads = torch.zeros_like(batch) if head is None else head[batch]
    atomic = table[heads, data["node_attrs"].argmax(-1)]
    total = interaction.double()
    return torch.zeros_like(total).index_add(0, batch, atomic) + total


def double_e0s(model: Any) -> Tensor:
    """Atomic energies in double precision, [n_heads, n_elements] or [n_elements], eV.

    Those that the model was made with, unless the model's own, which may be rounded, are others.
    """
    own: Tensor = model.atomic_energies_fn.atomic_energies
    known = getattr(model, "_double_e0s", None)
    if own.dtype == torch.float64 or known is None or known.numel() != own.numel():
        return own.double()
    known = known.reshape(own.shape).to(own.device)
    return torch.where(known.to(own.dtype) == own, known, own.double())


def feature_layout(model: Any) -> str:
    """How the features of a degree lie in a row: "mul_ir", or "ir_mul" of converted backbones."""
    config = getattr(model.interactions[0], "cueq_config", None)
    if config is None or not getattr(config, "enabled", False):
        return "mul_ir"
    return str(config.layout_str)
