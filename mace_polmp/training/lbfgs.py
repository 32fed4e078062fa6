"""L-BFGS in a metric in which backbone and long-range head are equally stiff.

L-BFGS takes its first steps along the gradient. The energy depends a hundred times more on
a parameter of the head than on one of the backbone, so that such steps fit charges to forces within
molecules, and hundreds of evaluations go by before the curvature is known. The gradients that
Adam has seen tell how stiff each tensor of parameters is. L-BFGS with a diagonal scaling of the
variables: Nocedal and Wright, Numerical Optimization, section 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Variables are parameters times the size of their gradient to this power; 0.5, 0.7 and 1 were
# tried. Sizes below the smallest part of the mean count as that.
_POWER, _SMALLEST = 0.7, 1e-4
# L-BFGS has absolute tolerances: the loss counts as _START where it starts, and as _WALL where it
# is larger or no number, which the line search does not survive.
_START, _WALL = 100.0, 1e6


class PreconditionedLBFGS(torch.optim.LBFGS):
    """L-BFGS whose first metric comes from the gradients of an optimizer before it.

    Args:
        parameters: one group.
        before: the optimizer (Adam and its relatives) that has trained the parameters; without
            one, or one that has made no step, the first gradient takes its place.
        named: of torch.optim.LBFGS.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        before: torch.optim.Optimizer | None = None,
        **named: Any,
    ) -> None:
        super().__init__(parameters, **named)
        known = {} if before is None else before.state
        self._seen = [_mean_square(known.get(p, {})) for p in self._params]

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Some iterations; returns the loss before them."""
        state = self.state[self._params[0]]  # where L-BFGS keeps what it goes on from
        if "scale" not in state:
            with torch.enable_grad():
                loss = float(closure().detach())
            state["scale"] = self._scale()
            state["factor"] = _START / loss if loss > 0.0 else 1.0
        factor = state["factor"]
        found: Tensor = super().step(lambda: factor * closure())
        return found / factor

    def _scale(self) -> Tensor:
        """Parameters per variable, [n_parameters]."""
        squares = self._seen
        if not any(squares):
            squares = [
                0.0 if p.grad is None else float(p.grad.square().mean()) for p in self._params
            ]
        sizes = torch.tensor(squares, dtype=torch.float64).sqrt()
        if bool((sizes > 0.0).any()):
            sizes = sizes / sizes[sizes > 0.0].log().mean().exp()
        else:
            sizes = torch.ones_like(sizes)
        scales = sizes.clamp(min=_SMALLEST) ** -_POWER
        return torch.cat(
            [p.new_full((p.numel(),), float(s)) for p, s in zip(self._params, scales, strict=True)]
        )

    # What L-BFGS sees of parameters, gradients and trial steps.

    def _gather_flat_grad(self) -> Tensor:
        state = self.state[self._params[0]]
        gradient: Tensor = super()._gather_flat_grad()
        return gradient * state["scale"] * state["factor"]

    def _add_grad(self, step_size: float, update: Tensor) -> None:
        super()._add_grad(step_size, update * self.state[self._params[0]]["scale"])

    def _directional_evaluate(
        self, closure: Callable[[], Tensor], x: list[Tensor], t: float, d: Tensor
    ) -> tuple[float, Tensor]:
        loss, gradient = super()._directional_evaluate(closure, x, t, d)
        if loss < _WALL and bool(gradient.isfinite().all()):
            return loss, gradient
        return _WALL, d * (_WALL / (float(t) * float(d.square().sum())))


def _mean_square(state: dict[str, Any]) -> float:
    """Of a tensor's gradient, from Adam's second moment."""
    moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    return 0.0 if moment is None else float(moment.mean())
