"""`mace_polmp modes`: intensities are those of finite differences, frequencies those of ASE."""

import csv

import numpy as np
import pytest
import torch
from ase import units
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.vibrations import VibrationsData

from mace_polmp.analysis.modes import normal_modes
from mace_polmp.analysis.rigid import rigid_motions
from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.cli.main import main
from mace_polmp.modules import LongRangeOptions
from tests.helpers import random_model, rock_salt, salty_water

FULL = LongRangeOptions(polarizability="anisotropic")


@pytest.fixture
def files(tmp_path):
    torch.save(random_model(FULL), tmp_path / "m.model")
    write(tmp_path / "cluster.xyz", salty_water())
    write(tmp_path / "crystal.xyz", rock_salt("triclinic"))
    return tmp_path


def modes(folder, structure, *more):
    command = ["modes", "--model", folder / "m.model", "--structure", folder / structure]
    main([str(c) for c in (*command, "--output", folder / "out", *more)])
    with open(folder / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


def slope(calculator, atoms, name, displacement, step=1e-3):
    values = []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.positions += sign * step * displacement
        values.append(np.asarray(calculator.get_property(name, moved)))
    return (values[1] - values[0]) / (2 * step)


@pytest.mark.parametrize("structure", ["cluster.xyz", "crystal.xyz"])
def test_intensities_equal_finite_differences(files, structure):
    """Along a mode the dipole (or Z* times the mode) and the polarizability change as they say."""
    table = modes(files, structure)
    atoms = read(files / structure)
    calculator = MultipoleMACECalculator(files / "m.model", default_dtype="float64")
    vibrations = VibrationsData.read(files / "out.json")
    np.testing.assert_allclose(vibrations.get_atoms().positions, atoms.positions)
    hessian = vibrations.get_hessian_2d()
    # Eigenvectors of the mass-weighted Hessian without rigid motion, as the command has them.
    rigid = rigid_motions(atoms.positions, atoms.get_masses(), not atoms.pbc.any())
    found = normal_modes(hessian, atoms.get_masses(), rigid)
    np.testing.assert_allclose(table["frequency_cm-1"], found.frequency, atol=1e-6)
    assert len(found.frequency) == 24 - (3 if atoms.pbc.any() else 6)
    for number in (9, 17):
        displacement = found.displacement[number]
        if atoms.pbc.any():
            born = calculator.get_property("born_charges", atoms)
            change = np.einsum("nab,nb->a", born, displacement)
        else:
            about = atoms.copy()  # the dipole about the centre of mass
            about.positions -= atoms.get_center_of_mass()
            change = slope(calculator, about, "dipole", displacement)
        expected = 974.88 * (change**2).sum()
        assert table["infrared_km/mol"][number] == pytest.approx(expected, rel=1e-2)
        alpha = 14.39964548 * slope(calculator, atoms, "electronic_polarizability", displacement)
        mean = np.trace(alpha) / 3
        gamma = 1.5 * ((alpha - mean * np.eye(3)) ** 2).sum()
        expected = 45 * mean**2 + 7 * gamma
        assert table["raman_activity_A4/amu"][number] == pytest.approx(expected, rel=1e-2)
    assert (files / "out_ir.png").exists() and (files / "out_raman.png").exists()


def test_raman_activities_have_the_screening_of_the_polarizability(files):
    """ε_e² of it: ε∞², or with --divide_by_chi [ε∞/(1 + χ)]²."""
    plain = modes(files, "crystal.xyz")["raman_activity_A4/amu"]
    given = modes(files, "crystal.xyz", "--epsilon_infinity", "2")["raman_activity_A4/amu"]
    np.testing.assert_allclose(given, 4.0 * plain, rtol=1e-6, atol=1e-9)
    more = ("--epsilon_infinity", "2", "--divide_by_chi")
    divided = modes(files, "crystal.xyz", *more)["raman_activity_A4/amu"]
    atoms = read(files / "crystal.xyz")
    calculator = MultipoleMACECalculator(files / "m.model", default_dtype="float64")
    alpha = calculator.get_property("polarizability", atoms)
    susceptibility = np.trace(alpha) / (3 * 5.526349406e-3 * atoms.get_volume())
    assert susceptibility > 0.01
    expected = 4.0 * plain / (1.0 + susceptibility) ** 2
    np.testing.assert_allclose(divided, expected, rtol=1e-6, atol=1e-9)


def test_longitudinal_frequencies_of_a_crystal(files, capsys):
    """Directions change the frequencies of modes with a dipole along them, and only upwards."""
    table = modes(files, "crystal.xyz", "--direction", 1, 0, 0, "--direction", 0, 0, 2)
    assert "acoustic sum rule: largest" in capsys.readouterr().out
    for name in ("frequency_along_1 0 0_cm-1", "frequency_along_0 0 2_cm-1"):
        change = table[name] - table["frequency_cm-1"]
        assert change.min() > -1e-3
        assert change.max() > 0.1


def test_relaxed_structure_has_no_imaginary_modes(files, capsys):
    """Or it says so. (A random potential has no wall; this one has a minimum nearby.)"""
    bounded = LongRangeOptions(polarizability="anisotropic", charge_readout="atomic")
    torch.save(random_model(bounded), files / "m.model")
    table = modes(files, "cluster.xyz", "--relax", 0.2, "--relax_steps", 300)
    out = capsys.readouterr().out
    assert ("imaginary modes" in out) == bool((table["frequency_cm-1"] < -1).any())


def test_fixed_atoms_do_not_vibrate(files):
    """Frequencies are those of the others on a wall: 3N of them, none of a rigid motion."""
    atoms = salty_water()
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    write(files / "fixed.xyz", atoms)
    table = modes(files, "fixed.xyz")
    assert len(table["frequency_cm-1"]) == 15
    calculator = MultipoleMACECalculator(files / "m.model", default_dtype="float64")
    hessian = np.asarray(calculator.get_hessian(salty_water())).reshape(24, 24)[9:, 9:]
    masses = np.repeat(atoms.get_masses()[3:], 3)
    squares = np.linalg.eigvalsh(hessian / np.sqrt(np.outer(masses, masses)))
    expected = (
        np.sign(squares)
        * np.sqrt(np.abs(squares))
        * units._hbar
        * 1e10
        / np.sqrt(units._e * units._amu)
        / units.invcm
    )
    np.testing.assert_allclose(table["frequency_cm-1"], expected, rtol=1e-4, atol=1e-3)


def test_where_a_molecule_is_does_not_matter(files):
    """Latent charges of this model sum to a number that changes: far off, a large dipole."""
    tables = []
    for number, shift in enumerate(([0, 0, 0], [30, -20, 10], [300, 0, 0])):
        atoms = salty_water()
        atoms.positions += shift
        write(files / f"{number}.xyz", atoms)
        tables.append(modes(files, f"{number}.xyz"))
    for name in ("frequency_cm-1", "infrared_km/mol", "raman_activity_A4/amu"):
        for table in tables[1:]:
            np.testing.assert_allclose(table[name], tables[0][name], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("fixed", "left"), [([0], 18), ([0, 1], 17), ([0, 1, 2], 15)])
def test_rotations_about_fixed_atoms_are_left_out(files, fixed, left):
    """Three about one atom, one about the line through two."""
    atoms = salty_water()
    atoms.set_constraint(FixAtoms(fixed))
    write(files / "fixed.xyz", atoms)
    assert len(modes(files, "fixed.xyz")["frequency_cm-1"]) == left


def test_a_committee_has_the_modes_of_its_mean_energy(files):
    models = [random_model(FULL), random_model(FULL, seed=1)]
    for number, model in enumerate(models):
        torch.save(model, files / f"c{number}.model")
    table = modes(files, "cluster.xyz", "--model", files / "c0.model", files / "c1.model")
    atoms = salty_water()
    hessians = [
        np.asarray(MultipoleMACECalculator(models=m).get_hessian(atoms)).reshape(24, 24)
        for m in models
    ]
    rigid = rigid_motions(atoms.positions, atoms.get_masses(), True)
    expected = normal_modes(np.mean(hessians, 0), atoms.get_masses(), rigid).frequency
    np.testing.assert_allclose(table["frequency_cm-1"], expected, rtol=1e-6, atol=1e-3)


def test_bad_input_is_refused(files, capsys):
    def refused(message, *command):
        with pytest.raises(SystemExit):
            modes(files, *command)
        assert message in capsys.readouterr().err

    refused("--direction needs a crystal", "cluster.xyz", "--direction", 1, 0, 0)
    refused("must be a vector that is not zero", "crystal.xyz", "--direction", 0, 0, 0)
    refused("--width must be", "cluster.xyz", "--width", 0)
    refused("forces are not below 1e-05", "cluster.xyz", "--relax", 1e-5, "--relax_steps", 1)
    assert not (files / "out.csv").exists()


def test_names_may_have_dots(files):
    for name in ("run_0.01", "run_0.02"):
        main(
            [
                *("modes", "--model", str(files / "m.model"), "--structure"),
                *(str(files / "cluster.xyz"), "--output", str(files / name)),
            ]
        )
        for ending in (".csv", ".json", "_ir.png", "_raman.png"):
            assert (files / f"{name}{ending}").exists()
