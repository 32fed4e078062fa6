"""The equations of the self-consistent response, and derivatives of their solution.

(1 + T D) y = b, with the interaction T of charges and dipoles and the response coefficients D. The
derivative of y follows from the implicit function theorem: for one cotangent g another solution z
of the same equations with T g on the right, and then

    ν = g − D z,    g·dy = ν·db − ν·dT D y − z·dD y,

which is differentiated in the same way as often as is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.coefficients import Couplings
from mace_polmp.electrostatics.conjugate_gradients import Solution, default_tolerance, solve
from mace_polmp.electrostatics.multipoles import Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.operator import FieldOperator
from mace_polmp.electrostatics.recompute import recomputed
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
            response.softness is not None or response.bonds is not None,
            response.polarizability is not None,
            conserved,
            None if response.bonds is None else response.bonds.at_rest(),
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
            rounding=self.couplings.rounding(softness, rhs),
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
        return completed(equations, rhs, softness, polarizability)

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
            own = leaves_of(where, self.needed[1:], keep)
            induced = induce(where[2], where[3], drive)
            moved = equations.operator.at(own[0], own[1])
            by_place = -(by_rhs * equations.interact(moved, induced)).sum()
            by_coefficient = -(z * induce(own[2], own[3], drive)).sum()
            found = [
                *_slopes(by_place, own[:2], self.needed[1:3], keep),
                *_slopes(by_coefficient, own[2:], self.needed[3:], keep),
            ]
        return (*([by_rhs] if self.needed[0] else []), *found)


def leaves_of(values: tuple[Tensor, ...], needed: tuple[bool, ...], keep: bool) -> list[Tensor]:
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


def completed(
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
        softness, polarizability: see placeholders; any tensors where there are none.
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


def placeholders(response: ResponseCoefficients, like: Tensor) -> tuple[Tensor, Tensor]:
    """Softness, of atoms or bonds, and polarizability; zero where there is none.

    Args:
        response: coefficients.
        like: [n_atoms].
    """
    softness, alpha = response.softness, response.polarizability
    if response.bonds is not None:
        softness = response.bonds.softness
    none = torch.zeros_like(like)
    if alpha is not None and alpha.dim() == 3:  # derivatives are those of symmetric tensors
        alpha = 0.5 * (alpha + alpha.transpose(1, 2))
    return none if softness is None else softness, none if alpha is None else alpha
