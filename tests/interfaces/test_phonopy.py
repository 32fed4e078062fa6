"""Phonons: the field of long waves is that of the model, and Γ is that of `mace_polmp modes`."""

import numpy as np
import pytest
from ase.build import bulk

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.units import AMU, EPS0
from tests.helpers import random_model

pytest.importorskip("phonopy")

from mace_polmp.interfaces import phonopy

KINDS = {
    "none": dict(induced="none"),
    "permittivity": dict(induced="none", epsilon_infinity=2.3),
    "self-consistent": dict(induced="dipole", response="self_consistent", epsilon_infinity=1.5),
}


def calculator(kind, **more):
    options = LongRangeOptions(
        charge_readout="bond", formal_charges="Na:1,Cl:-1", multipole_lmax=1, **KINDS[kind]
    )
    model = random_model(options, r_max=3.2, num_interactions=1)  # reaches 6.4 Å
    return MultipoleMACECalculator(models=model, default_dtype="float64", **more)


def squares(frequencies):
    """ω², negative where imaginary, from THz, 1/fs²."""
    return np.sign(frequencies) * (2e-3 * np.pi * np.asarray(frequencies)) ** 2


def phonons_of(atoms, calc, repeats, method):
    found = phonopy.displaced(atoms, repeats, 0.01)
    forces = [calc.get_property("forces", cell) for cell in phonopy.supercells(found)]
    phonopy.set_forces(found, forces)
    born = calc.get_property("born_charges", atoms)
    epsilon = calc.get_property("electronic_permittivity", atoms)
    phonopy.set_charges(found, born, epsilon, method)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_long_waves_have_the_field_of_the_model(kind):
    """Bands from a small supercell are those of a wave in a long one, which needs no correction.

    At Γ both have Δω² = Z*²/(ε0 ε∞ V μ). Tolerances: what the finite supercell cuts off beyond the
    interaction of dipoles, some thousandths of that splitting.
    """
    calc, atoms = calculator(kind), bulk("NaCl", "rocksalt", a=5.63)
    small = phonons_of(atoms, calc, (4, 4, 4), "gonze")
    born = calc.get_property("born_charges", atoms)[0, 0, 0]
    epsilon = calc.get_property("electronic_permittivity", atoms)[0, 0]
    masses = atoms.get_masses()
    reduced = AMU * masses.prod() / masses.sum()
    splitting = born**2 / (EPS0 * epsilon * atoms.get_volume() * reduced)
    transverse = squares(phonopy.at_gamma(small))
    for direction in ([1.0, 0, 0], [1.0, -2.0, 0.5]):
        longitudinal = squares(phonopy.at_gamma(small, np.array(direction)))
        assert longitudinal[-1] - transverse[:3].mean() == pytest.approx(splitting, rel=1e-4)
    # A wave of 5 cells along z: the images of the long supercell all have its phase.
    long = phonons_of(bulk("NaCl", "rocksalt", a=5.63, cubic=True), calc, (1, 1, 5), "none")
    wave = np.array([0.0, 0.0, 1.0 / (5 * 5.63)])
    exact, found, without = (
        squares(p.run_qpoints([p.primitive.cell @ wave]).frequencies[0])
        for p in (long, small, phonons_of(atoms, calc, (2, 2, 2), "none"))
    )
    np.testing.assert_allclose(found, exact, atol=5e-3 * splitting)
    assert np.abs(without - exact).max() > 0.05 * splitting


def test_a_path_has_the_points_of_the_lattice():
    found = phonopy.displaced(bulk("NaCl", "rocksalt", a=5.63, cubic=True), (1, 1, 1), 0.01)
    usual = phonopy.band_path(found, None)
    assert usual.ends[:2] == [("Γ", "X"), ("X", "W")] and usual.connections[0]
    path = phonopy.band_path(found, "GX,LG")
    assert path.ends == [("Γ", "X"), ("L", "Γ")] and path.connections == [False, False]
    assert path.labels == ["Γ", "X", "L", "Γ"]
    # X is at (2π/a)(0, 0, 1) or alike, L at (π/a)(1, 1, 1), in the axes of the conventional cell.
    reciprocal = np.linalg.inv(found.primitive.cell).T
    ends = [path.segments[0][-1] @ reciprocal, path.segments[1][0] @ reciprocal]
    np.testing.assert_allclose(np.sort(np.abs(ends[0])), [0, 0, 1 / 5.63], atol=1e-12)
    np.testing.assert_allclose(np.abs(ends[1]), 0.5 / 5.63)
    for wrong, message in (("GQ", "there is no point Q; this lattice has"), ("G", "two points")):
        with pytest.raises(InputError, match=message):
            phonopy.band_path(found, wrong)


def test_a_left_handed_cell_is_the_same_crystal():
    """With a supercell that is not the same along all of its vectors."""
    calc, atoms = calculator("none"), bulk("NaCl", "rocksalt", a=5.63)
    mirrored = atoms.copy()
    mirrored.set_cell(atoms.cell.array[[0, 2, 1]])
    assert mirrored.cell.handedness == -1
    one, other = (
        phonons_of(a, calc, repeats, "gonze")
        for a, repeats in ((atoms, (1, 2, 1)), (mirrored, (1, 1, 2)))
    )
    wave = np.array([0.02, 0.05, 0.01])
    first, second = (p.run_qpoints([p.primitive.cell @ wave]).frequencies[0] for p in (one, other))
    np.testing.assert_allclose(first, second, atol=0.02)  # THz; displaced along other axes
