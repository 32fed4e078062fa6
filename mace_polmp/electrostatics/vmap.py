"""The rule by which torch.vmap treats our autograd functions, for Hessians row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OneByOne(torch.autograd.Function):
    """An autograd function that torch.vmap applies to one item of a batch after the other.

    The backbone's operations around it run for all items at once.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        """What the items give, stacked; arguments as torch gives them."""
        found = []
        for number in range(info.batch_size):
            own = [
                x if dim is None or not isinstance(x, Tensor) else x.select(dim, number)
                for x, dim in zip(args, in_dims, strict=True)
            ]
            found.append(cls.apply(*own))  # type: ignore[no-untyped-call]
        if isinstance(found[0], tuple):
            stacked = tuple(torch.stack(column) for column in zip(*found, strict=True))
            return stacked, (0,) * len(stacked)
        return torch.stack(found), 0
