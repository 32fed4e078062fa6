"""Polarization along a trajectory and the static dielectric constant from its fluctuations.

The fluctuations of M say something only where they have come to rest: a run must be much longer
than M remembers, and M must stay bounded. In a conductor ions travel, M wanders off, and there is
no static dielectric constant; a run that is too short looks the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import fft

from mace_polmp.analysis.correlation import Array
from mace_polmp.analysis.sampling import nyquist
from mace_polmp.errors import InputError
from mace_polmp.units import BOLTZMANN, EPS0

LEAST_WAVENUMBER = 2500.0
"""What currents must tell in any case to be integrated, cm⁻¹."""

_MOST_MEMORY = 1.0 / 15.0
"""The longest correlation time of M, in units of the run."""

_WITHIN = {2: 0.8, 4: 0.6, 8: 0.35}
"""The least variance of M within parts of the run, by their number, in units of that of all of it.

A random walk has 1/2, 1/4 and 1/8; what has come to rest has nearly all.
"""

_FEWEST = 100
"""Frames."""

_BLOCKS = 8


@dataclass(frozen=True)
class StaticPermittivity:
    """The static dielectric constant.

    Attributes:
        value: ε_0, average over x, y and z.
        error: standard error, from how long the polarization remembers and from blocks of the run
            that are longer than that; the larger of the two.
        memory: correlation time of the polarization, fs.
        running: ε_0 from the first frames up to each, [n_times].
        running_error: standard error of each of them, [n_times]: that of the whole run times
            √(T/t), as of a mean over a time t (that of the first frame is the second's).
    """

    value: float
    error: float
    memory: float
    running: Array
    running_error: Array


def polarization_change(current: Array, timestep: float) -> Array:
    """Δ(ΩP) since the first frame, ∫ J dt, [n_times, 3], e Å.

    Args:
        current: J = Σ Z*·v, [n_times, 3], e Å/fs: it needs no unwrapping.
        timestep: fs.

    Raises:
        InputError: frames that are too far apart for the vibrations of light atoms: in the integral
            what they cannot tell becomes a slow drift, and most of the result.
    """
    if nyquist(timestep) < LEAST_WAVENUMBER:
        raise InputError(
            f"currents {timestep:g} fs apart cannot be integrated: vibrations beyond "
            f"{nyquist(timestep):.0f} cm⁻¹ become a drift; at most "
            f"{timestep * nyquist(timestep) / LEAST_WAVENUMBER:.2g} fs are possible"
        )
    from scipy.integrate import cumulative_trapezoid  # slow to load

    change: Array = cumulative_trapezoid(current, dx=timestep, axis=0, initial=0.0)
    return change


def static_permittivity(
    moment: Array,
    volume: float,
    temperature: float,
    epsilon_infinity: float = 1.0,
    timestep: float = 1.0,
) -> StaticPermittivity:
    """ε_0 = ε∞ + (⟨M²⟩ − ⟨M⟩²)/(3 eps0 V kT), with tin-foil boundary.

    (Neumann, Mol. Phys. 50, 841 (1983).) The variance of a run of length T is too small by
    1 − 2τ/T, with the correlation time τ of M; this is made good.

    Args:
        moment: M up to a constant, [n_times, 3], e Å, of unwrapped atoms or polarization_change.
        volume: Å³.
        temperature: K.
        epsilon_infinity: of the electrons.
        timestep: fs between frames, the unit of times in the result.

    Raises:
        InputError: too few frames, a run that is too short for what M remembers or in which M
            wanders off, or no volume or temperature.
    """
    moment = np.asarray(moment, dtype=float)
    duration = (len(moment) - 1) * timestep
    if len(moment) < _FEWEST:
        raise InputError(
            f"the run is too short for a dielectric constant: {len(moment)} frames, at least "
            f"{_FEWEST} are needed"
        )
    for name, value in (("volume", volume), ("temperature", temperature), ("timestep", timestep)):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, got {value}")
    if not (np.isfinite(epsilon_infinity) and epsilon_infinity >= 1.0):
        raise InputError(f"epsilon_infinity must be a number of 1 or more, got {epsilon_infinity}")
    moment = moment - moment.mean(0)
    variance = float((moment**2).sum(1).mean())
    if not variance > 0:
        raise InputError("the polarization does not change along the run")
    correlation = _normalised_correlation(moment)
    memory = _memory(correlation, len(moment)) * timestep
    within = {n: _variance_within(moment, n) / variance for n in _WITHIN}
    restless = any(within[n] < least for n, least in _WITHIN.items())
    if memory > _MOST_MEMORY * duration or restless:
        raise InputError(
            f"the polarization has not come to rest in {duration / 1000:.3g} ps (it remembers "
            f"for {memory / 1000:.3g} ps, and half of the run has {within[2]:.2f} of its "
            "fluctuations): either the run is too short, at least "
            f"{memory / _MOST_MEMORY / 1000:.2g} ps are needed, or ions travel, and a conductor "
            "has no static dielectric constant"
        )
    scale = 1.0 / (3.0 * EPS0 * volume * BOLTZMANN * temperature)
    unbiased = variance / (1.0 - 2.0 * memory / duration)
    error = max(unbiased * _gaussian_error(correlation, timestep, duration), _block_error(moment))
    parts = np.maximum(np.arange(len(moment)), 1) / (len(moment) - 1)
    return StaticPermittivity(
        epsilon_infinity + scale * unbiased,
        scale * error,
        memory,
        epsilon_infinity + scale * unbiased / variance * _running_variance(moment),
        scale * error / np.sqrt(parts),
    )


def _variance_within(moment: Array, n_parts: int) -> float:
    parts = np.array_split(moment, n_parts)
    return float(np.mean([((p - p.mean(0)) ** 2).sum(1).mean() for p in parts]))


def _running_variance(moment: Array) -> Array:
    counts = np.arange(1, len(moment) + 1)
    mean = np.cumsum(moment, axis=0) / counts[:, None]
    square = np.cumsum((moment**2).sum(1)) / counts
    running: Array = square - (mean**2).sum(1)
    return running


def _normalised_correlation(moment: Array) -> Array:
    """⟨M(0)·M(t)⟩/⟨M²⟩ of a series without its mean, up to half of the run."""
    n = len(moment)
    transform = fft.rfft(moment, fft.next_fast_len(2 * n, real=True), axis=0)
    total = fft.irfft((np.abs(transform) ** 2).sum(1))[: n // 2]
    correlation: Array = total / (n - np.arange(n // 2))
    return correlation / correlation[0]


def _correlation_time(correlation: Array) -> float:
    """∫ ρ dt in frames, up to six times itself: beyond, there is noise (Sokal's window)."""
    integral = np.cumsum(correlation) - 0.5
    enough = np.flatnonzero(np.arange(len(correlation)) >= 6.0 * integral)
    return max(float(integral[enough[0] if len(enough) else -1]), 0.5)


def _memory(correlation: Array, n_times: int) -> float:
    """Correlation time in frames, of a series whose own mean was taken off.

    Without the true mean, ρ is too small by 2τ/T everywhere.
    """
    offset = 2.0 * _correlation_time(correlation) / n_times
    return _correlation_time((correlation + offset) / (1.0 + offset))


def _gaussian_error(correlation: Array, timestep: float, duration: float) -> float:
    """Relative error of the variance of three Gaussian components of this memory.

    The variance of a sample variance s² is 4 s⁴/T ∫ ρ² dt.
    """
    squared = _correlation_time(correlation**2) * timestep
    return math.sqrt(4.0 * squared / (3.0 * duration))


def _block_error(moment: Array) -> float:
    """Standard error of the variance from blocks of the run, about the mean of the whole run."""
    blocks = [float((b**2).sum(1).mean()) for b in np.array_split(moment, _BLOCKS)]
    return float(np.std(blocks, ddof=1)) / math.sqrt(_BLOCKS)
