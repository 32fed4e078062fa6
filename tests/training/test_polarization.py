"""Labels that models with bond charges have in crystals and slabs: polarization, Born charges."""

import math

import numpy as np
import pytest
import torch
from mace.modules import WeightedEnergyForcesLoss

from mace_polmp.errors import InputError
from mace_polmp.labels import LabelRules, check_frame
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.born_charges import born_charges
from mace_polmp.training.labels import check_model
from mace_polmp.training.loss import ElectricalLoss, squared_errors
from mace_polmp.training.metrics import FAR, ElectricalMetrics, warn_of_branches
from mace_polmp.training.options import TrainingOptions
from tests.helpers import make_batch, random_model, rock_salt, salty_water, wet_slab
from tests.training.batches import training_batch

KEYS = {"polarization": "REF_polarization", "born_charges": "REF_born_charges"}
RULES = LabelRules(keys=KEYS, needed=frozenset(), used=frozenset(KEYS), polarized=True)
IONS = "Na:1,Cl:-1"


def bond_model(formal="", epsilon=3.0):
    options = LongRangeOptions(
        charge_readout="bond", induced="dipole", formal_charges=formal, epsilon_infinity=epsilon
    )
    model = random_model(options)
    model.multipole_readouts.transfer.rescale(20.0)
    return model


def batch_of(model, *frames):
    """Of frames as a training reads them."""
    return training_batch(model, frames, KEYS, info_keys={"energy": "REF_energy"})


def with_polarization(atoms, value, **more):
    atoms.info.update(REF_polarization=np.asarray(value), **more)
    return atoms


@pytest.mark.parametrize("epsilon", [3.0, "learn"])
@pytest.mark.parametrize("make", [lambda: rock_salt("triclinic"), wet_slab], ids=["cell", "slab"])
def test_born_charges_are_derivatives_of_the_predicted_polarization(double, make, epsilon):
    """With the same screening; that of a slab is 1."""
    model, atoms = bond_model(epsilon=epsilon), make()
    data = batch_of(model, with_polarization(atoms, np.ones(3))).to_dict()
    out = model(data, training=True)["polarization"]
    rows = [
        torch.autograd.grad(out[0, a], data["positions"], retain_graph=True)[0] for a in range(3)
    ]
    expected = born_charges(model, make_batch([atoms], model))
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(torch.stack(rows, dim=1), expected, rtol=0, atol=1e-10)
    if epsilon == "learn":
        (slope,) = torch.autograd.grad(out.sum(), model.raw_permittivity, allow_unused=True)
        assert bool(slope.abs() > 1e-3) == atoms.pbc.all()


@pytest.mark.parametrize("formal", ["", IONS])
def test_errors_do_not_know_the_branch_of_a_label(double, formal):
    """Nor that of the prediction, where an ion is written down in the next cell."""
    model = bond_model(formal, epsilon=1.0 if formal else 3.0)
    cell, slab = rock_salt("triclinic"), wet_slab()
    frames = [with_polarization(cell, [0.4, -0.3, 0.2]), with_polarization(slab, [0.1, 0.2, -0.3])]
    batch = batch_of(model, *frames)
    expected = squared_errors(batch, model(batch.to_dict()), "polarization")
    assert (expected > 1e-4).all()
    for atoms in frames:
        jump = 3 * atoms.cell.array[0] - 2 * atoms.cell.array[1]
        atoms.info["REF_polarization"] = atoms.info["REF_polarization"] + jump
        atoms.positions[0] += atoms.cell.array[1]
    batch = batch_of(model, *frames)
    found = squared_errors(batch, model(batch.to_dict()), "polarization")
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    # Of a slab the part along its normal has no branches.
    frames[1].info["REF_polarization"] = frames[1].info["REF_polarization"] + slab.cell.array[2]
    batch = batch_of(model, *frames)
    far = squared_errors(batch, model(batch.to_dict()), "polarization")
    assert far[1] > 10 * expected[1] and far[0] == found[0]


def test_the_loss_is_that_of_the_dipole_per_atom_and_masks_what_is_missing(double):
    model = bond_model()
    frames = [
        with_polarization(rock_salt(), [0.5, 0.0, 0.0], config_polarization_weight=0.5),
        rock_salt("triclinic"),
        salty_water(),
        with_polarization(rock_salt(), [np.nan] * 3, config_polarization_weight=0.0),
    ]
    batch = batch_of(model, *frames)
    out = model(batch.to_dict())
    loss = ElectricalLoss(WeightedEnergyForcesLoss(0.0, 0.0), {"polarization": 7.0})
    error = out["polarization"][0].detach().numpy() - frames[0].info["REF_polarization"]
    expected = 7.0 * 0.5 * (error**2).mean() / len(frames[0]) / len(frames)
    assert float(loss(batch, out).detach()) == pytest.approx(expected, rel=1e-9)
    metrics = ElectricalMetrics(loss)
    metrics.update(batch, out)
    found = metrics.compute()[1]
    assert found["count_polarization"] == 3
    assert found["rmse_polarization"] == pytest.approx(math.sqrt((error**2).mean()))


