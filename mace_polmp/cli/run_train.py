"""`mace_run_train`: upstream's training with the long-range head as one more --model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import mace_polmp.quiet  # noqa: F401  before mace
from mace_polmp.cli.common import run_command
from mace_polmp.cli.mistakes import parsed
from mace_polmp.errors import InputError
from mace_polmp.head.options import LongRangeOptions

if TYPE_CHECKING:
    from mace_polmp.training.options import TrainingOptions

MODEL_NAME = "MultipoleMACE"
# Upstream converts a model class by class and does not know this one.
_UNSUPPORTED = ("enable_oeq",)
_OTHER_LOSSES = ("dipole", "dipole_polar", "energy_forces_dipole")


def build_parser() -> argparse.ArgumentParser:
    """Upstream's parser with groups for the head, electrical labels and fine-tuning.

    What is not given is absent from the parsed restarts.
    """
    from mace import tools

    from mace_polmp.training.options import UPSTREAM_FLAGS, TrainingOptions
    from mace_polmp.upstream.training import extend_parser

    parser = tools.build_default_arg_parser()
    own = {f.name: f"{f.default or 0:g}" for f in fields(TrainingOptions) if "weight" in f.name}
    own |= {f.name: str(f.default) for f in fields(TrainingOptions) if f.name.endswith("_key")}
    notes = {name: f"{own[name]} with --model {MODEL_NAME}" for name in UPSTREAM_FLAGS}
    notes["r_max"] = "a foundation model's own"
    extend_parser(parser, MODEL_NAME, notes)
    # Upstream's --amsgrad is on and cannot be turned off: the largest gradients, those of the first
    # steps, then hold the steps small for the whole run.
    parser.add_argument(
        "--no_amsgrad",
        dest="amsgrad",
        action="store_false",
        default=argparse.SUPPRESS,
        help="turn off --amsgrad: Adam forgets the large gradients of the first steps; a smaller "
        "--lr goes with it",
    )
    title = f"with --model {MODEL_NAME}; lengths in Å"
    _add_flags(parser, LongRangeOptions, "Long-range electrostatics", title)
    title = f"with --model {MODEL_NAME}; dipoles and polarizabilities have flags above"
    _add_flags(parser, TrainingOptions, "Electrical labels and fine-tuning", title)
    return parser


def _add_flags(
    parser: argparse.ArgumentParser, options: type, title: str, description: str
) -> None:
    """A group with a flag for each option that has a help."""
    group = parser.add_argument_group(title, description)
    for field in fields(options):
        if "help" not in field.metadata:
            continue
        text, absent = field.metadata["help"], argparse.SUPPRESS
        if field.metadata["type"] is None:
            group.add_argument(f"--{field.name}", action="store_true", default=absent, help=text)
            continue
        choices = field.metadata["choices"]
        if field.default is not None:
            text += f" (default {field.default})"
        group.add_argument(
            f"--{field.name}",
            type=_lenient(field.metadata["type"]),
            metavar=f"{{{','.join(map(str, choices))}}}" if choices else "VALUE",
            default=absent,
            help=text,
        )


def _lenient(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Convert, or leave the text: the options say in one line what is wrong with it."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            return text

    return parse


def asked_options(args: argparse.Namespace) -> dict[str, Any]:
    """The head's settings that were given, from parsed restarts."""
    given = {f.name: getattr(args, f.name, None) for f in fields(LongRangeOptions)}
    return {name: value for name, value in given.items() if value is not None}


