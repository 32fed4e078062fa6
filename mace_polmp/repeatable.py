"""The same numbers from the same input, whenever in the life of a process it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(device: str | torch.device) -> Iterator[None]:
    """Without optimizations of TorchScript that begin after the first evaluation of a process.

    They change the last digit, and a run that was killed and goes on would not be the one that was
    not killed. On CPUs they gain nothing. On GPUs they do, and sums over atoms change the last
    digit anyway: there they stay.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    with torch.jit.optimized_execution(False):
        yield