def test_a_gradient_leads_to_the_nearest_branch(double):
    model = bond_model()
    atoms = rock_salt()
    batch = batch_of(model, atoms)
    value = model(batch.to_dict())["polarization"][0].detach().numpy()
    beside = with_polarization(atoms, value + [0.01, 0.0, 0.0] + 5 * atoms.cell.array[2])
    batch = batch_of(model, beside)
    out = model(batch.to_dict(), training=True)["polarization"].detach().requires_grad_(True)
    squared_errors(batch, {"polarization": out}, "polarization").sum().backward()
    np.testing.assert_allclose(out.grad[0], [-0.02 / 3 / len(atoms), 0, 0], atol=1e-9)


def test_polarizations_that_may_be_on_a_wrong_branch_are_said(double, caplog):
    model = bond_model()
    near, far = rock_salt(), rock_salt()
    value = model(batch_of(model, near).to_dict())["polarization"][0].detach().numpy()
    with_polarization(near, value + 0.1)
    with_polarization(far, value + 0.4 * far.cell.array[0])
    metrics = ElectricalMetrics(ElectricalLoss(WeightedEnergyForcesLoss(), {"polarization": 1.0}))
    batch = batch_of(model, near, far)
    metrics.update(batch, model(batch.to_dict()))
    found = metrics.compute()[1]
    assert found[FAR] == 1
    warn_of_branches(found, "valid")
    assert "valid: polarization: errors of 1 of 2 structures are above a quarter" in caplog.text
    warn_of_branches({"count_polarization": 6, FAR: 0}, "train")
    assert "train" not in caplog.text


def test_born_charges_of_slabs_are_labels_of_models_with_bonds(double):
    model = bond_model()
    slab, cell = wet_slab(), rock_salt()
    random = np.random.default_rng(0)
    labels = []
    for atoms in (slab, cell):
        labels.append(random.normal(size=(len(atoms), 9)))
        atoms.arrays["REF_born_charges"] = labels[-1]
        assert "born_charges" in check_frame(atoms, RULES, "frame").values
    batch = batch_of(model, slab, cell)
    found = squared_errors(batch, model(batch.to_dict()), "born_charges")
    expected = torch.cat([born_charges(model, make_batch([a], model)) for a in (slab, cell)])
    errors = ((expected.view(-1, 9).numpy() - np.concatenate(labels)) ** 2).mean(1)
    np.testing.assert_allclose(found.detach(), errors, atol=1e-10)
    others = LabelRules(keys=KEYS, needed=frozenset(), used=frozenset(KEYS))
    with pytest.raises(
        InputError, match="is a slab, for which they are available with --charge_re"
    ):
        check_frame(slab, others, "frame 1")
    assert "born_charges" in check_frame(cell, others, "frame").values


def test_refusals():
    training = TrainingOptions(swa_polarization_weight=1.0)
    check_model(LongRangeOptions(), TrainingOptions())
    bonds = dict(charge_readout="bond", induced="none")
    check_model(LongRangeOptions(**bonds, formal_charges=IONS), training)
    with pytest.raises(InputError, match="needs --charge_readout bond, got --charge_readout trans"):
        check_model(LongRangeOptions(), training)
    with pytest.raises(InputError, match="--formal_charges that are whole numbers, got Na:0.9"):
        check_model(LongRangeOptions(**bonds, formal_charges="Na:0.9,Cl:-0.9"), training)
    with pytest.raises(InputError, match="is an open structure; only periodic structures and slab"):
        check_frame(with_polarization(salty_water(), np.ones(3)), RULES, "frame 0")
    rules = LabelRules(
        keys=KEYS | {"total_charge": "total_charge"}, needed=frozenset(), used=frozenset(KEYS)
    )
    charged = with_polarization(rock_salt(), np.ones(3), total_charge=1.0)
    polarized = LabelRules(keys=rules.keys, needed=frozenset(), used=rules.used, polarized=True)
    with pytest.raises(InputError, match="polarization of a charged structure depends on the orig"):
        check_frame(charged, polarized, "frame 0")
