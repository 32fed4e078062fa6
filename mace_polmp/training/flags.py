"""Values of upstream's flags that make no sense are refused before anything is done."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e3nn import o3

from mace_polmp.errors import InputError
from mace_polmp.head.options import choose
from mace_polmp.reading import existing_file
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

EXPECTED: tuple[tuple[str, Test, tuple[str, ...]], ...] = (
    (
        "a positive number",
        _POSITIVE,
        (
            "r_max",
            "huber_delta",
            "std",
            "avg_num_neighbors",
            "lora_alpha",
            "clip_grad",
        ),
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
        ),
    ),
    ("a number", _number(lambda x: True), ("mean",)),
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
"""Words for what is expected, a test, and the flags that must pass it where they are given."""

# By flag of a text, what it may be.
_CHOICES = {
    "scheduler": ("ReduceLROnPlateau", "ExponentialLR"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
}
# Packages that are not installed with mace_polmp, by flag and its value.
_PACKAGES = (("wandb", True, "wandb"), ("optimizer", "schedulefree", "schedulefree"))
_FOLDERS = ("work_dir", "log_dir", "model_dir", "checkpoints_dir", "results_dir", "downloads_dir")
_STATISTICS = ("atomic_numbers", "mean", "std", "avg_num_neighbors", "atomic_energies")
_HIGHEST_ELL = 11
"""The highest degree of spherical harmonics that e3nn has coefficients for."""

_LONGEST_CUTOFF = 100.0
_LARGEST_SEED = 2**32 - 1


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values of upstream's flags that no training can use.

    Raises:
        InputError: names the flag, what was expected and what came.
    """
    for words, test, names in EXPECTED:
        for name in names:
            value = getattr(args, name, None)
            if value is not None and not test(value):
                raise InputError(f"--{name} must be {words}, got {value!r}")
    for name, choices in _CHOICES.items():
        choose(f"--{name}", getattr(args, name), choices)
    if args.max_ell > _HIGHEST_ELL:
        raise InputError(f"--max_ell must be at most {_HIGHEST_ELL}, got {args.max_ell}")
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
    _check_network(args)
    _check_files(args)
    normalised(args)
    for name, value, package in _PACKAGES:
        if getattr(args, name) == value and importlib.util.find_spec(package) is None:
            raise InputError(
                f"--{name}: needs the package {package}; install it with pip install {package}"
            )


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


def _check_network(args: argparse.Namespace) -> None:
    """Refuse sizes of the network that are not written as such."""
    for name in ("hidden_irreps", "edge_irreps", "MLP_irreps"):
        _check_irreps(name, getattr(args, name))
    _check_radial(args.radial_MLP)
    channels, degree = args.num_channels, args.max_L
    if args.hidden_irreps is None or (channels is None and degree is None):
        return
    hidden = o3.Irreps(args.hidden_irreps)
    if channels not in (None, hidden[0].mul) or degree not in (None, hidden.lmax):
        raise InputError(
            f"--hidden_irreps {args.hidden_irreps}: has other channels or another degree than "
            "--num_channels and --max_L; give one or the other"
        )


def _check_irreps(name: str, text: str | None) -> None:
    if text is None:
        return
    try:
        irreps = o3.Irreps(text)
    except (ValueError, IndexError, TypeError):
        irreps = o3.Irreps("")
    scalar = any(ir == o3.Irrep("0e") and mul > 0 for mul, ir in irreps)
    if not scalar:
        raise InputError(f"--{name} must be irreps with scalars, such as '16x0e', got {text!r}")


def _check_radial(text: str) -> None:
    try:
        widths = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        widths = None
    if not isinstance(widths, list) or not widths or not all(map(_whole(1), widths)):
        raise InputError(f"--radial_MLP must be a list such as '[64, 64, 64]', got {text!r}")


def _check_files(args: argparse.Namespace) -> None:
    """Refuse files and folders that are not there, or are the other kind."""
    if args.statistics_file is not None:
        _check_statistics(args.statistics_file)
    if args.test_dir is not None and not Path(args.test_dir).is_dir():
        raise InputError(f"--test_dir {args.test_dir}: no such folder")
    for name in _FOLDERS:
        folder = getattr(args, name)
        if folder is None:
            continue
        there = next(p for p in (Path(folder), *Path(folder).parents) if p.exists())
        if not there.is_dir():
            raise InputError(f"--{name} {folder}: {there} is a file; name a folder")


def _check_statistics(name: str) -> None:
    """Refuse a file that mace-torch's preprocessing has not written."""
    try:
        found = json.loads(existing_file(name, "--statistics_file").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--statistics_file {name}: not a JSON file ({error})") from error
    for key in _STATISTICS:
        if not isinstance(found, dict) or key not in found:
            raise InputError(
                f"--statistics_file {name}: has no '{key}'; give the file that mace_prepare_data "
                "writes"
            )
