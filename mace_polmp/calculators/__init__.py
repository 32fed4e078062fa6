"""ASE calculators."""

import mace_polmp.quiet  # noqa: F401  before mace
from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator

__all__ = ["MultipoleMACECalculator"]
