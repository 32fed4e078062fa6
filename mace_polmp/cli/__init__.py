"""The console commands."""

from __future__ import annotations

import warnings


def hide_notices() -> None:
    """Hide what upstream's dependencies print at every start and no user can act on."""
    for message in (
        "Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY",
        ".*torch.jit.*deprecated",
        "The TorchScript type system doesn't support",
        "Ratio of simulation cell size to cutoff",
    ):
        warnings.filterwarnings("ignore", message=message)


hide_notices()  # some come while modules are imported
