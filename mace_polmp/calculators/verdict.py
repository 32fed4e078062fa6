"""What a model says of structures, gathered for the verdict on its charges."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from mace_polmp.analysis.correlation import Array
from mace_polmp.analysis.verdict import Observed, Verdict, find, judge, moving_charges
from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator
from mace_polmp.errors import InputError
from mace_polmp.head.electronegativity import PAULING
from mace_polmp.labels import read_label, weight_of
from mace_polmp.quantities import LABELS, boundary
from mace_polmp.structures import molecules

MOST_STRUCTURES = 100
# Structures whose Born charges are computed, and their atoms but for a first one that is larger:
# each costs four evaluations.
_MOST_BORN, _MOST_BORN_ATOMS = 20, 1000
_MOST_ATOMS = 20000  # in all of them together, but for a first one that is larger
_LEAST_METAL = 1.7  # Pauling's scale; what has less is a metal, and may be an ion
ELECTROPOSITIVITY = (0.0, *(-x for x in PAULING), *[0.0] * (119 - len(PAULING)))


def verdict_of(
    calculator: MultipoleMACECalculator,
    frames: Sequence[Atoms],
    keys: dict[str, str],
    where: str = "structures",
) -> tuple[Verdict, int]:
    """The verdict on a model's charges, and how many structures it rests on.

    Args:
        calculator: of the model.
        frames: structures, with labels or not; of many, some are taken.
        keys: names of the labels of dipole and born_charges.
        where: what to call the frames in messages.
    """
    chosen = choose(frames, keys)
    return judge(find(observe(calculator, chosen, keys, where), ELECTROPOSITIVITY)), len(chosen)


def log_verdict(model: Any, frames: Sequence[Atoms], keys: dict[str, str]) -> None:
    """Log the verdict on a model that has been trained, which stays as it is.

    Args:
        model: a MultipoleMACE.
        frames: structures that it was not trained on.
        keys: names of the labels of dipole and born_charges.
    """
    import copy

    from mace_polmp.calculators.loading import precision_is_meant

    if not frames:
        return  # data that were not read here, such as HDF5
    started = time.time()
    device = str(next(model.parameters()).device)
    try:
        with precision_is_meant():
            calculator = MultipoleMACECalculator(models=copy.deepcopy(model), device=device)
        verdict, count = verdict_of(calculator, frames, keys)
    except Exception as error:  # a training that has ended must not be lost
        logging.warning(f"Verdict: none ({type(error).__name__}: {error})")
        return
    logging.info(verdict.text(f"{count} structures, {time.time() - started:.1f} s"))


def choose(frames: Iterable[Atoms], keys: dict[str, str]) -> list[Atoms]:
    """Up to a hundred structures evenly from all, those with labels first."""
    known: list[Atoms] = []
    others: list[Atoms] = []
    for atoms in frames:
        has = any(key in atoms.info or key in atoms.arrays for key in keys.values())
        (known if has else others).append(atoms)
    out: list[Atoms] = []
    atoms_so_far = 0
    for part in (known, others):
        room = MOST_STRUCTURES - len(out)
        step = max(1, -(-len(part) // max(room, 1)))
        for atoms in part[::step][:room]:
            atoms_so_far += len(atoms)
            if out and atoms_so_far > _MOST_ATOMS:
                return out
            out.append(atoms)
    return out


def observe(
    calculator: MultipoleMACECalculator,
    frames: Sequence[Atoms],
    keys: dict[str, str],
    where: str = "structures",
) -> Observed:
    """Charges of the structures, and dipoles and Born charges next to their labels.

    Dipoles count in open structures and are about the centre of the atoms, labels and predictions
    alike: of ions, and of molecules whose charges do not sum to zero, they then do not depend on
    the origin. A label whose weight is 0 in its frame is left out.
    """
    out = Observed()
    born_atoms = 0
    for number, labelled in enumerate(frames):
        at = f"{where}: frame {number}"
        atoms = labelled.copy()
        atoms.set_constraint()
        charges = _value(calculator, "charges", atoms)
        total = calculator.total_charge(labelled, at) or 0.0
        out.numbers.append(atoms.numbers)
        out.charges.append(charges)
        out.total_charges.append(total)
        out.periodic.append(bool(atoms.pbc.any()))
        out.molecules.append(neutral_molecules(atoms))
        labels = {}
        for name in ("dipole", "born_charges"):
            is_defined = LABELS[name].is_defined(
                boundary(atoms.pbc), calculator.defines_polarization
            )
            if is_defined and weight_of(labelled, name, at) > 0:
                labels[name] = read_label(labelled, name, keys[name], at)
        dipole, born = labels.get("dipole"), labels.get("born_charges")
        if dipole is not None:
            centre = atoms.positions.mean(0)
            own = _value(calculator, "dipole", atoms) - charges.sum() * centre
            out.dipoles.append((dipole - total * centre, own))
        born_atoms += len(atoms)
        few = number == 0 or (number < _MOST_BORN and born_atoms <= _MOST_BORN_ATOMS)
        predicted = _born(calculator, atoms) if few else None
        out.moving.append(None if predicted is None else moving_charges(predicted))
        if born is not None and predicted is not None:
            out.born_charges.append((born, predicted))
            out.born_periodic.append(bool(atoms.pbc.any()))
    return out


def _born(calculator: MultipoleMACECalculator, atoms: Atoms) -> Array | None:
    """Born charges; None of slabs and of what was converted for accelerators."""
    try:
        return _value(calculator, "born_charges", atoms)
    except InputError:
        return None


def _value(calculator: Any, name: str, atoms: Atoms) -> Array:
    found: Array = np.asarray(calculator.get_property(name, atoms), dtype=np.float64)
    return found


def neutral_molecules(atoms: Atoms) -> np.ndarray:
    """Which molecule each atom belongs to, -1 where that may be an ion.

    Molecules are what covalent bonds hold together. Of several in a structure those are left out
    that hold a metal or would be radicals if they were neutral.
    """
    labels = molecules(atoms)
    count = int(labels.max()) + 1
    if count > 1:
        scale = -np.array(ELECTROPOSITIVITY)[atoms.numbers]
        for molecule in range(count):
            mine = labels == molecule
            if atoms.numbers[mine].sum() % 2 or scale[mine].min() < _LEAST_METAL:
                labels[mine] = -1
    return labels
