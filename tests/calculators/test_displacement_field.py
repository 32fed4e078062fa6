"""A displacement field that is kept: exact derivatives, and what is known of its limits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from mace_polmp.cli.main import main
from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions
from mace_polmp.simulation.dynamics import MDSettings, run_md
from mace_polmp.units import EPS0
from tests.head.test_bond_charges import IONS, bond_model
from tests.head.test_induced_bonds import soft_model
from tests.helpers import make_calculator, random_model, rock_salt, salty_water, wet_slab

pytestmark = pytest.mark.usefixtures("device")

D = np.array([0.002, -0.001, 0.003])  # e/Å²; 0.06 C/m²
RIGID = LongRangeOptions(charge_readout="bond", induced="none")
SOFT = LongRangeOptions(charge_readout="bond", induced="bond_dipole", epsilon_infinity=2.0)
KINDS = {"rigid": RIGID, "soft": SOFT, "iterated": replace(SOFT, response="self_consistent")}


def crystal(options, displacement=D, **settings):
    atoms = rock_salt("triclinic")
    model = soft_model(options)
    atoms.calc = make_calculator(models=model, displacement_field=displacement, **settings)
    return atoms


@pytest.mark.parametrize("kind", KINDS)
def test_forces_and_stress_are_derivatives_of_the_energy(kind):
    """At a fixed D, to 1e-6 eV/Å and 1e-7 eV/Å³; the slope by D is V F."""
    atoms = crystal(KINDS[kind])
    forces, stress, step = atoms.get_forces(), atoms.get_stress(voigt=False), 1e-4
    field, volume = atoms.calc.field_at(0.0), atoms.get_volume()
    assert np.linalg.norm(field) > 0.01
    for atom, axis in ((0, 0), (5, 2)):
        ends = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[atom, axis] += sign * step
            ends.append(moved.get_potential_energy())
        assert forces[atom, axis] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)
    for strain in (np.diag([1.0, 0, 0]), np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])):
        ends = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.set_cell(atoms.cell @ (np.eye(3) + sign * step * strain), scale_atoms=True)
            ends.append(moved.get_potential_energy())
        slope = (ends[1] - ends[0]) / (2 * step * volume)
        assert (stress * strain).sum() == pytest.approx(slope, abs=1e-7)
    for axis in range(3):
        ends = []
        for sign in (-1, 1):
            atoms.calc.displacement_field = D + sign * 1e-5 * np.eye(3)[axis]
            ends.append(atoms.get_potential_energy())
        assert (ends[1] - ends[0]) / 2e-5 == pytest.approx(volume * field[axis], abs=1e-5)


def test_without_response_the_energy_is_that_of_the_field_outside_the_polarization():
    """U = E + V |D − P|²/(2 eps0)."""
    atoms = crystal(RIGID, None)
    energy, volume = atoms.get_potential_energy(), atoms.get_volume()
    polarization = atoms.get_dipole_moment() / volume
    atoms.calc.displacement_field = D
    expected = energy + volume / (2 * EPS0) * ((D - polarization) ** 2).sum()
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-8)
    np.testing.assert_allclose(atoms.calc.field_at(0.0), (D - polarization) / EPS0, atol=1e-9)
    assert atoms.calc.results["zero_field_energy"] == pytest.approx(energy, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_field_is_what_the_polarization_leaves_of_the_displacement(kind):
    """eps0 F = D − P with the electrons that are not in the model; forces are those in F."""
    options = KINDS[kind]
    atoms = crystal(options)
    forces, field = atoms.get_forces(), atoms.calc.field_at(0.0)
    electrons = EPS0 * (options.epsilon_infinity - 1.0) * field
    polarization = atoms.get_dipole_moment() / atoms.get_volume() + electrons
    np.testing.assert_allclose(EPS0 * field, D - polarization, atol=1e-12)
    other = crystal(options, None, external_field=field)
    np.testing.assert_allclose(other.get_forces(), forces, atol=1e-9)


@pytest.mark.parametrize("kind", ["rigid", "soft"])
def test_longitudinal_modes_are_those_of_a_fixed_displacement_field(kind):
    """Where F = 0 force constants have Z* (eps0 ε V + α)⁻¹ Z* beside those at a fixed field."""
    atoms = crystal(KINDS[kind], None)
    calculator, n, volume = atoms.calc, len(atoms), atoms.get_volume()
    hessian = calculator.get_hessian(atoms).reshape(3 * n, 3 * n)
    born = calculator.get_property("born_charges", atoms)
    epsilon = KINDS[kind].epsilon_infinity
    stiff = EPS0 * epsilon * volume * np.eye(3)
    stiff = stiff + epsilon * calculator.get_property("polarizability", atoms)
    z = born.transpose(1, 0, 2).reshape(3, 3 * n)
    expected = hessian + z.T @ np.linalg.solve(stiff, z)
    calculator.displacement_field = atoms.get_dipole_moment() / volume
    atoms.get_forces()
    np.testing.assert_allclose(calculator.field_at(0.0), 0, atol=1e-12)
    forces = []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.calc = calculator
        moved.positions[3, 1] += sign * 1e-4
        forces.append(moved.get_forces().ravel())
    row = (forces[0] - forces[1]) / 2e-4
    np.testing.assert_allclose(row, expected[3 * 3 + 1], atol=1e-5)
    assert np.abs(row - hessian[3 * 3 + 1]).max() > 1e-3


def test_molecular_dynamics_conserves_the_energy(tmp_path, capsys):
    """Its fluctuations are not those that a dielectric constant is taken from."""
    atoms = crystal(SOFT, np.zeros(3))
    run_md(atoms, atoms.calc, MDSettings(ensemble="nve", every=1, timestep=0.5), 6, tmp_path / "x")
    columns = np.genfromtxt(tmp_path / "x" / "md.csv", delimiter=",", names=True)
    assert np.ptp(columns["potential_eV"]) > 1e-4
    assert np.ptp(columns["total_eV"]) < 0.02 * np.ptp(columns["potential_eV"])
    assert np.abs(columns["field_V_per_A_x"]).max() > 0
    trajectory = str(tmp_path / "x" / "trajectory.xyz")
    frame = read(trajectory, "-1")
    np.testing.assert_allclose(frame.info["external_field"], atoms.calc.field_at(0.0), atol=1e-6)
    with pytest.raises(SystemExit) as stopped:
        main(["spectrum", "dielectric", trajectory])
    assert stopped.value.code == 1
    assert "ran at a fixed displacement field" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(structure=salty_water), "needs a structure that is periodic in three directions"),
        (dict(structure=wet_slab), "needs a structure that is periodic in three directions"),
        (dict(models=random_model), "trained with --charge_readout bond"),
        (dict(divide_by_chi=True), "give epsilon_infinity divided by a fixed"),
        (dict(displacement_field=[0.0, 1.0]), "must be three finite numbers in e/Å²"),
        (dict(external_field=[0.0, 0.0, 0.1]), "only one of them can be kept"),
    ],
)
def test_refusals(change, message):
    change = dict(change)
    atoms = change.pop("structure", rock_salt)()
    change["models"] = change.get("models", lambda: bond_model(RIGID))()
    with pytest.raises(InputError, match=message):
        atoms.calc = make_calculator(**{"displacement_field": D, **change})
        atoms.get_forces()


def test_second_derivatives_are_refused():
    """Those at a fixed field would be others."""
    atoms = crystal(RIGID)
    with pytest.raises(InputError, match="none at a fixed displacement field"):
        atoms.calc.get_hessian(atoms)


def test_formal_charges_have_no_stress():
    """It would depend on the images of the ions; constant pressure does as well."""
    atoms = rock_salt()
    atoms.calc = make_calculator(models=bond_model(IONS), displacement_field=D)
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(InputError, match="depends on the periodic images of the ions"):
        atoms.get_stress()
    with pytest.raises(InputError, match="depends on the periodic images of the ions"):
        run_md(atoms, atoms.calc, MDSettings(ensemble="npt"), 1, Path("never made"))
