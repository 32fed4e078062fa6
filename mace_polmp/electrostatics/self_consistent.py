"""Self-consistent linear response: induced charges and dipoles feel each other.

The energy is the least value of one functional of what is induced, x = (Δq, Δμ),

    E[x] = E_perm(q + Δq, μ + Δμ, Q) + ½ Σ Δq²/κ + ½ Σ Δμ·α⁻¹·Δμ − F·D,

the energy of all multipoles plus the cost of polarizing. With T for the interaction of charges and
dipoles, D = diag(κ, α) and b for minus potential and field of the permanent multipoles (external
field included) its solution is x = D y with (1 + T D) y = b; T = 0 there is the one-step response.
Coefficients may be zero: nothing is divided by them.

With charges that are induced along bonds (bonds.py), t_e = k_e (y_i − y_j + F·r_e), D is the
Laplacian of the graph and a field adds a constant c_i = Σ_{e → i} k_e F·r_e: x = D y + c with
(1 + T D) y = b − T c, and E = E_perm + ½ y·D y − ½ Σ_pairs k_e (F·r_e)² − F·D_perm. There b has no
part of the field on charges, whose place does not matter then.

At the solution E does not change with y, so that first derivatives are those of the functional at
fixed y (Hellmann and Feynman). Higher ones need dy: see equations.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.bonds import BondResponse
from mace_polmp.electrostatics.equations import (
    Equations,
    completed,
    driven,
    leaves_of,
    placeholders,
)
from mace_polmp.electrostatics.external_field import ExternalField
from mace_polmp.electrostatics.multipoles import Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.operator import FieldOperator
from mace_polmp.electrostatics.result import ElectrostaticsResult, Permanent


@dataclass(frozen=True, eq=False)
class _Functional:
    """E[y], [n_structures], of all that it depends on."""

    equations: Equations
    names: tuple[str, ...]

    def __call__(self, drive: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(self.names, values, strict=True))
        equations, couplings = self.equations, self.equations.couplings
        sums = couplings.sums
        x = couplings.induced(given["softness"], given["polarizability"], drive)
        cost = 0.5 * (x * drive).sum(1)
        if "vectors" in given:
            bonds = couplings.bonds
            assert bonds is not None
            bonds = replace(bonds, softness=given["softness"], vectors=given["vectors"])
            along = bonds.along(sums.at_atoms(given["whole"]))
            x = x + as_sources(bonds.of_field(along, len(x)))
            cost = cost - bonds.to_atoms(0.25 * bonds.softness * along**2, len(x))
        permanent = Multipoles(given["charge"], given.get("dipole"), given.get("quadrupole"))
        total = with_induced(permanent, x, couplings.has_dipoles)
        energy = equations.operator.at(given["positions"], given["cell"]).energy(total)
        energy = energy + sums.own(cost)
        if "whole" in given:
            external = ExternalField(given["whole"], given["on_charges"])
            if couplings.bonds is not None:  # whose charges have their energy already
                total = replace(total, charge=permanent.charge)
            energy = energy + external.energy(given["positions"], sums, total)
        return energy


@dataclass(frozen=True, eq=False)
class _Solved:
    """What derivatives of the energy need besides the tensors they are taken by.

    Attributes:
        functional: E[y].
        drive: the solution y, with its derivatives. It is no input of the energy: first
            derivatives must not even visit it.
        graph: the energy at fixed y with its graph, and the leaves of that; None without one.
    """

    functional: _Functional
    drive: Tensor
    graph: tuple[Tensor, list[Tensor]] | None


class _Stationary(torch.autograd.Function):
    """The energy with derivatives at fixed y, which itself depends on all else in higher ones."""

    @staticmethod
    def forward(solved: _Solved, energy: Tensor, *values: Tensor) -> Tensor:
        return energy.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.solved = inputs[0]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed, solved = ctx.needs_input_grad[2:], ctx.solved
        keep = torch.is_grad_enabled()
        if keep or solved.graph is None:
            drive = solved.drive if keep else solved.drive.detach()
            with torch.enable_grad():
                leaves = leaves_of(ctx.saved_tensors, needed, keep)
                energy = solved.functional(drive, *leaves)
        else:
            energy, leaves = solved.graph
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        slopes = iter(
            torch.autograd.grad(
                energy,
                wanted,
                grad,
                create_graph=keep,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        return (None,) * 2 + tuple(next(slopes) if need else None for need in needed)


def _energy(functional: _Functional, drive: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """E[y] of a solution y, whose derivatives are those at fixed y."""
    needed = tuple(value.requires_grad for value in values)
    graph = None
    if torch.is_grad_enabled() and any(needed):
        leaves = leaves_of(values, needed, keep=False)
        energy = functional(drive.detach(), *leaves)
        graph = (energy, leaves)
    else:
        energy = functional(drive.detach(), *values)
    out: Tensor = _Stationary.apply(  # type: ignore[no-untyped-call]
        _Solved(functional, drive, graph), energy.detach(), *values
    )
    return out


def with_induced(multipoles: Multipoles, induced: Tensor, has_dipoles: bool) -> Multipoles:
    """Permanent and induced multipoles together.

    Args:
        multipoles: the permanent ones.
        induced: x, [n_atoms, 4], e and e Å.
        has_dipoles: whether dipoles are among what is induced.
    """
    dipole = multipoles.dipole
    if has_dipoles:
        dipole = induced[:, 1:] if dipole is None else dipole + induced[:, 1:]
    return replace(multipoles, charge=multipoles.charge + induced[:, 0], dipole=dipole)


def as_sources(charge: Tensor) -> Tensor:
    """Charges [n_atoms] as sources without dipoles, [n_atoms, 4]."""
    return torch.cat([charge[:, None], charge.new_zeros(len(charge), 3)], 1)


def driven_along_bonds(
    bonds: BondResponse | None,
    external: ExternalField,
    equations: Equations,
    operator: FieldOperator,
    rhs: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """b of a field and what it induces along bonds.

    Args:
        bonds: edges, or None.
        external: the field.
        equations: of the structures.
        operator: of their positions, with derivatives.
        rhs: b without the field, [n_atoms, 4].

    Returns:
        b, b − T c and F·r_e of the edges, [n_edges], the last None without bonds.
    """
    sums = equations.couplings.sums
    if bonds is None:
        rhs = rhs + external.drive(operator.positions, sums)
        return rhs, rhs, None
    on_dipoles = replace(external, on_charges=torch.zeros_like(external.on_charges))
    rhs = rhs + on_dipoles.drive(operator.positions, sums)
    along = bonds.along(sums.at_atoms(external.whole))
    flow = as_sources(bonds.of_field(along, len(rhs)))
    return rhs, rhs - equations.interact(operator, flow), along


def respond(
    known: Permanent,
    response: ResponseCoefficients,
    external: ExternalField | None,
    equations: Equations,
    valid: Tensor,
    own: Tensor | None = None,
) -> ElectrostaticsResult:
    """Add what is induced self-consistently.

    Args:
        known: of the permanent multipoles.
        response: softness and polarizability, or None for those that are not there.
        external: the external field.
        equations: of the structures.
        valid: 1, or NaN to give NaN.
        own: a part of the permanent energy that what is induced does not change, [n_structures],
            eV, or None.

    Raises:
        ValueError: the iterations do not converge.
    """
    assert known.potential is not None and known.field is not None
    positions, multipoles, couplings = known.positions, known.multipoles, equations.couplings
    softness, polarizability = placeholders(response, multipoles.charge)
    values = {
        "positions": positions,
        "cell": known.cell,
        "softness": softness,
        "polarizability": polarizability,
        "charge": multipoles.charge,
        "dipole": multipoles.dipole,
        "quadrupole": multipoles.quadrupole,
    }
    bonds, along = response.bonds, None
    alone = rhs = valid * torch.cat([-known.potential[:, None], known.field], 1)
    if external is not None:
        values |= {"whole": external.whole, "on_charges": external.on_charges}
        values["vectors"] = None if bonds is None else bonds.vectors
        found = driven_along_bonds(bonds, external, equations, known.operator, rhs)
        alone, rhs, along = found
    with torch.no_grad():
        solution = completed(equations, rhs, softness, polarizability)
    drive = driven(equations, rhs, positions, known.cell, softness, polarizability, solution)
    given = {name: value for name, value in values.items() if value is not None}
    energy = _energy(_Functional(equations, tuple(given)), drive, tuple(given.values()))
    if own is not None:
        energy = energy + own
    induced = couplings.induced(softness, polarizability, drive)
    half, moment = torch.zeros_like(induced[:, 0]), None
    if bonds is not None:
        moved = bonds.moved(drive[:, 0], along)
        moment = bonds.moments(moved, len(induced))
        if along is not None:
            induced = induced + as_sources(bonds.of_field(along, len(induced)))
            half = bonds.to_atoms(-0.25 * moved * along, len(induced))
    by_charge = couplings.sums.own(half - 0.5 * alone[:, 0] * induced[:, 0])
    return ElectrostaticsResult(
        energy=energy,
        energy_permanent=known.energy,
        energy_induced_charge=by_charge,
        energy_induced_dipole=energy - known.energy - by_charge,
        potential=known.potential,
        field=known.field,
        induced_charge=induced[:, 0],
        induced_dipole=induced[:, 1:],
        drive=drive,
        induced_moment=moment,
    )
