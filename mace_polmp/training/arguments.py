"""Flags of upstream's that make no sense are refused; so are runs that would write over others."""

from __future__ import annotations

import argparse
import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from mace_polmp.errors import InputError
from mace_polmp.files import digest
from mace_polmp.modules.options import LongRangeOptions
from mace_polmp.training.atomic_energies import parse
from mace_polmp.training.checkpoints import Files, newest
from mace_polmp.training.data_checks import parse_heads
from mace_polmp.training.options import loss_settings
from mace_polmp.upstream.training import normalised

Test = Callable[[Any], bool]


def _number(test: Test) -> Test:
    def passes(value: Any) -> bool:
        return isinstance(value, int | float) and math.isfinite(value) and test(value)

    return passes


def _whole(least: int) -> Test:
    return lambda value: isinstance(value, int) and value >= least


_POSITIVE = _number(lambda x: x > 0)
_NOT_NEGATIVE = _number(lambda x: x >= 0)
_FRACTION = _number(lambda x: 0 < x < 1)
_UP_TO_ONE = _number(lambda x: 0 < x <= 1)

# By words for what is expected, a test and the flags that must pass it where they are given.
_SENSE: tuple[tuple[str, Test, tuple[str, ...]], ...] = (
    (
        "a positive number",
        _POSITIVE,
        ("r_max", "huber_delta", "std", "avg_num_neighbors", "lora_alpha"),
    ),
    (
        "a number of 0 or more",
        _NOT_NEGATIVE,
        (
            "lr",
            "swa_lr",
            "energy_weight",
            "forces_weight",
            "stress_weight",
            "virials_weight",
            "swa_energy_weight",
            "swa_forces_weight",
            "swa_stress_weight",
            "swa_virials_weight",
            "weight_decay",
            "weight_pt_head",
            "clip_grad",
        ),
    ),
    ("a number between 0 and 1", _FRACTION, ("ema_decay", "valid_fraction", "lr_factor", "beta")),
    ("a number above 0 and up to 1", _UP_TO_ONE, ("lr_scheduler_gamma",)),
    (
        "a whole number of 1 or more",
        _whole(1),
        (
            "max_num_epochs",
            "batch_size",
            "valid_batch_size",
            "num_interactions",
            "num_channels",
            "correlation",
            "num_radial_basis",
            "num_cutoff_basis",
            "eval_interval",
            "patience",
            "start_swa",
            "lora_rank",
            "num_samples_pt",
        ),
    ),
    (
        "a whole number of 0 or more",
        _whole(0),
        ("seed", "max_L", "max_ell", "num_workers", "scheduler_patience", "plot_frequency"),
    ),
)
_LONGEST_CUTOFF = 100.0
_LARGEST_SEED = 2**32 - 1

