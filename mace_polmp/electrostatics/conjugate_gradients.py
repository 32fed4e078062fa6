"""Preconditioned conjugate gradients for many structures at once.

Solves (1 + T D) y = b, where T is the interaction of charges and dipoles and D the response
coefficients, both symmetric; x = D y then solves (D⁻¹ + T) x = b with the preconditioner D, also
where D has no inverse. From y = 0 the first step is along the one-step response. Every structure
has its own numbers, and those that have converged stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.sums import AtomSums

Map = Callable[[Tensor], Tensor]

_LIMIT = 500
"""Most iterations. Waves longer than the screening length cost some more; this is never reached."""

_EVERY = 4
"""Iterations after which a device other than the processor is asked whether all is done."""

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_FLOOR = {torch.float64: 1e-12, torch.float32: 3e-4}
"""How far the residual of the solution may be above the tolerance for rounding."""


def default_tolerance(dtype: torch.dtype) -> float:
    """The relative residual of a precision."""
    return _TOLERANCE[dtype]


@dataclass(frozen=True, eq=False)
class Solution:
    """What conjugate gradients found.

    Attributes:
        drive: y, [n_atoms, 4].
        residual: b − (1 + T D) y of it, [n_atoms, 4].
        relative: √(r·D r/b·D b) of each structure, [n_structures].
        iterations: how many there were.
    """

    drive: Tensor
    residual: Tensor
    relative: Tensor
    iterations: int


@torch.no_grad()
def solve(
    interact: Map,
    induce: Map,
    rhs: Tensor,
    sums: AtomSums,
    tolerance: float,
    limit: int = _LIMIT,
    rounding: Tensor | None = None,
) -> Solution:
    """y of (1 + T D) y = b.

    Args:
        interact: x to T x, [n_atoms, 4] to [n_atoms, 4].
        induce: y to D y, likewise.
        rhs: b, [n_atoms, 4].
        sums: over the atoms.
        tolerance: the relative residual, in the norm √(r·D r), at which a structure is done.
        limit: most iterations.
        rounding: what r·D r has of it, [n_structures] in double precision; None for none. A
            residual below is no error, and a b below has the solution 0.

    Raises:
        ValueError: a structure did not converge. One with NaN gives NaN.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return sums.total((a.double() * b.double()).sum(1))

    def at_atoms(values: Tensor) -> Tensor:
        return sums.at_atoms(values[:, None]).to(rhs.dtype)

    every = 1 if rhs.device.type == "cpu" else _EVERY
    y, residual = torch.zeros_like(rhs), rhs
    x = induce(residual)
    direction, source = residual, x
    square = dot(residual, x)
    start, goal = square, tolerance**2 * square
    least = torch.zeros_like(start) if rounding is None else rounding
    active = square > least
    done = 0
    while done < limit and not (done % every == 0 and not bool(active.any())):
        applied = direction + interact(source)
        length = torch.where(active, square / dot(source, applied), 0.0)
        step = at_atoms(length)
        y = y + step * direction
        residual = residual - step * applied
        x = induce(residual)
        new = dot(residual, x)
        ratio = at_atoms(torch.where(active, new / square, 0.0))
        direction = residual + ratio * direction
        source = x + ratio * source
        square = torch.where(active, new, square)
        active = active & (square > goal)
        done += 1
    y = y + 0.0 * at_atoms(start)  # NaN where the start was
    residual = rhs - y - interact(induce(y))
    left = dot(residual, induce(residual)).clamp(min=0.0)
    relative = torch.sqrt(left / torch.where(start > 0, start, 1.0))
    relative = torch.where(left <= least, 0.0, relative)
    _check(relative, tolerance, rhs.dtype, done)
    return Solution(y, residual, relative, done)


def _check(relative: Tensor, tolerance: float, dtype: torch.dtype, iterations: int) -> None:
    """Refuse what did not converge; NaN passes."""
    most = 10.0 * max(tolerance, _FLOOR[dtype])
    failed = relative > most
    if bool(failed.any()):
        number = int(failed.to(torch.int64).argmax())
        raise ValueError(
            f"self-consistent response: structure {number} has a relative residual of "
            f"{float(relative[number]):.1e} after {iterations} iterations, and {tolerance:.0e} was "
            "asked for. Give positions in double precision or a larger tolerance; if that does "
            "not help, look for atoms that are far out of place"
        )
