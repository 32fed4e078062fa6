"""Checks of the training data before anything is written."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from mace.modules import ScaleShiftMACE
from mace.tools.run_train_utils import normalize_file_paths
from mace.tools.scripts_utils import check_path_ase_read

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from mace_polmp.modules.io import load_any
from mace_polmp.structures import check_structure, read_structures


def check_training_data(args: argparse.Namespace, options: LongRangeOptions) -> set[int]:
    """Refuse structure files that a training cannot use. HDF5 and LMDB data are not read here.

    Args:
        args: upstream's training arguments.
        options: settings of the head.

    Returns:
        The atomic numbers of training and validation data, as far as they were read.

    Raises:
        InputError: a missing or empty file, a structure that cannot be evaluated, missing labels,
            or a test file with elements that training and validation data lack.
    """
    engine = options.make_engine()
    elements: set[int] = set()
    if args.atomic_numbers is not None:
        elements.update(ast.literal_eval(args.atomic_numbers))
    tests: list[tuple[str, set[int]]] = []
    for settings in _heads(args):
        if not settings["train_file"]:
            raise InputError("--train_file is missing; give the file with the training structures")
        for kind in ("train_file", "valid_file", "test_file"):
            for path in normalize_file_paths(settings[kind] or []):
                frames = _check_file(path, settings, engine)
                found = {int(z) for atoms in frames for z in atoms.numbers}
                if kind == "train_file" and frames:
                    _check_atomic_energies(args, path, frames)
                if kind == "test_file":
                    tests.append((path, found))
                else:
                    elements.update(found)
    for path, found in tests:
        if found - elements:
            names = ", ".join(chemical_symbols[z] for z in sorted(found - elements))
            raise InputError(
                f"{path}: holds {names}, which no training or validation structure has; remove "
                "those structures or train on the element"
            )
    return elements


def check_foundation_model(args: argparse.Namespace, elements: set[int]) -> None:
    """Refuse a --foundation_model file that fine-tuning cannot start from.

    Args:
        args: upstream's training arguments.
        elements: atomic numbers of the training data.

    Raises:
        InputError: the file does not exist, holds something else than a short-range MACE, or lacks
            an element of the training data.
    """
    name = args.foundation_model
    if name is None or not (Path(name).exists() or name.endswith(".model")):
        return  # a name that upstream downloads
    model = load_any(name)
    if isinstance(model, MultipoleMACE):
        raise InputError(
            f"{name}: holds a MultipoleMACE; fine-tuning starts from a short-range MACE in this "
            "version. To go on with the same training use --restart_latest"
        )
    if not isinstance(model, ScaleShiftMACE):
        raise InputError(
            f"{name}: holds a {type(model).__name__}, not a ScaleShiftMACE; give a MACE model that "
            "was trained on energies and forces"
        )
    lacking = sorted(elements - {int(z) for z in model.atomic_numbers})
    if lacking:
        names = ", ".join(chemical_symbols[z] for z in lacking)
        raise InputError(
            f"{name}: does not know {names} of the training data; remove those structures or take "
            "another model"
        )


def _is_isolated_atom(atoms: Atoms) -> bool:
    return len(atoms) == 1 and atoms.info.get("config_type") == "IsolatedAtom"


def _heads(args: argparse.Namespace) -> list[dict]:
    """File names and label keys of each head, as upstream resolves them."""
    names = ("train_file", "valid_file", "test_file", "energy_key", "forces_key")
    defaults = {name: getattr(args, name) for name in names}
    defaults["needs_energy"] = args.energy_weight > 0 and args.loss != "forces_only"
    defaults["needs_forces"] = args.forces_weight > 0
    if args.heads is None:
        return [defaults]
    heads = []
    for settings in ast.literal_eval(args.heads).values():
        merged = {**defaults, **{k: v for k, v in settings.items() if k in names}}
        merged["energy_key"] = settings.get("info_keys", {}).get("energy", merged["energy_key"])
        merged["forces_key"] = settings.get("arrays_keys", {}).get("forces", merged["forces_key"])
        heads.append(merged)
    return heads


def _check_atomic_energies(args: argparse.Namespace, path: str, frames: list[Atoms]) -> None:
    given = args.E0s is not None or args.statistics_file is not None or args.heads is not None
    if not given and not any(_is_isolated_atom(atoms) for atoms in frames):
        raise InputError(
            f"{path}: has no isolated atoms to take atomic energies from; give --E0s "
            "average, --E0s '{1: -13.6, …}', or frames with config_type=IsolatedAtom"
        )


def _check_file(path: str, settings: dict, engine: Electrostatics) -> list[Atoms]:
    """Check a file; returns its frames, none for HDF5 and LMDB."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file")
    if not check_path_ase_read(path):
        return []
    missing: dict[str, list[int]] = {}
    frames = read_structures(path)
    for number, atoms in enumerate(frames):
        where = f"{path}: frame {number}"
        check_structure(atoms, where, engine=engine)
        for label in _missing_labels(atoms, settings, where):
            missing.setdefault(label, []).append(number)
    if missing:
        parts = [
            f"{label} in {len(numbers)} of {len(frames)} frames (first: {numbers[0]})"
            for label, numbers in missing.items()
        ]
        raise InputError(
            f"{path}: lacks {' and '.join(parts)}; name the labels with --energy_key and "
            "--forces_key, or give such frames config_energy_weight=0 or config_forces_weight=0"
        )
    return frames


def _missing_labels(atoms: Atoms, settings: dict, where: str) -> list[str]:
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
        and not _is_isolated_atom(atoms)
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
