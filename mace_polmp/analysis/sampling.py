"""Whether the frames of a trajectory are close enough to each other, and where its atoms go."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mace_polmp.analysis.correlation import Array
from mace_polmp.errors import InputError
from mace_polmp.units import WAVENUMBER

if TYPE_CHECKING:
    from ase import Atoms

# The fastest vibrations, cm⁻¹, by the mass (amu) of the lightest atom up to which they are found:
# O-H, O-D, C≡O and N≡N, and those of heavier atoms.
_FASTEST = ((1.5, 4000.0), (4.1, 3000.0), (20.0, 2500.0))
_HEAVY = 1500.0

_MOST_OF_A_CELL = 0.4
"""The farthest an atom may go between frames, in units of a lattice vector: beyond half of one it
might as well have gone the other way."""

_BOND = 1.2
"""Atoms closer than this times the sum of their covalent radii are bonded."""


def fastest_vibration(masses: Array) -> float:
    """The wavenumber that no vibration of such atoms exceeds, cm⁻¹."""
    lightest = float(np.min(masses))
    return next((wavenumber for mass, wavenumber in _FASTEST if lightest < mass), _HEAVY)


def nyquist(timestep: float) -> float:
    """The largest wavenumber that frames so many fs apart can tell, cm⁻¹."""
    return math.pi / (WAVENUMBER * timestep)


def check_sampling(masses: Array, timestep: float, what: str, least: float = 0.0) -> None:
    """Refuse frames that are too far apart for the vibrations of their atoms.

    What is faster than the largest wavenumber that they can tell looks like something slower.

    Args:
        masses: [n_atoms], amu.
        timestep: fs between frames.
        what: is computed of them, for the message.
        least: a wavenumber that must be told in any case, cm⁻¹.

    Raises:
        InputError: names the distance that is needed.
    """
    fastest = max(fastest_vibration(masses), least)
    if nyquist(timestep) < fastest:
        needed = math.pi / (WAVENUMBER * fastest)
        raise InputError(
            f"frames are {timestep:g} fs apart, and {what} needs at most {needed:.2g} fs: "
            f"vibrations up to {fastest:.0f} cm⁻¹ are possible with these atoms, and those beyond "
            f"{nyquist(timestep):.0f} cm⁻¹ would be taken for slower ones; write frames more often"
        )


def unwrapped(fractions: Array, pbc: Array) -> Array:
    """Fractional coordinates that go on across the boundaries, by minimum image between frames.

    Args:
        fractions: [n_times, n_atoms, 3].
        pbc: [3] bool.

    Raises:
        InputError: an atom goes so far between two frames that its way is not clear.
    """
    steps = np.diff(fractions, axis=0)
    steps = steps - np.where(pbc, np.round(steps), 0.0)
    far = np.argwhere(np.abs(np.where(pbc, steps, 0.0)) > _MOST_OF_A_CELL)
    if len(far) > 0:
        frame, atom, axis = far[0]
        raise InputError(
            f"atom {atom} moves by {abs(steps[frame, atom, axis]):.2f} of a lattice vector between "
            f"frames {frame} and {frame + 1}: the way it took is not clear; write frames more often"
        )
    start = fractions[:1]
    out: Array = np.concatenate([start, start + np.cumsum(steps, axis=0)])
    return out


def wrapped_between(fractions: Array, pbc: Array) -> Array:
    """Between which frames an atom was put back into the cell, [n_times − 1] bool."""
    steps = np.where(pbc, np.diff(fractions, axis=0), 0.0)
    found: Array = (np.abs(steps) > 0.5).any((1, 2))
    return found


def whole_molecules(atoms: Atoms) -> Array:
    """Lattice vectors that put the molecules of a slab together, [n_atoms, 3] in their units.

    The dipole of a molecule whose charges fluctuate is that of its atoms side by side.

    Raises:
        InputError: bonded atoms form a network through the cell: in its plane the slab has no
            dipole, and needs the Born charges that are not available for slabs.
    """
    from ase.neighborlist import natural_cutoffs, neighbor_list

    first, second, shifts = neighbor_list("ijS", atoms, natural_cutoffs(atoms, mult=_BOND))
    bonds: dict[int, list[tuple[int, Array]]] = {}
    for i, j, shift in zip(first, second, shifts, strict=True):
        bonds.setdefault(int(i), []).append((int(j), shift))
    out = np.full((len(atoms), 3), np.nan)
    for start in range(len(atoms)):
        if not np.isnan(out[start, 0]):
            continue
        out[start] = 0.0
        queue = [start]
        while queue:
            i = queue.pop()
            for j, shift in bonds.get(i, []):
                if np.isnan(out[j, 0]):
                    out[j] = out[i] + shift
                    queue.append(j)
                elif (out[j] != out[i] + shift).any():
                    raise InputError(
                        "the atoms of the slab form a network across the boundaries of the cell, "
                        f"atoms {i} and {j} for instance: its dipole within the plane is not "
                        "defined, and Born charges of slabs are not available"
                    )
    return out
