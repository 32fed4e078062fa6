"""Fields of a calculator: uniform ones, of time or constant, and a displacement field that is kept.

At a fixed displacement field D the macroscopic field F follows the polarization,
eps0 F = D − P with P = P_model(F) + eps0 (ε − 1) F, where ε is the permittivity of the electrons
that are not in the model (ε∞ of the options). With E(F), the energy of the model in the field,

    U(D) = max over F of  E(F) + V D·F − ½ eps0 ε V F².

E(F) = E(0) − M·F − ½ F·α·F with the dipole M and the polarizability α of the cell, so that
F = (eps0 ε V + α)⁻¹ (V D − M). F is stationary: forces are those at this F, and dU/dD = V F.
Without response that is U = E(0) + V |D − P|²/(2 eps0). (Stengel, Spaldin, Vanderbilt,
Nature Physics 5, 304 (2009).)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from numpy.typing import NDArray

from mace_polmp.calculators.checks import check_screening, field_vector
from mace_polmp.errors import InputError
from mace_polmp.units import EPS0

Array = NDArray[np.float64]
FieldLike = Sequence[float] | np.ndarray | Callable[[float], Sequence[float]] | None


class InFields:
    """What a calculator knows of the fields that its structures are in."""

    results: dict[str, Any]
    time: float

    _external_field: FieldLike = None
    _displacement_field: Array | None = None
    _conjugate: Array = np.zeros(3)  # the field that goes with a displacement field, V/Å

    @property
    def external_field(self) -> FieldLike:
        """Uniform field [3], V/Å, or a function of the time; setting it discards the results."""
        return self._external_field

    @external_field.setter
    def external_field(self, value: FieldLike) -> None:
        if not (value is None or callable(value)):
            value = field_vector(value)
        self._external_field = value
        self._check_one()
        self.results = {}

    @property
    def displacement_field(self) -> Array | None:
        """Displacement field that is kept, [3], e/Å²; setting it discards the results."""
        return self._displacement_field

    @displacement_field.setter
    def displacement_field(self, value: Any) -> None:
        if value is not None:
            value = np.array(value, dtype=float)
            if value.shape != (3,) or not np.isfinite(value).all():
                raise InputError(
                    f"displacement_field must be three finite numbers in e/Å², got {value}"
                )
        self._displacement_field = value
        self._check_one()
        self._conjugate = np.zeros(3)
        self.results = {}

    @property
    def has_field(self) -> bool:
        """Whether there is a field of either kind, zero or not."""
        return self._external_field is not None or self._displacement_field is not None

    def _check_one(self) -> None:
        if self._external_field is not None and self._displacement_field is not None:
            raise InputError(
                "external_field and displacement_field: only one of them can be kept; set the "
                "other to None"
            )

    def field_at(self, time: float) -> np.ndarray:
        """The external field at a time in fs, [3], V/Å; zero if there is none.

        With a displacement field that of the last evaluation, (D − P)/eps0.
        """
        if self._displacement_field is not None:
            return self._conjugate.copy()
        field = self._external_field
        if field is None:
            return np.zeros(3)
        return field_vector(field(time)) if callable(field) else np.asarray(field)

    def follow(self, dynamics: Any) -> None:
        """Let a field that depends on time follow the clock of an ASE dynamics.

        Forces are evaluated at the end of a step: after each the calculator's time becomes the end
        of the next. Results of the present positions stay what they are.
        """

        def advance() -> None:
            self.time = (dynamics.nsteps + 1) * dynamics.dt / units.fs

        self.time = dynamics.nsteps * dynamics.dt / units.fs
        dynamics.attach(advance, interval=1)


def check_displacement(calculator: Any, atoms: Atoms) -> None:
    """Refuse structures and models without a polarization.

    Raises:
        InputError: says what is needed.
    """
    if not atoms.pbc.all():
        raise InputError(
            "displacement_field needs a structure that is periodic in three directions; in others "
            "give external_field"
        )
    if not calculator.defines_polarization:
        raise InputError(
            "displacement_field needs the polarization of periodic structures: a model that was "
            "trained with --charge_readout bond"
        )
    check_screening(atoms, calculator.divide_by_chi)


def permittivities(calculator: Any) -> Array:
    """ε of each model, [n_models]: of the electrons that are not in it."""
    given = calculator.epsilon_infinity
    return np.array([m.permittivity() if given is None else given for m in calculator.models])


def conjugate_field(calculator: Any, batch: Any, volume: float) -> Array:
    """F = (eps0 ε V + α)⁻¹ (V D − M), [3], V/Å, of the mean of the models.

    Args:
        calculator: with a displacement field.
        batch: the structure without a field.
        volume: Å³.
    """
    moment, alpha = np.zeros(3), np.zeros((3, 3))
    each = permittivities(calculator)
    for model, epsilon in zip(calculator.models, each, strict=True):
        data = calculator._clone_batch(batch).to_dict()
        with torch.no_grad():
            out = model(data, compute_force=False)
        weight = 1.0 / len(each)
        moment += weight * epsilon**0.5 * out["dipole"][0].double().cpu().numpy()
        alpha += weight * epsilon * out["polarizability"][0].double().cpu().numpy()
    whole = EPS0 * each.mean() * volume * np.eye(3) + alpha
    out_of_balance = volume * calculator.displacement_field - moment
    found: Array = np.linalg.solve(whole, out_of_balance)
    return found


def add_displacement(calculator: Any, field: Array, volume: float) -> None:
    """Make the results in a field F those at a fixed displacement field: U and its stress.

    Args:
        calculator: with results in the field.
        field: F, [3], V/Å.
        volume: Å³.
    """
    results = calculator.results
    epsilon = calculator.permittivity()
    density = float(calculator.displacement_field @ field - 0.5 * EPS0 * epsilon * field @ field)
    for name in ("energy", "free_energy"):
        if name in results:
            results[name] = results[name] + volume * density
    if "stress" in results:
        results["stress"] = results["stress"] + density * np.array([1.0, 1, 1, 0, 0, 0])
