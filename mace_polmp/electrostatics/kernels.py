"""Closed-form radial functions: Boys functions and the derivatives of the smeared Coulomb kernel.

f(r) = k_e erf(a r)/r with a = 1/(√2 σ). Its radial derivatives B_0 = f,
B_{n+1} = −(1/r) dB_n/dr are all finite and smooth at every r, 0 included, when written as
B_n(r) = k_e (2a/√π) (2a²)^n F_n(a² r²) with the Boys functions F_n.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mace_polmp.units import COULOMB_CONSTANT

# Below, F_top comes from its ascending series; above, from erf and the upward recursion, which
# loses less than one digit there for the orders used here (n ≤ 9).
_SERIES_LIMIT = 12.0


class _BoysFunctions(torch.autograd.Function):
    """F_0 … F_order at t as one function, so that dF_n/dt = −F_{n+1} holds at every order."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, order: int) -> Tensor:
        ctx.save_for_backward(t)
        ctx.order = order
        return _boys_table(t, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (t,) = ctx.saved_tensors
        higher = boys_functions(t, ctx.order + 1)
        return -(grad * higher[1:]).sum(0), None


def _boys_table(t: Tensor, order: int) -> Tensor:
    """F_0 … F_order at t, without a graph."""
    out = t.new_empty((order + 1, *t.shape))
    exp_t = torch.exp(-t)
    top = torch.where(
        t < _SERIES_LIMIT, _boys_series(t, exp_t, order), _boys_upward(t, exp_t, order)
    )
    out[order] = top
    for n in range(order - 1, -1, -1):
        out[n] = (2.0 * t * out[n + 1] + exp_t) / (2 * n + 1)
    return out


def _boys_series(t: Tensor, exp_t: Tensor, n: int) -> Tensor:
    """e^{−t} Σ_k (2t)^k / [(2n+1)(2n+3)…(2n+2k+1)]; every term positive, so no digit is lost."""
    x = 2.0 * t.clamp(max=_SERIES_LIMIT)
    terms = 60 if t.dtype == torch.float64 else 36
    one = torch.ones_like(t)
    total = one
    for k in range(terms, 0, -1):
        total = torch.addcmul(one, total, x, value=1.0 / (2 * n + 2 * k + 1))
    return exp_t * total / (2 * n + 1)


def _boys_upward(t: Tensor, exp_t: Tensor, n: int) -> Tensor:
    """F_0 = ½√(π/t) erf(√t), then F_{k+1} = [(2k+1) F_k − e^{−t}]/(2t)."""
    t = t.clamp(min=_SERIES_LIMIT)
    root = torch.sqrt(t)
    value = 0.5 * math.sqrt(math.pi) * torch.erf(root) / root
    for k in range(n):
        value = ((2 * k + 1) * value - exp_t) / (2.0 * t)
    return value


def boys_functions(t: Tensor, order: int) -> Tensor:
    """Boys functions F_n(t) = ∫₀¹ u^{2n} e^{−t u²} du for n = 0 … order.

    Args:
        t: any shape, not negative.
        order: the highest n.

    Returns:
        [order + 1, *t.shape], differentiable in t to any order.
    """
    value: Tensor = _BoysFunctions.apply(t, order)  # type: ignore[no-untyped-call]
    return value


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
    prefactors = [
        COULOMB_CONSTANT * (2.0 * a / math.sqrt(math.pi)) * (2.0 * a * a) ** n
        for n in range(order + 1)
    ]
    scale = torch.tensor(
        prefactors, dtype=distance_squared.dtype, device=distance_squared.device
    ).view(-1, *([1] * distance_squared.dim()))
    return scale * boys_functions(a * a * distance_squared, order)
