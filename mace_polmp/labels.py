"""The labels of training files: which count, what is refused, and what upstream makes of them.

One code for all: check-data, the checks before a training and the training itself read labels here,
so that what was checked is what is trained on. A label counts where a frame has it and its weight,
config_weight times config_<name>_weight, is not zero; a label that does not count is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mace_polmp.branches import lattice_of, nearest
from mace_polmp.errors import InputError
from mace_polmp.quantities import (
    EPSILON_KEY,
    LABELS,
    QUANTITIES,
    boundary,
    check,
    find,
    is_finite_number,
)
from mace_polmp.structures import is_isolated_atom, total_charge
from mace_polmp.units import EPS0

if TYPE_CHECKING:
    from mace.data import Configuration

Label = NDArray[np.float64]

_PERMITTIVITY = 0.02  # of its size; what ε∞ and polarizability may differ by
_CHARGE_TOLERANCE = 0.3  # e; what a sum of Born charges may differ from a total charge by
_ANYWHERE = {
    "dipole": "a model is trained on those of open structures only (of periodic ones there is "
    "polarization). Give such frames config_dipole_weight=0, or set pbc to F F F",
    "polarization": "only periodic structures and slabs have one. Give such frames "
    "config_polarization_weight=0 and a label of dipole, or set pbc",
    "polarizability": "a model is trained on those of open and fully periodic structures only. "
    "Give such frames config_polarizability_weight=0, or set pbc",
    "born_charges": "for which they are available with --charge_readout bond only; give such "
    "frames config_born_charges_weight=0",
    "stress": "which has none; give such frames config_stress_weight=0, or set pbc",
    "virials": "which has none; give such frames config_virials_weight=0, or set pbc",
}

# Labels that upstream has no masks for.
_MASKED = ("born_charges", "polarization", "total_charge")
_NOWHERE = "for which nothing is defined; set pbc to F F F, T T F or T T T"


@dataclass(frozen=True)
class LabelRules:
    """What a training asks of the labels of its frames.

    Attributes:
        keys: of every label, by name.
        needed: labels that every frame must have where their weight is not zero.
        used: labels in the loss; in other boundary conditions than theirs they are refused.
        constrained: whether charges are constrained to the total charge.
        polarized: whether the model defines the polarization of periodic structures.
    """

    keys: dict[str, str] = field(
        default_factory=lambda: {name: quantity.key for name, quantity in LABELS.items()}
    )
    needed: frozenset[str] = frozenset({"energy", "forces"})
    used: frozenset[str] = frozenset({"energy", "forces"})
    constrained: bool = False
    polarized: bool = False


@dataclass(frozen=True)
class FrameLabels:
    """The labels of a frame.

    Attributes:
        values: those that count, by name.
        missing: names of needed ones that it lacks.
    """

    values: dict[str, Label]
    missing: list[str]


def read_label(atoms: Atoms, name: str, key: str, where: str) -> Label | None:
    """A label of a frame in the shape that its quantity has, or None.

    Raises:
        InputError: no numbers, another shape, NaN, or contradicting total charges.
    """
    if name == "total_charge":
        check(atoms.info.get(key), name, atoms, where, key)
        charge = total_charge(atoms, where, key)
        return None if charge is None else np.asarray(charge)
    label = check(find(atoms, key), name, atoms, where, key)
    return _with_permittivity(label, atoms, key, where) if name == "polarizability" else label


def _with_permittivity(label: Label | None, atoms: Atoms, key: str, where: str) -> Label | None:
    """A polarizability, or that of a cell with the given ε∞: eps0 V (ε∞ − 1), e² Å²/eV.

    Raises:
        InputError: an impossible ε∞, of a structure that has none, or another than that of the
            polarizability.
    """
    value = find(atoms, EPSILON_KEY)
    if value is None:
        return label
    said = f"{where}: has '{EPSILON_KEY}'"
    if not atoms.pbc.all():
        raise InputError(
            f"{said} and is {_named(boundary(atoms.pbc))}; only structures that are periodic in "
            "three directions have one: remove it"
        )
    number = is_finite_number(value)
    tensor = (
        float(value) * np.eye(3)
        if number
        else check(value, "polarizability", atoms, where, EPSILON_KEY)
    )
    assert tensor is not None
    if np.linalg.eigvalsh(0.5 * (tensor + tensor.T)).min() < 1.0:
        raise InputError(f"{said} below 1, which no material has; it is the permittivity itself")
    found: Label = EPS0 * atoms.get_volume() * (tensor - np.eye(3))
    if label is not None and np.abs(found - label).max() > _PERMITTIVITY * np.abs(label).max():
        mean = mean_permittivity(label, atoms.get_volume())
        raise InputError(
            f"{said} and the polarizability '{key}', which contradict each other: that is an ε∞ "
            f"of {mean:.3f} in the mean. Remove one"
        )
    return found if label is None else label


def mean_permittivity(polarizability: Label, volume: float) -> float:
    """A third of the trace of ε∞ = 1 + α/(eps0 V) of a cell.

    Args:
        polarizability: α, [3, 3], e² Å²/eV.
        volume: V, Å³.
    """
    return 1.0 + float(np.trace(polarizability)) / (3.0 * EPS0 * volume)


def weight_of(atoms: Atoms, name: str, where: str = "frame") -> float:
    """What a frame says its label counts.

    Raises:
        InputError: a weight that is not one number of 0 or more.
    """
    product = 1.0
    for key in ("config_weight", f"config_{name}_weight"):
        value = atoms.info.get(key, 1.0)
        if not is_finite_number(value) or float(value) < 0:
            raise InputError(f"{where}: {key} must be one number of 0 or more, got {value}")
        product *= float(value)
    return product


def check_frame(atoms: Atoms, rules: LabelRules, where: str) -> FrameLabels:
    """Find the labels of a frame that count.

    Raises:
        InputError: a label that is there and cannot be right, is not defined for the structure's
            boundary conditions, or a total charge that contradicts others.
    """
    values: dict[str, Label] = {}
    missing = []
    isolated = is_isolated_atom(atoms)
    if len(atoms) > 1 and atoms.info.get("config_type") == "IsolatedAtom":
        raise InputError(
            f"{where}: says config_type=IsolatedAtom and has {len(atoms)} atoms; give it another"
        )
    for name, key in rules.keys.items():
        counts = weight_of(atoms, name, where) > 0
        label = read_label(atoms, name, key, where) if counts or name == "total_charge" else None
        if label is None:
            excused = isolated and name == "forces"
            if counts and not excused and name in rules.needed:
                missing.append(name)
            continue
        if counts:
            if name in rules.used:
                _check_boundary(atoms, name, rules, where)
            values[name] = label
    if "total_charge" in rules.keys:
        _check_total_charge(atoms, rules, values, where)
    return FrameLabels(values, missing)


def _check_boundary(atoms: Atoms, name: str, rules: LabelRules, where: str) -> None:
    kind, key = boundary(atoms.pbc), rules.keys[name]
    if not LABELS[name].is_trained(kind, rules.polarized):
        is_a = f"is {_named(kind)}"
        comma = "," if name in ("born_charges", "stress", "virials") else ";"
        raise InputError(
            f"{where}: has a label of {name} ('{key}') and {is_a}{comma} "
            f"{_ANYWHERE.get(name, _NOWHERE)}"
        )


def _named(kind: str) -> str:
    """Boundary conditions as a sentence says them."""
    words = {"open": "an open structure", "periodic": "periodic"}
    return words.get(kind, f"a {kind}")


def _check_total_charge(
    atoms: Atoms, rules: LabelRules, values: dict[str, Label], where: str
) -> None:
    """Refuse a total charge that contradicts what else the frame says."""
    key = rules.keys["total_charge"]
    charge = total_charge(atoms, where, key)
    total = 0.0 if charge is None else charge
    said = f"{where}: the total charge '{key}' is {total:g} e"
    if rules.constrained and total != 0.0 and atoms.pbc.sum() == 2:
        raise InputError(
            f"{said}, and the structure a slab: the energy of a charged slab is not defined. "
            "Remove the frame"
        )
    if total != 0.0 and "polarization" in rules.used & set(values):
        raise InputError(
            f"{said}, and the polarization of a charged structure depends on the origin of its "
            "coordinates. Give the frame config_polarization_weight=0"
        )
    if charge is None and not rules.constrained:
        return
    born = values.get("born_charges")
    in_use = rules.constrained or rules.used & {"total_charge", "born_charges"}
    if born is not None and in_use and not atoms.pbc.any():
        mean = float(np.trace(born.sum(0))) / 3.0
        if abs(mean - total) > _CHARGE_TOLERANCE:
            raise InputError(
                f"{said}, but its Born charges sum to {mean:.2f} e; correct the total charge or "
                f"remove '{rules.keys['born_charges']}'"
            )


def with_labels(atoms: Atoms, keys: dict[str, str]) -> Atoms:
    """A frame whose labels are where upstream looks for them, in the shapes it expects.

    Labels that do not count are taken away. So are constraints: ASE would put zeros in place of the
    forces of fixed atoms.

    Args:
        atoms: the frame.
        keys: of each label.
    """
    out: Atoms = atoms.copy()
    out.set_constraint()
    out.calc = None
    for name, key in keys.items():
        label = None
        if name == "total_charge" or weight_of(atoms, name) > 0:
            label = read_label(atoms, name, key, "structure")
        for place in (out.info, out.arrays):
            place.pop(key, None)
        if label is None:
            continue
        if not LABELS[name].per_atom:
            out.info[key] = label if label.ndim else float(label)
        else:
            is_column = LABELS[name].shape == ()
            out.arrays[key] = label if is_column else label.reshape(len(atoms), -1)
    return out


def complete(config: Configuration, atoms: Atoms, keys: dict[str, str]) -> Configuration:
    """Check what upstream made of a frame, and add what labels are masked by.

    Args:
        config: upstream's configuration of the frame, changed in place.
        atoms: the frame, as with_labels made it.
        keys: of each label in use.

    Raises:
        RuntimeError: upstream's configuration has other labels than the frame.
    """
    for name, key in keys.items():
        label = find(atoms, key)
        if name in config.properties and name not in ("born_charges", "polarization"):
            made = config.properties[name]
            if (made is None) != (label is None) or not (
                label is None or np.array_equal(np.asarray(made, dtype=float), label)
            ):
                raise RuntimeError(f"mace-torch made {made!r} of the label '{key}' {label!r}")
        if name not in _MASKED:
            continue
        weight = 0.0 if label is None else weight_of(atoms, name) / _config_weight(atoms)
        config.properties[f"{name}_weight"] = np.array(weight)
        config.property_weights[name] = config.property_weights[f"{name}_weight"] = weight
        if name == "born_charges":
            shape = (len(atoms), *QUANTITIES[name].shape)
            config.properties[name] = np.zeros(shape) if label is None else label.reshape(shape)
        if name == "polarization":
            value = np.zeros((1, 3)) if label is None else label[None]
            lattice = lattice_of(atoms.cell, atoms.pbc)[None]
            config.properties[name] = value - nearest(value, lattice)  # small, in any precision
    return config


def _config_weight(atoms: Atoms) -> float:
    """config_weight, which upstream multiplies every label by itself; 1 where it is 0."""
    return float(atoms.info.get("config_weight", 1.0)) or 1.0


def names_in(atoms: Atoms) -> str:
    """What a frame has names for, for messages."""
    there = set(atoms.info) | set(atoms.arrays) - {"numbers", "positions"}
    there |= set() if atoms.calc is None else set(atoms.calc.results)
    return ", ".join(sorted(there)) or "no labels"
