"""Reading structures and refusing those that cannot be evaluated, with what to do about it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from matscipy.neighbours import neighbour_list
from scipy.spatial import KDTree

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.errors import InputError

COINCIDENT = 0.05
"""Atoms closer than this (Å) are taken for duplicates."""

# The neighbour list sorts atoms into boxes as wide as its cutoff: with COINCIDENT for it a large
# cell would have billions of boxes.
_SEARCH = 2.0


def read_structures(path: str | Path) -> list[Atoms]:
    """All frames of a file that ASE reads.

    Raises:
        InputError: no such file, an empty one, or one that ASE cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; give one with at least one structure")
    try:
        frames = ase.io.read(path, index=":")
    except Exception as error:
        raise InputError(f"{path}: not readable as a structure file ({error})") from error
    if not frames:
        raise InputError(f"{path}: holds no structure; give one with at least one")
    for atoms in frames:
        # What upstream's training calls total_charge, its calculator calls charge.
        if "total_charge" in atoms.info:
            atoms.info.setdefault("charge", atoms.info["total_charge"])
    return list(frames)


def total_charge(atoms: Atoms, where: str = "atoms") -> float | None:
    """The total charge of a structure in e; None if it says nothing.

    That is info["total_charge"], as in training, or info["charge"], as in upstream's calculator.

    Raises:
        InputError: not a number, or both are there and differ.
    """
    found = {key: atoms.info[key] for key in ("total_charge", "charge") if key in atoms.info}
    for key, value in found.items():
        if not is_finite_number(value):
            raise InputError(
                f"{where}: info['{key}'] must be a number, the total charge in e; got {value!r}"
            )
    charges = {key: float(value) for key, value in found.items()}
    if len(set(charges.values())) > 1:
        raise InputError(
            f"{where}: info['total_charge'] is {charges['total_charge']:g} e and info['charge'] "
            f"{charges['charge']:g} e; both mean the total charge: remove one"
        )
    return next(iter(charges.values()), None)


def is_finite_number(value: Any) -> bool:
    """Whether something from a file is one, or a text that says one."""
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def is_isolated_atom(atoms: Atoms) -> bool:
    """Whether a frame is there for its atomic energy only, and needs no forces."""
    return len(atoms) == 1 and atoms.info.get("config_type") == "IsolatedAtom"


def find_label(atoms: Atoms, key: str) -> Any:
    """What a structure has under a name, of the whole or of its atoms; None if nothing.

    ASE moves labels with the names of its own results, such as energy, into a calculator.
    """
    if key in atoms.info:
        return atoms.info[key]
    if key in atoms.arrays:
        return atoms.arrays[key]
    return None if atoms.calc is None else atoms.calc.results.get(key)


def as_slab(atoms: Atoms, axis: int = 2) -> Atoms:
    """A slab from a fully periodic structure with vacuum: not periodic along one axis.

    Atoms are moved by whole lattice vectors along the axis, so that the widest gap between them
    becomes the end of the cell: those that left through the vacuum or lie on its other side come
    back.

    Args:
        atoms: periodic along the axis, with a regular cell.
        axis: 0, 1 or 2.

    Returns:
        A copy with pbc False along the axis.

    Raises:
        InputError: no such axis, or a singular cell.
    """
    if axis not in (0, 1, 2):
        raise InputError(f"axis must be 0, 1 or 2, got {axis!r}")
    if abs(np.linalg.det(atoms.cell.array)) < 1e-6:
        raise InputError("atoms: the cell is singular; give three independent lattice vectors")
    slab = atoms.copy()
    fraction = slab.cell.scaled_positions(slab.positions)
    along = np.sort(fraction[:, axis] % 1.0)
    gaps = np.diff(np.append(along, along[0] + 1.0))
    widest = int(gaps.argmax())
    start = along[widest] + 0.5 * gaps[widest]
    fraction[:, axis] = (fraction[:, axis] - start) % 1.0
    slab.positions = slab.cell.cartesian_positions(fraction)
    slab.pbc[axis] = False
    return slab


def check_structure(
    atoms: Atoms,
    where: str,
    elements: Collection[int] | None = None,
    engine: Electrostatics | None = None,
) -> None:
    """Refuse a structure that a model cannot evaluate.

    Args:
        atoms: the structure.
        where: what to call it in the message.
        elements: atomic numbers that the model knows, or None for any.
        engine: the model's electrostatics, or None for one with default settings.

    Raises:
        InputError: no atoms, NaN positions or cell, coincident atoms, an unknown element, or what
            the electrostatics refuses: a singular cell with pbc, pbc in one direction only, a
            slab without vacuum, a structure that does not suit the solver asked for.
    """
    if len(atoms) == 0:
        raise InputError(f"{where}: has no atoms; remove it")
    for name, values in (("positions", atoms.positions), ("cell", atoms.cell.array)):
        if not np.isfinite(values).all():
            raise InputError(f"{where}: {name} hold NaN or infinite numbers; remove or repair it")
    check_boundary(atoms, where, engine or Electrostatics())
    if elements is not None:
        unknown = sorted({int(z) for z in atoms.numbers} - {int(z) for z in elements})
        if unknown:
            raise InputError(
                f"{where}: the model does not know {_symbols(unknown)}; it knows "
                f"{_symbols(sorted(elements))}"
            )
    pair = _coincident_pair(atoms)
    if pair is not None:
        raise InputError(
            f"{where}: atoms {pair[0]} and {pair[1]} are closer than {COINCIDENT} Å; remove the "
            "duplicate"
        )


def _coincident_pair(atoms: Atoms) -> tuple[int, int] | None:
    if atoms.pbc.any():
        i, j, distance = neighbour_list("ijd", atoms, _SEARCH)
        found = np.flatnonzero(distance < COINCIDENT)
        return (int(i[found[0]]), int(j[found[0]])) if len(found) > 0 else None
    pairs = KDTree(atoms.positions).query_pairs(COINCIDENT)
    return min(pairs) if pairs else None


def closest_distance(atoms: Atoms) -> float | None:
    """The shortest distance between two atoms, images included, Å; None for a single open atom."""
    if atoms.pbc.any():
        distance = neighbour_list("d", atoms, _SEARCH)
        return float(distance.min()) if len(distance) > 0 else None
    if len(atoms) < 2:
        return None
    distances, _ = KDTree(atoms.positions).query(atoms.positions, k=2)
    return float(distances[:, 1].min())


def check_boundary(atoms: Atoms, where: str, engine: Electrostatics) -> None:
    """Refuse a structure whose boundary conditions the electrostatics cannot evaluate.

    Raises:
        InputError: as check_structure.
    """
    try:
        engine.check(
            torch.from_numpy(np.array(atoms.positions, dtype=float)),
            torch.from_numpy(np.array(atoms.cell.array, dtype=float))[None],
            torch.from_numpy(np.array(atoms.pbc, dtype=bool))[None],
            torch.zeros(len(atoms), dtype=torch.int64),
        )
    except ValueError as error:
        raise InputError(f"{where}: {str(error).removeprefix('structure 0 ')}") from error


def _symbols(numbers: Collection[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)
