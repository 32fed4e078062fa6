"""Intensities of normal modes and the splitting of longitudinal and transverse ones.

A frequency is the root of an eigenvalue of the mass-weighted Hessian, given in cm⁻¹ and negative
where it is imaginary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mace_polmp.analysis.correlation import Array
from mace_polmp.errors import InputError
from mace_polmp.units import (
    AMU,
    AVOGADRO,
    COULOMB_CONSTANT,
    EPS0,
    SPEED_OF_LIGHT,
    WAVENUMBER,
)

_KM_PER_MOL = AVOGADRO * 1e-13 / (12.0 * EPS0 * SPEED_OF_LIGHT**2 * AMU)
"""N_A/(12 eps0 c²), km/mol per (e²/amu): 974.9."""


@dataclass(frozen=True)
class NormalModes:
    """Normal modes in the order of their frequencies.

    Attributes:
        frequency: [n_modes], cm⁻¹, negative where imaginary.
        displacement: mass-weighted eigenvectors over √mass, [n_modes, n_atoms, 3], 1/√amu.
    """

    frequency: Array
    displacement: Array


def normal_modes(hessian: Array, masses: Array, rigid: Array | None = None) -> NormalModes:
    """Normal modes of a Hessian, translations and rotations left out.

    Args:
        hessian: [3 n_atoms, 3 n_atoms], eV/Å².
        masses: [n_atoms], amu.
        rigid: orthonormal mass-weighted motions to leave out, [n, 3 n_atoms], as of
            analysis.rigid.rigid_motions; None for none.

    Returns:
        3 n_atoms − n modes.
    """
    n_atoms = len(masses)
    root = np.repeat(np.sqrt(masses), 3)
    dynamical = 0.5 * (hessian + hessian.T) / np.outer(root, root)
    others = np.eye(3 * n_atoms)
    if rigid is not None and len(rigid) > 0:
        from scipy.linalg import null_space  # slow to load

        others = null_space(rigid)
    values, vectors = np.linalg.eigh(others.T @ dynamical @ others)
    frequency = np.sign(values) * np.sqrt(np.abs(values) / AMU) / WAVENUMBER
    displacement = (others @ vectors / root[:, None]).T.reshape(-1, n_atoms, 3)
    return NormalModes(frequency, displacement)


def infrared_intensities(modes: NormalModes, born_charges: Array) -> Array:
    """Infrared intensities N_A |dM/dQ|²/(12 eps0 c²), [n_modes], km/mol.

    Args:
        modes: the normal modes.
        born_charges: ∂M_a/∂r_ib, [n_atoms, 3 (a), 3 (b)], e.
    """
    slopes = np.einsum("nab,knb->ka", born_charges, modes.displacement)
    intensities: Array = _KM_PER_MOL * (slopes**2).sum(1)
    return intensities


def raman_activities(modes: NormalModes, derivatives: Array) -> tuple[Array, Array]:
    """Raman activities 45 a'² + 7 γ'², [n_modes], Å⁴/amu, and depolarisation ratios.

    The ratio is 3 γ'²/(45 a'² + 4 γ'²), of light polarised across and along the laser's.

    Args:
        modes: the normal modes.
        derivatives: ∂α_ac/∂r_ib, [n_atoms, 3 (b), 3, 3], e² Å/eV.
    """
    slopes = np.einsum("nbac,knb->kac", derivatives, modes.displacement) * COULOMB_CONSTANT
    mean = np.einsum("kii->k", slopes) / 3.0
    rest = slopes - mean[:, None, None] * np.eye(3)
    gamma = 1.5 * (rest**2).sum((1, 2))
    activity = 45.0 * mean**2 + 7.0 * gamma
    along = 45.0 * mean**2 + 4.0 * gamma
    ratio = np.divide(3.0 * gamma, along, out=np.zeros_like(along), where=along > 1e-12)
    return activity, ratio


def longitudinal_hessian(
    hessian: Array, born_charges: Array, permittivity: Array, volume: float, direction: Array
) -> Array:
    """The Hessian at Γ approached along a direction: with the field of longitudinal modes.

    Adds (q·Z_i)_b (q·Z_j)_c/(eps0 V q·ε∞·q) (Pick, Cohen and Martin, Phys. Rev. B 1, 910 (1970)).

    Args:
        hessian: [3 n_atoms, 3 n_atoms], eV/Å², of zero macroscopic field.
        born_charges: [n_atoms, 3 (polarization), 3 (displacement)], e, their sum zero.
        permittivity: ε∞, [3, 3].
        volume: Å³.
        direction: of the wave vector, [3].

    Raises:
        InputError: no direction.
    """
    length = float(np.linalg.norm(direction))
    if not (math.isfinite(length) and length > 0):
        raise InputError(f"direction must be three numbers, not all zero, got {list(direction)}")
    q = np.asarray(direction, dtype=float) / length
    along = np.einsum("a,nab->nb", q, born_charges).ravel()
    screened = float(q @ permittivity @ q)
    result: Array = hessian + np.outer(along, along) / (EPS0 * volume * screened)
    return result


def broadened(frequency: Array, intensity: Array, width: float, wavenumber: Array) -> Array:
    """Lorentzian lines of a full width at half maximum and areas like the intensities."""
    half = 0.5 * width
    distance = wavenumber[:, None] - frequency[None]
    lines: Array = (intensity * half / math.pi / (distance**2 + half**2)).sum(1)
    return lines
