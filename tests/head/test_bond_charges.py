"""Charges that move along edges: a polarization that needs no choice of periodic images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions
from mace_polmp.modules.born_charges import born_charges
from mace_polmp.simulation.dynamics import MDSettings, run_md
from tests.helpers import (
    evaluate,
    make_batch,
    make_calculator,
    random_model,
    rock_salt,
    salty_water,
    wet_slab,
)

pytestmark = pytest.mark.usefixtures("device")

BONDS = LongRangeOptions(charge_readout="bond", induced="dipole")
IONS = LongRangeOptions(
    charge_readout="bond", induced="none", multipole_lmax=0, formal_charges="Na:1, Cl:-1"
)
SCREENED = replace(BONDS, epsilon_infinity=2.5)
FIELD = np.array([0.05, -0.03, 0.08])
STRUCTURES = {
    "cubic": rock_salt,
    "triclinic": lambda: rock_salt("triclinic"),
    "left-handed": lambda: rock_salt("left-handed"),
    "slab": wet_slab,
    "open": salty_water,
}


def bond_model(options=BONDS, **backbone):
    """Random, with about 0.1 to 0.5 e on the ions."""
    model = random_model(options, **backbone)
    model.multipole_readouts.transfer.rescale(20.0)
    return model


def dipole(model, atoms):
    return evaluate(model, atoms)["dipole"][0].detach().numpy()


def test_in_open_structures_the_dipole_is_that_of_the_charges():
    for options in (BONDS, IONS):
        model, atoms = bond_model(options), salty_water()
        out = evaluate(model, atoms)
        charges = out["charges"].detach().numpy()
        expected = charges @ atoms.positions + out["atomic_dipoles"].sum(0).detach().numpy()
        assert np.abs(charges).max() > 0.1
        np.testing.assert_allclose(dipole(model, atoms), expected, atol=1e-12)


def test_molecules_are_neutral_but_for_formal_charges():
    """However they are charged inside; a reach beyond the cutoff keeps them apart."""
    water, far = salty_water()[2:5], salty_water()[2:5]
    far.positions += 30.0
    charges = evaluate(bond_model(), water + far)["charges"].detach()
    assert abs(charges[0]) > 0.02
    np.testing.assert_allclose(charges.view(2, 3).sum(1), 0, atol=1e-12)
    options = LongRangeOptions(charge_readout="bond", induced="none", formal_charges="O:-2,H:1")
    ion = salty_water()[2:4]  # OH−
    charges = evaluate(bond_model(options), ion)["charges"].detach()
    assert charges.sum().item() == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("kind", ["cubic", "triclinic", "left-handed", "slab"])
def test_the_polarization_knows_no_images(kind):
    """P(wrapped) = P(unwrapped); with formal charges it changes by f times lattice vectors."""
    atoms = STRUCTURES[kind]()
    jump = 2 * atoms.cell[0] - atoms.cell[1]
    moved = atoms.copy()
    moved.positions[0] += jump
    moved.positions[3] -= jump
    np.testing.assert_allclose(dipole(bond_model(), moved), dipole(bond_model(), atoms), atol=1e-12)
    model, numbers = bond_model(IONS), atoms.numbers
    formal = np.where(numbers == 11, 1.0, 0.0) - np.where(numbers == 17, 1.0, 0.0)
    change = dipole(model, moved) - dipole(model, atoms)
    np.testing.assert_allclose(change, (formal[0] - formal[3]) * jump, atol=1e-11)


@pytest.mark.parametrize("options", [BONDS, IONS], ids=["no formal charges", "ions"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_born_charges_are_derivatives_of_the_dipole(options, kind):
    model, atoms = bond_model(options), STRUCTURES[kind]()
    born = born_charges(model, make_batch([atoms], model)).numpy()
    assert np.abs(born).max() > 0.05
    step = 1e-4
    for atom, axis in ((0, 1), (3, 2)):
        found = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            found.append(dipole(model, moved))
        slope = (found[1] - found[0]) / (2 * step)
        np.testing.assert_allclose(born[atom, :, axis], slope, atol=1e-6)


@pytest.mark.parametrize("kind", ["triclinic", "left-handed", "slab"])
def test_born_charges_are_those_of_supercells(kind):
    model, atoms = bond_model(), wet_slab(30.0) if kind == "slab" else STRUCTURES[kind]()
    small = born_charges(model, make_batch([atoms], model))
    large = born_charges(model, make_batch([atoms.repeat((2, 1, 1))], model))
    torch.testing.assert_close(large, small.repeat(2, 1, 1), rtol=0, atol=1e-10)


def test_the_acoustic_sum_rule_holds_by_itself():
    for structure in (rock_salt(), wet_slab()):
        model = bond_model()
        born = born_charges(model, make_batch([structure], model))
        torch.testing.assert_close(born.sum(0), torch.zeros_like(born[0]), rtol=0, atol=1e-10)


def test_structures_of_all_boundaries_share_a_batch():
    model = bond_model()
    structures = [rock_salt(), wet_slab(), salty_water()]
    together = born_charges(model, make_batch(structures, model))
    alone = [born_charges(model, make_batch([atoms], model)) for atoms in structures]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [BONDS, SCREENED, IONS], ids=["free", "screened", "ions"])
@pytest.mark.parametrize("kind", ["triclinic", "slab"])
def test_forces_in_a_field_are_derivatives_of_the_energy(options, kind):
    atoms = STRUCTURES[kind]()
    atoms.calc = make_calculator(models=bond_model(options), external_field=FIELD)
    forces, step = atoms.get_forces(), 1e-4
    for atom, axis in ((0, 0), (2, 2)):
        energies = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[atom, axis] += sign * step
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step)
        assert forces[atom, axis] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("options", [BONDS, SCREENED], ids=["free", "screened"])
def test_stress_in_a_field_is_the_derivative_of_the_energy(options):
    """At a fixed field; so that molecular dynamics at constant pressure is there in a field."""
    atoms = rock_salt("triclinic")
    atoms.calc = make_calculator(models=bond_model(options), external_field=FIELD)
    stress = atoms.get_stress(voigt=False)
    for strain in (np.diag([1.0, 0, 0]), np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])):
        energies, step = [], 1e-4
        for sign in (-1, 1):
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(atoms.cell @ (np.eye(3) + sign * step * strain), scale_atoms=True)
            energies.append(strained.get_potential_energy())
        slope = (energies[1] - energies[0]) / (2 * step * atoms.get_volume())
        assert (stress * strain).sum() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("kind", ["triclinic", "slab"])
def test_formal_charges_have_no_stress_in_a_field(kind):
    """It would change where an ion is moved by a lattice vector."""
    atoms = STRUCTURES[kind]()
    atoms.calc = make_calculator(models=bond_model(IONS), external_field=FIELD)
    atoms.get_potential_energy()
    assert "stress" not in atoms.calc.results
    with pytest.raises(InputError, match="depends on the periodic images of the ions"):
        atoms.get_stress()
    with pytest.raises(InputError, match="depends on the periodic images of the ions"):
        run_md(rock_salt(), atoms.calc, MDSettings(ensemble="npt"), 1, Path("never made"))
    atoms.calc.external_field = None
    assert np.isfinite(atoms.get_stress()).all()


@pytest.mark.parametrize("options", [BONDS, SCREENED], ids=["free", "screened"])
@pytest.mark.parametrize("kind", ["triclinic", "slab"])
def test_the_field_acts_on_the_dipole_and_the_polarizability(kind, options):
    """−∂E/∂F is the dipole; without the field the energy is the one that is there."""
    atoms = STRUCTURES[kind]()
    calculator = make_calculator(models=bond_model(options))
    atoms.calc = calculator
    zero, moment = atoms.get_potential_energy(), atoms.get_dipole_moment()
    energies = []
    for sign in (-1, 1):
        calculator.external_field = sign * FIELD
        energies.append(atoms.get_potential_energy())
    assert (energies[0] - energies[1]) / 2 == pytest.approx(moment @ FIELD, abs=1e-8)
    assert calculator.get_property("zero_field_energy", atoms) == pytest.approx(zero, abs=1e-9)
    turned = atoms.get_dipole_moment() - moment
    expected = calculator.get_property("polarizability", atoms) @ FIELD
    if kind == "triclinic":  # both the field on latent dipoles and their size: √ε∞ twice
        expected = options.epsilon_infinity * expected
    np.testing.assert_allclose(turned, expected, atol=1e-9)
    slopes = []
    for axis in range(3):
        ends = []
        for sign in (-1, 1):
            calculator.external_field = FIELD + sign * 1e-3 * np.eye(3)[axis]
            ends.append(atoms.get_potential_energy())
        slopes.append((ends[0] - ends[1]) / 2e-3)
    np.testing.assert_allclose(slopes, moment + turned, atol=1e-8)


def test_far_from_the_origin_in_single_precision():
    """Atoms are then evaluated elsewhere; the dipole is that of the place where they are."""
    atoms = rock_salt()
    far = atoms.copy()
    far.positions += 4000 * atoms.cell[0] / atoms.cell[0, 0] * atoms.cell[0, 0]
    for options in (BONDS, IONS):
        calculator = make_calculator(models=bond_model(options), default_dtype="float32")
        near = calculator.get_property("dipole", atoms)
        np.testing.assert_allclose(calculator.get_property("dipole", far), near, atol=2e-4)
    with pytest.raises(InputError, match="too far from the origin for an external_field"):
        calculator.external_field = FIELD
        calculator.get_forces(far)


def test_formal_charges_keep_the_permittivity_that_they_were_divided_by():
    options = LongRangeOptions(
        charge_readout="bond", induced="none", formal_charges="Na:1,Cl:-1", epsilon_infinity=2.0
    )
    atoms = rock_salt()
    jump = atoms.cell[1]
    calculator = make_calculator(models=bond_model(options), epsilon_infinity=2.0)
    here = calculator.get_property("dipole", atoms)
    moved = atoms.copy()
    moved.positions[0] += jump
    change = calculator.get_property("dipole", moved) - here
    sign = 1 if atoms.numbers[0] == 11 else -1
    np.testing.assert_allclose(change, sign * jump, atol=1e-11)
    with pytest.raises(InputError, match="epsilon_infinity 3: the model was trained with formal"):
        make_calculator(models=bond_model(options), epsilon_infinity=3.0)
    with pytest.raises(InputError, match="divide_by_chi: the model was trained with formal"):
        make_calculator(models=bond_model(options), divide_by_chi=True)


def test_a_slab_whose_formal_charges_do_not_cancel_is_refused():
    """The forces in a field would not be those of its Born charges."""
    slab = wet_slab()
    del slab[[number == 17 for number in slab.numbers]]
    slab.calc = make_calculator(models=bond_model(IONS))
    with pytest.raises(InputError, match="formal charges of the slab sum to 1 e"):
        slab.get_forces()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(induced="both"), "induced both does not go with charge_readout bond"),
        (dict(induced="none", constrain_charge="uniform"), "give those of the elements"),
        (dict(formal_charges="Na:one"), "such as 'Na:1,Cl:-1', got 'Na:one'"),
        (dict(formal_charges="Na:1,Na:1"), "each element once"),
        (dict(formal_charges="NA:1"), "got 'NA:1'"),
        (dict(formal_charges="Na:1", epsilon_infinity="learn"), "needs a number for"),
        (dict(formal_charges="Na:1", charge_readout="atomic"), "needs charge_readout bond"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(InputError, match=message):
        LongRangeOptions(**{"charge_readout": "bond", "induced": "dipole", **settings})
