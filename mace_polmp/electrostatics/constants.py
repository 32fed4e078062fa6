"""Tensors that depend on settings only: made once, and real ones whatever runs at the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils import _python_dispatch

P = ParamSpec("P")
T = TypeVar("T")

# Tracers (torch.export, make_fx) run the code with stand-ins for tensors; a constant that is kept
# must not be one. The name is private to torch: where it is missing constants have to be made, by
# one evaluation, before a trace.
_WITHOUT_MODES: Callable[[], Any] = getattr(_python_dispatch, "_disable_current_modes", nullcontext)


@contextmanager
def _plain() -> Iterator[None]:
    with torch.inference_mode(False), _WITHOUT_MODES(), torch.no_grad():
        yield


def kept(maxsize: int | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function of hashable arguments that makes tensors, so that it makes them once.

    Args:
        maxsize: how many results are kept; None for all.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @lru_cache(maxsize)
        def made(*args: Any, **named: Any) -> T:
            with _plain():
                return function(*args, **named)

        @wraps(function)
        def call(*args: P.args, **named: P.kwargs) -> T:
            if torch.compiler.is_dynamo_compiling():  # which cannot keep tensors
                return function(*args, **named)
            return made(*args, **named)  # type: ignore[arg-type]

        call.cache_clear = made.cache_clear  # type: ignore[attr-defined]
        return call

    return decorate


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """functools.cache for numbers of the host, which torch.compile takes as they are."""
    made = cache(function)

    def call(*args: P.args, **named: P.kwargs) -> T:
        return made(*args, **named)  # type: ignore[arg-type]

    call.__doc__ = function.__doc__
    found: Callable[P, T] = torch.compiler.assume_constant_result(call)
    return found


@kept()
def numbers(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers of the host as a tensor."""
    return torch.tensor(values, dtype=dtype, device=device)
