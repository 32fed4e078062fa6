"""Closed-form radial functions: Boys functions and the derivatives of the smeared Coulomb kernel.

f(r) = k_e erf(a r)/r with a = 1/(√2 σ). Its radial derivatives B_0 = f,
B_{n+1} = −(1/r) dB_n/dr are all finite and smooth at every r, 0 included, when written as
B_n(r) = k_e (2a/√π) (2a²)^n F_n(a² r²) with the Boys functions F_n.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace_polmp.electrostatics.constants import kept, remembered
from mace_polmp.electrostatics.vmap import OneByOne
from mace_polmp.units import COULOMB_CONSTANT

# F_top comes from a table of polynomials up to this t. Above it is Γ(n + ½)/(2 t^{n + ½}), which
# differs from it by less than 1e-14 of the value for the orders used here (n ≤ 9).
_TABLE_END = 64.0
# Segments per unit of t and degree of the Chebyshev interpolants.
_TABLES = {torch.float64: (4, 8), torch.float32: (2, 5)}


@kept()
def _table(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Coefficients of F_order as polynomials in u ∈ [−1, 1] of each segment, [degree + 1, n]."""
    per_unit, degree = _TABLES[dtype]
    n = int(_TABLE_END * per_unit)
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    t = (np.arange(n)[:, None] + 0.5 + 0.5 * nodes) / per_unit
    values = _exact(torch.from_numpy(t), order).numpy()
    powers = nodes[:, None] ** np.arange(degree + 1)
    found = torch.from_numpy(np.linalg.solve(powers, values.T))
    return found.to(dtype=dtype, device=device).contiguous()


def _exact(t: Tensor, n: int) -> Tensor:
    """F_n(t) in double precision: e^{−t} Σ_k (2t)^k/[(2n+1)(2n+3)…(2n+2k+1)], all terms positive.

    Far out, where that takes too many, γ(n + ½, t)/(2 t^{n + ½}).
    """
    total = torch.ones_like(t)
    for k in range(150, 0, -1):
        total = 1.0 + total * 2.0 * t / (2 * n + 2 * k + 1)
    series = torch.exp(-t) * total / (2 * n + 1)
    half = torch.full_like(t, n + 0.5)
    far = torch.special.gammainc(half, t) * math.gamma(n + 0.5) / (2.0 * t ** (n + 0.5))
    return torch.where(t < 25.0, series, far)


@remembered
def _tail(order: int) -> float:
    """(2n − 1)!! √π/2^{n+1}: F_n of large t is this over t^{n + ½}."""
    return 0.5 * math.gamma(order + 0.5)


class _BoysFunctions(OneByOne):
    """F_0 … F_order at t as one function, so that dF_n/dt = −F_{n+1} holds at every order."""

    @staticmethod
    def forward(t: Tensor, order: int) -> Tensor:
        # One more than asked for: the derivative of the others, which nothing else looks at.
        return _boys_table(t, order + 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        t, table = ctx.saved_tensors
        higher = boys_functions(t, ctx.order + 1) if torch.is_grad_enabled() else table
        return -(grad[:-1] * higher[1:]).sum(0), None


def _boys_table(t: Tensor, order: int) -> Tensor:
    """F_0 … F_order at t, without a graph."""
    per_unit, degree = _TABLES[t.dtype]
    coefficients = _table(order, t.dtype, t.device)
    place = t * per_unit
    segment = place.to(torch.int64).clamp_(0, coefficients.shape[1] - 1)
    u = torch.sub(place, segment).mul_(2.0).sub_(1.0)
    rows = coefficients.index_select(1, segment.view(-1)).view(degree + 1, *t.shape)
    value = rows[degree]
    for k in range(degree - 1, -1, -1):
        value = torch.addcmul(rows[k], value, u)
    far = t.clamp(min=_TABLE_END).pow_(-order - 0.5).mul_(_tail(order))
    out = t.new_empty((order + 1, *t.shape))
    torch.where(t < _TABLE_END, value, far, out=out[order])
    exp_t, twice = torch.exp(-t), 2.0 * t
    for n in range(order - 1, -1, -1):  # F_n = (2t F_{n+1} + e^{−t})/(2n + 1)
        torch.addcmul(exp_t, twice, out[n + 1], out=out[n]).mul_(1.0 / (2 * n + 1))
    return out


def boys_functions(t: Tensor, order: int) -> Tensor:
    """Boys functions F_n(t) = ∫₀¹ u^{2n} e^{−t u²} du for n = 0 … order.

    Args:
        t: any shape, not negative.
        order: the highest n.

    Returns:
        [order + 1, *t.shape], differentiable in t to any order.
    """
    value: Tensor = _BoysFunctions.apply(t, order)  # type: ignore[no-untyped-call]
    return value[: order + 1]


@kept()
def _prefactors(smearing: float, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """k_e (2a/√π) (2a²)^n for n = 0 … order."""
    a = 1.0 / (math.sqrt(2.0) * smearing)
    first = COULOMB_CONSTANT * (2.0 * a / math.sqrt(math.pi))
    values = [first * (2.0 * a * a) ** n for n in range(order + 1)]
    return torch.tensor(values, dtype=dtype, device=device)


def smeared_kernels(distance_squared: Tensor, smearing: float, order: int) -> Tensor:
    """B_0 … B_order of two unit charges smeared so that their interaction is erf(r/(√2σ))/r.

    Args:
        distance_squared: r², any shape, Å².
        smearing: σ, Å.
        order: the highest n.

    Returns:
        [order + 1, *shape]; B_n in eV/(e² Å^{2n}).
    """
    a = 1.0 / (math.sqrt(2.0) * smearing)
    scale = _prefactors(smearing, order, distance_squared.dtype, distance_squared.device)
    scale = scale.view(-1, *([1] * distance_squared.dim()))
    return scale * boys_functions(a * a * distance_squared, order)
