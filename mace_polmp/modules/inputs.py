"""What the model makes of its inputs: strain, total charges, the field, exact energies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics import ElectrostaticsResult
from mace_polmp.electrostatics.engine import acting_on_charges
from mace_polmp.electrostatics.products import small_product


def total_charges(data: dict[str, Tensor]) -> Tensor:
    """The total charge of each structure, [n_structures], e; 0 where data has none."""
    positions = data["positions"]
    total = data.get("total_charge")
    if total is None:
        return positions.new_zeros(data["ptr"].numel() - 1)
    return total.view(-1).to(positions)


def field_on_induced_charges(
    data: dict[str, Tensor], result: ElectrostaticsResult
) -> ElectrostaticsResult:
    """Add −Σ Δq_i r_i·F: first order in the field, so that −∂E/∂F is the whole dipole."""
    batch = data["batch"]
    field = acting_on_charges(
        data["applied_field"], data["cell"].reshape(-1, 3, 3), data["pbc"].reshape(-1, 3)
    )
    per_atom = -result.induced_charge * (data["positions"] * field[batch]).sum(-1)
    energy = torch.zeros_like(result.energy).index_add(0, batch, per_atom)
    return replace(
        result,
        energy=result.energy + energy,
        energy_induced_charge=result.energy_induced_charge + energy,
    )


def strain(data: dict[str, Tensor], strained: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A copy of data whose positions, cell and shifts depend on a displacement.

    The displacement [n_structures, 3, 3] is zero; derivatives with respect to it give virials
    and stress.
    """
    positions = data["positions"].requires_grad_(True)
    n_structures = data["ptr"].numel() - 1
    displacement = positions.new_zeros(n_structures, 3, 3)
    if not strained:
        return dict(data), displacement
    displacement.requires_grad_(True)
    symmetric = 0.5 * (displacement + displacement.transpose(-1, -2))
    batch = data["batch"]
    cell = data["cell"].reshape(-1, 3, 3)
    cell = cell + small_product(cell, symmetric)
    senders = batch[data["edge_index"][0]]
    shifts = small_product(data["unit_shifts"][:, None, :], cell[senders])
    moved = small_product(positions[:, None, :], symmetric[batch])
    strained_positions = positions + moved.squeeze(1)
    out = dict(data)
    out.update(positions=strained_positions, cell=cell.view(-1, 3), shifts=shifts.squeeze(1))
    return out, displacement


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
