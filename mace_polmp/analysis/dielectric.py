"""Polarization along a trajectory and the static dielectric constant from its fluctuations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import cumulative_trapezoid

from mace_polmp.analysis.correlation import Array
from mace_polmp.errors import InputError
from mace_polmp.units import BOLTZMANN, EPS0

_BLOCKS = 5


@dataclass(frozen=True)
class StaticPermittivity:
    """The static dielectric constant.

    Attributes:
        value: ε_0, average over x, y and z.
        error: standard error from the parts of the run that were averaged apart.
        running: ε_0 from the first frames up to each, [n_times].
    """

    value: float
    error: float
    running: Array


def polarization_change(current: Array, timestep: float) -> Array:
    """Δ(ΩP) since the first frame, ∫ J dt, [n_times, 3], e Å.

    Args:
        current: J = Σ Z*·v, [n_times, 3], e Å/fs: it needs no unwrapping.
        timestep: fs.
    """
    change: Array = cumulative_trapezoid(current, dx=timestep, axis=0, initial=0.0)
    return change


def static_permittivity(
    moment: Array, volume: float, temperature: float, epsilon_infinity: float = 1.0
) -> StaticPermittivity:
    """ε_0 = ε∞ + (⟨M²⟩ − ⟨M⟩²)/(3 eps0 V kT), with tin-foil boundary.

    (Neumann, Mol. Phys. 50, 841 (1983).)

    Args:
        moment: M up to a constant, [n_times, 3], e Å, of unwrapped atoms or polarization_change.
        volume: Å³.
        temperature: K.
        epsilon_infinity: of the electrons.

    Raises:
        InputError: fewer than ten frames, or no volume or temperature.
    """
    moment = np.asarray(moment, dtype=float)
    if len(moment) < 2 * _BLOCKS:
        raise InputError(
            f"the run is too short for a dielectric constant: {len(moment)} frames, at least "
            f"{2 * _BLOCKS} are needed"
        )
    for name, value in (("volume", volume), ("temperature", temperature)):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, got {value}")
    scale = 1.0 / (3.0 * EPS0 * volume * BOLTZMANN * temperature)
    moment = moment - moment[0]
    counts = np.arange(1, len(moment) + 1)
    mean = np.cumsum(moment, axis=0) / counts[:, None]
    square = np.cumsum((moment**2).sum(1)) / counts
    running = epsilon_infinity + scale * (square - (mean**2).sum(1))
    blocks = [((b - moment.mean(0)) ** 2).sum(1).mean() for b in np.array_split(moment, _BLOCKS)]
    error = scale * float(np.std(blocks, ddof=1)) / np.sqrt(_BLOCKS)
    return StaticPermittivity(float(running[-1]), float(error), running)
