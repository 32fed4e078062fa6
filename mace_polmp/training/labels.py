"""Electrical labels of training files: checks before a run, and what upstream's data lack."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from mace.data import Configuration

from mace_polmp.analysis.errors import QUANTITIES
from mace_polmp.calculators.comparison import check_label
from mace_polmp.errors import InputError
from mace_polmp.structures import find_label, is_finite_number
from mace_polmp.training.options import TrainingOptions

_CHARGE_TOLERANCE = 0.3  # e; what a sum of Born charges may differ from a total charge by
_OPEN_ONLY = ("dipole", "polarizability")


def electrical_label(atoms: Atoms, name: str, key: str, where: str) -> np.ndarray | None:
    """A label of a frame in the shape that its quantity has, or None.

    Raises:
        InputError: another shape, NaN, or a quantity that is not defined for its boundaries.
    """
    found = find_label(atoms, key)
    if name == "total_charge":
        if found is None:
            return None
        if np.shape(found) != () or not is_finite_number(found):
            raise InputError(f"{where}: the total charge '{key}' is {found}, not one finite number")
        return np.asarray(found, dtype=float)
    label = check_label(found, name, atoms, f"{where} ('{key}')")
    if label is None or _weight(atoms, name) <= 0:
        return label
    if name in _OPEN_ONLY and atoms.pbc.any():
        raise InputError(
            f"{where}: has a label of {name} ('{key}') and is periodic; a model is trained on "
            f"those of open structures only. Give such frames config_{name}_weight=0, or set pbc "
            "to F F F"
        )
    if name == "born_charges" and atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(
            f"{where}: has Born charges ('{key}') and is a slab, for which they are not available; "
            "give such frames config_born_charges_weight=0"
        )
    return label


def check_labels(atoms: Atoms, keys: dict[str, str], constrained: bool, where: str) -> set[str]:
    """Names of the electrical labels that a frame has and that count.

    Args:
        atoms: the frame.
        keys: of each label in use; total_charge as well where it constrains charges.
        constrained: whether charges are constrained to the total charge.
        where: what to call the frame.

    Raises:
        InputError: a label that cannot be used, or a total charge that contradicts others.
    """
    labels = {name: electrical_label(atoms, name, key, where) for name, key in keys.items()}
    if "total_charge" in keys:
        _check_total_charge(atoms, keys, labels, constrained, where)
    return {
        name for name, label in labels.items() if label is not None and _weight(atoms, name) > 0
    }


def _check_total_charge(
    atoms: Atoms,
    keys: dict[str, str],
    labels: dict[str, np.ndarray | None],
    constrained: bool,
    where: str,
) -> None:
    """Refuse a total charge that contradicts what else the frame says."""
    label = labels["total_charge"]
    total = 0.0 if label is None else float(label)
    said = f"{where}: the total charge '{keys['total_charge']}' is {total:g} e"
    if constrained and total != 0.0 and atoms.pbc.sum() == 2:
        raise InputError(
            f"{said}, and the structure a slab: the energy of a charged slab is not defined. "
            "Remove the frame"
        )
    if label is None and not constrained:
        return
    other = atoms.info.get("charge")
    if other is not None and is_finite_number(other) and abs(float(other) - total) > 1e-6:
        raise InputError(
            f"{said}, but 'charge' is {float(other):g} e; correct one of them, or name the right "
            "one with --total_charge_key"
        )
    born = labels.get("born_charges")
    if born is not None and not atoms.pbc.any():
        mean = float(np.trace(born.sum(0))) / 3.0
        if abs(mean - total) > _CHARGE_TOLERANCE:
            raise InputError(
                f"{said}, but its Born charges sum to {mean:.2f} e; correct the total charge or "
                f"remove '{keys['born_charges']}'"
            )


def _weight(atoms: Atoms, name: str) -> float:
    """What a frame says its label counts, the largest where it says so for each component."""
    return float(np.max(atoms.info.get(f"config_{name}_weight", 1.0)))


def with_labels(atoms: Atoms, keys: dict[str, str]) -> Atoms:
    """A frame whose labels are where upstream looks for them, in the shapes it expects.

    Args:
        atoms: the frame.
        keys: of each label in use.
    """
    out = atoms.copy()
    out.calc = atoms.calc
    for name, key in keys.items():
        label = electrical_label(atoms, name, key, "structure")
        if label is None:
            continue
        if name == "born_charges":
            out.arrays[key] = label.reshape(len(atoms), 9)
        else:
            out.info[key] = float(label) if name == "total_charge" else label
    return out


def complete(config: Configuration, atoms: Atoms, keys: dict[str, str]) -> Configuration:
    """Add to a configuration the entries by which labels are masked; all structures have all.

    Args:
        config: upstream's configuration of the frame, changed in place.
        atoms: the frame, as with_labels made it.
        keys: of each label in use.
    """
    for name in ("born_charges", "total_charge"):
        if name not in keys:
            continue
        label = find_label(atoms, keys[name])
        weight = 0.0 if label is None else _weight(atoms, name)
        config.properties[f"{name}_weight"] = np.array(weight)
        config.property_weights[name] = config.property_weights[f"{name}_weight"] = weight
        if name == "born_charges":
            shape = (len(atoms), *QUANTITIES[name].shape)
            config.properties[name] = np.zeros(shape) if label is None else label.reshape(shape)
    return config


def check_presence(
    found: dict[str, int], options: TrainingOptions, frames: int, where: str, example: Atoms
) -> None:
    """Refuse a training whose files have none of the labels that its loss asks for.

    Args:
        found: number of frames by label.
        options: weights and keys.
        frames: number of training frames.
        where: names of the files.
        example: a frame, whose names are shown.

    Raises:
        InputError: a label with a weight that no frame has.
    """
    for name in options.used:
        if found.get(name, 0) == 0:
            there = sorted(set(example.info) | set(example.arrays) - {"numbers", "positions"})
            raise InputError(
                f"{where}: none of {frames} frames has the label '{options.key(name)}' that "
                f"--{name}_weight asks for; name it with --{name}_key (the first frame has "
                f"{', '.join(there) or 'no labels'})"
            )
