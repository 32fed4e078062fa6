"""What the commands share: one-line errors, options of the model, loading it."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mace_polmp.cli import hide_notices
from mace_polmp.errors import InputError
from mace_polmp.files import unwritable

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.calculators import MultipoleMACECalculator

UNCONSTRAINED = (
    "--total_charge {:g}: the model was trained without --constrain_charge, and its results do not "
    "depend on the total charge; leave the option out"
)


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults of flags, where they have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []):
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(action.default)})"
        return super()._get_help_string(action)


def add_model_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--model and how to evaluate it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        nargs="+",
        required=required,
        help=".model or .safetensors, or demo for the one in the package; several make a committee",
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, …")
    group.add_argument(
        "--default_dtype", default="float64", choices=("float32", "float64"), help="precision"
    )
    group.add_argument("--head", help="which head of a model with several")
    group.add_argument(
        "--total_charge",
        type=float,
        help="total charge (e) of structures that do not say theirs, for models that were trained "
        "with --constrain_charge",
    )
    group.add_argument(
        "--epsilon_infinity",
        type=float,
        help="electronic permittivity: dipoles and Born charges of periodic structures are "
        "multiplied by its square root, and ε∞ of induced dipoles by it; by default what the model "
        "was given or has learned",
    )
    group.add_argument(
        "--divide_by_chi",
        action="store_true",
        help="divide dipoles and Born charges of periodic structures by the square root of 1 + chi "
        "as well, for models with induced dipoles",
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


def make_calculator(
    args: argparse.Namespace, models: Any = None, **more: Any
) -> MultipoleMACECalculator:
    """The calculator of add_model_options.

    Args:
        args: parsed.
        models: those of the files, where they have been read already.
        more: of the calculator.

    Raises:
        InputError: a file that is not a MultipoleMACE, or a device that does not exist.
    """
    from mace_polmp.calculators import MultipoleMACECalculator
    from mace_polmp.calculators.loading import precision_is_meant
    from mace_polmp.modules.io import check_device

    check_device(args.device)
    with precision_is_meant():
        return MultipoleMACECalculator(
            args.model if models is None else None,
            models=models,
            device=args.device,
            default_dtype=args.default_dtype,
            epsilon_infinity=args.epsilon_infinity,
            divide_by_chi=args.divide_by_chi,
            sum_rule=args.sum_rule,
            **more,
            **({} if args.head is None else {"head": args.head}),
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


def _end(name: str, message: str) -> None:
    print(f"{name}: error: {message}", file=sys.stderr)
    sys.exit(1)


def checked(
    args: argparse.Namespace, atoms: Atoms, where: str, calculator: MultipoleMACECalculator
) -> Atoms:
    """A structure that the calculator can evaluate, with the charge of --total_charge.

    The charge has the name that the models know.

    Raises:
        InputError: a structure that cannot be evaluated, or that says another charge itself.
    """
    from mace_polmp.structures import with_total_charge

    constrained = any(m.long_range_options.constrain_charge != "none" for m in calculator.models)
    if args.total_charge is not None and not (constrained or args.sum_rule):
        raise InputError(UNCONSTRAINED.format(args.total_charge))
    key = calculator.charge_keys()[0]
    charged = with_total_charge(atoms, args.total_charge, where, key)
    calculator.check(charged, where)
    return charged


def named(base: Path, ending: str) -> Path:
    """The file of a name without ending, which may have dots of its own."""
    return base.with_name(base.name + ending)


def run_command(name: str, command: Callable[[], None]) -> None:
    """Run a command; an InputError becomes one line on stderr and exit status 1."""
    hide_notices()
    for stream in (sys.stdout, sys.stderr):  # Å is written as ? where a terminal has no Å
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        command()
    except InputError as error:
        _end(name, str(error))
    except BrokenPipeError:  # whoever reads the output has had enough
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a full disk, no permission
        _end(name, unwritable(error.filename or "a file of this command", error))
    except MemoryError as error:
        _end(name, f"out of memory ({error}); smaller batches or structures need less")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
