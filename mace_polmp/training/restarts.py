"""Restarts that do not fit what is asked, and runs that would write over others, are refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from mace_polmp.errors import InputError
from mace_polmp.files import digest
from mace_polmp.head.options import ONE_STEP, LongRangeOptions
from mace_polmp.training.atomic_energies import parse
from mace_polmp.training.checkpoints import Files, newest
from mace_polmp.training.heads import parse_heads
from mace_polmp.training.options import ELECTRICAL_LABELS, loss_settings
from mace_polmp.upstream.training import normalised

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
    "head_lr",
    "scaling",
    "energy_key",
    "forces_key",
    "stress_key",
    "virials_key",
    *(f"{name}_key" for name in ELECTRICAL_LABELS if name != "total_charge"),
    "default_dtype",
)
# What runs of earlier versions, whose checkpoints do not say it, had.
_BEFORE = {
    "kspace_taper": 0.0,
    "self_interaction": False,
    "layer_hidden": 16,
    "formal_charges": "",
    "response": ONE_STEP,
}
_RATE_STAYS = " and goes on from there: learning rates are those of the checkpoint"
# Of the head, those that an earlier model's readouts do not depend on.
_FREE_OPTIONS = ("long_range_solver", "mesh_accuracy")


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
    notes = []
    if saved is None:
        notes = [f"{path} is of an earlier version and does not say its settings"]
        saved = {"model": {}, "training": {}}
    now = facts["settings"]
    for name, value in now["model"].items():
        before = saved["model"].get(name, _BEFORE.get(name, value))
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
    return notes + [
        f"--{name} is {value}, in the run so far it was {saved['training'].get(name)}"
        f"{_RATE_STAYS if name == 'lr' else ''}"
        for name, value in now["training"].items()
        if saved["training"].get(name, value) != value
    ]
