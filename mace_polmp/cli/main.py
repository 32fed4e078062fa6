"""`mace_polmp`: the command with subcommands."""

from __future__ import annotations

import argparse

from mace_polmp import __version__
from mace_polmp.cli import (
    check_data,
    demo,
    evaluate,
    label,
    lammps,
    md,
    models,
    modes,
    phonons,
    quickstart,
    spectrum,
)
from mace_polmp.cli.common import run_command
from mace_polmp.cli.mistakes import parsed


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mace_polmp`."""
    parser = argparse.ArgumentParser(
        prog="mace_polmp",
        description="MACE with latent multipoles, linear response and long-range electrostatics. "
        "Training: mace_run_train --model MultipoleMACE; evaluation: mace_eval_configs.",
    )
    parser.add_argument("--version", action="version", version=f"mace_polmp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (
        demo,
        quickstart,
        evaluate,
        md,
        lammps,
        spectrum,
        modes,
        phonons,
        models,
        check_data,
        label,
    ):
        module.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point of mace_polmp."""
    args = parsed(build_parser(), argv)
    run_command(f"mace_polmp {args.command}", lambda: args.run(args))


if __name__ == "__main__":
    main()
