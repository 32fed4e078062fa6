"""What the commands share: one-line errors, options of the model, loading it."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mace_polmp.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.calculators import MultipoleMACECalculator


def add_model_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--model and how to evaluate it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", nargs="+", required=required, help=".model file; several make a committee"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, …")
    group.add_argument("--default_dtype", default="float64", choices=("float32", "float64"))
    group.add_argument("--head", help="of a model with several")
    group.add_argument(
        "--epsilon_infinity",
        type=float,
        help="electronic permittivity: dipoles and Born charges of periodic structures are "
        "multiplied by its root; by default what the model was given or has learned",
    )
    group.add_argument(
        "--divide_by_chi",
        action="store_true",
        help="divide them by the root of 1 + chi as well, for models with induced dipoles",
    )
    group.add_argument(
        "--sum_rule",
        action="store_true",
        help="enforce the acoustic sum rule on Born charges",
    )


def add_structure_options(group: Any) -> None:
    """--structure and --frame."""
    group.add_argument("--structure", required=True, help="structure file")
    group.add_argument("--frame", type=int, default=-1, help="which frame of it")


def make_calculator(args: argparse.Namespace, **more: Any) -> MultipoleMACECalculator:
    """The calculator of add_model_options.

    Raises:
        InputError: a file that is not a MultipoleMACE, or a device that does not exist.
    """
    import torch

    from mace_polmp.calculators import MultipoleMACECalculator
    from mace_polmp.calculators.loading import precision_is_meant

    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"--device {args.device} is not available: {reason}") from error
    with precision_is_meant():
        return MultipoleMACECalculator(
            args.model,
            device=args.device,
            default_dtype=args.default_dtype,
            epsilon_infinity=args.epsilon_infinity,
            divide_by_chi=args.divide_by_chi,
            sum_rule=args.sum_rule,
            **({} if args.head is None else {"head": args.head}),
            **more,
        )


def read_structure(path: str, index: int) -> Atoms:
    """One frame of a structure file.

    Raises:
        InputError: a file that cannot be read, or one without that frame.
    """
    from mace_polmp.structures import read_structures

    frames = read_structures(path)
    if not -len(frames) <= index < len(frames):
        raise InputError(f"{path}: has {len(frames)} frames, there is no frame {index}")
    return frames[index]


def run_command(name: str, command: Callable[[], None]) -> None:
    """Run a command; an InputError becomes one line on stderr and exit status 1."""
    # Notices that upstream's dependencies print at every start and no user can act on.
    warnings.filterwarnings("ignore", message="Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY")
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
    warnings.filterwarnings("ignore", message="Ratio of simulation cell size to cutoff")
    try:
        command()
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
