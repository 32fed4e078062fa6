"""Which motion of a structure is thermal: one count for thermostats, tables and spectra.

A kinetic temperature is 2 K/(k n) with the n degrees of freedom that share the energy and the
kinetic energy K in them. Those are not all 3N: fixed coordinates do not move; the momentum of the
centre of mass is conserved by everything but a thermostat that pushes each atom by itself
(Langevin); and an open structure that does not turn will not begin to. Energy of a motion that does
not count, such as a steady drift, is left out of K.
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
"""The name of what a frame says of ThermalMotion.drifts."""

_THERMAL = 1e-3
"""A rigid motion with less than this fraction of its share of the energy does not count."""

# Constraints that leave a structure free to move as a whole; others hold it in space.
_NOT_PINNING = ("FixBondLengths", "FixInternals", "FixLinearTriatomic", "FixCom")


@dataclass(frozen=True)
class ThermalMotion:
    """What of a structure's motion has a temperature.

    Attributes:
        count: number of degrees of freedom.
        drifts: whether the centre of mass is not among them; its energy is then left out.
    """

    count: int
    drifts: bool

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
            return cls(_unfixed(atoms), False)
        drifts = _is_free(atoms)
        count = _unfixed(atoms) - (3 if drifts and not _holds_centre(atoms) else 0)
        if drifts and not turned and not atoms.pbc.any():
            count -= _still_rotations([atoms], count)
        return cls(count, drifts)

    @classmethod
    def of_frames(cls, frames: Sequence[Atoms]) -> ThermalMotion:
        """Of a trajectory: what its frames say, else what they show.

        Momenta that do not change, a drift, do not count. Atoms that never move are fixed.
        """
        first = frames[0]
        said = {atoms.info.get(INFO) for atoms in frames}
        rests = {atoms.info.get(RESTS) for atoms in frames}
        if len(said) == 1 and None not in said:
            count = _count_of(said.pop())
            drifts = rests.pop() if len(rests) == 1 else None
            if drifts is None:  # frames of an earlier version
                drifts = _is_free(first) and count < _unfixed(first)
            return cls(count, bool(drifts))
        still = ~np.any([atoms.get_momenta().any(1) for atoms in frames], axis=0)
        unfixed = _unfixed(first)
        if not first.constraints and still.any():
            return cls(unfixed - 3 * int(still.sum()), False)
        if not _is_free(first):
            return cls(unfixed, False)
        count = unfixed - (0 if _holds_centre(first) else 3)
        momenta = np.array([atoms.get_momenta().sum(0) for atoms in frames])
        mass = float(first.get_masses().sum())
        inside = np.mean([_kinetic(atoms, without_drift=True) for atoms in frames])
        scatter = 0.5 * momenta.var(0).sum() / mass  # kinetic energy of what is not a steady drift
        if scatter > _THERMAL * 3.0 * inside / max(count, 1):
            return cls(unfixed, False)
        if not first.pbc.any():
            count -= _still_rotations(frames, count)
        return cls(count, True)

    def kinetic_energy(self, atoms: Atoms) -> float:
        """The kinetic energy of the motion that counts, eV."""
        return _kinetic(atoms, self.drifts)

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


def _is_free(atoms: Atoms) -> bool:
    """Whether the momentum of the structure as a whole is conserved."""
    return len(atoms) > 1 and not any(_pins(constraint) for constraint in atoms.constraints)


def _pins(constraint: Any) -> bool:
    """Whether a constraint holds atoms in space, and not only among each other."""
    if type(constraint).__name__ == "Hookean":  # a spring to another atom, a point or a plane
        return bool(getattr(constraint, "_type", "two atoms") != "two atoms")
    return type(constraint).__name__ not in _NOT_PINNING


def _holds_centre(atoms: Atoms) -> bool:
    """Whether a constraint takes the centre of mass away already."""
    return any(isinstance(constraint, FixCom) for constraint in atoms.constraints)


def _kinetic(atoms: Atoms, without_drift: bool) -> float:
    energy = float(atoms.get_kinetic_energy())
    if without_drift:
        momentum = atoms.get_momenta().sum(0)
        energy -= 0.5 * float(momentum @ momentum) / float(atoms.get_masses().sum())
    return energy


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
        inside += _kinetic(atoms, without_drift=True)
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
    if _is_free(atoms) and not (drift and rotation):
        rigid = rigid_motions(atoms.positions, masses, rotations=not rotation)
        rigid = rigid[3:] if drift else rigid
        weighted = weighted - (rigid.T @ (rigid @ weighted.ravel())).reshape(-1, 3)
    atoms.set_momenta(root * weighted)


def take_off_drift(atoms: Atoms) -> float:
    """Let the centre of mass rest; returns the speed that it had, Å/fs."""
    masses = atoms.get_masses()
    velocity = atoms.get_momenta().sum(0) / masses.sum()
    atoms.set_momenta(atoms.get_momenta() - masses[:, None] * velocity)
    return float(np.linalg.norm(velocity) * units.fs)


def fixed_atoms(atoms: Atoms) -> NDArray[np.int64]:
    """Indices of atoms that FixAtoms holds."""
    held = [c.index for c in atoms.constraints if isinstance(c, FixAtoms)]
    return np.unique(np.concatenate(held)) if held else np.array([], dtype=np.int64)
