"""ASE calculators."""

from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator

__all__ = ["MultipoleMACECalculator"]
