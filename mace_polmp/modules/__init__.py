"""The model: MACE with readouts of latent multipoles and the electrostatics engine."""

import mace_polmp.quiet  # noqa: F401  before mace
from mace_polmp.head import LongRangeOptions
from mace_polmp.modules.model import MultipoleMACE

__all__ = ["LongRangeOptions", "MultipoleMACE"]
