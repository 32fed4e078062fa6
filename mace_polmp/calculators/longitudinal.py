"""The permittivity that screens the field of longitudinal vibrations, as the model has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mace_polmp.units import EPS0

if TYPE_CHECKING:
    from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator

Array = NDArray[np.float64]


def longitudinal_permittivity(calculator: MultipoleMACECalculator, atoms: Atoms) -> Array:
    """ε∞ that goes with the Born charges of the calculator, [3, 3].

    The forces of the model know the latent charges Z*/s, with the factor s of the results, and what
    its induced dipoles screen, ε. A longitudinal vibration has the field of (Z*/s)²/ε, and that is
    Z*²/(s² ε). So the frequencies do not depend on s, as the forces do not. Of a model without
    induced dipoles this is the permittivity that it was given. With a response in one step it holds
    to first order in the polarizability.

    Args:
        calculator: of the model.
        atoms: periodic in three directions.
    """
    squared = calculator.permittivity()
    known: Any = calculator
    own: Array = np.asarray(known.get_property("electronic_permittivity", atoms))
    if calculator.divide_by_chi:
        trace = float(np.trace(np.asarray(known.get_property("polarizability", atoms))))
        squared /= 1.0 + trace / (3.0 * EPS0 * float(atoms.get_volume()))
    return squared * own
