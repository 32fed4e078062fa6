"""Spectra of a harmonic molecule: lines and areas are those of its normal modes."""

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from scipy.integrate import trapezoid

from mace_polmp.analysis import spectra
from mace_polmp.analysis.correlation import derivative_spectrum, power_spectrum, timestep_of
from mace_polmp.analysis.modes import (
    infrared_intensities,
    normal_modes,
    raman_activities,
)
from mace_polmp.analysis.rigid import rigid_motions
from mace_polmp.errors import InputError
from mace_polmp.units import BOLTZMANN

TEMPERATURE, STEP, RESOLUTION = 300.0, 0.25, 40.0


class Springs(Calculator):
    """E = ½ (r − r_0) H (r − r_0)."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, start, hessian):
        super().__init__()
        self.start, self.hessian = start, hessian

    def calculate(self, atoms=None, properties=None, system_changes=None):
        moved = (atoms.positions - self.start).ravel()
        forces = -self.hessian @ moved
        self.results = {"energy": -0.5 * forces @ moved, "forces": forces.reshape(-1, 3)}


@pytest.fixture(scope="module")
def run():
    """MD of springs in the shape of water, each mode with the energy kT."""
    atoms = molecule("H2O")
    masses, start = atoms.get_masses(), atoms.positions.copy()
    rng = np.random.default_rng(0)
    stretch = np.zeros((9, 9))
    for i, j, k in ((0, 1, 50.0), (0, 2, 47.0), (1, 2, 8.0)):
        bond = np.zeros((3, 3))
        unit = start[i] - start[j]
        bond[i], bond[j] = unit, -unit
        bond = bond.ravel() / np.linalg.norm(unit)
        stretch += k * np.outer(bond, bond)
    rigid = rigid_motions(start, masses, rotations=True)
    weight = np.repeat(np.sqrt(masses), 3)
    keep = (np.eye(9) - rigid.T @ rigid) * np.outer(weight, 1.0 / weight)
    hessian = keep @ stretch @ keep.T
    modes = normal_modes(hessian, masses, rigid)
    born = rng.normal(size=(3, 3, 3))
    slopes = rng.normal(size=(3, 3, 3, 3))
    slopes = 0.02 * (slopes + slopes.swapaxes(2, 3))
    momentum = np.sqrt(2 * units.kB * TEMPERATURE) * modes.displacement.sum(0)
    atoms.set_momenta(momentum * masses[:, None])
    atoms.calc = Springs(start, hessian)
    dynamics, moved = VelocityVerlet(atoms, STEP * units.fs), []
    for _ in range(12000):
        dynamics.run(1)
        moved.append(atoms.positions - start)
    return modes, born, slopes, np.array(moved)


def lines_and_areas(wavenumber, spectrum, modes):
    """Position of the largest point and area around each vibration."""
    found = []
    for frequency in modes.frequency:
        near = np.abs(wavenumber - frequency) < 2.5 * RESOLUTION
        top = wavenumber[near][spectrum[near].argmax()]
        found.append((top, trapezoid(spectrum[near], wavenumber[near])))
    return np.array(found).T


def test_the_molecule_has_three_vibrations(run):
    modes = run[0]
    assert len(modes.frequency) == 3
    assert modes.frequency[0] > 1000 and modes.frequency[2] < 5000
    masses = molecule("H2O").get_masses()
    overlap = np.einsum("knb,n,lnb->kl", modes.displacement, masses, modes.displacement)
    np.testing.assert_allclose(overlap, np.eye(3), atol=1e-10)


@pytest.mark.parametrize("source", ["current", "dipole"])
def test_infrared_lines_of_md_and_of_modes_agree(run, source):
    modes, born, _, moved = run
    dipole = np.einsum("nab,tnb->ta", born, moved)
    if source == "current":
        series = {"current": np.gradient(dipole, STEP, axis=0)[1:-1]}
    else:
        series = {"dipole": dipole}
    result = spectra.infrared(TEMPERATURE, STEP, RESOLUTION, volume=100.0, **series)
    tops, areas = lines_and_areas(result.wavenumber, result.cross_section, modes)
    np.testing.assert_allclose(tops, modes.frequency, atol=RESOLUTION / 2)
    tolerance = 0.03 if source == "dipole" else 0.08  # np.gradient attenuates the stretches
    np.testing.assert_allclose(areas, infrared_intensities(modes, born), rtol=tolerance)
    # n α of one molecule in 100 Å³: 1 km/mol is 1e5 cm/mol.
    per_volume = 1e5 / 6.02214076e23 / (100.0 * 1e-24)
    np.testing.assert_allclose(
        result.absorption, result.cross_section * per_volume, rtol=1e-6, atol=1e-9
    )


def test_raman_lines_of_md_and_of_modes_agree(run):
    modes, _, slopes, moved = run
    alpha = np.einsum("nbac,tnb->tac", slopes, moved)
    result = spectra.raman(alpha, TEMPERATURE, STEP, RESOLUTION)
    activity, ratio = raman_activities(modes, slopes)
    total = result.isotropic + 7.0 / 3.0 * result.depolarised
    tops, areas = lines_and_areas(result.wavenumber, total, modes)
    np.testing.assert_allclose(tops, modes.frequency, atol=RESOLUTION / 2)
    np.testing.assert_allclose(areas, activity, rtol=0.03)
    across = lines_and_areas(result.wavenumber, result.depolarised, modes)[1]
    along = lines_and_areas(result.wavenumber, result.polarised, modes)[1]
    np.testing.assert_allclose(across / along, ratio, rtol=0.05)
    # Stokes intensities weigh low frequencies more.
    high = np.searchsorted(result.wavenumber, modes.frequency[2])
    low = np.searchsorted(result.wavenumber, modes.frequency[0])
    relative = result.intensity / total
    assert relative[low] > 1.5 * relative[high]


def test_the_shift_of_the_integrator_is_taken_off(run):
    """Verlet with 0.5 fs moves the stretches by more than 10 cm⁻¹."""
    from mace_polmp.analysis.correlation import without_verlet_shift
    from mace_polmp.units import WAVENUMBER

    step, line = 0.5, 3500.0
    chi = 2 * np.arcsin(0.5 * WAVENUMBER * line * step) / step  # Verlet's own frequency
    series = np.cos(chi * 2.0 * np.arange(10000))  # every fourth step
    wavenumber, spectrum = power_spectrum(series, 2.0, 20.0)
    shifted = wavenumber[spectrum.argmax()]
    assert shifted - line > 10
    true, (corrected,) = without_verlet_shift(wavenumber, [spectrum], step)
    assert true[corrected.argmax()] == pytest.approx(line, abs=2.0)
    area = trapezoid(spectrum, wavenumber)
    assert trapezoid(corrected, true) == pytest.approx(area, rel=1e-3)


def test_power_spectrum_of_a_cosine_has_its_area_and_width():
    """⟨x²⟩ is the integral of the spectrum over angular frequency, over π."""
    from mace_polmp.units import WAVENUMBER

    times = np.arange(0, 20000, 1.0)
    line = 1000.0
    series = 3.0 * np.cos(WAVENUMBER * line * times)
    wavenumber, spectrum = power_spectrum(series, 1.0, RESOLUTION)
    area = trapezoid(spectrum, wavenumber) * WAVENUMBER / np.pi
    assert area == pytest.approx(4.5, rel=1e-2)
    above = wavenumber[spectrum > 0.5 * spectrum.max()]
    assert np.ptp(above) == pytest.approx(RESOLUTION, abs=2 * (wavenumber[1] - wavenumber[0]))
    _, slope = derivative_spectrum(series, 1.0, RESOLUTION)
    area = trapezoid(slope, wavenumber) * WAVENUMBER / np.pi
    assert area == pytest.approx(4.5 * (WAVENUMBER * line) ** 2, rel=1e-2)


def test_quantum_corrections():
    """All are 1 where ħω is small next to kT; ratios among them are those of their definitions."""
    from mace_polmp.units import HBAR, WAVENUMBER

    low, high = np.array([1.0]), np.array([3000.0])
    x = HBAR * WAVENUMBER * 3000.0 / (BOLTZMANN * 300.0)
    assert x == pytest.approx(14.388, abs=1e-2)  # hc/k = 1.4388 cm K
    values = {}
    for name in spectra.QUANTUM_CORRECTIONS:
        assert spectra.quantum_correction(name, low, 300.0)[0] == pytest.approx(1.0, abs=5e-3)
        values[name] = spectra.quantum_correction(name, high, 300.0)[0]
    assert values["harmonic"] == 1.0
    assert values["schofield"] / values["none"] == pytest.approx(np.exp(x / 2))
    assert values["standard"] / values["none"] == pytest.approx(2 / (1 + np.exp(-x)))
    assert values["none"] == pytest.approx((1 - np.exp(-x)) / x)
    with pytest.raises(InputError, match="must be one of harmonic, schofield, standard, none"):
        spectra.quantum_correction("egelstaff", low, 300.0)


def test_bad_runs_are_refused():
    with pytest.raises(InputError, match="t.xyz: time steps are not even: frame 3 is at 3 fs"):
        timestep_of(np.array([0, 1, 2, 3, 5, 6, 7.0]), "t.xyz")
    with pytest.raises(InputError, match="has 1 frame"):
        timestep_of(np.zeros(1), "t.xyz")
    series = np.random.default_rng(0).normal(size=(400, 3))
    with pytest.raises(InputError, match="the run is too short: 0.399 ps for .* 10 cm") as error:
        power_spectrum(series, 1.0, 10.0)
    allowed = float(str(error.value).split("ask for ")[1].split(" ")[0])
    power_spectrum(series, 1.0, allowed)  # what the message says works
    with pytest.raises(InputError, match="resolution must be a positive"):
        power_spectrum(series, 1.0, -1.0)
    with pytest.raises(InputError, match="temperature must be a positive"):
        spectra.infrared(np.nan, 1.0, allowed, current=series)
    with pytest.raises(InputError, match="does not change"):
        spectra.raman(np.ones((500, 3, 3)), 300.0, 1.0, allowed)
    with pytest.raises(InputError, match="laser must be a wavelength"):
        spectra.raman(np.ones((500, 3, 3)), 300.0, 1.0, allowed, laser=0.0)
