"""The rule by which torch.vmap treats our autograd functions, for Hessians row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def one_by_one(
    apply: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Apply a function to one item of the batch after the other, and stack what it gives.

    The backbone's operations around it run for all items at once.

    Args:
        apply: of the autograd function.
        info, in_dims, args: as torch gives them to a function's vmap.
    """
    found = []
    for number in range(info.batch_size):
        own = [
            x if dim is None or not isinstance(x, Tensor) else x.select(dim, number)
            for x, dim in zip(args, in_dims, strict=True)
        ]
        found.append(apply(*own))
    if isinstance(found[0], tuple):
        stacked = tuple(torch.stack(column) for column in zip(*found, strict=True))
        return stacked, (0,) * len(stacked)
    return torch.stack(found), 0
