"""Errors of predictions: MAE, RMSE and R²."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mace_polmp.analysis.correlation import Array


@dataclass(frozen=True)
class ErrorMeasures:
    """How predictions differ from references.

    Attributes:
        count: number of values.
        mae: mean absolute error.
        rmse: root of the mean squared error.
        r2: 1 − Σ(p − r)²/Σ(r − mean r)²; NaN where all references are the same.
    """

    count: int
    mae: float
    rmse: float
    r2: float

    @classmethod
    def of(cls, reference: Array, predicted: Array) -> ErrorMeasures:
        """Measures over all values of two arrays of the same shape."""
        error = np.ravel(predicted) - np.ravel(reference)
        spread = float(((np.ravel(reference) - np.mean(reference)) ** 2).sum())
        r2 = 1.0 - float((error**2).sum()) / spread if spread > 1e-20 else float("nan")
        return cls(len(error), float(np.abs(error).mean()), float(np.sqrt((error**2).mean())), r2)


@dataclass
class Comparison:
    """Labels and predictions of one quantity, in units of eV, Å and e.

    Attributes:
        reference, predicted: of each frame that has a label.
        numbers: the atomic numbers of the same frames.
        far: of polarizations, how many frames may be compared on a wrong branch.
    """

    reference: list[np.ndarray] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)
    numbers: list[np.ndarray] = field(default_factory=list)
    far: int = 0

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """All references and all predictions, flat."""
        return tuple(  # type: ignore[return-value]
            np.concatenate([np.ravel(x) for x in part]) for part in (self.reference, self.predicted)
        )

    def per_atom(self) -> tuple[np.ndarray, np.ndarray]:
        """The same divided by the number of atoms of each frame, for energies."""
        counts = np.array([len(n) for n in self.numbers])
        reference, predicted = self.values()
        return reference / counts, predicted / counts

    def transpose_references(self) -> None:
        """Swap the last two axes of the labels, for Born charges with displacements first."""
        self.reference = [np.swapaxes(label, -2, -1) for label in self.reference]

    def of_element(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Values of the atoms of one element, of a quantity that each atom has."""
        chosen = np.concatenate(self.numbers) == number
        return (
            np.concatenate(self.reference)[chosen].ravel(),
            np.concatenate(self.predicted)[chosen].ravel(),
        )
