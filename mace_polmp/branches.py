"""Branches of the polarization: of a periodic structure it is known up to e times lattice vectors.

The dipole of a cell changes by e times a lattice vector where one electron is counted in the next
cell. So a label and a prediction are compared on the branch on which they are closest.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_FAR = 0.25  # of the shortest lattice vector; random errors are on average 0.29 of it in length
_NEIGHBOURS = np.array(list(itertools.product((0, -1, 1), repeat=3)), dtype=float)


def lattice_of(cell: Any, pbc: Any) -> Array:
    """Short vectors of the lattice of a structure, [3, 3], Å; zero along open directions.

    In the cell that they make (Minkowski-reduced) the nearest lattice vector is next to the one
    that rounding finds.

    Args:
        cell: [3, 3], Å, rows are lattice vectors.
        pbc: [3] bool.
    """
    from ase.geometry import minkowski_reduce

    periodic = np.asarray(pbc, dtype=bool)
    if not periodic.any():
        return np.zeros((3, 3))
    reduced, _ = minkowski_reduce(np.asarray(cell, dtype=float), periodic)
    return np.where(periodic[:, None], reduced, 0.0)


def nearest(differences: Array, lattices: Array) -> Array:
    """The lattice vectors that are nearest to differences, [n, 3], Å.

    Args:
        differences: [n, 3], e Å, for charges of 1 e.
        lattices: [n, 3, 3], Å, each of lattice_of.
    """
    whole = np.rint(np.einsum("na,nab->nb", differences, np.linalg.pinv(lattices)))
    vectors = np.einsum("nka,nab->nkb", whole[:, None] + _NEIGHBOURS, lattices)
    left = np.linalg.norm(differences[:, None] - vectors, axis=2)
    return np.asarray(np.take_along_axis(vectors, left.argmin(1)[:, None, None], axis=1)[:, 0])


def are_far(errors: Array, lattices: Array) -> NDArray[np.bool_]:
    """Where an error on the nearest branch is so large that this may be the wrong one, [n].

    That is above a quarter of the shortest lattice vector.

    Args:
        errors: [n, 3], e Å.
        lattices: [n, 3, 3], Å, each of lattice_of.
    """
    lengths = np.linalg.norm(lattices, axis=2)
    shortest = np.where(lengths > 0, lengths, np.inf).min(1)
    return np.asarray(np.linalg.norm(errors, axis=1) > _FAR * shortest)


def said_of(far: int, count: int) -> str | None:
    """A sentence where errors of a polarization are so large that branches may be wrong ones.

    Args:
        far: number of structures for which are_far holds.
        count: number of structures with a label.
    """
    if far == 0:
        return None
    return (
        f"polarization: errors of {far} of {count} structures are above a quarter of the shortest "
        "lattice vector times e. Their branch may be the wrong one. Labels of Born charges, or "
        "--formal_charges of the ions, lead to the right one"
    )
