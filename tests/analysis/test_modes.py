"""Normal modes: diatomics, rigid motion, the field of longitudinal modes."""

import numpy as np
import pytest
from scipy.integrate import trapezoid

from mace_polmp.analysis import modes
from mace_polmp.analysis.rigid import rigid_motions
from mace_polmp.errors import InputError
from mace_polmp.units import AMU, EPS0, WAVENUMBER


def spring(k, axis=(1.0, 0.0, 0.0)):
    axis = np.array(axis) / np.linalg.norm(axis)
    bond = np.concatenate([axis, -axis])
    return k * np.outer(bond, bond)


def test_a_diatomic_has_one_vibration():
    masses = np.array([1.008, 34.968])
    reduced = masses.prod() / masses.sum()
    found = modes.normal_modes(spring(32.0), masses)
    expected = np.sqrt(32.0 / (reduced * AMU)) / WAVENUMBER
    assert found.frequency[-1] == pytest.approx(expected)
    np.testing.assert_allclose(found.frequency[:-1], 0, atol=1e-3)
    bond = np.array([[0.0, 0, 0], [1.275, 0, 0]])
    only = modes.normal_modes(spring(32.0), masses, rigid_motions(bond, masses, rotations=True))
    np.testing.assert_allclose(only.frequency, [expected])
    # dμ/dr = 1 e along the bond: 974.9 km/mol over the reduced mass.
    born = np.stack([np.eye(3), -np.eye(3)])
    intensity = modes.infrared_intensities(found, born)[-1]
    assert intensity == pytest.approx(974.88 / reduced, rel=1e-4)
    # Of ∂α_xx/∂r alone 45 a'² is 5 times and 7 γ'² is 7 times its square.
    slopes = np.zeros((2, 3, 3, 3))
    slopes[0, 0, 0, 0], slopes[1, 0, 0, 0] = 1.0, -1.0
    activity, ratio = modes.raman_activities(found, slopes / 14.399645353504035)
    assert activity[-1] == pytest.approx(12.0 / reduced)
    assert ratio[-1] == pytest.approx(3.0 / 9.0)


def test_imaginary_modes_are_negative():
    found = modes.normal_modes(spring(-5.0), np.array([1.0, 2.0]))
    assert found.frequency[0] < -100


def test_rigid_motion_is_projected_out():
    rng = np.random.default_rng(1)
    positions, masses = rng.normal(size=(4, 3)), np.array([1.0, 16.0, 12.0, 14.0])
    hessian = rng.normal(size=(12, 12))
    hessian = hessian @ hessian.T
    for rotations, count in ((False, 3), (True, 6)):
        rigid = rigid_motions(positions, masses, rotations)
        found = modes.normal_modes(hessian, masses, rigid)
        assert len(found.frequency) == 12 - count
        weighted = (found.displacement * np.sqrt(masses)[:, None]).reshape(12 - count, 12)
        np.testing.assert_allclose(rigid @ weighted.T, 0, atol=1e-12)
        np.testing.assert_allclose(weighted @ weighted.T, np.eye(12 - count), atol=1e-12)


@pytest.mark.parametrize("bend", [0.0, 1e-3, 0.05])
def test_a_molecule_that_is_nearly_straight_keeps_both_bends(bend):
    """CO2 with springs along its bonds and across them: its four vibrations, at any small bend."""
    masses = np.array([12.011, 15.999, 15.999])
    positions = 1.16 * np.array([[0, np.radians(bend) / 2, 0], [1, 0, 0], [-1, 0, 0]])
    across = np.array([-2.0, 1.0, 1.0])  # of the carbon against both oxygens
    hessian = np.zeros((3, 3, 3, 3))
    hessian[:, 1, :, 1] = hessian[:, 2, :, 2] = 1.5 * np.outer(across, across)
    for other in (1, 2):
        stretch = np.zeros(3)
        stretch[[0, other]] = 1.0, -1.0
        hessian[:, 0, :, 0] += 80.0 * np.outer(stretch, stretch)
    rigid = rigid_motions(positions, masses, rotations=True)
    found = modes.normal_modes(hessian.reshape(9, 9), masses, rigid).frequency
    inverse = 4.0 / masses[0] + 2.0 / masses[1]
    bends = np.sqrt(1.5 * inverse / AMU) / WAVENUMBER
    stretches = [np.sqrt(80.0 / masses[1] / AMU), np.sqrt(80.0 * (1 / 15.999 + 2 / 12.011) / AMU)]
    np.testing.assert_allclose(found, [bends, bends, *np.divide(stretches, WAVENUMBER)], rtol=1e-6)


def test_longitudinal_and_transverse_modes_split():
    """ω_LO² − ω_TO² = Z²/(eps0 ε∞ V m) of a cubic diatomic crystal (Lyddane, Sachs, Teller)."""
    masses, volume, z, epsilon = np.array([22.99, 35.45]), 45.0, 1.1, 2.3
    reduced = masses.prod() / masses.sum()
    hessian = sum(spring(4.0, axis) for axis in np.eye(3))
    born = np.stack([z * np.eye(3), -z * np.eye(3)])
    direction = np.array([1.0, 2.0, -0.5])
    split = modes.longitudinal_hessian(hessian, born, epsilon * np.eye(3), volume, direction)
    frequency = modes.normal_modes(split, masses).frequency
    transverse = modes.normal_modes(hessian, masses).frequency[-3:]
    np.testing.assert_allclose(frequency[3:5], transverse[:2])
    gap = (frequency[-1] ** 2 - transverse[0] ** 2) * WAVENUMBER**2
    assert gap == pytest.approx(z**2 / (EPS0 * epsilon * volume * reduced * AMU))
    with pytest.raises(InputError, match="direction must be three numbers, not all zero"):
        modes.longitudinal_hessian(hessian, born, np.eye(3), volume, np.zeros(3))


def test_broadened_lines_keep_their_area():
    grid = np.linspace(0, 4000, 40001)
    lines = modes.broadened(np.array([1000.0, 3000.0]), np.array([2.0, 5.0]), 10.0, grid)
    assert trapezoid(lines[:20000], grid[:20000]) == pytest.approx(2.0, rel=1e-2)