# What makes the model: another value cannot go on from a checkpoint.
_MODEL = (
    "r_max",
    "radial_type",
    "num_radial_basis",
    "num_cutoff_basis",
    "pair_repulsion",
    "distance_transform",
    "apply_cutoff",
    "interaction",
    "interaction_first",
    "max_ell",
    "correlation",
    "use_reduced_cg",
    "use_so3",
    "use_agnostic_product",
    "use_last_readout_only",
    "use_edge_irreps_first",
    "num_interactions",
    "MLP_irreps",
    "radial_MLP",
    "hidden_irreps",
    "edge_irreps",
    "gate",
    "optimizer",
    "scheduler",
    "lora",
    "lora_rank",
    "foundation_model_elements",
    "total_charge_key",
)
# What changes how it is trained: said in the log where it differs.
_TRAINING = (
    "train_file",
    "batch_size",
    *loss_settings(stage_two=True),
    "ema",
    "ema_decay",
    "lr",
    "clip_grad",
    "swa",
    "lbfgs",
    "swa_lr",
    "weight_decay",
    "training_mode",
    "default_dtype",
)
_RATE_STAYS = " and goes on from there: learning rates are those of the checkpoint"
# Of the head, those that an earlier model's readouts do not depend on.
_FREE_OPTIONS = ("long_range_solver", "mesh_accuracy")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values of upstream's flags that no training can use.

    Raises:
        InputError: names the flag, what was expected and what came.
    """
    for words, test, names in _SENSE:
        for name in names:
            value = getattr(args, name, None)
            if value is not None and not test(value):
                raise InputError(f"--{name} must be {words}, got {value!r}")
    if args.r_max is not None and args.r_max > _LONGEST_CUTOFF:
        raise InputError(
            f"--r_max {args.r_max:g}: is a cutoff in Å; a few Å are usual, {_LONGEST_CUTOFF:g} the "
            "most"
        )
    if args.seed > _LARGEST_SEED:
        raise InputError(f"--seed must be at most {_LARGEST_SEED}, got {args.seed}")
    if not args.name or "/" in args.name:
        raise InputError(f"--name must be the beginning of file names, got {args.name!r}")
    if args.swa and args.start_swa is not None and args.start_swa >= args.max_num_epochs:
        raise InputError(
            f"--start_swa {args.start_swa}: stage two must begin before the last epoch; give less "
            f"than --max_num_epochs {args.max_num_epochs}"
        )
    if args.swa and args.loss == "forces_only":
        raise InputError("--swa does not go with --loss forces_only; leave one out")
    if args.heads is not None and args.test_file is not None:
        raise InputError("--test_file is not used with --heads; give each head its test_file there")
    _check_dictionary(args, "config_type_weights")
    _check_dictionary(args, "lr_params_factors")
    normalised(args)


def _check_dictionary(args: argparse.Namespace, name: str) -> None:
    """Refuse factors that are no dictionary of numbers, which upstream would leave out silently."""
    value = getattr(args, name)
    try:
        found = json.loads(value) if name == "lr_params_factors" else ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):
        found = None
    if not isinstance(found, dict) or not all(_NOT_NEGATIVE(x) for x in found.values()):
        raise InputError(
            f"--{name} must be a dictionary of numbers of 0 or more, such as "
            f"'{{\"Default\": 1.0}}', got {value!r}"
        )


def facts_of(
    args: argparse.Namespace, options: LongRangeOptions, elements: set[int]
) -> dict[str, Any]:
    """The settings that a checkpoint holds, for a restart to be compared with.

    Args:
        args: upstream's training arguments.
        options: settings of the head.
        elements: of the training data.
    """
    normal = normalised(args)
    model = {name: getattr(normal, name, None) for name in _MODEL}
    model["hidden_irreps"] = str(normal.hidden_irreps)
    model["E0s"] = _e0s(args.E0s)
    model["heads"] = None if args.heads is None else ", ".join(parse_heads(args.heads))
    model["elements"] = " ".join(chemical_symbols[z] for z in sorted(elements))
    foundation = args.foundation_model
    if foundation is not None and Path(foundation).is_file():
        foundation = digest(foundation)
    model["foundation_model"] = foundation
    head = {k: v for k, v in vars(options).items() if k not in _FREE_OPTIONS}
    training = {name: getattr(args, name, None) for name in _TRAINING}
    return {"settings": {"model": model | head, "training": training}}


def _e0s(asked: Any) -> str | None:
    """Atomic energies that were asked for, in one way of writing."""
    found = None if asked is None else parse(asked)
    if isinstance(found, dict):
        return ", ".join(f"{chemical_symbols[z]} {found[z]!r}" for z in sorted(found))
    return found


def files_of(args: argparse.Namespace) -> tuple[Files, list[Path]]:
    """The checkpoints of a run, and the model files that it writes."""
    normal = normalised(args)
    folder = Path(normal.model_dir)
    models = [folder / f"{args.name}.model", folder / f"{args.name}_stagetwo.model"]
    return Files(Path(normal.checkpoints_dir), f"{args.name}_run-{args.seed}"), models


def check_restart(args: argparse.Namespace, facts: dict[str, Any]) -> list[str]:
    """Refuse to write over another run, or to go on from a checkpoint that does not fit.

    Args:
        args: upstream's training arguments.
        facts: of facts_of.

    Returns:
        Lines for the log on settings that differ and may.

    Raises:
        InputError: files of another run are there, or a checkpoint of another model.
    """
    files, models = files_of(args)
    there = [*files.there(), *(path for path in models if path.exists())]
    if not args.restart_latest:
        if there:
            raise InputError(
                f"{there[0]}: is there already, from another run; give --restart_latest to go on "
                "with it, another --name, --seed or --work_dir, or remove it"
            )
        return []
    found = newest(files)
    if found is None:
        # Killed in the first epoch, between the best and what it goes on from: it begins anew.
        if there and set(there) - {files.best(False), files.best(True)}:
            raise InputError(
                f"{there[0]}: is there already, from a run without the checkpoints {files.tag}; "
                "give another --name or --work_dir, or remove it"
            )
        return []
    path, checkpoint = found
    saved = checkpoint.get("settings")
    if saved is None:
        return [f"{path} is of an earlier version and does not say its settings"]
    now = facts["settings"]
    for name, value in now["model"].items():
        before = saved["model"].get(name, value)
        if before != value:
            flag = name if name == "elements" else f"--{name}"
            if name == "foundation_model":
                before, value = "another file", "this one"
            if name == "hidden_irreps":
                value = f"{value} (of --num_channels and --max_L)"
            raise InputError(
                f"{path}: belongs to a run with {flag} {before}, now it is {value}; give the same, "
                "or another --name"
            )
    return [
        f"--{name} is {value}, in the run so far it was {saved['training'].get(name)}"
        f"{_RATE_STAYS if name == 'lr' else ''}"
        for name, value in now["training"].items()
        if saved["training"].get(name, value) != value
    ]
