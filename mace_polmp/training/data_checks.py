"""Checks of the training data before anything is written."""

from __future__ import annotations

import argparse
import ast
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.data import chemical_symbols
from mace.tools.run_train_utils import normalize_file_paths
from mace.tools.scripts_utils import check_path_ase_read

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.errors import InputError
from mace_polmp.labels import LabelRules, check_frame, names_in
from mace_polmp.modules import LongRangeOptions
from mace_polmp.quantities import LABELS, boundary
from mace_polmp.reading import shown
from mace_polmp.structures import check_structure, is_isolated_atom, read_structures
from mace_polmp.training import atomic_energies
from mace_polmp.training.heads import keys_of, parse_heads
from mace_polmp.training.labels import check_no_labels, check_presence
from mace_polmp.training.options import ELECTRICAL_LABELS, TrainingOptions
from mace_polmp.upstream.data import isolated_energy

logger = logging.getLogger(__name__)

_STRESS_LOSSES = ("stress", "huber", "universal")


@dataclass
class CheckedData:
    """What the checks found.

    Attributes:
        frames: by file, the structures that were read.
        elements: atomic numbers of training and validation structures.
        boundaries: of training structures.
    """

    frames: dict[str, list[Atoms]] = field(default_factory=dict)
    elements: set[int] = field(default_factory=set)
    boundaries: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Head:
    """The data of one of several heads of a model.

    Attributes:
        files: by kind (train_file, valid_file, test_file), as upstream takes them.
        rules: what is asked of their labels.
        E0s: the atomic energies asked for, or None.
        statistics: whether a statistics file gives them.
        replay: whether these are data of a foundation model's own training.
        name: for messages.
    """

    files: dict[str, Any]
    rules: LabelRules
    E0s: Any
    statistics: bool = False
    replay: bool = False
    name: str = ""


def check_training_data(
    args: argparse.Namespace,
    options: LongRangeOptions,
    training: TrainingOptions,
    foundation: torch.nn.Module | None = None,
) -> CheckedData:
    """Refuse structure files that a training cannot use. HDF5 and LMDB data are not read here.

    Args:
        args: upstream's training arguments.
        options: settings of the head.
        training: weights and keys of electrical labels.
        foundation: the foundation model, if it is known.

    Returns:
        What was read.

    Raises:
        InputError: a missing or empty file, a structure that cannot be evaluated, missing, wrong
            or contradictory labels, atomic energies that do not fit, or elements that the
            foundation model, or for a test file training and validation data, lack.
    """
    engine = options.make_engine()
    data = CheckedData()
    given = _atomic_numbers(args.atomic_numbers)
    data.elements.update(given)
    tests: list[tuple[str, set[int]]] = []
    n_trained: list[int | None] = []  # None: not known
    for head in _heads(args, options, training):
        if not head.files["train_file"]:
            raise InputError("--train_file is missing; give the file with the training structures")
        trained: list[Atoms] = []
        labelled: Counter[str] = Counter()
        isolated: list[tuple[str, dict[int, float]]] = []
        own: set[int] = set()
        for kind in ("train_file", "valid_file", "test_file"):
            for path in normalize_file_paths(head.files[kind] or []):
                is_read = _reads_with_ase(path)
                if not is_read and not head.replay:
                    check_no_labels(path, training)
                frames, counts = _check_file(path, head.rules, engine) if is_read else ([], None)
                kept = [a for a in frames if args.keep_isolated_atoms or not is_isolated_atom(a)]
                found = {int(z) for atoms in kept for z in atoms.numbers}
                data.frames[path] = frames
                if kind == "train_file" and counts is not None:
                    trained += frames
                    labelled += counts
                    data.boundaries.update(boundary(a.pbc) for a in kept)
                    isolated += _isolated(path, frames, head.rules)
                if kind == "test_file":
                    tests.append((path, found))
                else:
                    own.update(found)
        data.elements.update(own)
        _check_atomic_energies(head, trained, isolated, own | given, args)
        n_trained.append(_number_trained(args, head.files, trained))
        if not head.replay:
            _check_labels_exist(trained, labelled, head, args, training)
    _check_numbers(args, n_trained)
    _check_test_elements(tests, data.elements)
    if foundation is not None:
        lacking = sorted(data.elements - {int(z) for z in foundation.atomic_numbers})
        if lacking:
            names = ", ".join(chemical_symbols[z] for z in lacking)
            raise InputError(
                f"{args.foundation_model}: does not know {names} of the training data; remove "
                "those structures or take another model"
            )
    return data


