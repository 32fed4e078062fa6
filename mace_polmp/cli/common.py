"""What the commands share: one-line errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from mace_polmp.errors import InputError


def run_command(name: str, command: Callable[[], None]) -> None:
    """Run a command; an InputError becomes one line on stderr and exit status 1."""
    # Notices that upstream's dependencies print at every start and no user can act on.
    warnings.filterwarnings("ignore", message="Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY")
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
    try:
        command()
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
