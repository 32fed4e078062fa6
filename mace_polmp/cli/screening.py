"""The permittivity in what frames have, and another one in its place."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from mace_polmp.analysis.correlation import Array
from mace_polmp.errors import InputError
from mace_polmp.quantities import is_finite_number
from mace_polmp.units import EPS0


def number_of(atoms: Any, name: str, number: int, where: str) -> float:
    """What a frame says under a name.

    Raises:
        InputError: it is no number.
    """
    value = atoms.info[name]
    if not is_finite_number(value):
        raise InputError(f"{where}: frame {number}: {name} must be one number, got {value!r}")
    return float(value)


def asked_permittivity(
    args: argparse.Namespace, frames: list[Any], name: str, where: str
) -> tuple[float, float]:
    """ε∞ in a dipole or current of the frames, and the one that is wanted in it.

    Args:
        args: epsilon_infinity, divide_by_chi.
        frames: of a trajectory.
        name: of what they have.
        where: what to call them in messages.

    Raises:
        InputError: a permittivity that is none, or another one than the frames allow.
    """
    said = frames[0].info.get("epsilon_infinity")
    written = 1.0 if said is None else number_of(frames[0], "epsilon_infinity", 0, where)
    if not written >= 1.0:
        raise InputError(f"{where}: frame 0: epsilon_infinity must be 1 or more, got {written:g}")
    asked = args.epsilon_infinity
    if asked is not None and not (math.isfinite(asked) and asked >= 1.0):
        raise InputError(f"--epsilon_infinity must be a number of 1 or more, got {asked}")
    if args.divide_by_chi and not bool(frames[0].info.get("divided_by_chi", False)):
        raise InputError(
            f"--divide_by_chi: the {name} of {where} was written without it; remove it from the "
            "frames and give --model to compute it, or run md with the option"
        )
    if asked is None or not frames[0].pbc.all():
        return written, written
    option = f"--epsilon_infinity {asked:g}"
    if said is None and asked != written:
        raise InputError(
            f"{option}: the frames of {where} do not say which permittivity "
            f"their {name} was multiplied with; leave the option out, or remove '{name}' from the "
            "frames and give --model to compute it"
        )
    _check_another(frames, asked, written, name, f"{option}: the {name} of {where}")
    return written, float(asked)


def _said(frames: list[Any], name: str) -> Any:
    """What the first frame says that says it: a run may have begun with an earlier version."""
    return next((atoms.info[name] for atoms in frames if name in atoms.info), None)


def _check_another(frames: list[Any], asked: float, written: float, name: str, said: str) -> None:
    """Refuse another permittivity in what does not scale with its root.

    Args:
        frames: of a trajectory.
        asked, written: permittivities.
        name: of what the frames have.
        said: begin of the message.

    Raises:
        InputError: what is written is of a model with formal charges, or of several models.
    """
    again = f"leave the option out, or remove '{name}' from the frames and give --model"
    each = _said(frames, "epsilon_infinity_of_models")
    if each is not None:  # also where their mean is asked for
        values = " and ".join(f"{value:g}" for value in np.ravel(each))
        raise InputError(
            f"{said} is the mean of models whose epsilon_infinity is {values}, and there is no "
            f"factor that gives it another one; {again}"
        )
    if asked == written:
        return
    formal = _said(frames, "formal_charges")
    # Only models that define a polarization have formal charges.
    if formal is None and frames[0].info.get("defines_polarization", False):
        raise InputError(
            f"{said} may be of a model with formal charges, which stay whole with every "
            f"permittivity: the frames do not say (formal_charges); {again}"
        )
    if formal:
        raise InputError(
            f"{said} is of a model with formal charges, which stay whole with every permittivity; "
            "leave the option out, or train a model with this epsilon_infinity"
        )


def with_permittivity(epsilon: float, frames: list[Any], series: Array, where: str) -> Array:
    """Written polarizabilities with another ε_e than that of the frames, [n_times, 3, 3].

    ε∞ = 1 + α/(eps0 V) of a periodic structure is in proportion to ε_e (observables.py).

    Raises:
        InputError: as asked_permittivity.
    """
    first = frames[0]
    if first.info.get("epsilon_infinity") is None or not first.pbc.all():
        return series
    vacuum = EPS0 * np.array([atoms.get_volume() for atoms in frames])[:, None, None]
    own = number_of(first, "epsilon_infinity", 0, where)
    if abs(epsilon - own) > 1e-12 * own:
        said = f"epsilon_infinity {epsilon:g}: the polarizability of {where}"
        _check_another(frames, epsilon, own, "polarizability", said)
    if "defines_polarization" not in first.info:  # of earlier versions: without any ε_e
        is_divided = bool(first.info.get("divided_by_chi", False))
        own = 1.0 + is_divided * float(np.trace((series / vacuum).mean(0))) / 3.0
    out: Array = epsilon / own * series + (epsilon / own - 1.0) * vacuum * np.eye(3)
    return out
