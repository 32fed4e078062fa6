"""Other programs that run MultipoleMACE models."""

import mace_polmp.quiet  # noqa: F401  before mace
