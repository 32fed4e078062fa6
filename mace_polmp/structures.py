"""Structures that can be evaluated, and those that are refused, with what to do about it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.neighborlist import natural_cutoffs, neighbor_list
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.errors import InputError
from mace_polmp.quantities import check, is_finite_number
from mace_polmp.reading import read_structures as read_structures

Array = NDArray[np.float64]

COINCIDENT = 0.05
"""Atoms closer than this (Å) are taken for duplicates."""

LARGEST = 1e5
"""The largest extent of a structure and the largest lattice vector, Å."""

# The neighbour list sorts atoms into boxes as wide as its cutoff: with COINCIDENT for it a large
# cell would have billions of boxes.
_SEARCH = 2.0
_FARTHEST = 1e7  # Å from the origin: beyond, coordinates lose digits in double precision, too
# Where coordinates have fewer digits left than a model's rounding errors in single precision, Å.
_BONDED = 1.3  # times the sum of covalent radii: bonds that are stretched by heat are bonds
_FAR = 50.0
TOTAL_CHARGE = "total_charge"
"""The default key of the total charge; upstream's calculator calls it charge."""


def total_charge(
    atoms: Atoms, where: str = "atoms", key: str = TOTAL_CHARGE, alone: bool = False
) -> float | None:
    """The total charge of a structure in e; None if it says nothing.

    Args:
        atoms: the structure; info[key], info["total_charge"] and info["charge"] all mean it.
        where: what to call the structure in messages.
        key: the name that the model was trained with.
        alone: whether no other name counts.

    Raises:
        InputError: not a number, or several are there and differ.
    """
    keys = dict.fromkeys((key,) if alone else (key, TOTAL_CHARGE, "charge"))
    found = {name: atoms.info[name] for name in keys if atoms.info.get(name) is not None}
    charges = {
        name: float(np.asarray(check(value, "total_charge", atoms, where, name)))
        for name, value in found.items()
    }
    if len(set(charges.values())) > 1:
        words = " and ".join(f"info['{name}'] {value:g} e" for name, value in charges.items())
        raise InputError(
            f"{where}: {words.replace(']', '] is', 1)}; {'both' if len(charges) == 2 else 'all'} "
            "mean the total charge: correct or remove one"
        )
    return next(iter(charges.values()), None)


def with_total_charge(
    atoms: Atoms, charge: float | None, where: str = "atoms", key: str = TOTAL_CHARGE
) -> Atoms:
    """The structure with a total charge that was given besides, or itself for None.

    Raises:
        InputError: not a finite number, or the structure says another.
    """
    if charge is None:
        return atoms
    if not is_finite_number(charge):
        raise InputError(f"--total_charge must be a number in e, got {charge!r}")
    own = total_charge(atoms, where, key)
    if own is not None and own != charge:
        raise InputError(
            f"--total_charge {charge:g}: {where} says {own:g} e; leave the option out, or correct "
            "the file"
        )
    out: Atoms = atoms.copy()
    out.calc = atoms.calc
    out.info[key] = charge
    return out


def numbers_of(atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """What a plan of the electrostatics is made of: cell [1, 3, 3], pbc [1, 3], number of atoms."""
    cell = torch.from_numpy(np.array(atoms.cell.array))[None]
    return cell, torch.from_numpy(np.array(atoms.pbc))[None], [len(atoms)]


def is_isolated_atom(atoms: Atoms) -> bool:
    """Whether a frame is there for its atomic energy only, and needs no forces."""
    return len(atoms) == 1 and atoms.info.get("config_type") == "IsolatedAtom"


def as_slab(atoms: Atoms, axis: int = 2, vacuum: float | None = None) -> Atoms:
    """A slab from a fully periodic structure with vacuum: not periodic along one axis.

    Atoms are moved by whole lattice vectors along the axis, so that the widest gap between them
    becomes the end of the cell: those that left through the vacuum or lie on its other side come
    back.

    Args:
        atoms: periodic along the axis, with a regular cell.
        axis: 0, 1 or 2.
        vacuum: Å between the slab and its next image; the lattice vector along the axis is made
            longer or shorter to give it. None to leave the cell as it is.

    Returns:
        A copy with pbc False along the axis.

    Raises:
        InputError: no such axis, a singular cell, or a vacuum that is not positive.
    """
    if axis not in (0, 1, 2):
        raise InputError(f"axis must be 0, 1 or 2, got {axis!r}")
    if vacuum is not None and not (np.isfinite(vacuum) and vacuum > 0):
        raise InputError(f"vacuum must be a positive length in Å, got {vacuum!r}")
    if abs(np.linalg.det(atoms.cell.array)) < 1e-6:
        raise InputError(
            "atoms: the cell is singular; as_slab takes a structure with three independent lattice "
            "vectors, periodic within the slab"
        )
    slab = atoms.copy()
    fraction = slab.cell.scaled_positions(slab.positions)
    along, gaps = _gaps(fraction[:, axis])
    widest = int(gaps.argmax())
    start = along[widest] + 0.5 * gaps[widest]
    fraction[:, axis] = (fraction[:, axis] - start) % 1.0
    slab.positions = slab.cell.cartesian_positions(fraction)
    slab.pbc[axis] = False
    if vacuum is not None:
        cell = slab.cell.array.copy()
        normal = np.cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3])
        normal /= np.linalg.norm(normal)
        height = abs(cell[axis] @ normal)
        cell[axis] *= (float(np.ptp(slab.positions @ normal)) + vacuum) / height
        slab.set_cell(cell)
    return slab


