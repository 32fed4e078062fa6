"""Energies of the atoms of a MultipoleMACE, the long-range part included."""

from __future__ import annotations

import torch
from torch import Tensor

from mace_polmp.errors import InputError
from mace_polmp.head import observables
from mace_polmp.modules.backbone import double_e0s
from mace_polmp.modules.graph import Graph
from mace_polmp.modules.model import MultipoleMACE


def atom_energies(model: MultipoleMACE, data: dict[str, Tensor]) -> Tensor:
    """Energies of the atoms, [n_atoms], eV, in double precision; they sum to the energy.

    Args:
        model: the model.
        data: upstream's batch dictionary.

    Raises:
        InputError: an external field.
    """
    graph = Graph.of(data)
    if graph.external_field is not None:
        raise InputError("energies of atoms in an external field are not defined; leave it out")
    short, out = model.long_range(graph)
    engine = model.electrostatics
    plan = graph.plan or engine.plan_of(graph.cell, graph.pbc, graph.batch)
    operator = engine.prepare(plan, graph.positions, graph.cell)
    own: Tensor = observables.atom_energies(
        engine, operator, out.multipoles, out.response, out.result
    )
    node_energy = short.outputs["node_energy"]
    assert node_energy is not None
    head = graph.data.get("head")
    heads = torch.zeros_like(graph.batch) if head is None else head[graph.batch]
    return exact_short(model, node_energy, graph.node_attrs, heads) + own.double()


def exact_short(
    model: MultipoleMACE, energies: Tensor, node_attrs: Tensor, heads: Tensor
) -> Tensor:
    """Short-range energies of atoms with E0s in double precision, whatever the model's.

    Args:
        model: the model.
        energies: [n_atoms], eV, as the backbone gives them.
        node_attrs: [n_atoms, n_elements], one-hot.
        heads: [n_atoms] int64, the head of each atom's structure.

    Returns:
        [n_atoms], eV.
    """
    table: Tensor = torch.atleast_2d(model.atomic_energies_fn.atomic_energies)
    out: Tensor = energies.double()
    if table.dtype == torch.float64:
        return out
    off = torch.atleast_2d(double_e0s(model)) - table.double()
    moved: Tensor = out + off[heads, node_attrs.argmax(-1)]
    return moved
