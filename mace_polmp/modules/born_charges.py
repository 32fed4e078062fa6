"""Born effective charges of a MultipoleMACE: what mace_polmp.head.born_charges needs of a MACE."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mace_polmp.head import HeadOutput
from mace_polmp.head import born_charges as head_born_charges
from mace_polmp.head.born_charges import Structures
from mace_polmp.head.held import Held
from mace_polmp.head.sum_rule import acoustic_sum, enforce_sum_rule
from mace_polmp.head.tangents import Tangents
from mace_polmp.modules.backbone import carriers, readers
from mace_polmp.modules.graph import Graph
from mace_polmp.modules.selection import select_structures

if TYPE_CHECKING:
    from mace_polmp.modules.model import MultipoleMACE

__all__ = ["acoustic_sum", "born_charges", "enforce_sum_rule", "field_on_charges"]


class MACEAtStructures:
    """A MultipoleMACE at a batch of structures.

    Args:
        model: the model.
        graph: the batch.
    """

    def __init__(self, model: MultipoleMACE, graph: Graph) -> None:
        self.head = model.head
        self.structures = Structures(
            graph.positions,
            graph.shifts,
            graph.edge_index,
            graph.cell,
            graph.pbc,
            graph.batch,
            graph.total_charge,
            graph.plan,
        )
        self._model = model
        self._graph = graph

    def head_output(
        self,
        positions: Tensor,
        shifts: Tensor,
        shift: Tensor | None = None,
        hold_shift: bool = False,
        in_field: bool = False,
    ) -> HeadOutput:
        """See mace_polmp.head.born_charges.Backbone."""
        graph = self._graph.moved(positions, shifts, in_field)
        return self._model.long_range(graph, shift=shift, hold_shift=hold_shift)[1]

    def followed(self, n_edges: int) -> AbstractContextManager[Tangents]:
        """See mace_polmp.head.born_charges.Backbone."""
        return Tangents(carriers(self._model), readers(self._model), n_edges).on_messages()


def born_charges(
    model: MultipoleMACE,
    data: dict[str, Tensor],
    epsilon_infinity: float | None = None,
    divide_by_chi: bool = False,
    sum_rule: bool = False,
    training: bool = False,
) -> Tensor:
    """Born effective charges of a batch of structures, all open or all periodic.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary; data["total_charge"] [n_structures] is the charge of open
            structures for the sum rule, 0 if it is not there.
        epsilon_infinity, divide_by_chi, sum_rule, training: as of head.born_charges.

    Returns:
        [n_atoms, 3, 3], e; first index polarization, second displacement.

    Raises:
        InputError: as head.born_charges.
    """
    backbone = MACEAtStructures(model, Graph.of(data))
    return head_born_charges.born_charges(
        backbone, epsilon_infinity, divide_by_chi, sum_rule, training
    )


def field_on_charges(
    model: MultipoleMACE,
    data: dict[str, Tensor],
    field: Tensor,
    epsilon_infinity: float | None = None,
) -> Tensor:
    """Forces of a uniform field on the charges of periodic structures, [n_atoms, 3], eV/Å.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary, all structures fully periodic.
        field: [n_structures, 3], V/Å.
        epsilon_infinity: as of head.born_charges.
    """
    backbone = MACEAtStructures(model, Graph.of(data))
    return head_born_charges.field_on_charges(backbone, field, epsilon_infinity)


def labelled_born_charges(
    model: MultipoleMACE, graph: Graph, training: bool, known: HeadOutput
) -> Tensor:
    """Born charges of the structures with a positive born_charges_weight, else zero.

    In training with fewer than three model.born_directions K, polarizations along as many random
    orthonormal directions d are computed, and what differs from the labels L is returned as
    L + √(3/K) Σ d ⊗ (d·Z* − d·L): on average over directions its square is that of Z* − L.

    Args:
        model: a MultipoleMACE.
        graph: structures of any boundary conditions.
        training: as of born_charges.
        known: the head's output for them.

    Returns:
        [n_atoms, 3, 3], e.
    """
    positions = graph.positions
    out = positions.new_zeros(positions.shape[0], 3, 3)
    assert graph.born_charges_weight is not None
    labelled = graph.born_charges_weight > 0
    periodic = graph.pbc.any(-1)
    held = Held.of(model.head, known, training) if training else None
    for chosen in (labelled & periodic, labelled & ~periodic):
        if bool(chosen.any()):
            part, atoms = select_structures(graph.data, chosen)
            backbone = MACEAtStructures(model, Graph.of(part))
            seen = None if held is None else held.select(chosen, atoms)
            n_directions = model.born_directions if training else 3
            if n_directions < 3:
                found = _with_some_errors(backbone, part, n_directions, seen)
            else:
                found = head_born_charges.born_charges(backbone, training=training, known=seen)
            out = out.index_copy(0, atoms, found)
    return out


def _with_some_errors(
    backbone: MACEAtStructures, data: dict[str, Tensor], n_directions: int, known: Held | None
) -> Tensor:
    """The labels of Born charges with the errors along random directions, [n_atoms, 3, 3], e."""
    batch, labels = data["batch"], data["born_charges"].view(-1, 3, 3)
    random = torch.randn(len(data["ptr"]) - 1, 3, 3, dtype=torch.float64)  # the same on any device
    directions = torch.linalg.qr(random)[0][:, :n_directions].to(labels)
    along = head_born_charges.born_charges_along(
        backbone, directions.transpose(0, 1), training=True, known=known
    )
    of_atoms = directions[batch]
    errors = along - torch.einsum("nka,nab->nkb", of_atoms, labels)
    return labels + math.sqrt(3 / n_directions) * torch.einsum("nka,nkb->nab", of_atoms, errors)


def polarizability_derivatives(model: MultipoleMACE, data: dict[str, Tensor]) -> Tensor:
    """∂α_ac/∂r_ib of the electronic polarizability, [n_atoms, 3 (b), 3 (a), 3 (c)], e² Å/eV.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary.
    """
    positions = data["positions"].detach().clone().requires_grad_(True)
    total = model.electronic_polarizability(dict(data, positions=positions)).sum(0)
    out = positions.new_zeros(positions.shape[0], 3, 3, 3)
    if not total.requires_grad:
        return out
    for a in range(3):
        for c in range(a + 1):
            (slope,) = torch.autograd.grad(
                total[a, c], positions, retain_graph=True, allow_unused=True
            )
            if slope is not None:
                out[:, :, a, c] = out[:, :, c, a] = slope
    return out
