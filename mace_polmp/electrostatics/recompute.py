"""Functions that are evaluated anew in the backward pass instead of keeping what they computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.vmap import OneByOne

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Transposed:
    """The vector-Jacobian product of a function, as a function of its inputs and the cotangents."""

    function: Function
    n_inputs: int
    needed: tuple[bool, ...]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        keep_graph = torch.is_grad_enabled()
        inputs, cotangents = tensors[: self.n_inputs], tensors[self.n_inputs :]
        with torch.enable_grad():
            leaves = [
                x if keep_graph and x.requires_grad else x.detach().requires_grad_(needed)
                for x, needed in zip(inputs, self.needed, strict=True)
            ]
            outputs = self.function(*leaves)
            wanted = [x for x, needed in zip(leaves, self.needed, strict=True) if needed]
            seen = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
            if not seen:  # outputs that depend on nothing that is asked for
                return tuple(torch.zeros_like(x) for x in wanted)
            return torch.autograd.grad(
                [output for output, _ in seen],
                wanted,
                [cotangent for _, cotangent in seen],
                create_graph=keep_graph,
                materialize_grads=True,
            )


class _Recomputed(OneByOne):
    @staticmethod
    def forward(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        needed = tuple(ctx.needs_input_grad[1:])
        transposed = _Transposed(ctx.function, len(inputs), needed)
        found = iter(recomputed(transposed, *inputs, *cotangents))
        return (None, *(next(found) if n else None for n in needed))


def recomputed(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """function(*inputs), whose intermediate results do not outlive the call.

    The backward pass evaluates the function again. It is itself such a function, so that this
    holds for derivatives of any order. (torch.utils.checkpoint keeps the intermediate results of a
    backward pass that is to be differentiated itself.)

    Args:
        function: of tensors to a tuple of tensors, without side effects.
        inputs: what it is differentiable in.
    """
    out: tuple[Tensor, ...] = _Recomputed.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return out
