"""Motion of a structure as a whole: translations, and rotations of molecules, linear or not."""

from __future__ import annotations

import numpy as np

from mace_polmp.analysis.correlation import Array

_STRAIGHT = 0.01
"""A molecule is linear if no atom is farther from its axis than this fraction of its length: a bend
of about 3° of a triatomic one. Exact geometry would be too much to ask: a relaxed molecule is
straight within its remaining forces only."""


def centre_of_mass(positions: Array, masses: Array) -> Array:
    """[3], Å."""
    centre: Array = masses @ positions / masses.sum()
    return centre


def is_linear(positions: Array, masses: Array) -> bool:
    """Whether the atoms of a molecule lie on a line. One atom does not.

    Args:
        positions: [n_atoms, 3], Å.
        masses: [n_atoms], amu.
    """
    if len(positions) < 2:
        return False
    centred = positions - centre_of_mass(positions, masses)
    axis = np.linalg.svd(centred * np.sqrt(masses)[:, None], full_matrices=False)[2][0]
    along = centred @ axis
    across = np.linalg.norm(centred - np.outer(along, axis), axis=1)
    return bool(across.max() <= _STRAIGHT * np.ptp(along))


def rigid_motions(positions: Array, masses: Array, rotations: bool) -> Array:
    """Orthonormal mass-weighted translations and rotations, [n, 3 n_atoms].

    Three translations and, with rotations, none of one atom, two of a linear molecule, three of
    others.

    Args:
        positions: [n_atoms, 3], Å.
        masses: [n_atoms], amu.
        rotations: whether to include them.
    """
    root = np.sqrt(masses)[:, None]
    translations = np.array([(root * axis).ravel() for axis in np.eye(3)]) / np.sqrt(masses.sum())
    n_rotations = 0
    if rotations and len(positions) > 1:
        n_rotations = 2 if is_linear(positions, masses) else 3
    if n_rotations == 0:
        return translations
    centred = positions - centre_of_mass(positions, masses)
    turned = np.array([(root * np.cross(axis, centred)).ravel() for axis in np.eye(3)])
    # Of a linear molecule the third, about its axis, moves nothing, or bends it where it is not
    # quite straight.
    basis = np.linalg.svd(turned, full_matrices=False)[2][:n_rotations]
    return np.concatenate([translations, basis])


def rotations_about(fixed: Array, positions: Array, masses: Array) -> Array:
    """Orthonormal mass-weighted rotations that leave fixed points in place, [n, 3 n_atoms].

    Three about one point, one about an axis through several, none about points that are not on a
    line; less those that move no atom.

    Args:
        fixed: [n_fixed, 3], Å, at least one.
        positions: [n_atoms, 3], Å, of what moves.
        masses: [n_atoms], amu.
    """
    centre = fixed.mean(0)
    everything = np.concatenate([fixed, positions])
    size = max(float(np.linalg.norm(everything - centre, axis=1).max()), 1e-12)
    # Axes about which no fixed point moves: what the lever arms of the fixed points leave.
    arms = np.concatenate([np.cross(np.eye(3), r - centre) for r in fixed], axis=1)  # [3, 3 n]
    vectors, lengths, _ = np.linalg.svd(arms, full_matrices=False)
    still = np.sum(lengths > _STRAIGHT * size)
    axes = vectors.T[still:]
    root = np.sqrt(masses)[:, None]
    turned = np.array([(root * np.cross(axis, positions - centre)).ravel() for axis in axes])
    if len(turned) == 0:
        return np.zeros((0, 3 * len(positions)))
    _, lengths, rows = np.linalg.svd(turned, full_matrices=False)
    moves: Array = rows[lengths > _STRAIGHT * size * np.sqrt(masses.min())]
    return moves
