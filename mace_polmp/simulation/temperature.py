"""Which motion of a structure is thermal: one count for thermostats, tables and spectra.

A kinetic temperature is 2 K/(k n) with the n degrees of freedom that share the energy and the
kinetic energy K in them. Those are not all 3N: fixed coordinates do not move; the momentum of the
centre of mass, along the axes that constraints leave free, is conserved by everything but a
thermostat that pushes each atom by itself (Langevin); and an open structure that does not turn will
not begin to. Energy of a motion that does not count, such as a steady drift, is left out of K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms, FixCom
from numpy.typing import NDArray

from mace_polmp.analysis.rigid import rigid_motions
from mace_polmp.errors import InputError
from mace_polmp.quantities import is_finite_number

Array = NDArray[np.float64]

INFO = "degrees_of_freedom"
"""The name of the count among what a frame says."""

RESTS = "centre_of_mass_rests"
"""The name of what a frame says of ThermalMotion.axes: all (true), none (false) or the matrix that
projects on them."""

_THERMAL = 1e-3
"""A rigid motion with less than this fraction of its share of the energy does not count."""

# Constraints that hold atoms among each other only: the structure moves as a whole.
_NOT_PINNING = ("FixBondLengths", "FixInternals", "FixLinearTriatomic", "FixCom")
# Constraints that hold atoms in space, each by a linear rule.
_PROJECTING = ("FixAtoms", "FixedPlane", "FixedLine", "FixCartesian", "FixScaled")

Axes = tuple[tuple[float, ...], ...]
ALL: Axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class ThermalMotion:
    """What of a structure's motion has a temperature.

    Attributes:
        count: number of degrees of freedom.
        axes: orthonormal directions along which the motion of the centre of mass is not among them;
            its energy is then left out.
    """

    count: int
    axes: Axes = ()

    @property
    def drifts(self) -> bool:
        """Whether any motion of the centre of mass is left out."""
        return len(self.axes) > 0

    def said(self) -> bool | Array:
        """What a frame says of the axes, see RESTS."""
        if len(self.axes) in (0, 3):
            return self.drifts
        return _projector(self.axes)

    def drift(self, atoms: Atoms) -> Array:
        """The momenta of the motion that is left out, [n_atoms, 3]."""
        masses = atoms.get_masses()
        momentum = _projector(self.axes) @ atoms.get_momenta().sum(0)
        out: Array = masses[:, None] * momentum / masses.sum()
        return out

    @classmethod
    def of(cls, atoms: Atoms, pushes_atoms: bool = False, turned: bool = False) -> ThermalMotion:
        """Of a run that begins with a structure and its momenta.

        Args:
            atoms: the start.
            pushes_atoms: whether a thermostat acts on each atom by itself (Langevin): all motion is
                thermal then.
            turned: whether something turns the structure, such as an external field.
        """
        if pushes_atoms:
            return cls(_unfixed(atoms))
        axes = _free_axes(atoms)
        count = _unfixed(atoms) - (0 if _holds_centre(atoms) else len(axes))
        if len(axes) == 3 and not turned and not atoms.pbc.any():
            count -= _still_rotations([atoms], count)
        return cls(count, axes)

    @classmethod
    def of_frames(cls, frames: Sequence[Atoms]) -> ThermalMotion:
        """Of a trajectory: what its frames say, else what they show.

        Momenta that do not change, a drift, do not count. Atoms that never move are fixed.
        """
        first = frames[0]
        free = _free_axes(first)
        unfixed = _unfixed(first)
        counts = {_count_of(atoms.info[INFO]) if INFO in atoms.info else None for atoms in frames}
        if len(counts) == 1 and (count := counts.pop()) is not None:
            axes = _axes_said(first) if RESTS in first.info else None
            if axes is None:  # frames of an earlier version
                axes = free if count < unfixed else ()
            return cls(count, axes)
        still = ~np.any([atoms.get_momenta().any(1) for atoms in frames], axis=0)
        if not first.constraints and still.any():
            return cls(unfixed - 3 * int(still.sum()))
        if not free:
            return cls(unfixed)
        count = unfixed - (0 if _holds_centre(first) else len(free))
        momenta = np.array([_projector(free) @ atoms.get_momenta().sum(0) for atoms in frames])
        mass = float(first.get_masses().sum())
        inside = np.mean([cls(count, free).kinetic_energy(atoms) for atoms in frames])
        scatter = 0.5 * momenta.var(0).sum() / mass  # kinetic energy of what is not a steady drift
        if scatter > _THERMAL * len(free) * inside / max(count, 1):
            return cls(unfixed)
        if len(free) == 3 and not first.pbc.any():
            count -= _still_rotations(frames, count)
        return cls(count, free)

    def kinetic_energy(self, atoms: Atoms) -> float:
        """The kinetic energy of the motion that counts, eV."""
        momentum = _projector(self.axes) @ atoms.get_momenta().sum(0)
        whole = 0.5 * float(momentum @ momentum) / float(atoms.get_masses().sum())
        return float(atoms.get_kinetic_energy()) - whole

    def temperature(self, atoms: Atoms) -> float:
        """K; 0 where nothing counts."""
        if self.count < 1:
            return 0.0
        return 2.0 * self.kinetic_energy(atoms) / (self.count * units.kB)


def _count_of(value: Any) -> int:
    """The number that frames say.

    Raises:
        InputError: it is none.
    """
    if not is_finite_number(value) or float(value) < 0 or float(value) != int(float(value)):
        raise InputError(f"the frames' {INFO} must be a whole number of 0 or more, got {value!r}")
    return int(float(value))


def _unfixed(atoms: Atoms) -> int:
    """3N less what constraints take away."""
    return int(atoms.get_number_of_degrees_of_freedom())


def _projector(axes: Axes) -> Array:
    """The matrix that keeps what of a vector lies along axes, [3, 3]."""
    matrix = np.reshape(np.asarray(axes, dtype=float), (-1, 3))
    out: Array = matrix.T @ matrix
    return out


def _axes_of(projector: Array) -> Axes:
    """The axes that a matrix projects on."""
    values, vectors = np.linalg.eigh(projector)
    if (values > 0.5).all():
        return ALL
    return tuple(tuple(float(x) for x in v) for v in vectors.T[values > 0.5])


def _axes_said(atoms: Atoms) -> Axes:
    """The axes that a frame says.

    Raises:
        InputError: it says something else.
    """
    said = np.asarray(atoms.info[RESTS])
    if said.size == 1:
        return ALL if bool(said) else ()
    if said.size != 9 or said.dtype.kind not in "if" or not np.isfinite(said).all():
        raise InputError(
            f"the frames' {RESTS} must be true, false or a 3 x 3 matrix, got {said.tolist()!r}"
        )
    matrix = said.reshape(3, 3).astype(float)
    return _axes_of(0.5 * (matrix + matrix.T))


def _free_axes(atoms: Atoms) -> Axes:
    """Along which axes the momentum of the structure as a whole is conserved.

    Those are the directions in which all constraints let the whole structure be moved.
    """
    if len(atoms) < 2:
        return ()
    held = np.zeros((3, 3))  # sum of what constraints take off moves along the axes, squared
    for constraint in atoms.constraints:
        kind = type(constraint).__name__
        if kind == "Hookean":  # a spring to another atom, a point or a plane
            to = getattr(constraint, "_type", "two atoms")
            if to == "point":
                return ()
            if to == "plane":
                held += np.outer(constraint.plane[:3], constraint.plane[:3])
        elif kind in _PROJECTING:
            taken = []
            for axis in np.eye(3):
                moved = atoms.positions + axis
                constraint.adjust_positions(atoms, moved)
                taken.append((moved - atoms.positions - axis).ravel())
            held += np.array(taken) @ np.array(taken).T
        elif kind not in _NOT_PINNING:
            return ()
    values, vectors = np.linalg.eigh(held)
    return _axes_of((vectors * (values < 1e-12)) @ vectors.T)


def _holds_centre(atoms: Atoms) -> bool:
    """Whether a constraint takes the centre of mass away already."""
    return any(isinstance(constraint, FixCom) for constraint in atoms.constraints)


def _still_rotations(frames: Sequence[Atoms], count: int) -> int:
    """How many rotations of an open structure have no share of the energy."""
    n_rotations = 0
    turning = inside = 0.0
    for atoms in frames:
        masses = atoms.get_masses()
        rotations = rigid_motions(atoms.positions, masses, rotations=True)[3:]
        n_rotations = max(n_rotations, len(rotations))
        weighted = (atoms.get_momenta() / np.sqrt(masses)[:, None]).ravel()
        turning += 0.5 * float(((rotations @ weighted) ** 2).sum())
        inside += ThermalMotion(count, ALL).kinetic_energy(atoms)
    share = inside * n_rotations / max(count, 1)
    return n_rotations if turning <= _THERMAL * share else 0


def draw_momenta(
    atoms: Atoms,
    temperature: float,
    rng: np.random.Generator,
    drift: bool = False,
    rotation: bool = True,
) -> None:
    """Maxwell-Boltzmann momenta of all that may move.

    Args:
        atoms: whose momenta are replaced.
        temperature: K.
        rng: random numbers.
        drift: whether the structure may move as a whole.
        rotation: whether an open structure may turn as a whole.
    """
    masses = atoms.get_masses()
    root = np.sqrt(masses)[:, None]
    weighted = np.sqrt(units.kB * temperature) * rng.standard_normal((len(atoms), 3))
    axes = _free_axes(atoms)
    if len(axes) == 3 and not rotation:
        turns = rigid_motions(atoms.positions, masses, rotations=True)[3:]
        weighted = weighted - (turns.T @ (turns @ weighted.ravel())).reshape(-1, 3)
    atoms.set_momenta(root * weighted)
    if not drift:
        atoms.set_momenta(atoms.get_momenta() - ThermalMotion(0, axes).drift(atoms))


def take_off_drift(atoms: Atoms) -> float:
    """Let the centre of mass of free atoms rest; returns the speed that it had, Å/fs."""
    masses = atoms.get_masses()
    velocity = atoms.get_momenta().sum(0) / masses.sum()
    atoms.set_momenta(atoms.get_momenta() - masses[:, None] * velocity)
    return float(np.linalg.norm(velocity) * units.fs)


def fixed_atoms(atoms: Atoms) -> NDArray[np.int64]:
    """Indices of atoms that FixAtoms holds."""
    held = [c.index for c in atoms.constraints if isinstance(c, FixAtoms)]
    return np.unique(np.concatenate(held)) if held else np.array([], dtype=np.int64)
