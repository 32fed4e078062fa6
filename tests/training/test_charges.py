"""Charges of atoms as labels: physical ones, asked for by name."""

import numpy as np
import pytest
from ase import Atoms
from mace.modules import WeightedEnergyForcesLoss

from mace_polmp.calculators.comparison import compare
from mace_polmp.errors import InputError
from mace_polmp.labels import LabelRules, check_frame, with_labels
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.labelled import asking
from mace_polmp.training.labels import check_constraint
from mace_polmp.training.loss import ElectricalLoss, label_pair
from mace_polmp.training.metrics import ElectricalMetrics
from mace_polmp.training.options import TrainingOptions
from tests.helpers import (
    make_calculator,
    random_model,
    rock_salt,
    salty_water,
    wet_slab,
)
from tests.training.batches import training_batch

KEYS = {"charges": "REF_charges"}
RULES = LabelRules(keys=KEYS, needed=frozenset(), used=frozenset(KEYS))


def labelled(atoms, seed=0, **info):
    atoms.arrays["REF_charges"] = np.random.default_rng(seed).normal(size=len(atoms))
    atoms.info.update(info)
    return atoms


def batch_of(model, frames):
    return training_batch(model, frames, KEYS, arrays_keys=KEYS)


@pytest.mark.parametrize("epsilon", [4.0, "learn"])
def test_the_loss_compares_physical_charges_with_what_is_induced(double, epsilon):
    """In crystals √ε∞ times those in the energy; the mean over atoms, of structures with labels."""
    model = random_model(LongRangeOptions(epsilon_infinity=epsilon))
    factor = model.permittivity() ** 0.5
    frames = [
        labelled(rock_salt(), 1, config_charges_weight=0.5),
        labelled(salty_water(), 2),
        labelled(wet_slab(), 3, config_charges_weight=0.0),
        rock_salt("triclinic"),
    ]
    batch = batch_of(model, frames)
    loss = ElectricalLoss(WeightedEnergyForcesLoss(0.0, 0.0), {"charges": 3.0})
    metrics = ElectricalMetrics(loss)
    with asking(model, ["charges"]):
        out = model(batch.to_dict(), training=True)
    charges = out["charges"].detach().split([len(atoms) for atoms in frames])
    assert out["induced_charges"].abs().max() > 1e-4
    errors = [
        ((scale * own.numpy() - atoms.arrays["REF_charges"]) ** 2).sum()
        for scale, own, atoms in zip((factor, 1.0), charges, frames, strict=False)
    ]
    n_atoms = sum(len(atoms) for atoms in frames)
    value = loss(batch, out)
    assert float(value.detach()) == pytest.approx(3.0 * (0.5 * errors[0] + errors[1]) / n_atoms)
    metrics.update(batch, out)
    found = metrics.compute()[1]
    assert found["count_charges"] == len(frames[0]) + len(frames[1])
    assert found["rmse_charges"] == pytest.approx((sum(errors) / found["count_charges"]) ** 0.5)
    value.backward()
    if epsilon == "learn":
        assert abs(float(model.raw_permittivity.grad)) > 1e-4


@pytest.mark.parametrize("epsilon", [4.0, "learn"])
def test_total_charges_and_charges_of_atoms_agree_in_a_charged_cell(double, epsilon):
    """Both mean physical charges: with labels that say the same there is one set that has no error.

    Labels of atoms are the model's own physical charges, and the total charge is their sum. Both
    terms are zero; latent charges, half as large, would miss the total charge by half of it.
    """
    model = random_model(LongRangeOptions(epsilon_infinity=epsilon))
    root = model.permittivity() ** 0.5
    assert root > 1.2
    ion = rock_salt("triclinic")[:-1]  # without a Cl⁻
    with asking(model, []):
        latent = model(batch_of(model, [ion]).to_dict())["charges"].detach().numpy()
    ion.arrays["REF_charges"] = root * latent
    ion.info["total_charge"] = float(root * latent.sum())
    assert abs(ion.info["total_charge"]) > 0.1
    keys = KEYS | {"total_charge": "total_charge"}
    batch = training_batch(
        model, [ion], keys, arrays_keys=KEYS, info_keys={"total_charge": "total_charge"}
    )
    for name in ("charges", "total_charge"):
        with asking(model, [name]):
            out = model(batch.to_dict(), training=True)
        reference, predicted, weight = label_pair(batch, out, name)
        assert float(weight) == 1.0 and float(reference.abs().max()) > 0.1
        np.testing.assert_allclose(predicted.detach(), reference, atol=1e-12)


def test_a_constraint_and_a_permittivity_contradict_each_other_in_a_charged_cell():
    """The constraint is on the charges in the energy, labels are of physical ones."""
    ion, molecule = rock_salt("triclinic")[:-1], salty_water()
    for atoms in (ion, molecule):
        atoms.info["total_charge"] = 1.0
    for epsilon in (2.0, "learn"):
        options = LongRangeOptions(constrain_charge="uniform", epsilon_infinity=epsilon)
        check_constraint(options, TrainingOptions(), {"t.xyz": [rock_salt(), molecule]})
        with pytest.raises(InputError, match=f"frame 1: is periodic and .* 1 e.* {epsilon} the"):
            check_constraint(options, TrainingOptions(), {"t.xyz": [molecule, ion]})
        atom = Atoms("Na", cell=9 * np.eye(3), pbc=True)  # there for its energy
        atom.info.update(total_charge=1.0, config_type="IsolatedAtom")
        check_constraint(options, TrainingOptions(), {"t.xyz": [rock_salt(), atom]})
    for free in (
        LongRangeOptions(constrain_charge="uniform"),
        LongRangeOptions(epsilon_infinity=2.0),
    ):
        check_constraint(free, TrainingOptions(), {"t.xyz": [molecule, ion]})


def test_the_evaluation_compares_the_same():
    model = random_model(LongRangeOptions(epsilon_infinity=4.0))
    frames = [labelled(rock_salt(), 1), labelled(salty_water(), 2), labelled(wet_slab(), 3)]
    calculator = make_calculator(models=model)
    found = compare(calculator, frames)["charges"]
    for atoms, scale, predicted in zip(frames, (2.0, 1.0, 1.0), found.predicted, strict=True):
        own = calculator.get_property("charges", atoms)
        np.testing.assert_allclose(predicted, scale * own, atol=1e-12)


def test_only_the_key_that_was_asked_for_is_read():
    """Not the charges that other programs or ASE put there."""
    atoms = salty_water()
    atoms.set_initial_charges(np.ones(len(atoms)))
    atoms.arrays["charges"] = np.ones(len(atoms))
    assert not check_frame(atoms, RULES, "frame").values
    assert "REF_charges" not in with_labels(atoms, KEYS).arrays
    named = LabelRules(keys={"charges": "charges"}, needed=frozenset(), used=frozenset(KEYS))
    assert check_frame(atoms, named, "frame").values["charges"].shape == (len(atoms),)


def test_charges_are_one_number_for_each_atom():
    atoms = salty_water()
    atoms.arrays["REF_charges"] = np.zeros((len(atoms), 1))
    assert check_frame(atoms, RULES, "frame").values["charges"].shape == (len(atoms),)
    assert with_labels(atoms, KEYS).arrays["REF_charges"].shape == (len(atoms),)
    atoms.arrays["REF_charges"] = np.zeros((len(atoms), 3))
    with pytest.raises(InputError, match=r"charges must be \[8\] numbers, got \[8, 3\]"):
        check_frame(atoms, RULES, "frame")
