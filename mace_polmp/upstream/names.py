"""Replacing functions of mace-torch by name for a while; every name is checked at import.

Tested with mace-torch 0.3.16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mace

TESTED_VERSIONS = ">=0.3.16,<0.4"


def check_names(names: Mapping[Any, Iterable[str]]) -> None:
    """Refuse a version of mace-torch that lacks a function that is to be replaced.

    Args:
        names: of functions or classes, by module.

    Raises:
        ImportError: names the tested versions.
    """
    for module, wanted in names.items():
        missing = [name for name in wanted if not callable(getattr(module, name, None))]
        if missing:
            raise ImportError(
                f"mace_polmp works with mace-torch{TESTED_VERSIONS}; the installed "
                f"{getattr(mace, '__version__', '(unknown version)')} has no "
                f"{', '.join(f'{module.__name__}.{name}' for name in missing)}. "
                "Install a version in that range"
            )


@contextmanager
def replaced(module: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    """Let other functions stand in for those of a module."""
    originals = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(module, name, function)
