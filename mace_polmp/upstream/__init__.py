"""The wiring to mace-torch: the only place that touches its private behaviour."""

import mace_polmp.quiet  # noqa: F401  before mace