def _atomic_numbers(text: str | None) -> set[int]:
    """Of --atomic_numbers."""
    if text is None:
        return set()
    try:
        found = ast.literal_eval(text)
        numbers = {int(z) for z in found}
        valid = isinstance(found, list) and all(0 < z < len(chemical_symbols) for z in numbers)
    except (ValueError, SyntaxError, TypeError):
        valid, numbers = False, set()
    if not valid or not numbers:
        raise InputError(f"--atomic_numbers must be a list such as '[1, 8]', got {text!r}")
    return numbers


def _reads_with_ase(path: str) -> bool:
    """Whether ASE reads a file; HDF5 and LMDB are upstream's.

    Raises:
        InputError: there is none, or it is a folder without such data.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: no such file")
    try:
        return bool(check_path_ase_read(path))
    except RuntimeError as error:
        raise InputError(
            f"{path}: is a folder; give a file in it, or a folder of HDF5 or LMDB files"
        ) from error


def _number_trained(
    args: argparse.Namespace, files: dict[str, Any], frames: list[Atoms]
) -> int | None:
    """Structures that one head is trained on, as upstream splits them; None for other formats."""
    if not frames:
        return None
    number = sum(args.keep_isolated_atoms or not is_isolated_atom(atoms) for atoms in frames)
    if files["valid_file"]:
        return number
    return number - max(1, int(args.valid_fraction * number))


def _check_numbers(args: argparse.Namespace, numbers: list[int | None]) -> None:
    """Refuse too few structures."""
    known = [number for number in numbers if number is not None]
    total = sum(known)
    if len(known) < len(numbers) or not known:
        return
    if min(known) < 1:
        raise InputError(
            f"{args.train_file or '--heads'}: leaves no structure to train on; give at least two, "
            "of which one is for validation, or a --valid_file besides"
        )
    if total < args.batch_size and not args.lbfgs:
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
    frames: list[Atoms],
    counts: Counter[str],
    head: _Head,
    args: argparse.Namespace,
    training: TrainingOptions,
) -> None:
    """Refuse a weight of a label that no training frame has."""
    path = str(head.files["train_file"])
    if not frames:
        return
    check_presence(counts, training, len(frames), path, frames[0])
    for name in sorted(head.rules.used - set(training.used)):
        if counts[name] == 0:
            key = head.rules.keys[name]
            asks = f"--loss {args.loss}" if name in ("stress", "virials") else f"--{name}_weight"
            raise InputError(
                f"{path}: none of {len(frames)} frames has the label '{key}' with a weight, which "
                f"{asks} asks for; name it with --{name}_key (the first frame has "
                f"{names_in(frames[0])})"
            )


def rules_of(
    args: argparse.Namespace, training: TrainingOptions, options: LongRangeOptions
) -> LabelRules:
    """What a training asks of the labels of its frames.

    Args:
        args: upstream's training arguments.
        training: weights and keys of electrical labels.
        options: settings of the head.
    """
    keys = {name: str(getattr(args, f"{name}_key", None) or LABELS[name].key) for name in LABELS}
    keys |= {name: training.key(name) for name in ELECTRICAL_LABELS}

    def has_weight(name: str) -> bool:
        later = args.swa and getattr(args, f"swa_{name}_weight") > 0
        return bool(getattr(args, f"{name}_weight") > 0 or later)

    used = {name for name in ("energy", "forces") if has_weight(name)}
    if args.loss == "forces_only":
        used.discard("energy")
    needed = frozenset(used)
    if args.loss in _STRESS_LOSSES and has_weight("stress"):
        used.add("stress")
    if args.loss == "virials" and has_weight("virials"):
        used.add("virials")
    return LabelRules(
        keys=keys,
        needed=needed,
        used=frozenset(used | set(training.used)),
        constrained=options.constrain_charge != "none",
        polarized=options.defines_polarization,
    )


def _heads(
    args: argparse.Namespace, options: LongRangeOptions, training: TrainingOptions
) -> list[_Head]:
    """File names and label keys of each head, as upstream resolves them."""
    kinds = ("train_file", "valid_file", "test_file")
    only = _Head(
        files={kind: getattr(args, kind) for kind in kinds},
        rules=rules_of(args, training, options),
        E0s=args.E0s,
        statistics=args.statistics_file is not None,
    )
    heads = [only]
    if args.heads is not None:
        heads = []
        for name, settings in parse_heads(args.heads).items():
            files = {**only.files, "test_file": None}  # upstream takes that of a head only
            heads.append(
                _Head(
                    files=files | {k: v for k, v in settings.items() if k in kinds},
                    rules=replace(only.rules, keys=keys_of(settings, only.rules.keys)),
                    E0s=settings.get("E0s", args.E0s),
                    statistics=settings.get("statistics_file", args.statistics_file) is not None,
                    name=f"head {name}: ",
                )
            )
    replayed = args.multiheads_finetuning and args.foundation_model and args.pt_train_file
    if replayed and Path(args.pt_train_file).suffix:  # else data that upstream downloads
        files = dict(train_file=args.pt_train_file, valid_file=args.pt_valid_file, test_file=None)
        heads.append(replace(only, files=files, replay=True, E0s="foundation"))
    return heads


def _isolated(
    path: str, frames: list[Atoms], rules: LabelRules
) -> list[tuple[str, dict[int, float]]]:
    found = []
    for number, atoms in enumerate(frames):
        if is_isolated_atom(atoms):
            where = f"{path}: frame {number}"
            found.append((where, isolated_energy(atoms, rules.keys["energy"], where)))
    return found


def _check_atomic_energies(
    head: _Head,
    frames: list[Atoms],
    isolated: list[tuple[str, dict[int, float]]],
    elements: set[int],
    args: argparse.Namespace,
) -> None:
    """Refuse atomic energies that are missing, incomplete or nonsense."""
    path = head.files["train_file"]
    known = atomic_energies.check_isolated(isolated)
    if head.E0s is None or elements <= set(known):
        if known:
            where = f"{head.name}{path}: the IsolatedAtom frames"
            atomic_energies.check_complete(known, elements, where)
        elif frames and not head.statistics:
            raise InputError(
                f"{path}: has no isolated atoms to take atomic energies from; give --E0s "
                "average, --E0s '{1: -13.6, …}', or frames with config_type=IsolatedAtom"
            )
    found = None if head.E0s is None else atomic_energies.parse(head.E0s, f"{head.name}--E0s")
    if isinstance(found, dict):
        atomic_energies.check_complete({**found, **known}, elements, f"{head.name}--E0s")
    elif found not in (None, atomic_energies.AVERAGE) and args.foundation_model is None:
        raise InputError(f"--E0s {found} needs --foundation_model; give --E0s average")
    if known and found is not None and not head.replay:
        names = ", ".join(chemical_symbols[z] for z in sorted(known))
        # Not logging.warning: before the log is set up that makes the root logger print everything.
        logger.warning(
            f"{head.name}--E0s does not count for {names}: {path} has IsolatedAtom frames of them"
        )


def _check_file(
    path: str, rules: LabelRules, engine: Electrostatics
) -> tuple[list[Atoms], Counter[str]]:
    """Check a file; returns its frames and how many of them have each label with a weight."""
    counts: Counter[str] = Counter()
    missing: dict[str, list[int]] = {}
    frames = read_structures(path)
    for number, atoms in enumerate(shown(frames, f"checking {path}")):
        where = f"{path}: frame {number}"
        check_structure(atoms, where, engine=engine)
        found = check_frame(atoms, rules, where)
        counts.update(list(found.values))
        for name in found.missing:
            missing.setdefault(name, []).append(number)
    if missing:
        raise InputError(f"{path}: {missing_labels(missing, frames, rules)}")
    return frames, counts


def missing_labels(missing: dict[str, list[int]], frames: list[Atoms], rules: LabelRules) -> str:
    """What to tell a user whose frames lack labels.

    Args:
        missing: numbers of frames by label.
        frames: of the file.
        rules: what was asked.
    """
    parts = [
        f"the {name} '{rules.keys[name]}' in {len(numbers)} of {len(frames)} frames (first: "
        f"{numbers[0]})"
        for name, numbers in missing.items()
    ]
    first = min(numbers[0] for numbers in missing.values())
    flags = " and ".join(f"--{name}_key" for name in missing)
    weights = " or ".join(f"config_{name}_weight=0" for name in missing)
    return (
        f"lacks {' and '.join(parts)}; name the labels with {flags} (frame {first} has "
        f"{names_in(frames[first])}), or give such frames {weights}"
    )
