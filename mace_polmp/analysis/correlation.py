"""Power spectra of time series from windowed autocorrelation functions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mace_polmp.errors import InputError
from mace_polmp.units import WAVENUMBER

Array = NDArray[np.float64]

_CUT = 3.0
"""The Gaussian window is cut off at this many of its widths."""


def timestep_of(times: Array, where: str) -> float:
    """The common distance of the times of a trajectory, fs.

    Raises:
        InputError: fewer than two frames, or uneven distances.
    """
    if len(times) < 2:
        raise InputError(f"{where}: has {len(times)} frame; a spectrum needs a trajectory")
    steps = np.diff(times)
    step = float(np.median(steps))
    uneven = np.flatnonzero(np.abs(steps - step) > 1e-3 * abs(step))
    if step <= 0 or len(uneven) > 0:
        first = int(uneven[0]) if len(uneven) > 0 else 0
        raise InputError(
            f"{where}: time steps are not even: frame {first} is at {times[first]:g} fs and frame "
            f"{first + 1} at {times[first + 1]:g} fs, most are {step:g} fs apart; write frames at "
            "even intervals"
        )
    return step


def window_lag(n_times: int, timestep: float, resolution: float) -> int:
    """How many lags the window of a resolution needs.

    Args:
        n_times: length of the series.
        timestep: fs.
        resolution: full width of a sharp line at half its height, cm⁻¹.

    Raises:
        InputError: the run is too short; names the resolution it allows.
    """
    if not (math.isfinite(resolution) and resolution > 0):
        raise InputError(f"resolution must be a positive number of cm⁻¹, got {resolution}")
    lag = math.ceil(_CUT * _window_width(resolution) / timestep)
    if lag + 1 > n_times:
        duration = (n_times - 1) * timestep
        allowed = resolution * lag * timestep / max(duration, timestep)
        raise InputError(
            f"the run is too short: {duration / 1000:.3g} ps for a resolution of {resolution:g} "
            f"cm⁻¹, which needs {lag * timestep / 1000:.3g} ps; run longer or ask for "
            f"{math.ceil(1.01 * allowed)} cm⁻¹"
        )
    return lag


def _window_width(resolution: float) -> float:
    """Standard deviation in time, fs, of the window whose lines have a full width at half maximum.

    A Gaussian of standard deviation s in time is one of 1/s in angular frequency.
    """
    return 2.0 * math.sqrt(2.0 * math.log(2.0)) / (WAVENUMBER * resolution)


def autocorrelation(series: Array, n_lags: int) -> Array:
    """⟨x(0)·x(t)⟩ of [n_times, …], summed over components, without their means: [n_lags + 1]."""
    values = np.asarray(series, dtype=float).reshape(len(series), -1)
    values = values - values.mean(0)
    n = len(values)
    size = fft.next_fast_len(n + n_lags, real=True)
    transform = fft.rfft(values, size, axis=0)
    total = fft.irfft((np.abs(transform) ** 2).sum(1), size)[: n_lags + 1]
    result: Array = total / (n - np.arange(n_lags + 1))
    return result


def power_spectrum(series: Array, timestep: float, resolution: float) -> tuple[Array, Array]:
    """∫ dt cos(ωt) ⟨x(0)·x(t)⟩ with a Gaussian window.

    Args:
        series: [n_times, …], evenly spaced.
        timestep: fs.
        resolution: full width of a sharp line at half its height, cm⁻¹.

    Returns:
        Wavenumbers in cm⁻¹, up to the Nyquist limit, and the spectrum, units of x² fs.

    Raises:
        InputError: the series is too short for the resolution.
    """
    lag = window_lag(len(series), timestep, resolution)
    window = np.exp(-0.5 * (np.arange(lag + 1) * timestep / _window_width(resolution)) ** 2)
    correlation = autocorrelation(series, lag) * window
    # Zeros make the points of the spectrum denser: at least six to a line.
    wanted = int(6.0 * 2.0 * math.pi / (WAVENUMBER * resolution * timestep))
    size = fft.next_fast_len(max(2 * lag + 1, wanted), real=True)
    even = np.zeros(size)
    even[: lag + 1] = correlation
    even[-lag:] = correlation[:0:-1]
    spectrum: Array = timestep * fft.rfft(even).real
    wavenumbers: Array = fft.rfftfreq(size, timestep) * 2.0 * math.pi / WAVENUMBER
    return wavenumbers, spectrum


def derivative_spectrum(series: Array, timestep: float, resolution: float) -> tuple[Array, Array]:
    """power_spectrum of the time derivative of a series.

    Differences of neighbours attenuate a frequency by sin(ωΔt/2)/(ωΔt/2); this is undone.
    """
    differences = np.diff(np.asarray(series, dtype=float), axis=0) / timestep
    wavenumbers, spectrum = power_spectrum(differences, timestep, resolution)
    half = 0.5 * WAVENUMBER * wavenumbers * timestep
    return wavenumbers, spectrum / np.sinc(half / math.pi) ** 2


def without_verlet_shift(
    wavenumber: Array, spectra: list[Array], timestep: float
) -> tuple[Array, list[Array]]:
    """Wavenumbers without the shift of the Verlet integrator; areas are kept.

    A harmonic oscillator of frequency ω oscillates with ω' in a trajectory, sin(ω'Δt/2) = ωΔt/2:
    4 cm⁻¹ too fast at 3700 cm⁻¹ and 0.25 fs, 18 cm⁻¹ at 0.5 fs.

    Args:
        wavenumber: ω' in cm⁻¹, up to π/Δt at most.
        spectra: densities over wavenumber.
        timestep: Δt of the integrator, fs.
    """
    half = 0.5 * WAVENUMBER * wavenumber * timestep
    below = half < 0.5 * math.pi - 1e-6
    true: Array = 2.0 * np.sin(half[below]) / (WAVENUMBER * timestep)
    return true, [spectrum[below] / np.cos(half[below]) for spectrum in spectra]
