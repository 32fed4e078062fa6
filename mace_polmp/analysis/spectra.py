"""Infrared and Raman spectra from time series of dipole, current and polarizability.

Infrared, in linear response of a classical trajectory: absorption coefficient times refractive
index of a bulk phase and absorption cross-section of a molecule,

    n(ω) α(ω) = σ(ω)/V,  σ(ω) = β/(6 eps0 c) ∫ dt cos(ωt) ⟨J(0)·J(t)⟩,  J = dM/dt

(for instance Gaigeot and Sprik, J. Phys. Chem. B 107, 10344 (2003)). Raman, from the derivative of
the polarizability: mean a and anisotropic part b = α − a 1 (for instance Thomas et al., Phys. Chem.
Chem. Phys. 15, 6608 (2013)). Both are scaled so that a harmonic mode has the area that its normal
mode has as intensity (km/mol) or activity (Å⁴/amu). The quantum correction is that of the harmonic
oscillator, which is what makes classical lines as intense as quantum ones; others are factors
relative to it (Ramírez et al., J. Chem. Phys. 121, 3973 (2004)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mace_polmp.analysis.correlation import Array, derivative_spectrum, power_spectrum
from mace_polmp.errors import InputError
from mace_polmp.units import (
    AMU,
    AVOGADRO,
    BOLTZMANN,
    COULOMB_CONSTANT,
    EPS0,
    HBAR,
    SPEED_OF_LIGHT,
    WAVENUMBER,
)

QUANTUM_CORRECTIONS = ("harmonic", "schofield", "standard", "none")


@dataclass(frozen=True)
class InfraredSpectrum:
    """An infrared spectrum.

    Attributes:
        wavenumber: [n], cm⁻¹.
        cross_section: per structure, [n], km/mol per cm⁻¹: its integral is the intensity.
        absorption: n α, [n], cm⁻¹; None without a volume.
    """

    wavenumber: Array
    cross_section: Array
    absorption: Array | None


@dataclass(frozen=True)
class RamanSpectrum:
    """A Raman spectrum.

    Attributes:
        wavenumber: [n], cm⁻¹.
        isotropic: 45 a'², [n], Å⁴/amu per cm⁻¹.
        depolarised: 3 γ'² (scattered light polarised across the laser's), alike.
        polarised: 45 a'² + 4 γ'² (along the laser's), alike.
        intensity: Stokes intensity 45 a'² + 7 γ'² with frequency and Bose factors, largest 1.
    """

    wavenumber: Array
    isotropic: Array
    depolarised: Array
    polarised: Array
    intensity: Array


def quantum_correction(name: str, wavenumber: Array, temperature: float) -> Array:
    """Factor of a quantum correction relative to the harmonic one, [n].

    Args:
        name: "harmonic" (1), "schofield" e^{x/2}, "standard" 2/(1 + e^{−x}) or "none" 1, the last
            three times (1 − e^{−x})/x, with x = ħω/kT.
        wavenumber: cm⁻¹.
        temperature: K.

    Raises:
        InputError: no such correction.
    """
    if name not in QUANTUM_CORRECTIONS:
        raise InputError(
            f"quantum_correction must be one of {', '.join(QUANTUM_CORRECTIONS)}, got {name!r}"
        )
    x = HBAR * WAVENUMBER * np.maximum(wavenumber, 1e-6) / (BOLTZMANN * temperature)
    factors = {
        "schofield": np.exp(0.5 * np.minimum(x, 200.0)),
        "standard": 2.0 / (1.0 + np.exp(-x)),
        "none": np.ones_like(x),
    }
    return np.ones_like(x) if name == "harmonic" else factors[name] * -np.expm1(-x) / x


def infrared(
    temperature: float,
    timestep: float,
    resolution: float,
    current: Array | None = None,
    dipole: Array | None = None,
    volume: float | None = None,
    correction: str = "harmonic",
) -> InfraredSpectrum:
    """Infrared spectrum from the current or, if None, the dipole.

    Args:
        temperature: K.
        timestep: fs.
        resolution: full width of a sharp line at half its height, cm⁻¹.
        current: J = Σ Z*·v, [n_times, 3], e Å/fs.
        dipole: M of unwrapped atoms, [n_times, 3], e Å.
        volume: Å³ of a bulk phase.
        correction: see quantum_correction.

    Raises:
        InputError: too short a run, or no temperature.
    """
    _check_temperature(temperature)
    if current is not None:
        wavenumber, spectrum = power_spectrum(current, timestep, resolution)
    elif dipole is not None:
        wavenumber, spectrum = derivative_spectrum(dipole, timestep, resolution)
    else:
        raise InputError("infrared needs a current or a dipole")
    spectrum = spectrum * quantum_correction(correction, wavenumber, temperature)
    cross_section = spectrum / (6.0 * EPS0 * SPEED_OF_LIGHT * BOLTZMANN * temperature)  # Å²
    # Å² × 1 cm⁻¹ is 1e-8 Å; 1 Å is 1e-13 km.
    return InfraredSpectrum(
        wavenumber,
        cross_section * 1e-8 * 1e-13 * AVOGADRO,
        None if volume is None else cross_section / volume * 1e8,
    )


def raman(
    polarizability: Array,
    temperature: float,
    timestep: float,
    resolution: float,
    laser: float = 532.0,
    correction: str = "harmonic",
) -> RamanSpectrum:
    """Raman spectrum from the polarizability.

    Args:
        polarizability: [n_times, 3, 3], e² Å²/eV.
        temperature: K.
        timestep: fs.
        resolution: full width of a sharp line at half its height, cm⁻¹.
        laser: wavelength of the exciting light, nm.
        correction: see quantum_correction.

    Raises:
        InputError: too short a run, no temperature, or a polarizability that does not change.
    """
    _check_temperature(temperature)
    if not (math.isfinite(laser) and laser > 0):
        raise InputError(f"laser must be a wavelength in nm, got {laser}")
    alpha = np.asarray(polarizability) * COULOMB_CONSTANT  # Å³
    if np.ptp(alpha, axis=0).max() < 1e-12:
        raise InputError("the polarizability does not change along the run; Raman needs one")
    mean = np.einsum("tii->t", alpha) / 3.0
    rest = alpha - mean[:, None, None] * np.eye(3)
    wavenumber, a = derivative_spectrum(mean[:, None], timestep, resolution)
    _, b = derivative_spectrum(rest, timestep, resolution)
    # A mode's velocity has ⟨Q'²⟩ = kT and π δ(ω − ω_0) for a transform; per cm⁻¹.
    scale = AMU * WAVENUMBER / (math.pi * BOLTZMANN * temperature)
    scale = scale * quantum_correction(correction, wavenumber, temperature)
    a, gamma = a * scale, 1.5 * b * scale  # a'² and γ'²
    intensity = (45.0 * a + 7.0 * gamma) * stokes_factor(wavenumber, temperature, laser)
    return RamanSpectrum(
        wavenumber,
        45.0 * a,
        3.0 * gamma,
        45.0 * a + 4.0 * gamma,
        intensity / np.abs(intensity).max(),
    )


def stokes_factor(wavenumber: Array, temperature: float, laser: float) -> Array:
    """(ν_L − ν)⁴/(ν (1 − e^{−hcν/kT})) of Stokes scattering; 0 at ν = 0 and beyond the laser's."""
    safe = np.maximum(wavenumber, 1e-6)
    x = HBAR * WAVENUMBER * safe / (BOLTZMANN * temperature)
    scattered = np.maximum(1e7 / laser - wavenumber, 0.0)
    factor: Array = np.where(wavenumber > 0, (scattered / 1e4) ** 4 / (safe * -np.expm1(-x)), 0.0)
    return factor


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(
            f"temperature must be a positive number of K, got {temperature}; give --temperature"
        )
