"""Training: what upstream's run needs to know about the model."""

import mace_polmp.quiet  # noqa: F401  before mace
