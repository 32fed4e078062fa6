"""Translations and rotations of molecules, linear or nearly so."""

import numpy as np
import pytest
from ase.build import molecule

from mace_polmp.analysis.rigid import is_linear, rigid_motions, rotations_about


def carbon_dioxide(bend_in_degrees):
    """O=C=O with the carbon off the axis."""
    half = np.radians(bend_in_degrees) / 2.0
    atoms = molecule("CO2")
    atoms.positions = 1.16 * np.array(
        [[0, 0, 0], [np.cos(half), np.sin(half), 0], [-np.cos(half), np.sin(half), 0]]
    )
    return atoms


@pytest.mark.parametrize("bend", [0.0, 1e-6, 1e-3, 0.1, 1.0, 2.0])
def test_a_relaxed_linear_molecule_is_linear(bend):
    """Forces of 0.001 eV/Å leave bends of this size."""
    atoms = carbon_dioxide(bend)
    assert is_linear(atoms.positions, atoms.get_masses())
    assert len(rigid_motions(atoms.positions, atoms.get_masses(), rotations=True)) == 5


@pytest.mark.parametrize("name", ["H2O", "SO2", "CH4", "C2H4"])
def test_others_are_not(name):
    atoms = molecule(name)
    assert not is_linear(atoms.positions, atoms.get_masses())
    assert len(rigid_motions(atoms.positions, atoms.get_masses(), rotations=True)) == 6
    assert not is_linear(carbon_dioxide(8.0).positions, carbon_dioxide(8.0).get_masses())


@pytest.mark.parametrize(("name", "count"), [("C2H2", 5), ("N2", 5), ("H", 3)])
def test_the_number_of_rigid_motions(name, count):
    atoms = molecule(name)
    motions = rigid_motions(atoms.positions, atoms.get_masses(), rotations=True)
    np.testing.assert_allclose(motions @ motions.T, np.eye(count), atol=1e-12)
    assert len(rigid_motions(atoms.positions, atoms.get_masses(), rotations=False)) == 3


def test_rigid_motions_change_no_distance():
    atoms = molecule("C2H6SO")
    masses = atoms.get_masses()
    distances = atoms.get_all_distances()
    for motion in rigid_motions(atoms.positions, masses, rotations=True):
        moved = atoms.copy()
        moved.positions += 1e-5 * motion.reshape(-1, 3) / np.sqrt(masses)[:, None]
        assert np.abs(moved.get_all_distances() - distances).max() < 1e-10


@pytest.mark.parametrize(
    ("name", "fixed", "count"),
    [("C2H6SO", [0], 3), ("C2H6SO", [0, 1], 1), ("C2H6SO", [0, 1, 2], 0), ("C2H2", [0], 2)],
)
def test_rotations_about_fixed_atoms_change_no_distance(name, fixed, count):
    atoms = molecule(name)
    free = np.setdiff1d(np.arange(len(atoms)), fixed)
    masses = atoms.get_masses()[free]
    found = rotations_about(atoms.positions[fixed], atoms.positions[free], masses)
    assert len(found) == count
    np.testing.assert_allclose(found @ found.T, np.eye(count), atol=1e-12)
    distances = atoms.get_all_distances()
    for motion in found:
        moved = atoms.copy()
        moved.positions[free] += 1e-5 * motion.reshape(-1, 3) / np.sqrt(masses)[:, None]
        assert np.abs(moved.get_all_distances() - distances).max() < 1e-10
