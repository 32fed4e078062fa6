"""MACE with latent atomic multipoles, linear response and long-range electrostatics.

What the documentation uses is here under its short name, such as
mace_polmp.MultipoleMACECalculator, and loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mace_polmp.calculators import MultipoleMACECalculator
    from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
    from mace_polmp.errors import InputError
    from mace_polmp.head import LongRangeHead, LongRangeOptions
    from mace_polmp.modules import MultipoleMACE
    from mace_polmp.modules.io import load_model, write_model
    from mace_polmp.structures import as_slab

__version__ = "0.2.0"

_HOMES = {
    "Electrostatics": "electrostatics",
    "InputError": "errors",
    "LongRangeHead": "head",
    "LongRangeOptions": "head",
    "MultipoleMACE": "modules",
    "MultipoleMACECalculator": "calculators",
    "Multipoles": "electrostatics",
    "ResponseCoefficients": "electrostatics",
    "as_slab": "structures",
    "load_model": "modules.io",
    "write_model": "modules.io",
}

__all__ = [
    "Electrostatics",
    "InputError",
    "LongRangeHead",
    "LongRangeOptions",
    "MultipoleMACE",
    "MultipoleMACECalculator",
    "Multipoles",
    "ResponseCoefficients",
    "__version__",
    "as_slab",
    "load_model",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mace_polmp' has no attribute {name!r}")
    return getattr(import_module(f"mace_polmp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
