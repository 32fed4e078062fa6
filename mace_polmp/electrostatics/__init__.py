"""Electrostatics of Gaussian-smeared atomic multipoles with linear response, in plain torch.

Source of the method: Kim et al., "Polarizable atomic multipoles for learning long-range
electrostatics", arXiv:2605.05746 (2026). Units: Å, eV, e.
"""

from mace_polmp.electrostatics.bonds import BondResponse
from mace_polmp.electrostatics.engine import Electrostatics
from mace_polmp.electrostatics.keeper import PlanKeeper
from mace_polmp.electrostatics.multipoles import Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.operator import FieldOperator
from mace_polmp.electrostatics.plan import Plan, PlanShape
from mace_polmp.electrostatics.result import ElectrostaticsResult

__all__ = [
    "BondResponse",
    "Electrostatics",
    "ElectrostaticsResult",
    "FieldOperator",
    "Multipoles",
    "Plan",
    "PlanKeeper",
    "PlanShape",
    "ResponseCoefficients",
]
