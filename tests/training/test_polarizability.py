"""Polarizabilities of crystals as labels: local fields, screening, and ε∞ in their place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from mace_polmp.errors import InputError
from mace_polmp.head.observables import physical_polarizability
from mace_polmp.labels import LabelRules, check_frame, read_label, with_labels
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.labelled import asking
from mace_polmp.training.labels import check_model, check_polarizabilities
from mace_polmp.training.options import TrainingOptions
from mace_polmp.units import EPS0
from tests.helpers import (
    make_batch,
    make_calculator,
    random_model,
    rattled,
    rock_salt,
    salty_water,
    wet_slab,
)

DIPOLES = LongRangeOptions(induced="dipole", polarizability="anisotropic", epsilon_infinity=2.5)
MODELS = {
    "one step": DIPOLES,
    "self-consistent": replace(DIPOLES, response="self_consistent"),
    "learned": replace(DIPOLES, epsilon_infinity="learn"),
    "along bonds": LongRangeOptions(
        charge_readout="bond", induced="bond_dipole", epsilon_infinity=2.5
    ),
    "along bonds, self-consistent": LongRangeOptions(
        charge_readout="bond", induced="bond_dipole", response="self_consistent"
    ),
    "nothing induced": LongRangeOptions(induced="none", epsilon_infinity=2.5),
}
KEY = "REF_polarizability"
RULES = LabelRules(
    keys={"polarizability": KEY}, needed=frozenset(), used=frozenset({"polarizability"})
)


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_training_compares_is_what_the_calculator_gives(double, kind):
    """In crystals and molecules, which may share a batch; that of the head alone elsewhere."""
    model = random_model(MODELS[kind])
    frames = [rock_salt("triclinic"), salty_water(), rock_salt()]
    data = make_batch(frames, model)
    data["polarizability_weight"] = torch.ones(3, 3, 3)
    assert "cell_polarizability" not in model(dict(data))
    with asking(model, ["polarizability"]):
        found = model(dict(data), training=True)["cell_polarizability"]
    if kind != "nothing induced":
        slopes = torch.autograd.grad(
            found[0].square().sum(), model.head_parameters(), allow_unused=True
        )
        assert any(slope is not None and bool(slope.abs().max() > 1e-6) for slope in slopes)
    calculator = make_calculator(models=model)  # which freezes the model
    for atoms, alpha in zip(frames, found.detach().numpy(), strict=True):
        expected = calculator.get_property("electronic_polarizability", atoms)
        np.testing.assert_allclose(alpha, expected, atol=1e-9)


def test_slabs_have_the_same_polarizability_in_any_batch(double):
    """That of the calculator, local fields included: eval_configs writes it."""
    model, slab = random_model(DIPOLES), wet_slab()
    expected = make_calculator(models=model).get_property("electronic_polarizability", slab)
    for frames in ([slab], [slab, rock_salt()], [slab, salty_water()]):
        with asking(model, ["polarizability"]), torch.no_grad():
            out = model(make_batch(frames, model), compute_force=False)
        np.testing.assert_allclose(out["cell_polarizability"][0], expected, atol=1e-10)
    assert np.abs(out["polarizability"][0].numpy() - expected).max() > 1e-4


def test_what_is_learned_without_induced_dipoles_is_the_permittivity_itself(double):
    model = random_model(LongRangeOptions(induced="none", epsilon_infinity="learn"))
    model.head.set_permittivity(3.2)
    atoms = rock_salt("triclinic")
    with asking(model, ["polarizability"]):
        out = model(make_batch([atoms], model), training=True)["cell_polarizability"]
    expected = EPS0 * atoms.get_volume() * 2.2 * np.eye(3)
    np.testing.assert_allclose(out[0].detach(), expected, atol=1e-9)
    assert torch.autograd.grad(out[0, 1, 1], model.raw_permittivity)[0].abs() > 0.1


def test_the_permittivity_is_that_of_induced_dipoles_times_that_of_the_charges():
    """ε∞ = ε_e (1 + α/(eps0 V)); where ε∞ itself is given, dividing by χ takes it back."""
    model, atoms = random_model(replace(DIPOLES, epsilon_infinity=1.0)), rock_salt()

    def permittivity(**settings):
        calculator = make_calculator(models=model, **settings)
        return calculator.get_property("electronic_permittivity", atoms)

    bare, chi = permittivity(), None
    assert np.trace(bare) / 3 > 1.02
    np.testing.assert_allclose(permittivity(epsilon_infinity=3.0), 3.0 * bare, atol=1e-9)
    alpha = make_calculator(models=model).get_property("polarizability", atoms)
    chi = np.trace(alpha) / (3 * EPS0 * atoms.get_volume())
    divided = permittivity(epsilon_infinity=3.0, divide_by_chi=True)
    np.testing.assert_allclose(divided, 3.0 / (1.0 + chi) * bare, atol=1e-9)


def test_the_field_of_longitudinal_modes_does_not_know_how_charges_are_screened():
    """Z* Z*/ε∞ belongs to the energies, which have no ε∞: its root in Z* must cancel."""
    model, atoms = random_model(DIPOLES), rock_salt("triclinic")
    found = []
    for epsilon in (1.0, 2.5, 7.0):
        calculator = make_calculator(models=model, epsilon_infinity=epsilon)
        born = calculator.get_property("born_charges", atoms)
        permittivity = calculator.get_property("electronic_permittivity", atoms)
        charge = born[:, 0, :]
        found.append(np.einsum("ib,jc->ibjc", charge, charge) / permittivity[0, 0])
    np.testing.assert_allclose(found[1], found[0], atol=1e-10)
    np.testing.assert_allclose(found[2], found[0], atol=1e-10)


def test_molecules_and_slabs_keep_their_polarizability():
    alpha = torch.eye(3).expand(2, 3, 3)
    cell = 10.0 * torch.eye(3).expand(2, 3, 3)
    pbc = torch.tensor([[True, True, False], [False] * 3])
    assert torch.equal(physical_polarizability(alpha, cell, pbc, 4.0), alpha)


def in_cell(**info):
    atoms = rock_salt("triclinic")
    atoms.info.update(info)
    return atoms


def test_permittivities_are_labels_of_the_polarizability():
    number, tensor = in_cell(REF_epsilon_infinity=2.3), np.diag([2.0, 2.5, 3.0])
    volume = EPS0 * number.get_volume()
    np.testing.assert_allclose(
        read_label(number, "polarizability", KEY, "x"), 1.3 * volume * np.eye(3)
    )
    whole = in_cell(REF_epsilon_infinity=tensor.ravel())
    expected = volume * (tensor - np.eye(3))
    np.testing.assert_allclose(read_label(whole, "polarizability", KEY, "x"), expected)
    np.testing.assert_allclose(with_labels(whole, {"polarizability": KEY}).info[KEY], expected)
    assert "polarizability" in check_frame(whole, RULES, "frame").values
    both = in_cell(REF_epsilon_infinity=tensor, REF_polarizability=1.01 * expected)
    np.testing.assert_allclose(read_label(both, "polarizability", KEY, "x"), 1.01 * expected)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (in_cell(REF_epsilon_infinity=0.5), "'REF_epsilon_infinity' below 1, which no material"),
        (in_cell(REF_epsilon_infinity=[2.0, 3.0]), r"must be \[3, 3\] numbers, got \[2\]"),
        (
            in_cell(REF_epsilon_infinity=3.0, REF_polarizability=np.eye(3)),
            "and the polarizability 'REF_polarizability', which contradict each other: that is an",
        ),
        (Atoms("H", info=dict(REF_epsilon_infinity=2.0)), "is an open structure; only structures"),
        (
            Atoms("H", cell=[9, 9, 30], pbc=[1, 1, 0], info=dict(REF_epsilon_infinity=2.0)),
            "and is a slab; only structures",
        ),
        (
            Atoms("H", cell=[9, 9, 30], pbc=[1, 1, 0], info=dict(REF_polarizability=np.eye(3))),
            "is a slab; a model is trained on those of open and fully periodic structures only",
        ),
    ],
)
def test_permittivities_and_polarizabilities_that_are_refused(atoms, message):
    with pytest.raises(InputError, match=message):
        check_frame(atoms, RULES, "frame 3")


def test_a_model_has_something_that_a_training_can_change():
    training = TrainingOptions(polarizability_weight=1.0)
    for options in MODELS.values():
        if options.induced != "none":
            check_model(options, training)
    with pytest.raises(
        InputError, match="needs something that a field induces, got --induced none"
    ):
        check_model(MODELS["nothing induced"], training)
    learning = LongRangeOptions(induced="charge", epsilon_infinity="learn")
    check_model(learning, training)
    molecule = salty_water()
    molecule.info[KEY] = np.eye(3)
    frames = {"t.xyz": [rattled(rock_salt()), wet_slab(), molecule]}
    with pytest.raises(
        InputError, match="t.xyz: frame 2: has a label of polarizability and is an o"
    ):
        check_polarizabilities(learning, training, frames)
    check_polarizabilities(DIPOLES, training, frames)
    molecule.info["config_polarizability_weight"] = 0
    check_polarizabilities(learning, training, frames)
    crystal = {"c.xyz": [in_cell(REF_epsilon_infinity=2.0)]}
    check_polarizabilities(learning, training, crystal)
    charges = LongRangeOptions(induced="charge", response="self_consistent", conserve_charge=True)
    check_model(charges, training)  # molecules have a polarizability of induced charges
    with pytest.raises(InputError, match="frame 0: has a label of polarizability and is periodic"):
        check_polarizabilities(charges, training, crystal)
    bonds = LongRangeOptions(charge_readout="bond", induced="bond")
    check_model(bonds, training)
    check_polarizabilities(bonds, training, frames | crystal)
