"""The model: MACE with readouts of latent multipoles and the electrostatics engine."""

from mace_polmp.modules.model import MultipoleMACE
from mace_polmp.modules.options import LongRangeOptions

__all__ = ["LongRangeOptions", "MultipoleMACE"]
