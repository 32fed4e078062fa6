"""mace-torch and its dependencies without notices that a user cannot act on.

Import it before mace.
"""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout

_NOTICES = (
    "Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",  # mace sets it, e3nn meets it
    "'pin_memory' argument is set as true but no accelerator",  # mace's loaders on a CPU
    "To copy construct from a tensor",  # mace makes a model from tensors
    "`torch.jit",  # e3nn
    "The TorchScript type system",  # e3nn, of each of its modules
)

for _notice in _NOTICES:
    warnings.filterwarnings("ignore", message=_notice)

with redirect_stdout(io.StringIO()):  # it prints that cuEquivariance is not installed
    import mace.tools.cg  # noqa: F401
