"""The options of the long-range head: one dataclass from which flags, YAML and checkpoints come."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from mace_polmp.electrostatics.engine import SOLVERS, Electrostatics
from mace_polmp.electrostatics.mesh import DEFAULT_ACCURACY, window_width
from mace_polmp.errors import InputError


def _option(
    default: Any,
    help: str,
    parse: Callable[[str], Any] | None = None,
    choices: tuple[Any, ...] | None = None,
    kind: str = "length in Å",
) -> Any:
    metadata = {"help": help, "type": parse, "choices": choices, "kind": kind}
    return field(default=default, metadata=metadata)


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
        "solver of periodic structures: direct sum, particle mesh, or what is faster",
        str,
        SOLVERS,
    )
    mesh_accuracy: float = _option(
        DEFAULT_ACCURACY,
        "relative force error of the particle mesh on random multipoles",
        float,
        kind="number",
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
                raise InputError(f"{f.name} must be a positive {f.metadata['kind']}, got {value!r}")
            if f.metadata["type"] is None and not isinstance(value, bool):
                raise InputError(f"{f.name} must be true or false, got {value!r}")
        try:
            window_width(self.mesh_accuracy)
        except ValueError as error:
            raise InputError(str(error)) from error

    def make_engine(self) -> Electrostatics:
        """The electrostatics with these settings."""
        return Electrostatics(
            smearing=self.smearing,
            kspace_spacing=self.kspace_spacing,
            solver=self.long_range_solver,
            mesh_accuracy=self.mesh_accuracy,
        )

    @property
    def induces_charges(self) -> bool:
        return self.induced in ("charge", "both")

    @property
    def induces_dipoles(self) -> bool:
        return self.induced in ("dipole", "both")
