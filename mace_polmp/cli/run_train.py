"""`mace_run_train`: upstream's training with the long-range head as one more --model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from mace_polmp.cli.common import run_command
from mace_polmp.errors import InputError
from mace_polmp.modules.options import LongRangeOptions

MODEL_NAME = "MultipoleMACE"
# Upstream's speed options convert a model class by class and do not know this one.
_UNSUPPORTED = ("enable_cueq", "only_cueq", "enable_oeq")


def build_parser() -> argparse.ArgumentParser:
    """Upstream's parser with the group "Long-range electrostatics"."""
    from mace import tools

    from mace_polmp.training.seams import extend_parser

    parser = tools.build_default_arg_parser()
    extend_parser(parser, MODEL_NAME)
    group = parser.add_argument_group(
        "Long-range electrostatics", f"with --model {MODEL_NAME}; lengths in Ang"
    )
    for option in fields(LongRangeOptions):
        if option.metadata["type"] is None:
            group.add_argument(
                f"--{option.name}", action="store_true", help=option.metadata["help"]
            )
        else:
            choices = option.metadata["choices"]
            group.add_argument(
                f"--{option.name}",
                type=_lenient(option.metadata["type"]),
                metavar=f"{{{','.join(map(str, choices))}}}" if choices else "NUMBER",
                default=option.default,
                help=option.metadata["help"],
            )
    return parser


def _lenient(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Convert, or leave the text: LongRangeOptions says in one line what is wrong with it."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            return text

    return parse


def long_range_options(args: argparse.Namespace) -> LongRangeOptions:
    """The head's settings from parsed arguments.

    Raises:
        InputError: a value that is not valid.
    """
    return LongRangeOptions(**{f.name: getattr(args, f.name) for f in fields(LongRangeOptions)})


def run(args: argparse.Namespace) -> None:
    """Train with parsed arguments: a MultipoleMACE here, anything else as upstream does.

    Raises:
        InputError: flags or data that cannot be used; nothing has been written then.
    """
    from mace.cli import run_train as upstream

    from mace_polmp.training import seams
    from mace_polmp.training.data_checks import check_foundation_model, check_training_data
    from mace_polmp.training.statistics import log_multipoles

    if args.model != MODEL_NAME:
        changed = [f.name for f in fields(LongRangeOptions) if getattr(args, f.name) != f.default]
        if changed:
            raise InputError(f"--{changed[0]} needs --model {MODEL_NAME}, got --model {args.model}")
        upstream.run(args)
        return
    options = long_range_options(args)
    for name in _UNSUPPORTED:
        if getattr(args, name):
            raise InputError(f"--{name} does not work with --model {MODEL_NAME}; leave it out")
    check_foundation_model(args, check_training_data(args, options))
    seams.train(args, options, after_evaluation=log_multipoles)


def main(argv: list[str] | None = None) -> None:
    """Entry point of mace_run_train and mace_polmp_run_train."""
    run_command("mace_run_train", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    main(sys.argv[1:])
