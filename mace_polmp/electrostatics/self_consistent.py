"""Self-consistent linear response: induced charges and dipoles feel each other.

The energy is the least value of one functional of what is induced, x = (Δq, Δμ),

    E[x] = E_perm(q + Δq, μ + Δμ, Q) + ½ Σ Δq²/κ + ½ Σ Δμ·α⁻¹·Δμ − F·D,

the energy of all multipoles plus the cost of polarizing. With T for the interaction of charges and
dipoles, D = diag(κ, α) and b for minus potential and field of the permanent multipoles (external
field included) its solution is x = D y with (1 + T D) y = b; T = 0 there is the one-step response.
Coefficients may be zero: nothing is divided by them.

At the solution E does not change with y, so that first derivatives are those of the functional at
fixed y (Hellmann and Feynman). Higher ones need dy, by the implicit function theorem: for one
cotangent g another solution z of the same equations with T g on the right, and then

    ν = g − D z,    g·dy = ν·db − ν·dT D y − z·dD y,

which is differentiated in the same way as often as is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.coefficients import Couplings
from mace_polmp.electrostatics.conjugate_gradients import Solution, default_tolerance, solve
from mace_polmp.electrostatics.external_field import ExternalField
from mace_polmp.electrostatics.multipoles import Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.operator import FieldOperator
from mace_polmp.electrostatics.recompute import recomputed
from mace_polmp.electrostatics.result import ElectrostaticsResult, Permanent
from mace_polmp.electrostatics.vmap import OneByOne


@dataclass(frozen=True, eq=False)
class Equations:
    """(1 + T D) y = b of a batch of structures, but for the tensors it is differentiated by.

    Attributes:
        operator: of the structures at their positions, without derivatives.
        couplings: which coefficients there are.
        tolerance: relative residual.
    """

    operator: FieldOperator
    couplings: Couplings
    tolerance: float

    @classmethod
    def of(
        cls,
        operator: FieldOperator,
        cell: Tensor,
        response: ResponseCoefficients,
        conserve_charge: bool,
        tolerance: float | None = None,
        in_field: bool = False,
    ) -> Equations:
        """Of structures and the kind of their response.

        Args:
            operator: of the structures.
            cell: [n_structures, 3, 3], Å.
            response: softness and polarizability, or None for those that are not there.
            conserve_charge: induced charges sum to zero in each structure; in slabs they always
                do, since the energy of a charged slab is not defined.
            tolerance: relative residual; None for that of the precision.
            in_field: of what a field induces alone: charges then sum to zero in open structures,
                too, since anything else depends on the origin of the coordinates.
        """
        plan, dtype = operator.plan, operator.positions.dtype
        conserved = None
        if response.softness is not None and (conserve_charge or plan.has_slabs or in_field):
            n_periodic = plan.pbc.sum(1, keepdim=True)
            conserved = torch.ones_like(n_periodic, dtype=dtype)
            if not conserve_charge:
                conserved = ((n_periodic < 3) if in_field else (n_periodic == 2)).to(dtype)
        couplings = Couplings(
            plan.sums,
            response.softness is not None,
            response.polarizability is not None,
            conserved,
        )
        at_rest = operator.at(operator.positions.detach(), cell.detach())
        return cls(at_rest, couplings, tolerance or default_tolerance(dtype))

    def sources(self, induced: Tensor) -> Multipoles:
        """x as charges and dipoles."""
        dipole = induced[:, 1:] if self.couplings.has_dipoles else None
        return Multipoles(induced[:, 0], dipole)

    def interact(self, operator: FieldOperator, induced: Tensor) -> Tensor:
        """T x: potential and minus the field, [n_atoms, 4]."""
        potential, field = operator.field(self.sources(induced))
        return torch.cat([potential[:, None], -field], 1)

    def solved(self, rhs: Tensor, softness: Tensor, polarizability: Tensor) -> Solution:
        """By conjugate gradients, without derivatives."""
        return solve(
            lambda x: self.interact(self.operator, x),
            lambda y: self.couplings.induced(softness, polarizability, y),
            rhs.detach(),
            self.couplings.sums,
            self.tolerance,
        )


class _Drive(OneByOne):
    """y(b, positions, cell, κ, α), differentiable any number of times."""

    @staticmethod
    def forward(
        equations: Equations,
        known: Tensor | None,
        rhs: Tensor,
        positions: Tensor,
        cell: Tensor,
        softness: Tensor,
        polarizability: Tensor,
    ) -> Tensor:
        if known is not None:
            return known.clone()
        return _completed(equations, rhs, softness, polarizability)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.equations = inputs[0]
        ctx.save_for_backward(*inputs[2:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, *where, drive = ctx.saved_tensors
        needed = tuple(ctx.needs_input_grad[2:])
        found = iter(recomputed(_Adjoint(ctx.equations, needed), grad, drive, *where))
        return (None, None, *(next(found) if need else None for need in needed))


@dataclass(frozen=True, eq=False)
class _Adjoint:
    """g·dy by b, positions, cell, κ and α where they are needed, as a function of tensors."""

    equations: Equations
    needed: tuple[bool, ...]

    def __call__(self, grad: Tensor, drive: Tensor, *where: Tensor) -> tuple[Tensor, ...]:
        keep = torch.is_grad_enabled()
        equations = self.equations
        induce = equations.couplings.induced
        operator = equations.operator.at(where[0], where[1])
        source = equations.interact(operator, grad)
        z = driven(equations, source, *where)
        by_rhs = grad - induce(where[2], where[3], z)
        with torch.enable_grad():
            own = _leaves(where, self.needed[1:], keep)
            induced = induce(where[2], where[3], drive)
            moved = equations.operator.at(own[0], own[1])
            by_place = -(by_rhs * equations.interact(moved, induced)).sum()
            by_coefficient = -(z * induce(own[2], own[3], drive)).sum()
            found = [
                *_slopes(by_place, own[:2], self.needed[1:3], keep),
                *_slopes(by_coefficient, own[2:], self.needed[3:], keep),
            ]
        return (*([by_rhs] if self.needed[0] else []), *found)


def _leaves(values: tuple[Tensor, ...], needed: tuple[bool, ...], keep: bool) -> list[Tensor]:
    """Tensors to differentiate by, of which others with the same values do not know."""
    return [
        value.view_as(value)
        if keep and value.requires_grad
        else value.detach().requires_grad_(need)
        for value, need in zip(values, needed, strict=True)
    ]


def _slopes(value: Tensor, by: list[Tensor], needed: tuple[bool, ...], keep: bool) -> list[Tensor]:
    wanted = [tensor for tensor, need in zip(by, needed, strict=True) if need]
    if not wanted:
        return []
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in wanted]
    return list(
        torch.autograd.grad(
            value, wanted, create_graph=keep, allow_unused=True, materialize_grads=True
        )
    )


def _completed(
    equations: Equations, rhs: Tensor, softness: Tensor, polarizability: Tensor
) -> Tensor:
    """The solution, with y = b − T x also where coefficients are zero and nothing needs it.

    Derivatives by these coefficients do.
    """
    found = equations.solved(rhs, softness, polarizability)
    missing = equations.couplings.without(softness, polarizability)
    return torch.where(missing, found.drive + found.residual, found.drive)


def driven(
    equations: Equations,
    rhs: Tensor,
    positions: Tensor,
    cell: Tensor,
    softness: Tensor,
    polarizability: Tensor,
    known: Tensor | None = None,
) -> Tensor:
    """y of (1 + T D) y = b, differentiable any number of times.

    Args:
        equations: of the structures.
        rhs: b, [n_atoms, 4], V and V/Å.
        positions, cell: as of the engine.
        softness, polarizability: coefficients; any tensors where there are none.
        known: the solution, where it is known.

    Returns:
        [n_atoms, 4].

    Raises:
        ValueError: the iterations do not converge.
    """
    out: Tensor = _Drive.apply(  # type: ignore[no-untyped-call]
        equations, known, rhs, positions, cell, softness, polarizability
    )
    return out


@dataclass(frozen=True, eq=False)
class _Functional:
    """E[y], [n_structures], of all that it depends on."""

    equations: Equations
    names: tuple[str, ...]

    def __call__(self, drive: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(self.names, values, strict=True))
        equations, sums = self.equations, self.equations.couplings.sums
        x = equations.couplings.induced(given["softness"], given["polarizability"], drive)
        permanent = Multipoles(given["charge"], given.get("dipole"), given.get("quadrupole"))
        total = with_induced(permanent, x, equations.couplings.has_dipoles)
        energy = equations.operator.at(given["positions"], given["cell"]).energy(total)
        energy = energy + sums.own(0.5 * (x * drive).sum(1))
        if "whole" in given:
            external = ExternalField(given["whole"], given["on_charges"])
            energy = energy + external.energy(given["positions"], sums, total)
        return energy


class _Stationary(torch.autograd.Function):
    """The energy with derivatives at fixed y, which itself depends on all else in higher ones."""

    @staticmethod
    def forward(
        functional: _Functional,
        graph: tuple[Tensor, list[Tensor]] | None,
        energy: Tensor,
        drive: Tensor,
        *values: Tensor,
    ) -> Tensor:
        return energy.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.functional, ctx.graph = inputs[:2]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[4:]
        keep = torch.is_grad_enabled()
        if keep or ctx.graph is None:
            drive, *values = ctx.saved_tensors
            with torch.enable_grad():
                leaves = _leaves(tuple(values), needed, keep)
                energy = ctx.functional(drive if keep else drive.detach(), *leaves)
        else:
            energy, leaves = ctx.graph
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
        return (None,) * 4 + tuple(next(slopes) if need else None for need in needed)


def _energy(functional: _Functional, drive: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """E[y] of a solution y, whose derivatives are those at fixed y."""
    needed = tuple(value.requires_grad for value in values)
    graph = None
    if torch.is_grad_enabled() and any(needed):
        leaves = _leaves(values, needed, keep=False)
        energy = functional(drive.detach(), *leaves)
        graph = (energy, leaves)
    else:
        energy = functional(drive.detach(), *values)
    out: Tensor = _Stationary.apply(  # type: ignore[no-untyped-call]
        functional, graph, energy.detach(), drive, *values
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


def placeholders(response: ResponseCoefficients, like: Tensor) -> tuple[Tensor, Tensor]:
    """Softness and polarizability; zero where there is none.

    Args:
        response: coefficients.
        like: [n_atoms].
    """
    softness, alpha = response.softness, response.polarizability
    none = torch.zeros_like(like)
    if alpha is not None and alpha.dim() == 3:  # derivatives are those of symmetric tensors
        alpha = 0.5 * (alpha + alpha.transpose(1, 2))
    return none if softness is None else softness, none if alpha is None else alpha


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
    rhs = valid * torch.cat([-known.potential[:, None], known.field], 1)
    if external is not None:
        rhs = rhs + external.drive(positions, couplings.sums)
        values |= {"whole": external.whole, "on_charges": external.on_charges}
    with torch.no_grad():
        found = _completed(equations, rhs, softness, polarizability)
    drive = driven(equations, rhs, positions, known.cell, softness, polarizability, found)
    given = {name: value for name, value in values.items() if value is not None}
    energy = _energy(_Functional(equations, tuple(given)), drive, tuple(given.values()))
    energy = energy + (0.0 if own is None else own)
    induced = couplings.induced(softness, polarizability, drive)
    by_charge = couplings.sums.own(-0.5 * rhs[:, 0] * induced[:, 0])
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
    )
