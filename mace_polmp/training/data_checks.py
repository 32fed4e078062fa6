"""Checks of the training data before anything is written."""

from __future__ import annotations

import argparse
import ast
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from mace.modules import ScaleShiftMACE
from mace.tools.run_train_utils import normalize_file_paths
from mace.tools.scripts_utils import check_path_ase_read

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from mace_polmp.modules.io import check_format, load_any
from mace_polmp.modules.safe_files import SUFFIX
from mace_polmp.structures import check_structure, is_isolated_atom, read_structures
from mace_polmp.training.fine_tuning import check_cutoff
from mace_polmp.training.labels import check_labels, check_presence
from mace_polmp.training.options import TrainingOptions


def check_training_data(
    args: argparse.Namespace,
    options: LongRangeOptions,
    training: TrainingOptions,
    foundation: torch.nn.Module | None = None,
) -> None:
    """Refuse structure files that a training cannot use. HDF5 and LMDB data are not read here.

    Args:
        args: upstream's training arguments.
        options: settings of the head.
        training: weights and keys of electrical labels.
        foundation: the foundation model, if it is a file.

    Raises:
        InputError: a missing or empty file, a structure that cannot be evaluated, missing, wrong
            or contradictory labels, or elements that the foundation model, or for a test file
            training and validation data, lack.
    """
    engine = options.make_engine()
    elements: set[int] = set()
    if args.atomic_numbers is not None:
        elements.update(ast.literal_eval(args.atomic_numbers))
    tests: list[tuple[str, set[int]]] = []
    n_trained: list[int | None] = []  # None: not known
    for settings in _heads(args, options, training):
        if not settings["train_file"]:
            raise InputError("--train_file is missing; give the file with the training structures")
        trained: list[Atoms] = []
        labelled: Counter[str] = Counter()
        for kind in ("train_file", "valid_file", "test_file"):
            for path in normalize_file_paths(settings[kind] or []):
                frames, counts = _check_file(path, settings, engine)
                found = {int(z) for atoms in frames for z in atoms.numbers}
                if kind == "train_file" and frames:
                    _check_atomic_energies(args, path, frames)
                    trained += frames
                    labelled += counts
                if kind == "test_file":
                    tests.append((path, found))
                else:
                    elements.update(found)
        n_trained.append(_number_trained(args, settings, trained))
        if not settings["replay"]:
            _check_labels_exist(trained, labelled, str(settings["train_file"]), training)
    _check_batch_size(args, n_trained)
    _check_test_elements(tests, elements)
    if foundation is not None:
        lacking = sorted(elements - {int(z) for z in foundation.atomic_numbers})
        if lacking:
            names = ", ".join(chemical_symbols[z] for z in lacking)
            raise InputError(
                f"{args.foundation_model}: does not know {names} of the training data; remove "
                "those structures or take another model"
            )


def _number_trained(
    args: argparse.Namespace, settings: dict[str, Any], frames: list[Atoms]
) -> int | None:
    """Structures that one head is trained on, as upstream splits them; None for other formats."""
    number = sum(args.keep_isolated_atoms or not is_isolated_atom(atoms) for atoms in frames)
    if not number:
        return None
    taken = 0 if settings["valid_file"] else max(1, int(args.valid_fraction * number))
    return number - taken


def _check_batch_size(args: argparse.Namespace, numbers: list[int | None]) -> None:
    known = [number for number in numbers if number is not None]
    total = sum(known)
    if len(known) == len(numbers) and total < args.batch_size and not args.lbfgs:
        raise InputError(
            f"--batch_size {args.batch_size} is more than the {total} structures to train on; a "
            f"batch that is not full is left out; give at most {total}"
        )


def _check_test_elements(tests: list[tuple[str, set[int]]], elements: set[int]) -> None:
    for path, found in tests:
        if found - elements:
            names = ", ".join(chemical_symbols[z] for z in sorted(found - elements))
            raise InputError(
                f"{path}: holds {names}, which no training or validation structure has; remove "
                "those structures or train on the element"
            )


def _check_labels_exist(
    frames: list[Atoms], counts: Counter[str], path: str, training: TrainingOptions
) -> None:
    """Refuse a weight of an electrical label that no training frame has, or no data could."""
    if frames:
        check_presence(counts, training, len(frames), path, frames[0])
    elif "born_charges" in training.used:
        raise InputError(
            f"{path}: HDF5 and LMDB files have no Born charges for --born_charges_weight; train on "
            "a file that ASE reads, for instance extended XYZ"
        )


def check_foundation_model(args: argparse.Namespace) -> torch.nn.Module | None:
    """The model of --foundation_model; None if there is none, or a name that upstream downloads.

    Raises:
        InputError: the file does not exist, holds something else than a ScaleShiftMACE or a
            MultipoleMACE, or has another cutoff than --r_max.
    """
    name = args.foundation_model
    if name is None or not (Path(name).exists() or name.endswith((".model", SUFFIX))):
        return None
    model = load_any(name)
    if not isinstance(model, ScaleShiftMACE):
        raise InputError(
            f"{name}: holds a {type(model).__name__}, not a ScaleShiftMACE or MultipoleMACE; give "
            "a MACE model that was trained on energies and forces"
        )
    if isinstance(model, MultipoleMACE):
        check_format(model, name)
    if args.r_max is not None:
        check_cutoff(args.r_max, model)
    return model


