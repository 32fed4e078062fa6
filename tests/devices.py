"""Tests on any device: what is tested runs there, the test's own arithmetic on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch

AVAILABLE = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

_current = "cpu"


def use(name: str) -> None:
    """Run what follows on a device; the fixture `device` calls it."""
    global _current
    _current = name


def current() -> str:
    """The device that the running test is for."""
    return _current


def moved(value: Any, device: str | None = None) -> Any:
    """Tensors, and what holds them, on a device; by default that of the test."""
    device = device or _current
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        items = {f.name: moved(getattr(value, f.name), device) for f in fields(value)}
        return type(value)(**items)
    return value


def there(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs on the test's device, with arguments and results on the CPU."""

    def moving(*positional: Any, **named: Any) -> Any:
        return moved(function(*moved(positional), **moved(named)), "cpu")

    return moving


def rounding() -> float:
    """By how much two evaluations of the same may differ: a GPU adds in any order."""
    return 0.0 if current() == "cpu" else 1e-10
