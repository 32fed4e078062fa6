"""Replacing functions of mace-torch by name for a while; every name is checked at import.

Tested with mace-torch 0.3.16.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mace

from mace_polmp.upstream.signatures import SIGNATURES

TESTED_VERSIONS = ">=0.3.16,<0.4"


def check_names(names: Mapping[Any, Iterable[str]]) -> None:
    """Refuse a version of mace-torch that lacks a function, or has one with other parameters.

    Parameters that are known must be there, in the same order; new ones need defaults.

    Args:
        names: of functions or classes, by module.

    Raises:
        ImportError: names the tested versions.
    """
    for module, wanted in names.items():
        missing = [name for name in wanted if not callable(getattr(module, name, None))]
        if missing:
            raise _other_version(
                f"has no {', '.join(f'{module.__name__}.{name}' for name in missing)}"
            )
        for name in wanted:
            known = SIGNATURES.get(f"{module.__name__}.{name}")
            if known is not None and not _takes(getattr(module, name), known.split()):
                raise _other_version(
                    f"has {module.__name__}.{name}{inspect.signature(getattr(module, name))}, not "
                    f"({', '.join(known.split())})"
                )


def _takes(function: Callable[..., Any], known: list[str]) -> bool:
    """Whether a function has these parameters first, and no others without a default."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    named = [p for p in found if p.kind not in variable]
    more = named[len(known) :]
    return [p.name for p in named[: len(known)]] == known and all(
        p.default is not p.empty for p in more
    )


def _other_version(what: str) -> ImportError:
    return ImportError(
        f"mace_polmp works with mace-torch{TESTED_VERSIONS}; the installed "
        f"{getattr(mace, '__version__', '(unknown version)')} {what}. Install a version in that "
        "range"
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
