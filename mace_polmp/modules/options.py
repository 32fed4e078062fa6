"""The options of the long-range head: one dataclass from which flags, YAML and checkpoints come."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from mace_polmp.electrostatics.engine import SOLVERS
from mace_polmp.errors import InputError


def _option(
    default: Any,
    help: str,
    parse: Callable[[str], Any] | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    return field(default=default, metadata={"help": help, "type": parse, "choices": choices})


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


@dataclass(frozen=True)
class LongRangeOptions:
    """Settings of the long-range electrostatics.

    Raises:
        InputError: a value that is not among the valid ones; names the nearest valid one.
    """

    multipole_lmax: int = _option(
        2, "highest latent multipole: 0 charges, 1 and dipoles, 2 and quadrupoles", int, (0, 1, 2)
    )
    induced: str = _option(
        "both",
        "linear response to the potential (induced charges) and the field (induced dipoles)",
        str,
        ("none", "charge", "dipole", "both"),
    )
    polarizability: str = _option(
        "isotropic",
        "atomic polarizability: a number or a symmetric tensor",
        str,
        ("isotropic", "anisotropic"),
    )
    conserve_charge: bool = _option(False, "induced charges of a structure sum to zero")
    smearing: float = _option(1.0, "width of the Gaussian of every multipole (Ang)", float)
    kspace_spacing: float = _option(
        2.0, "k-space sums run over |k| <= 2 pi / kspace_spacing (Ang)", float
    )
    long_range_solver: str = _option(
        "auto",
        "solver of periodic structures (mesh: not in this version)",
        str,
        SOLVERS,
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            choices = f.metadata["choices"]
            if choices is not None and (value not in choices or isinstance(value, bool)):
                near = difflib.get_close_matches(
                    str(value), [str(c) for c in choices], n=1, cutoff=0
                )
                raise InputError(
                    f"{f.name} must be one of {', '.join(map(str, choices))}, got {value!r}; "
                    f"did you mean {near[0]}?"
                )
            if f.metadata["type"] is float and not _is_positive(value):
                raise InputError(f"{f.name} must be a positive length in Å, got {value!r}")
            if f.metadata["type"] is None and not isinstance(value, bool):
                raise InputError(f"{f.name} must be true or false, got {value!r}")
        if self.long_range_solver == "mesh":
            raise InputError(
                "long_range_solver mesh is not available in this version: use auto or ewald"
            )

    @property
    def induces_charges(self) -> bool:
        return self.induced in ("charge", "both")

    @property
    def induces_dipoles(self) -> bool:
        return self.induced in ("dipole", "both")