@contextmanager
def readable_foundation(args: argparse.Namespace, model: torch.nn.Module | None) -> Iterator[None]:
    """While upstream runs, let --foundation_model name a file that it can read."""
    name = args.foundation_model
    if model is None or not name.endswith(SUFFIX):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        args.foundation_model = str(Path(folder) / "foundation.model")
        torch.save(model, args.foundation_model)
        yield
    args.foundation_model = name


def _heads(
    args: argparse.Namespace, options: LongRangeOptions, training: TrainingOptions
) -> list[dict[str, Any]]:
    """File names and label keys of each head, as upstream resolves them."""
    names = ("train_file", "valid_file", "test_file", "energy_key", "forces_key")
    defaults = {name: getattr(args, name) for name in names}
    defaults["needs_energy"] = args.energy_weight > 0 and args.loss != "forces_only"
    defaults["needs_forces"] = args.forces_weight > 0
    defaults["constrained"] = options.constrain_charge != "none"
    used = set(training.used) | ({"total_charge"} if defaults["constrained"] else set())
    defaults["labels"] = {name: training.key(name) for name in used}
    defaults["replay"] = False
    heads = [defaults]
    if args.heads is not None:
        heads = []
        for settings in ast.literal_eval(args.heads).values():
            merged = {**defaults, **{k: v for k, v in settings.items() if k in names}}
            given = {**settings.get("info_keys", {}), **settings.get("arrays_keys", {})}
            merged["energy_key"] = given.get("energy", merged["energy_key"])
            merged["forces_key"] = given.get("forces", merged["forces_key"])
            merged["labels"] = {n: given.get(n, key) for n, key in merged["labels"].items()}
            heads.append(merged)
    replayed = args.multiheads_finetuning and args.foundation_model and args.pt_train_file
    if replayed and Path(args.pt_train_file).suffix:  # else data that upstream downloads
        replay = dict(train_file=args.pt_train_file, valid_file=args.pt_valid_file)
        heads.append({**defaults, **replay, "test_file": None, "replay": True})
    return heads


def _check_atomic_energies(args: argparse.Namespace, path: str, frames: list[Atoms]) -> None:
    given = args.E0s is not None or args.statistics_file is not None or args.heads is not None
    if not given and not any(is_isolated_atom(atoms) for atoms in frames):
        raise InputError(
            f"{path}: has no isolated atoms to take atomic energies from; give --E0s "
            "average, --E0s '{1: -13.6, …}', or frames with config_type=IsolatedAtom"
        )


def _check_file(
    path: str, settings: dict[str, Any], engine: Electrostatics
) -> tuple[list[Atoms], Counter[str]]:
    """Check a file; returns its frames, none for HDF5 and LMDB, and how many have each label."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file")
    counts: Counter[str] = Counter()
    if not check_path_ase_read(path):
        return [], counts
    missing: dict[str, list[int]] = {}
    frames = read_structures(path)
    for number, atoms in enumerate(frames):
        where = f"{path}: frame {number}"
        check_structure(atoms, where, engine=engine)
        for label in _missing_labels(atoms, settings, where):
            missing.setdefault(label, []).append(number)
        counts.update(check_labels(atoms, settings["labels"], settings["constrained"], where))
    if missing:
        parts = [
            f"{label} in {len(numbers)} of {len(frames)} frames (first: {numbers[0]})"
            for label, numbers in missing.items()
        ]
        raise InputError(
            f"{path}: lacks {' and '.join(parts)}; name the labels with --energy_key and "
            "--forces_key, or give such frames config_energy_weight=0 or config_forces_weight=0"
        )
    return frames, counts


def _missing_labels(atoms: Atoms, settings: dict[str, Any], where: str) -> list[str]:
    """Labels a frame should have and lacks.

    Raises:
        InputError: a label that is there but holds NaN or has the wrong shape.
    """
    missing = []
    results = atoms.calc.results if atoms.calc is not None else {}
    key = settings["energy_key"]
    if settings["needs_energy"] and atoms.info.get("config_energy_weight", 1.0) > 0:
        # ASE moves a label named "energy" or "forces" into a calculator.
        energy = results.get("energy") if key == "energy" else atoms.info.get(key)
        if energy is None:
            missing.append(f"the energy '{key}'")
        elif np.shape(energy) != () or not np.isfinite(float(energy)):
            raise InputError(f"{where}: the energy '{key}' is {energy}, not one finite number")
    key = settings["forces_key"]
    if (
        settings["needs_forces"]
        and not is_isolated_atom(atoms)
        and atoms.info.get("config_forces_weight", 1.0) > 0
    ):
        forces = results.get("forces") if key == "forces" else atoms.arrays.get(key)
        if forces is None:
            missing.append(f"the forces '{key}'")
        elif np.shape(forces) != (len(atoms), 3) or not np.isfinite(forces).all():
            raise InputError(
                f"{where}: the forces '{key}' must be [{len(atoms)}, 3] finite numbers"
            )
    return missing
