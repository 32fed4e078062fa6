"""Cartesian moments and derivatives of a potential, and sums that are closed under differentiation.

A multipole acts on a function of its position as L = q + μ·∇ + ½ Q:∇∇ = Σ_α m_α ∂^α, with
α = (a, b, c) and ∂^α = ∂_x^a ∂_y^b ∂_z^c: its moments m_α are a row [n_moments(2)]. The values of
a potential and its derivatives at a site, ∂^β φ, are a row of the same kind. Both solvers of
periodic structures consist of two sums over atoms that are each other's transpose,

    add up:  t_k = Σ_iα m_iα ∂^α f_k(s_i)        evaluate:  v_iβ = Σ_k t_k ∂^β f_k(s_i),

with f_k a plane wave or a mesh point's window. The derivative of either sum is the other one, or
itself with the order raised by one. As autograd functions of their own they therefore save their
inputs only, make the f_k anew block by block, and can be differentiated as often as one likes.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from mace_polmp.electrostatics.constants import kept, numbers, remembered
from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.products import full_precision, small_product
from mace_polmp.electrostatics.vmap import OneByOne

Exponents = tuple[int, int, int]


@remembered
def monomials(degree: int) -> tuple[Exponents, ...]:
    """All (a, b, c) with a + b + c = degree, x first: x·(all of degree − 1), y·(…), z·(…)."""
    return tuple(
        (a, b, degree - a - b) for a in range(degree, -1, -1) for b in range(degree - a, -1, -1)
    )


@remembered
def all_monomials(order: int) -> tuple[Exponents, ...]:
    """Those of degree 0 … order, one degree after the other."""
    return tuple(m for degree in range(order + 1) for m in monomials(degree))


def n_moments(order: int) -> int:
    """The number of moments of degree 0 … order: 1, 4, 10, 20, …; 0 below."""
    return (order + 1) * (order + 2) * (order + 3) // 6


def order_of(moments: Tensor) -> int:
    """The order of a row of moments [..., n_moments(order)]."""
    order = 0
    while n_moments(order) < moments.shape[-1]:
        order += 1
    return order


@remembered
def _raised(order: int) -> tuple[int, ...]:
    """Place of α + e_x, then of α + e_y and α + e_z, for all α up to order."""
    place = {m: n for n, m in enumerate(all_monomials(order + 1))}
    return tuple(
        place[(a + (axis == 0), b + (axis == 1), c + (axis == 2))]
        for axis in range(3)
        for a, b, c in all_monomials(order)
    )


def along_gradient(moments: Tensor, values: Tensor) -> Tensor:
    """Σ_α m_α ∂_axis v_α: the gradient of Σ_α m_α ∂^α φ.

    Args:
        moments: [..., n_moments(order)].
        values: derivatives ∂^β φ of one order more, [..., n_moments(order + 1)].

    Returns:
        [..., 3].
    """
    index = numbers(_raised(order_of(moments)), torch.int64, values.device)
    raised = values.index_select(-1, index).view(*values.shape[:-1], 3, -1)
    gradient: Tensor = (raised * moments.unsqueeze(-2)).sum(-1)
    return gradient


def cartesian(multipoles: Multipoles) -> Tensor:
    """Charge, dipole and the nine elements of the quadrupole, [n_atoms, 1, 4 or 13]."""
    columns = [multipoles.charge[:, None]]
    dipole, quadrupole = multipoles.dipole, multipoles.quadrupole
    if dipole is None and quadrupole is None:
        return columns[0]
    columns.append(multipoles.charge.new_zeros(len(columns[0]), 3) if dipole is None else dipole)
    if quadrupole is not None:
        columns.append(quadrupole.flatten(1))
    return torch.cat(columns, dim=1)


@kept()
def symmetric_rows(dtype: torch.dtype, device: torch.device) -> Tensor:
    """From the nine M_ab of ½ M_ab ∂_a ∂_b to moments xx, xy, xz, yy, yz, zz, [9, 6]."""
    place = {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 1): 3, (1, 2): 4, (2, 2): 5}
    rows = []
    for a in range(3):
        for b in range(3):
            row = [0.0] * 6
            row[place[min(a, b), max(a, b)]] = 0.5
            rows.append(row)
    return torch.tensor(rows, dtype=dtype, device=device)


def to_moments(table: Tensor) -> Tensor:
    """The moments m_α of a Cartesian table, [n_atoms, 1, 4 or 10]."""
    if table.shape[1] < 13:
        return table
    second = small_product(table[:, 4:], symmetric_rows(table.dtype, table.device))
    return torch.cat([table[:, :4], second], dim=1)


@remembered
def _cube_places(order: int) -> tuple[int, ...]:
    n = order + 1
    return tuple((a * n + b) * n + c for a, b, c in all_monomials(order))


def to_cube(moments: Tensor) -> Tensor:
    """Moments as a table over (a, b, c), zero where a + b + c > order: [..., n, n, n]."""
    n = order_of(moments) + 1
    cube = moments.new_zeros(*moments.shape[:-1], n**3)
    cube[..., numbers(_cube_places(n - 1), torch.int64, moments.device)] = moments
    out: Tensor = cube.view(*moments.shape[:-1], n, n, n)
    return out


def from_cube(cube: Tensor) -> Tensor:
    """The entries of a table [..., n, n, n] with a + b + c < n, as moments."""
    n = cube.shape[-1]
    index = numbers(_cube_places(n - 1), torch.int64, cube.device)
    return cube.flatten(-3).index_select(-1, index)


class Basis(Protocol):
    """Functions f_k at the sites s_i: plane waves, or windows around mesh points."""

    def add_up(self, moments: Tensor) -> Tensor:
        """t_k of moments [n_atoms, n_moments]; without a graph."""
        ...

    def evaluate(self, table: Tensor, order: int) -> Tensor:
        """v_iβ [n_atoms, n_moments(order)] of a table t_k; without a graph."""
        ...


class _AddUp(OneByOne):
    @staticmethod
    def forward(sites: Tensor, moments: Tensor, basis: Basis) -> Tensor:
        with full_precision(moments.device):
            return basis.add_up(moments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.basis = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        sites, moments = ctx.saved_tensors
        order = order_of(moments)
        moves = ctx.needs_input_grad[0]
        values = evaluate(sites, grad, order + 1 if moves else order, ctx.basis)
        of_sites = along_gradient(moments, values) if moves else None
        return of_sites, values[:, : moments.shape[1]], None


class _Evaluate(OneByOne):
    @staticmethod
    def forward(sites: Tensor, table: Tensor, order: int, basis: Basis) -> Tensor:
        with full_precision(table.device):
            return basis.evaluate(table, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.basis = inputs[3]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        sites, table = ctx.saved_tensors
        of_sites = None
        if ctx.needs_input_grad[0]:
            values = evaluate(sites, table, order_of(grad) + 1, ctx.basis)
            of_sites = along_gradient(grad, values)
        of_table = add_up(sites, grad, ctx.basis) if ctx.needs_input_grad[1] else None
        return of_sites, of_table, None, None


def add_up(sites: Tensor, moments: Tensor, basis: Basis) -> Tensor:
    """t_k = Σ_iα m_iα ∂^α f_k(s_i), differentiable to any order.

    Args:
        sites: fractional coordinates s, [n_atoms, 3], those that basis was made for.
        moments: with respect to them, [n_atoms, n_moments(order)].
        basis: the functions f_k.
    """
    out: Tensor = _AddUp.apply(sites, moments, basis)  # type: ignore[no-untyped-call]
    return out


def evaluate(sites: Tensor, table: Tensor, order: int, basis: Basis) -> Tensor:
    """v_iβ = Re Σ_k t_k* ∂^β f_k(s_i) for |β| ≤ order, differentiable to any order.

    Args:
        sites: fractional coordinates s, [n_atoms, 3], those that basis was made for.
        table: one t_k for every function of the basis.
        order: of the highest derivative.
        basis: the functions f_k.

    Returns:
        [n_atoms, n_moments(order)], derivatives with respect to the fractional coordinates.
    """
    out: Tensor = _Evaluate.apply(sites, table, order, basis)  # type: ignore[no-untyped-call]
    return out
