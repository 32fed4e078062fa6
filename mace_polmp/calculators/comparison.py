"""Predictions of a calculator next to the labels of structures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.stress import voigt_6_to_full_3x3_stress
from tqdm import tqdm

from mace_polmp.analysis.errors import QUANTITIES, Comparison
from mace_polmp.errors import InputError
from mace_polmp.structures import find_label


def compare(
    calculator: Calculator,
    frames: Sequence[Atoms],
    keys: dict[str, str] | None = None,
    where: str = "structures",
    description: str = "evaluating",
) -> dict[str, Comparison]:
    """Predictions for all labels that the frames have and the calculator knows.

    Dipoles of structures that are periodic are left out: they are defined up to a constant only.
    Born charges of slabs are left out as well.

    Args:
        calculator: MultipoleMACECalculator, or any other ASE calculator.
        frames: the structures with labels.
        keys: names of the labels by quantity, defaults of QUANTITIES where not given.
        where: what to call the frames in messages.
        description: of the progress bar.

    Returns:
        The quantities with at least one label.

    Raises:
        InputError: a label of the wrong shape or with NaN.
    """
    keys = {name: quantity.key for name, quantity in QUANTITIES.items()} | (keys or {})
    known = {n: q for n, q in QUANTITIES.items() if q.result in calculator.implemented_properties}
    out: dict[str, Comparison] = {}
    for number, labelled in enumerate(tqdm(frames, desc=description, leave=False, disable=None)):
        atoms = Atoms(labelled.numbers, labelled.positions, cell=labelled.cell, pbc=labelled.pbc)
        atoms.info = {k: v for k, v in labelled.info.items() if k in ("charge", "spin", "head")}
        labels = {
            name: check_label(
                find_label(labelled, keys[name]), name, atoms, f"{where}: frame {number}"
            )
            for name in _defined(known, atoms)
        }
        # The forces first: they bring everything that is cheap.
        for name, label in labels.items():
            if label is None:
                continue
            value = calculator.get_property(known[name].result, atoms)
            if name == "stress":
                value = voigt_6_to_full_3x3_stress(value)
            entry = out.setdefault(name, Comparison())
            entry.reference.append(label)
            entry.predicted.append(np.asarray(value, dtype=float).reshape(label.shape))
            entry.numbers.append(atoms.numbers)
    return out


def _defined(known: Iterable[str], atoms: Atoms) -> list[str]:
    """The quantities that have a value for these boundary conditions."""
    undefined = set()
    if atoms.pbc.any():
        undefined.add("dipole")
        if not atoms.pbc.all():
            undefined.add("born_charges")
    else:
        undefined.add("stress")
    return [name for name in known if name not in undefined]


def check_label(label: Any, name: str, atoms: Atoms, where: str) -> np.ndarray | None:
    """A label as an array of the shape its quantity has, or None for None.

    Raises:
        InputError: another shape, or NaN.
    """
    if label is None:
        return None
    quantity = QUANTITIES[name]
    shape = ((len(atoms),) if quantity.per_atom else ()) + quantity.shape
    try:
        value = np.asarray(label, dtype=float)
        if name == "stress" and value.size == 6:
            value = voigt_6_to_full_3x3_stress(value.ravel())
        value = value.reshape(shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the label of {name} must be {list(shape)} numbers, got "
            f"{list(np.shape(label))}"
        ) from error
    if not np.isfinite(value).all():
        raise InputError(f"{where}: the label of {name} holds NaN or infinite numbers")
    return value
