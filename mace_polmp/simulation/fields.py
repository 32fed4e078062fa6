"""Fields that go back and forth during a run, and the work that a field does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mace_polmp.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.calculators import MultipoleMACECalculator

Array = NDArray[np.float64]

SHAPES = ("triangle", "sine")


@dataclass(frozen=True)
class PeriodicField:
    """A uniform field that goes 0 → +F → 0 → −F → 0 in each period.

    Attributes:
        amplitude: F, [3], V/Å.
        shape: "triangle", straight between its ends, or "sine".
        period: fs.

    Raises:
        InputError: another shape, no amplitude, or a period that is none.
    """

    amplitude: tuple[float, float, float]
    shape: str
    period: float

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(
                f"the shape of a periodic field must be {' or '.join(SHAPES)}, got {self.shape!r}"
            )
        if not (math.isfinite(self.period) and self.period > 0):
            raise InputError(
                f"the period of a field must be a positive number of fs, got {self.period}"
            )
        if not (np.isfinite(self.amplitude).all() and np.any(self.amplitude)):
            raise InputError(
                "the amplitude of a periodic field must be three numbers in V/Å, not all zero, got "
                f"{list(self.amplitude)}"
            )

    def __call__(self, time: float) -> Array:
        """The field at a time in fs, [3], V/Å."""
        phase = time / self.period % 1.0
        if self.shape == "sine":
            factor = math.sin(2.0 * math.pi * phase)
        else:
            factor = 1.0 - abs(4.0 * ((phase + 0.25) % 1.0) - 2.0)
        out: Array = factor * np.asarray(self.amplitude, dtype=float)
        return out


class FieldWork:
    """The work that a field of time does on a structure, W = −∫ M·dF.

    The energy in a field changes by dE = −M·dF where the field changes and the atoms rest, with the
    dipole M in the field. So E − W is constant at constant energy, and W of a closed loop of the
    field is the heat that the structure takes up. The integral is that of the trapezoidal rule.

    Attributes:
        value: W since the start of the run, eV.
    """

    def __init__(self, calculator: MultipoleMACECalculator) -> None:
        self.value = 0.0
        self._calculator = calculator
        self._moment = self._field = np.zeros(3)

    @classmethod
    def of(cls, atoms: Atoms, calculator: MultipoleMACECalculator) -> FieldWork | None:
        """None where the field is constant, or where charges have no energy in it."""
        has_energy = calculator.defines_polarization or not atoms.pbc.all()
        return cls(calculator) if callable(calculator.external_field) and has_energy else None

    def follow(self, dynamics: Any, timestep: float) -> None:
        """Add the work of each step of a dynamics from now on, whose forces are known.

        Args:
            dynamics: of ASE.
            timestep: fs.
        """

        def add() -> None:
            moment, field = self._moment, self._field
            self._look(dynamics.nsteps * timestep)
            self.value -= 0.5 * float((moment + self._moment) @ (self._field - field))

        self._look(dynamics.nsteps * timestep)
        dynamics.attach(add, interval=1)

    def _look(self, time: float) -> None:
        """Take dipole and field as they are at a time in fs."""
        self._moment = np.asarray(self._calculator.results["dipole"], dtype=float)
        self._field = self._calculator.field_at(time)
