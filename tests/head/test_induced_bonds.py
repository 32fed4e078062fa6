"""Charges that are induced along bonds: exact derivatives in fields, neutral molecules, files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from mace_polmp.electrostatics import ResponseCoefficients
from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions
from mace_polmp.head.field_response import FieldResponse
from mace_polmp.head.observables import electronic_polarizability
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.atom_energies import atom_energies
from mace_polmp.modules.born_charges import born_charges, polarizability_derivatives
from mace_polmp.modules.io import load_model, write_model
from mace_polmp.training.fine_tuning import inherit, start_from
from tests.head.test_bond_charges import FIELD, STRUCTURES, bond_model, dipole
from tests.helpers import evaluate, make_batch, make_calculator, rock_salt, salty_water, wet_slab

pytestmark = pytest.mark.usefixtures("device")

ALONE = LongRangeOptions(charge_readout="bond", induced="bond")
BESIDE = replace(ALONE, induced="bond_dipole", polarizability="anisotropic", epsilon_infinity=2.0)
KINDS = ("triclinic", "slab", "open")
ITERATED = replace(BESIDE, response="self_consistent")
ALL = pytest.mark.parametrize(
    "options", [ALONE, BESIDE, ITERATED], ids=["alone", "beside dipoles", "self-consistent"]
)
RESPONSES = pytest.mark.parametrize(
    "options", [BESIDE, ITERATED], ids=["one step", "self-consistent"]
)


def soft_model(options, **backbone):
    """Random, with bonds along which some 0.01 e is induced."""
    model = bond_model(options, **backbone)
    readouts = model.multipole_readouts
    if readouts.bond_softness is not None:
        with torch.no_grad():
            readouts.element_bias[:, readouts.scalar_names.index("bond_softness")] += 2.0
            readouts.bond_softness.radial[2] += 2.0
    return model


def moved_by(atoms, atom, axis, step):
    out = atoms.copy()
    out.calc = atoms.calc
    out.positions[atom, axis] += step
    return out


@ALL
@pytest.mark.parametrize("kind", KINDS)
def test_forces_and_stress_in_a_field_are_derivatives_of_the_energy(options, kind):
    """To 1e-6 eV/Å and 1e-7 eV/Å³: the response answers to the multipoles and to the field."""
    atoms = STRUCTURES[kind]()
    atoms.calc = make_calculator(models=soft_model(options), external_field=FIELD)
    assert evaluate(soft_model(options), atoms)["induced_charges"].abs().max() > 3e-3
    forces, step = atoms.get_forces(), 1e-4
    for atom, axis in ((0, 0), (2, 2), (4, 1)):
        ends = [moved_by(atoms, atom, axis, s * step).get_potential_energy() for s in (-1, 1)]
        assert forces[atom, axis] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)
    if kind != "triclinic":
        return
    stress = atoms.get_stress(voigt=False)
    for strain in (np.diag([1.0, 0, 0]), np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])):
        ends = []
        for sign in (-1, 1):
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(atoms.cell @ (np.eye(3) + sign * step * strain), scale_atoms=True)
            ends.append(strained.get_potential_energy())
        slope = (ends[1] - ends[0]) / (2 * step * atoms.get_volume())
        assert (stress * strain).sum() == pytest.approx(slope, abs=1e-7)


@ALL
@pytest.mark.parametrize("kind", KINDS)
def test_the_field_acts_on_the_dipole_and_the_polarizability(options, kind):
    """−∂E/∂F is the dipole and −∂²E/∂F² the polarizability; forces are those of Born charges."""
    atoms = STRUCTURES[kind]()
    calculator = atoms.calc = make_calculator(models=soft_model(options))
    zero, moment = atoms.get_potential_energy(), atoms.get_dipole_moment()
    born = calculator.get_property("born_charges", atoms)
    alpha = calculator.get_property("polarizability", atoms)
    assert np.linalg.eigvalsh(alpha).min() > 1e-3
    if kind == "triclinic":
        alpha = alpha * options.epsilon_infinity
    energies, forces = [], []
    for sign in (-1, 1):
        calculator.external_field = sign * FIELD
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    np.testing.assert_allclose(atoms.get_dipole_moment(), moment + alpha @ FIELD, atol=1e-9)
    assert calculator.results["zero_field_energy"] == pytest.approx(zero, abs=1e-9)
    assert (energies[0] - energies[1]) / 2 == pytest.approx(moment @ FIELD, abs=1e-8)
    second = zero - sum(energies) / 2
    assert second == pytest.approx(FIELD @ alpha @ FIELD / 2, abs=1e-9)
    expected = np.einsum("a,nab->nb", FIELD, born)
    np.testing.assert_allclose((forces[1] - forces[0]) / 2, expected, atol=1e-9)


@RESPONSES
@pytest.mark.parametrize("kind", KINDS)
def test_born_charges_are_derivatives_of_the_dipole(options, kind):
    """Of permanent and induced charges and dipoles."""
    model, atoms = soft_model(replace(options, epsilon_infinity=1.0)), STRUCTURES[kind]()
    born = born_charges(model, make_batch([atoms], model)).cpu().numpy()
    for atom, axis in ((0, 1), (3, 2)):
        ends = [dipole(model, moved_by(atoms, atom, axis, s * 1e-4)) for s in (-1, 1)]
        np.testing.assert_allclose(born[atom, :, axis], (ends[1] - ends[0]) / 2e-4, atol=1e-6)
    np.testing.assert_allclose(born.sum(0), 0, atol=1e-10)


@RESPONSES
@pytest.mark.parametrize("kind", ["triclinic", "slab"])
def test_nothing_depends_on_images_or_on_the_supercell(options, kind):
    model, atoms = soft_model(options), wet_slab(30.0) if kind == "slab" else STRUCTURES[kind]()
    moved = atoms.copy()
    moved.positions[0] += 2 * atoms.cell[0] - atoms.cell[1]
    np.testing.assert_allclose(dipole(model, moved), dipole(model, atoms), atol=1e-12)
    double = atoms.repeat((2, 1, 1))
    small = born_charges(model, make_batch([atoms], model))
    large = born_charges(model, make_batch([double], model))
    torch.testing.assert_close(large, small.repeat(2, 1, 1), rtol=0, atol=1e-9)
    one, two = (model.electronic_polarizability(make_batch([a], model)) for a in (atoms, double))
    torch.testing.assert_close(two, 2 * one, rtol=0, atol=1e-9)


def test_atoms_that_are_alike_have_nothing_to_drive_charges():
    """Four in a square have the same potential, and differences of it are rounding.

    Moved by 1e-5 Å they have differences that are solved for; energies change by 1e-6 eV.
    """
    model = soft_model(replace(ALONE, response="self_consistent", multipole_lmax=2))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    places = np.array([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]]) @ turn
    ring = Atoms("O4", positions=places, calculator=make_calculator(models=model))
    assert evaluate(model, ring)["induced_charges"].abs().max() < 1e-13
    moved = moved_by(ring, 0, 0, 1e-5)
    assert evaluate(model, moved)["induced_charges"].abs().max() > 1e-11
    assert ring.get_potential_energy() == pytest.approx(moved.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(ring.get_forces(), moved.get_forces(), atol=1e-3)


def test_in_open_structures_the_dipole_is_that_of_the_charges():
    model, atoms = soft_model(BESIDE), salty_water()
    out = evaluate(model, atoms)
    charges, dipoles = out["charges"].detach().numpy(), out["atomic_dipoles"].detach().numpy()
    expected = charges @ atoms.positions + dipoles.sum(0)
    np.testing.assert_allclose(dipole(model, atoms), expected, atol=1e-12)


@pytest.mark.parametrize("response", ["one_step", "self_consistent"])
def test_no_charge_is_induced_between_molecules_out_of_reach(response):
    """However large the field: each keeps its charge, and the polarizabilities add up.

    What is induced self-consistently at 30 Å changes them by 1e-5 of their size.
    """
    water, far = salty_water()[2:5], salty_water()[2:5]
    far.positions += 30.0
    model = soft_model(replace(ALONE, response=response))
    calculator = make_calculator(models=model, external_field=10 * FIELD)
    charges = calculator.get_property("charges", water + far).reshape(2, 3)
    assert np.abs(charges).max() > 0.02
    np.testing.assert_allclose(charges.sum(1), 0, atol=1e-12)
    alone, both = (evaluate(model, a)["polarizability"][0] for a in (water, water + far))
    tolerance = 1e-12 if response == "one_step" else 1e-5 * alone.norm().item()
    torch.testing.assert_close(both, 2 * alone, rtol=0, atol=tolerance)


@RESPONSES
def test_structures_of_all_boundaries_share_a_batch(options):
    model = soft_model(options)
    structures = [rock_salt(), wet_slab(), salty_water()]
    together = evaluate(model, *structures)
    for number, atoms in enumerate(structures):
        alone = evaluate(model, atoms)
        for name in ("energy", "dipole", "polarizability"):
            torch.testing.assert_close(together[name][number], alone[name][0], rtol=0, atol=1e-9)


@RESPONSES
@pytest.mark.parametrize("kind", KINDS)
def test_energies_of_atoms_sum_to_the_energy(options, kind):
    model = soft_model(options)
    data = make_batch([STRUCTURES[kind]()], model)
    energies = atom_energies(model, dict(data))
    assert energies.sum().item() == pytest.approx(model(dict(data))["energy"].item(), abs=1e-9)


def test_local_fields_of_one_step_are_the_first_order_of_the_exact_ones():
    """With coefficients a tenth as large the rest is a hundredth of the polarizability."""
    model, atoms = soft_model(ITERATED), rock_salt("triclinic")
    data = make_batch([atoms], model)
    response = model.read_multipoles(data)[2]
    engine, positions, cell = model.electrostatics, data["positions"], data["cell"].view(1, 3, 3)
    where = (positions, cell, data["pbc"].view(1, 3), data["batch"])
    plan, rest = engine.plan_of(*where[1:]), []
    for size in (0.1, 0.01):
        bonds = replace(response.bonds, softness=size * response.bonds.softness)
        alpha = size * response.polarizability
        small = ResponseCoefficients(None, alpha, bonds)
        exact = FieldResponse(engine, plan, positions, cell, small, False).polarizability()[0]
        estimate = electronic_polarizability(engine, *where, alpha, plan, bonds)[0]
        bare = (alpha + bonds.polarizabilities(len(atoms))).sum(0)
        rest.append(((exact - estimate).norm() / exact.norm()).item())
        assert rest[-1] < 0.2 * ((exact - bare).norm() / exact.norm()).item()
    assert rest[1] == pytest.approx(0.01 * rest[0], rel=0.5)


@RESPONSES
def test_raman_tensors_equal_finite_differences(options):
    model, atoms = soft_model(options), rock_salt("triclinic")
    found = polarizability_derivatives(model, make_batch([atoms], model))
    ends = [
        model.electronic_polarizability(make_batch([moved_by(atoms, 2, 1, s * 1e-4)], model))[0]
        for s in (-1, 1)
    ]
    slope = (ends[1] - ends[0]).detach() / 2e-4
    torch.testing.assert_close(found[2, 1], slope, rtol=0, atol=1e-7)


@RESPONSES
def test_training_on_forces_has_the_right_gradient(options):
    """By the parameters of the softness of bonds."""
    model = soft_model(options)
    data = make_batch([rock_salt("triclinic"), salty_water()], model)
    softness = model.multipole_readouts.bond_softness.radial

    def loss():
        out = model(dict(data), training=True)
        return (out["forces"] ** 2).sum() + 0.1 * (out["dipole"] ** 2).sum()

    (slope,) = torch.autograd.grad(loss(), softness)
    ends = []
    for sign in (-1, 1):
        with torch.no_grad():
            softness[1] += sign * 1e-5
        ends.append(loss().item())
        with torch.no_grad():
            softness[1] -= sign * 1e-5
    assert slope[1].item() == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("ending", ["model", "safetensors"])
def test_files_keep_the_response(tmp_path, ending):
    model, atoms = soft_model(ITERATED), rock_salt()
    path = tmp_path / f"x.{ending}"
    write_model(model, path)
    again = load_model(path)
    assert "induced bond_dipole" in repr(again)
    before, after = (evaluate(m, atoms)["energy"] for m in (model, again))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def test_models_go_on_with_a_response_that_starts_small():
    """Charges induced along bonds are new, and change nothing to speak of before the first step."""
    old = soft_model(replace(ALONE, induced="dipole"))
    new = MultipoleMACE.from_mace(old.short_range(), inherit({"induced": "bond_dipole"}, old))
    structures = [rock_salt("triclinic"), salty_water()]
    start_from(new, old, [make_batch([atoms], old) for atoms in structures])
    for atoms in structures:
        before, after = (evaluate(model, atoms) for model in (old, new))
        assert after["induced_charges"].abs().max() > 0
        change = (after["energy"] - before["energy"]).abs().item() / len(atoms)
        assert 0 < change < 3e-4
        torch.testing.assert_close(after["forces"], before["forces"], rtol=0, atol=2e-3)


def test_models_go_on_with_the_response_that_they_have():
    old = soft_model(ALONE)
    new = MultipoleMACE.from_mace(old.short_range(), inherit({}, old))
    start_from(new, old, [make_batch([salty_water()], old)])
    before, after = (evaluate(model, rock_salt()) for model in (old, new))
    torch.testing.assert_close(after["energy"], before["energy"], rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="--induced dipole: the foundation model has bond, and"):
        inherit({"induced": "dipole"}, old)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(charge_readout="transfer"), "induced bond needs charge_readout bond"),
        (dict(constrain_charge="uniform"), "its charges sum to the formal charges"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(InputError, match=message):
        replace(ALONE, **settings)


@RESPONSES
def test_training_on_born_charges_has_the_right_gradient(options):
    """By the softness of bonds, through a second derivative of the response."""
    model = soft_model(replace(options, epsilon_infinity=1.0))
    structures = [rock_salt("triclinic"), wet_slab()]
    data = make_batch(structures, model)
    data["born_charges"] = torch.zeros_like(data["positions"])[:, :1].expand(-1, 9).clone()
    data["born_charges_weight"] = torch.ones(2).to(data["positions"])
    softness = model.multipole_readouts.bond_softness.radial

    def loss():
        return (model(dict(data), training=True)["born_charges"] ** 2).sum()

    (slope,) = torch.autograd.grad(loss(), softness)
    ends = []
    for sign in (-1, 1):
        with torch.no_grad():
            softness[1] += sign * 1e-4
        ends.append(loss().item())
        with torch.no_grad():
            softness[1] -= sign * 1e-4
    assert slope[1].item() == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=1e-5)
