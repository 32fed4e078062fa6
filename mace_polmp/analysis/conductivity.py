"""The ionic conductivity of a trajectory, of Green and Kubo and of Einstein.

With the current J of all charges and the dipole M that it makes, ΔM = ∫ J dt, linear response says

    σ = 1/(3 V kT) ∫_0^∞ ⟨J(0)·J(t)⟩ dt = lim 1/(6 V kT) d/dt ⟨|M(t) − M(0)|²⟩

(Kubo, J. Phys. Soc. Jpn. 12, 570 (1957)). The second is the integral of the first. With the exact
current, of Born charges, vibrations and what electrons follow are in both and cancel in the limit
(French, Hamel and Redmer, Phys. Rev. Lett. 107, 185901 (2011)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import fft

from mace_polmp.analysis.correlation import Array
from mace_polmp.errors import InputError
from mace_polmp.units import BOLTZMANN, SIEMENS_PER_METRE

_FEWEST = 200
"""Frames."""

_FEWEST_LAGS = 8
"""Frames in the longest lag."""

_DEFAULT_LAG = 1.0 / 20.0
"""The longest lag, in units of the run."""

_BLOCKS = 10
_FEWEST_BLOCKS = 4

_SIGMAS = 4.0
"""Standard errors, of ten blocks, by which a slope must change to count as one that changes."""

_CHANGE = 0.1
"""And the part of the slope."""


@dataclass(frozen=True)
class Conductivity:
    """An ionic conductivity, mean over x, y and z; S/m.

    Attributes:
        green_kubo: mean of the running integral over the window.
        green_kubo_error: standard error.
        einstein: from the slope of the mean square change of M in the window.
        einstein_error: standard error.
        change: slope in the second half of the lags less that in the quarter before, S/m.
        change_error: standard error.
        window: of lags, its begin and end, fs.
        lags: [n], fs.
        correlation: ⟨J(0)·J(t)⟩, [n], e² Å²/fs².
        running: the integral up to each lag, [n], S/m.
        running_error: standard error, [n].
        square: ⟨|M(t) − M(0)|²⟩, [n], e² Å².
        square_error: standard error, [n].
        fit: the line through it in the window, [n], e² Å².
    """

    green_kubo: float
    green_kubo_error: float
    einstein: float
    einstein_error: float
    change: float
    change_error: float
    window: tuple[float, float]
    lags: Array
    correlation: Array
    running: Array
    running_error: Array
    square: Array
    square_error: Array
    fit: Array

    @property
    def has_plateau(self) -> bool:
        """Whether the slope does not change any more, as far as the errors tell."""
        larger = abs(self.change) > _SIGMAS * self.change_error
        return not (larger and abs(self.change) > _CHANGE * abs(self.einstein))


def conductivity(
    volume: float,
    temperature: float,
    timestep: float,
    current: Array | None = None,
    moment: Array | None = None,
    lag: float | None = None,
) -> Conductivity:
    """The conductivity at equilibrium from the current or, if None, from the dipole.

    Values are taken from the second half of the lags. Errors are those of the mean of ten blocks
    of the run (fewer where the lags are long).

    Args:
        volume: Å³.
        temperature: K.
        timestep: fs between frames.
        current: J = Σ Z*·v, [n_times, 3], e Å/fs.
        moment: M of unwrapped atoms, [n_times, 3], e Å.
        lag: the longest lag, fs; a twentieth of the run if None.

    Raises:
        InputError: too short a run, or no volume or temperature.
    """
    for name, value in (("volume", volume), ("temperature", temperature), ("timestep", timestep)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, got {value}")
    if current is not None:
        current = np.asarray(current, dtype=float)
        moment = _integrated(current, timestep)
        lost = 0
    elif moment is not None:  # the mean current between frames has the same integral
        moment = np.asarray(moment, dtype=float)
        current = np.diff(moment, axis=0) / timestep
        moment, lost = moment[:-1], 1
    else:
        raise InputError("conductivity needs a current or a dipole")
    n_lags, n_blocks = _lags(len(current), lost, timestep, lag)
    length = (len(current) - n_lags) // n_blocks
    parts = [slice(k * length, (k + 1) * length + n_lags) for k in range(n_blocks)]
    correlations = np.array([_products(current[part], length) for part in parts])
    squares = np.array([_squares(moment[part], length) for part in parts])
    scale = SIEMENS_PER_METRE / (3.0 * volume * BOLTZMANN * temperature)
    integrals = scale * _trapezoids(correlations, timestep)
    half, quarter = n_lags // 2, n_lags // 4
    lags = np.arange(n_lags + 1) * timestep
    green_kubo = integrals[:, half:].mean(1)
    lines = np.array([np.polyfit(lags[half:], square[half:], 1) for square in squares])
    einstein = 0.5 * scale * lines[:, 0]
    before = np.array(
        [np.polyfit(lags[quarter : half + 1], s[quarter : half + 1], 1)[0] for s in squares]
    )
    slope, constant = lines.mean(0)
    return Conductivity(
        *_mean(green_kubo),
        *_mean(einstein),
        *_mean(einstein - 0.5 * scale * before),
        (half * timestep, n_lags * timestep),
        lags,
        correlations.mean(0),
        *_mean(integrals),
        *_mean(squares),
        slope * lags + constant,
    )


def _lags(n_times: int, lost: int, timestep: float, lag: float | None) -> tuple[int, int]:
    """How many lags and blocks.

    Args:
        n_times: of the current.
        lost: by how much more frames the run has.
        timestep, lag: fs.

    Raises:
        InputError: the run is too short for them.
    """
    duration = n_times * timestep
    if n_times < _FEWEST:
        raise InputError(
            f"the run is too short for a conductivity: {n_times + lost} frames, at least "
            f"{_FEWEST + lost} are needed"
        )
    if lag is None:
        lag = _DEFAULT_LAG * duration
    if not (math.isfinite(lag) and lag > 0):
        raise InputError(f"the longest lag must be a positive number of fs, got {lag}")
    n_lags = round(lag / timestep)
    if n_lags < _FEWEST_LAGS:
        raise InputError(
            f"a longest lag of {lag:g} fs has {n_lags} frames, at least {_FEWEST_LAGS} are needed; "
            "give a longer one or write frames more often"
        )
    block = n_lags + n_lags // 2
    n_blocks = min(_BLOCKS, (n_times - n_lags) // block)
    if n_blocks < _FEWEST_BLOCKS:
        needed = n_lags + _FEWEST_BLOCKS * block  # 7 lags
        raise InputError(
            f"the run of {n_times + lost} frames is too short for lags up to {lag / 1000:.3g} ps, "
            f"{n_lags} frames: at least {needed + lost} frames are needed, "
            f"{(needed + lost) * timestep / 1000:.3g} ps"
        )
    return n_lags, n_blocks


def at_mean_cell(moment: Array, cells: Array) -> Array:
    """M of a structure whose cell changes, as if all its frames had the mean cell, [n_times, 3].

    Σ q r of ions that have travelled grows and shrinks with the cell, by an amount that depends on
    which of their images are written down. That is no current. What is left in the coordinates of
    the cell is the integral of Σ Z*·v with the velocities beside the motion of the cell, as
    barostats have them: M h⁻¹, times the mean of h.

    Args:
        moment: M of unwrapped atoms, [n_times, 3], e Å.
        cells: h, [n_times, 3, 3], Å, lattice vectors in rows.
    """
    if np.ptp(cells, axis=0).max() == 0.0:
        return moment
    reduced = np.linalg.solve(cells.transpose(0, 2, 1), moment[:, :, None])[:, :, 0]
    found: Array = reduced @ cells.mean(0)
    return found


def _integrated(current: Array, timestep: float) -> Array:
    out = np.zeros_like(current)
    out[1:] = np.cumsum(0.5 * timestep * (current[1:] + current[:-1]), axis=0)
    return out


def _trapezoids(values: Array, step: float) -> Array:
    """Integrals from the first column up to each."""
    out = np.zeros_like(values)
    out[:, 1:] = np.cumsum(0.5 * step * (values[:, 1:] + values[:, :-1]), axis=1)
    return out


def _products(part: Array, length: int) -> Array:
    """⟨x(0)·x(t)⟩ over so many starts, [n_lags + 1], of a part that is n_lags longer."""
    size = fft.next_fast_len(len(part) + length, real=True)
    first = fft.rfft(part[:length], size, axis=0)
    every = fft.rfft(part, size, axis=0)
    total = fft.irfft((first.conj() * every).sum(1), size)[: len(part) - length + 1]
    out: Array = total / length
    return out


def _squares(part: Array, length: int) -> Array:
    """⟨|x(t) − x(0)|²⟩ over so many starts, [n_lags + 1]."""
    part = part - part.mean(0)
    sums = np.append(0.0, np.cumsum((part**2).sum(1)))
    at = np.arange(len(part) - length + 1)
    out: Array = (sums[at + length] - sums[at] + sums[length]) / length
    out = out - 2.0 * _products(part, length)
    out[0] = 0.0
    return out


def _mean(values: Array) -> tuple[Array, Array]:
    """Mean of blocks and its standard error."""
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))
