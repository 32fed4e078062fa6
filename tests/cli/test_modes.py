"""`mace_polmp modes`: intensities are those of finite differences, frequencies those of ASE."""

import csv

import numpy as np
import pytest
import torch
from ase.io import read, write
from ase.vibrations import VibrationsData

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
    from mace_polmp.analysis.modes import normal_modes, without_rigid_motion

    kept = without_rigid_motion(hessian, atoms.positions, atoms.get_masses(), not atoms.pbc.any())
    found = normal_modes(kept, atoms.get_masses())
    np.testing.assert_allclose(table["frequency_cm-1"], found.frequency, atol=1e-6)
    for number in (9, 23):
        displacement = found.displacement[number]
        if atoms.pbc.any():
            born = calculator.get_property("born_charges", atoms)
            change = np.einsum("nab,nb->a", born, displacement)
        else:
            change = slope(calculator, atoms, "dipole", displacement)
        expected = 974.88 * (change**2).sum()
        assert table["infrared_km/mol"][number] == pytest.approx(expected, rel=1e-2)
        alpha = 14.39964548 * slope(calculator, atoms, "electronic_polarizability", displacement)
        mean = np.trace(alpha) / 3
        gamma = 1.5 * ((alpha - mean * np.eye(3)) ** 2).sum()
        expected = 45 * mean**2 + 7 * gamma
        assert table["raman_activity_A4/amu"][number] == pytest.approx(expected, rel=1e-2)
    assert (files / "out_ir.png").exists() and (files / "out_raman.png").exists()


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


def test_bad_input_is_refused(files, capsys):
    def refused(message, *command):
        with pytest.raises(SystemExit):
            modes(files, *command)
        assert message in capsys.readouterr().err

    refused("--direction needs a crystal", "cluster.xyz", "--direction", 1, 0, 0)
    refused("not all zero", "crystal.xyz", "--direction", 0, 0, 0)
    refused("--width must be", "cluster.xyz", "--width", 0)
    refused("forces are not below 1e-05", "cluster.xyz", "--relax", 1e-5, "--relax_steps", 1)
    assert not (files / "out.csv").exists()
