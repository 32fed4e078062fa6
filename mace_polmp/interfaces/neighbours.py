"""Pairs of neighbours among the atoms and ghost atoms that another program gives."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from matscipy.neighbours import neighbour_list


def neighbours_of(x: np.ndarray, n_own: int, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Senders, among all atoms, and receivers, among the first n_own, of pairs within a cutoff."""
    none = np.empty(0, dtype=np.int64)
    if n_own == 0:
        return none, none
    low, high = x[:n_own].min(0) - cutoff - 1e-6, x[:n_own].max(0) + cutoff + 1e-6
    near = np.flatnonzero(((x > low) & (x < high)).all(1))
    if len(near) < 2:
        return none, none
    points = x[near] - x[near].min(0) + cutoff
    span = np.diag(points.max(0) + cutoff + 1.0)
    i, j = neighbour_list(
        "ij", positions=points, cell=span, pbc=np.zeros(3, dtype=bool), cutoff=cutoff
    )
    i, j = near[i].astype(np.int64), near[j].astype(np.int64)
    keep = j < n_own
    return i[keep], j[keep]


def count_pairs(atoms: Atoms, cutoff: float) -> int:
    """The number of pairs closer than a cutoff, each counted twice."""
    if atoms.pbc.any():
        return len(neighbour_list("i", atoms, cutoff))
    return len(neighbours_of(atoms.positions, len(atoms), cutoff)[0])
