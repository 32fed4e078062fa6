"""Upstream's batch dictionary, with every entry that the model reads declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mace_polmp.electrostatics import Plan
from mace_polmp.electrostatics.products import small_product


@dataclass(frozen=True, eq=False)
class Graph:
    """A batch of structures.

    Attributes:
        data: upstream's dictionary, for upstream.
        positions: [n_atoms, 3], Å.
        cell: [n_structures, 3, 3], Å.
        pbc: [n_structures, 3] bool.
        batch: [n_atoms] int64.
        edge_index: [2, n_edges], sender and receiver.
        shifts: [n_edges, 3], Å.
        node_attrs: [n_atoms, n_elements], one-hot.
        total_charge: [n_structures], e; data["total_charge"].
        external_field: [n_structures, 3], V/Å; data["applied_field"].
        epsilon_infinity: ε∞ of that field in place of the model's own; data["epsilon_infinity"].
        born_charges_weight: [n_structures]; structures with a positive one get Born charges.
        plan: of the electrostatics; data["plan"].
    """

    data: dict[str, Any]
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    edge_index: Tensor
    shifts: Tensor
    node_attrs: Tensor
    total_charge: Tensor | None = None
    external_field: Tensor | None = None
    epsilon_infinity: Tensor | None = None
    born_charges_weight: Tensor | None = None
    plan: Plan | None = None

    @classmethod
    def of(cls, data: dict[str, Any]) -> Graph:
        """From upstream's dictionary, which stays as it is.

        Raises:
            KeyError: data lacks "pbc".
        """
        if "pbc" not in data:
            raise KeyError(
                "data lacks 'pbc' [n_structures, 3]; the boundary conditions are not guessed"
            )
        # Other programs give cells as views that upstream cannot reshape.
        cell = data["cell"].reshape(-1, 3, 3)
        weight, charge = data.get("born_charges_weight"), data.get("total_charge")
        return cls(
            data=dict(data, cell=cell.reshape(-1, 3).contiguous()),
            positions=data["positions"],
            cell=cell,
            pbc=data["pbc"].reshape(-1, 3),
            batch=data["batch"],
            edge_index=data["edge_index"],
            shifts=data["shifts"],
            node_attrs=data["node_attrs"],
            total_charge=None if charge is None else charge.view(-1).to(data["positions"]),
            external_field=data.get("applied_field"),
            epsilon_infinity=data.get("epsilon_infinity"),
            born_charges_weight=None if weight is None else weight.view(-1),
            plan=data.get("plan"),
        )

    def moved(self, positions: Tensor, shifts: Tensor, in_field: bool = False) -> Graph:
        """With other positions and edge shifts, and without the field if it is not wanted."""
        data = {k: v for k, v in self.data.items() if in_field or k != "applied_field"}
        return Graph.of(dict(data, positions=positions, shifts=shifts))

    def strained(self, with_strain: bool) -> tuple[Graph, Tensor]:
        """Positions, cell and shifts as functions of a displacement, and the displacement.

        The displacement [n_structures, 3, 3] is zero; derivatives with respect to it give virials
        and stress.

        Args:
            with_strain: whether it has derivatives.
        """
        positions = self.positions
        if not positions.requires_grad:
            positions.requires_grad_(True)
        displacement = positions.new_zeros(self.pbc.shape[0], 3, 3)
        if not with_strain:
            return self, displacement
        displacement.requires_grad_(True)
        symmetric = 0.5 * (displacement + displacement.transpose(-1, -2))
        cell = self.cell + small_product(self.cell, symmetric)
        senders = self.batch[self.edge_index[0]]
        shifts = small_product(self.data["unit_shifts"][:, None, :], cell[senders])
        moved = small_product(positions[:, None, :], symmetric[self.batch])
        data = dict(
            self.data,
            positions=positions + moved.squeeze(1),
            cell=cell.reshape(-1, 3).contiguous(),
            shifts=shifts.squeeze(1),
        )
        return Graph.of(data), displacement
