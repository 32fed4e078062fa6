"""Potentials of moments at the other atoms of open structures, closed under differentiation.

Multipoles act as Σ_α m_α ∂^α (moments.py). The potential of all other atoms of a structure and its
derivatives at atom i are

    v_iα = Σ_{j ≠ i} Σ_β (−1)^|β| m_jβ D_{α+β}(r_i − r_j),   D_γ = ∂^γ f,

with the smeared Coulomb kernel f. Their derivative by the moments is the same sum with the gradient
for a source; by the positions, both sums with the order raised by one. As an autograd function of
its own this saves its inputs only and can be differentiated as often as one likes.

D comes from the radial functions B_n by the recursion of McMurchie and Davidson, J. Comput. Phys.
26, 218 (1978): with H^n_0 = (−1)^n B_n, H^n_{γ+e} = r_e H^{n+1}_γ + γ_e H^{n+1}_{γ−e}, D = H^0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.constants import kept
from mace_polmp.electrostatics.kernels import smeared_kernels
from mace_polmp.electrostatics.moments import (
    all_monomials,
    along_gradient,
    monomials,
    n_moments,
    order_of,
)
from mace_polmp.electrostatics.pairs import Pairs
from mace_polmp.electrostatics.products import full_precision
from mace_polmp.electrostatics.vmap import OneByOne


def pair_values(
    positions: Tensor, moments: Tensor, order: int, pairs: Pairs, smearing: float
) -> Tensor:
    """v_iα for |α| ≤ order, differentiable to any order.

    Args:
        positions: [n_atoms, 3], Å.
        moments: [n_sources, n_atoms, n_moments(l)] of l ≤ order.
        order: of the highest derivative.
        pairs: of the atoms.
        smearing: σ, Å.

    Returns:
        [n_sources, n_atoms, n_moments(order)].
    """
    out: Tensor = _PairValues.apply(  # type: ignore[no-untyped-call]
        positions, moments, order, pairs, smearing
    )
    return out


class _PairValues(OneByOne):
    @staticmethod
    def forward(
        positions: Tensor, moments: Tensor, order: int, pairs: Pairs, smearing: float
    ) -> Tensor:
        with full_precision(positions.device):
            return _evaluate(positions, moments, order, pairs, smearing)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.order, ctx.pairs, ctx.smearing = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        positions, moments = ctx.saved_tensors
        order, rest = ctx.order, (ctx.pairs, ctx.smearing)
        n = moments.shape[-1]
        if not ctx.needs_input_grad[0]:
            return None, pair_values(positions, grad, order, *rest)[..., :n], None, None, None
        wide = _padded(moments, grad.shape[-1])
        both = pair_values(positions, torch.cat([wide, grad]), order + 1, *rest)
        of_moments, of_grad = both.chunk(2)
        # Σ g ∂v(m) and Σ m ∂v(g), of all sources.
        slopes = along_gradient(torch.cat([grad, wide]), both)
        return slopes.sum(0), of_grad[..., :n], None, None, None


def _padded(moments: Tensor, width: int) -> Tensor:
    """Moments with zeros for those of a higher order."""
    missing = width - moments.shape[-1]
    return torch.nn.functional.pad(moments, (0, missing)) if missing else moments


def _evaluate(
    positions: Tensor, moments: Tensor, order: int, pairs: Pairs, smearing: float
) -> Tensor:
    """v_iα without a graph."""
    lowest, width = order_of(moments), n_moments(order)
    n_sources, n_atoms = moments.shape[:2]
    signs_in, signs_out = _signs(lowest, moments), _signs(order, moments)
    total = moments.new_zeros(n_atoms, width, n_sources)
    table = moments.permute(1, 2, 0)  # [n_atoms, n, n_sources]
    for block in pairs.blocks():
        first, second = pairs.indices(block)
        matrix = _interaction(positions[first] - positions[second], order, lowest, smearing)
        # What j makes at i, and i at j, which sees the vector turned round.
        sources = torch.cat([table[second] * signs_in, table[first]], dim=2)
        values = torch.bmm(matrix, sources)
        total.index_add_(0, first, values[..., :n_sources])
        total.index_add_(0, second, values[..., n_sources:] * signs_out)
    return total.permute(2, 0, 1).contiguous()


def _interaction(r: Tensor, order: int, lowest: int, smearing: float) -> Tensor:
    """D_{α+β} of vectors [n_pairs, 3]: [n_pairs, n_moments(order), n_moments(lowest)]."""
    top, r = order + lowest, r.t().contiguous()
    radial = smeared_kernels((r * r).sum(0), smearing, top)
    radial = radial * _alternating(top, radial.dtype, radial.device)
    degrees = [radial[:, None]]  # by degree d, H^n_γ for n = 0 … top − d, [n, n_γ, n_pairs]
    for degree in range(1, top + 1):
        parents, axes, grandparents, factors = _recursion(degree, r.dtype, r.device)
        new = degrees[-1][1:].index_select(1, parents) * r.index_select(0, axes)
        if degree > 1:
            older = degrees[-2][1:-1].index_select(1, grandparents)
            new = torch.addcmul(new, older, factors)
        degrees.append(new)
    derivatives = torch.cat([values[0] for values in degrees]).t().contiguous()
    index = _sums_of_orders(order, lowest, r.device)
    return derivatives.index_select(1, index).view(-1, n_moments(order), n_moments(lowest))


@kept()
def _recursion(
    degree: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every γ of a degree: the place of γ − e, e, the place of γ − 2e, and γ_e − 1.

    Where γ_e is 1 there is no γ − 2e, and the factor is 0.
    """
    before = {m: n for n, m in enumerate(monomials(degree - 1))}
    older = {m: n for n, m in enumerate(monomials(degree - 2))} if degree > 1 else {}
    rows = []
    for gamma in monomials(degree):
        axis = max(range(3), key=lambda e: gamma[e])
        x, y, z = (int(e == axis) for e in range(3))
        a, b, c = gamma
        parent, grandparent = (a - x, b - y, c - z), (a - 2 * x, b - 2 * y, c - 2 * z)
        rows.append((before[parent], axis, older.get(grandparent, 0), gamma[axis] - 1))
    columns = [torch.tensor(column, device=device) for column in zip(*rows, strict=True)]
    parents, axes, grandparents, factors = columns
    return parents, axes, grandparents, factors.to(dtype)[:, None]


@kept()
def _sums_of_orders(order: int, lowest: int, device: torch.device) -> Tensor:
    """The place of α + β for every α up to order and β up to lowest."""
    place = {m: n for n, m in enumerate(all_monomials(order + lowest))}
    found = [
        place[(a[0] + b[0], a[1] + b[1], a[2] + b[2])]
        for a in all_monomials(order)
        for b in all_monomials(lowest)
    ]
    return torch.tensor(found, device=device)


@kept()
def _alternating(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(−1)^n for n = 0 … order, [order + 1, 1]."""
    signs = [1.0 if n % 2 == 0 else -1.0 for n in range(order + 1)]
    return torch.tensor(signs, dtype=dtype, device=device)[:, None]


def _signs(order: int, like: Tensor) -> Tensor:
    """(−1)^|α| for every α up to order, [n_moments(order), 1]."""
    return _parity(order, like.dtype, like.device)


@kept()
def _parity(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    signs = [1.0 if sum(alpha) % 2 == 0 else -1.0 for alpha in all_monomials(order)]
    return torch.tensor(signs, dtype=dtype, device=device)[:, None]
