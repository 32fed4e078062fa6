"""Energies in an external field that the engine does not have: of bonds, of induced charges."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor

from mace_polmp.electrostatics import ElectrostaticsResult, Plan
from mace_polmp.electrostatics.external_field import acting_on_charges
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.errors import InputError


class FieldInput(Protocol):
    """Structures in a field, as HeadInput has them."""

    @property
    def positions(self) -> Tensor: ...
    @property
    def cell(self) -> Tensor: ...
    @property
    def pbc(self) -> Tensor: ...
    @property
    def external_field(self) -> Tensor | None: ...


def check_conserved(plan: Plan) -> None:
    """Refuse open structures in a field whose induced charges need not sum to zero.

    Raises:
        InputError: names the first.
    """
    for number, flags in enumerate(plan.shape.pbc):
        if not any(flags):
            raise InputError(
                f"external_field: structure {number} is open (pbc F F F), and the model's "
                "self-consistent induced charges do not sum to zero there: what a field induces "
                "would depend on the origin of the coordinates. Train with --conserve_charge or "
                "--constrain_charge, or use a model without induced charges"
            )


def with_field_on_bonds(
    inputs: FieldInput, result: ElectrostaticsResult, moments: Tensor, sums: AtomSums
) -> ElectrostaticsResult:
    """Add −D·F of the charges along periodic directions, where the engine has dipoles only."""
    field = inputs.external_field
    assert field is not None
    along = field - acting_on_charges(field, inputs.cell, inputs.pbc)
    energy = sums.own(-(moments * sums.at_atoms(along)).sum(-1))
    return replace(
        result,
        energy=result.energy + energy,
        energy_permanent=result.energy_permanent + energy,
    )


def with_field_on_induced_charges(
    inputs: FieldInput, result: ElectrostaticsResult, sums: AtomSums
) -> ElectrostaticsResult:
    """Add −Σ Δq_i r_i·F: first order in the field, so that −∂E/∂F is the whole dipole."""
    assert inputs.external_field is not None
    field = sums.at_atoms(acting_on_charges(inputs.external_field, inputs.cell, inputs.pbc))
    energy = sums.own(-result.induced_charge * (inputs.positions * field).sum(-1))
    return replace(
        result,
        energy=result.energy + energy,
        energy_induced_charge=result.energy_induced_charge + energy,
    )