def widest_gap(atoms: Atoms, axis: int) -> float:
    """The widest gap between atoms along the normal of a face of the cell, images included, Å."""
    cell = atoms.cell.array
    area = np.linalg.norm(np.cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3]))
    height = abs(np.linalg.det(cell)) / area
    gaps = _gaps(atoms.cell.scaled_positions(atoms.positions)[:, axis])[1]
    return float(height * gaps.max())


def _gaps(fractions: Array) -> tuple[Array, Array]:
    """Coordinates within the cell in their order, and from each the gap to the next."""
    along = np.sort(fractions % 1.0)
    return along, np.diff(np.append(along, along[0] + 1.0))


@dataclass(frozen=True)
class Moved:
    """A structure whose coordinates were brought to the origin before they lose digits.

    Attributes:
        atoms: the structure, or a copy of it with other positions; nothing else differs.
        by: what was added to the positions, [n_atoms, 3], Å: the same vector for all atoms of an
            open structure, whole lattice vectors where it is periodic; None if nothing.
    """

    atoms: Atoms
    by: NDArray[np.float64] | None


def near_origin(atoms: Atoms) -> Moved:
    """Bring a structure that lies far from the origin near it, in double precision.

    In single precision a coordinate of 10000 Å has steps of 0.001 Å. Energies and forces do not
    change by the move. Atoms are wrapped along periodic directions and the structure as a whole is
    moved along the others. Structures near the origin stay as they are.
    """
    if not len(atoms) or np.abs(atoms.positions).max() <= _FAR:
        return Moved(atoms, None)
    by = np.zeros_like(atoms.positions)
    if atoms.pbc.any():
        fraction = np.linalg.solve(atoms.cell.complete().array.T, atoms.positions.T).T
        by -= np.floor(np.where(atoms.pbc, fraction, 0.0)) @ atoms.cell.complete().array
    if not atoms.pbc.all():
        wrapped = atoms.positions + by
        centre = 0.5 * (wrapped.max(0) + wrapped.min(0))
        if atoms.pbc.any():
            cell = atoms.cell.complete().array
            fraction = np.linalg.solve(cell.T, centre)
            centre = np.where(atoms.pbc, 0.0, fraction) @ cell
        by -= centre
    moved = atoms.copy()
    moved.calc = atoms.calc
    moved.positions = atoms.positions + by
    return Moved(moved, by)


def molecules(atoms: Atoms) -> NDArray[np.int64]:
    """The number of the molecule that each atom belongs to, [n_atoms], from 0 on.

    Molecules are what covalent bonds hold together.
    """
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=_BONDED))
    n = len(atoms)
    labels = connected_components(coo_matrix((np.ones(len(i)), (i, j)), (n, n)), False)[1]
    return np.asarray(labels, dtype=np.int64)


def check_motion(atoms: Atoms, where: str) -> None:
    """Refuse masses and velocities that nothing can move with.

    Raises:
        InputError: a mass that is not above 0, or momenta that are NaN.
    """
    masses = atoms.get_masses()
    wrong = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(wrong) > 0:
        raise InputError(
            f"{where}: atom {wrong[0]} has a mass of {masses[wrong[0]]:g} amu; masses must be "
            "above 0: correct or remove them"
        )
    if atoms.has("momenta") and not np.isfinite(atoms.get_momenta()).all():
        raise InputError(f"{where}: velocities hold NaN or infinite numbers; remove or repair them")


def check_structure(
    atoms: Atoms,
    where: str,
    elements: Collection[int] | None = None,
    engine: Electrostatics | None = None,
    with_boundary: bool = True,
) -> None:
    """Refuse a structure that a model cannot evaluate.

    Args:
        atoms: the structure.
        where: what to call it in the message.
        elements: atomic numbers that the model knows, or None for any.
        engine: the model's electrostatics, or None for one with default settings.
        with_boundary: whether to look at cell and boundary conditions.

    Raises:
        InputError: no atoms, ghost atoms, NaN positions or cell, a structure or lattice vector that
            is too long, coincident atoms, an unknown element, or what the electrostatics refuses: a
            singular cell with pbc, pbc in one direction only, a slab without vacuum, a structure
            that does not suit the solver asked for.
    """
    if len(atoms) == 0:
        raise InputError(f"{where}: has no atoms; remove it")
    ghosts = np.flatnonzero(atoms.numbers < 1)
    if len(ghosts) > 0:
        raise InputError(
            f"{where}: atom {ghosts[0]} is a ghost (X), which has no element; remove it"
        )
    for name, values in (("positions", atoms.positions), ("cell", atoms.cell.array)):
        if not np.isfinite(values).all():
            raise InputError(f"{where}: {name} hold NaN or infinite numbers; remove or repair it")
    _check_extent(atoms, where)
    if with_boundary:
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


def _check_extent(atoms: Atoms, where: str) -> None:
    """Refuse lengths that no structure has: their neighbour lists and sums would never end."""
    lengths = np.linalg.norm(atoms.cell.array, axis=1)[atoms.pbc]
    if len(lengths) > 0 and lengths.max() > LARGEST:
        raise InputError(
            f"{where}: has a lattice vector of {lengths.max():.3g} Å; the longest that can be "
            f"evaluated is {LARGEST:g} Å. Are the lengths in Å?"
        )
    farthest = float(np.abs(atoms.positions).max())
    extent = 0.0 if atoms.pbc.any() else float(np.ptp(atoms.positions, axis=0).max())
    if farthest > _FARTHEST or extent > LARGEST:
        said = f"an atom at {farthest:.3g} Å" if farthest > _FARTHEST else f"{extent:.3g} Å across"
        raise InputError(
            f"{where}: has a coordinate that no structure has ({said}; the largest structure "
            f"that can be evaluated is {LARGEST:g} Å across). Are the lengths in Å?"
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