def run(args: argparse.Namespace) -> None:
    """Train with parsed arguments: a MultipoleMACE here, anything else as upstream does.

    Raises:
        InputError: flags or data that cannot be used; nothing has been written then.
    """
    if args.model != MODEL_NAME:
        _run_upstream(args)
        return
    from mace_polmp.files import locked, make_folder
    from mace_polmp.modules import MultipoleMACE
    from mace_polmp.modules.accelerated import check_cuequivariance
    from mace_polmp.modules.io import check_device
    from mace_polmp.modules.record import TrainingRecord
    from mace_polmp.training import restarts, session
    from mace_polmp.training.bonds import check_bonds
    from mace_polmp.training.data_checks import check_training_data
    from mace_polmp.training.fine_tuning import inherit
    from mace_polmp.training.flags import check_arguments
    from mace_polmp.training.foundation import check_foundation_model, readable_foundation
    from mace_polmp.training.heads import plain_heads
    from mace_polmp.training.labels import check_constraint, check_model, check_polarizabilities
    from mace_polmp.training.options import TrainingOptions
    from mace_polmp.training.statistics import log_multipoles

    asked, training = asked_options(args), TrainingOptions.of(args)
    args.r_max = getattr(args, "r_max", None)
    for name in _UNSUPPORTED:
        if getattr(args, name):
            raise InputError(f"--{name} does not work with --model {MODEL_NAME}; leave it out")
    if args.enable_cueq or args.only_cueq:
        check_cuequivariance()
        if args.lora:
            raise InputError("--lora does not work with cuEquivariance; leave out one of them")
    if args.loss in _OTHER_LOSSES:
        raise InputError(
            f"--loss {args.loss} is not for --model {MODEL_NAME}; take --loss weighted (or stress, "
            "universal, huber) with --dipole_weight, --polarizability_weight"
        )
    check_arguments(args)
    if args.heads is not None:
        args.heads = plain_heads(args, training)
    _check_mode(args, training)
    LongRangeOptions(**asked)  # refuses
    for name, value in vars(training).items():
        setattr(args, name, value)
    check_device(args.device)
    foundation = check_foundation_model(args)
    former = foundation if isinstance(foundation, MultipoleMACE) else None
    options = inherit(asked, former)
    check_model(options, training)
    data = check_training_data(args, options, training, foundation)
    known = (foundation is not None, former is not None)
    check_polarizabilities(options, training, data.frames)
    check_constraint(options, training, data.frames)
    check_bonds(options, training, *known, data.frames, data.elements)
    facts = restarts.facts_of(args, options, data.elements)
    files, _ = restarts.files_of(args)
    if files.lock().exists():
        with _only_writer(args, locked(files.lock(), f"the run {files.tag}")):
            pass  # refuses while another process is at it
    notes = restarts.check_restart(args, facts)  # refuses, before a folder is made
    record = TrainingRecord(training.key("total_charge"), tuple(sorted(data.boundaries)))
    make_folder(files.folder)
    with (
        readable_foundation(args, foundation),
        _only_writer(args, locked(files.lock(), f"the run {files.tag}")),
    ):
        session.train(
            args,
            asked,
            training,
            record,
            facts,
            notes,
            data.frames,
            after_evaluation=log_multipoles,
        )


def _only_writer(args: argparse.Namespace, lock: Any) -> Any:
    """The lock of a run; of many processes of one training the first holds it."""
    import contextlib
    import os

    first = not args.distributed or int(os.environ.get("RANK", "0")) == 0
    return lock if first else contextlib.nullcontext()


def _check_mode(args: argparse.Namespace, training: TrainingOptions) -> None:
    """Refuse what does not go together with a frozen backbone."""
    mode = training.training_mode
    if mode == "all":
        return
    for name, why in (
        ("lora", "adapts the backbone, which this mode freezes"),
        ("distributed", "cannot freeze parts of a model"),
    ):
        if getattr(args, name):
            raise InputError(f"--{name} {why}: leave it or --training_mode {mode} out")
    if mode == "head_first" and (training.head_epochs or 1) >= args.max_num_epochs:
        raise InputError(
            f"--head_epochs {training.head_epochs or 1} leaves no epoch for everything; give less "
            f"than --max_num_epochs {args.max_num_epochs}"
        )


def _run_upstream(args: argparse.Namespace) -> None:
    """Any other model, with upstream's own defaults."""
    from mace import tools
    from mace.cli import run_train as upstream

    from mace_polmp.training.options import UPSTREAM_FLAGS, TrainingOptions

    own = [f.name for f in fields(TrainingOptions) if "help" in f.metadata]
    changed = [*asked_options(args), *(n for n in own if getattr(args, n, None) is not None)]
    if changed:
        raise InputError(f"--{changed[0]} needs --model {MODEL_NAME}, got --model {args.model}")
    defaults = tools.build_default_arg_parser()
    for name in (*UPSTREAM_FLAGS, "r_max"):
        if getattr(args, name, None) is None:
            setattr(args, name, defaults.get_default(name))
    upstream.run(args)


def main(argv: list[str] | None = None) -> None:
    """Entry point of mace_run_train and mace_polmp_run_train."""
    run_command("mace_run_train", lambda: run(parsed(build_parser(), argv)))


if __name__ == "__main__":
    main(sys.argv[1:])
