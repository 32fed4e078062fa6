"""Electrical labels: what counts in the loss, what is refused."""

import math

import numpy as np
import pytest
import torch
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.modules import WeightedEnergyForcesLoss
from mace.tools import AtomicNumberTable, torch_geometric

from mace_polmp.errors import InputError
from mace_polmp.training.labels import check_labels, check_presence, complete, with_labels
from mace_polmp.training.loss import ElectricalLoss
from mace_polmp.training.metrics import ElectricalMetrics, label_table, line_of
from mace_polmp.training.options import TrainingOptions
from tests.helpers import ELEMENTS, evaluate, random_model, rock_salt, salty_water, wet_slab

WEIGHTS = dict(dipole=2.0, polarizability=3.0, born_charges=5.0, total_charge=7.0)
OPTIONS = TrainingOptions(**{f"{name}_weight": weight for name, weight in WEIGHTS.items()})
KEYS = {name: OPTIONS.key(name) for name in WEIGHTS}


def labelled(atoms, seed=0, **changes):
    """A frame with random labels of everything; None takes one away."""
    random = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.info.update(REF_energy=0.0, total_charge=0.0)
    atoms.arrays["REF_forces"] = random.normal(size=(len(atoms), 3))
    if not atoms.pbc.any():
        atoms.info["REF_dipole"] = random.normal(size=3)
        atoms.info["REF_polarizability"] = random.normal(size=9)
    born = random.normal(size=(len(atoms), 3, 3))
    atoms.arrays["REF_born_charges"] = (born - born.mean(0)).reshape(-1, 9)
    for name, value in changes.items():
        where = atoms.arrays if name in atoms.arrays else atoms.info
        where.pop(name, None)
        if value is not None:
            where[name] = value
    return atoms


def graph(atoms, model):
    specification = KeySpecification(
        info_keys={name: KEYS[name] for name in ("dipole", "polarizability", "total_charge")}
        | {"energy": "REF_energy"},
        arrays_keys={"forces": "REF_forces"},
    )
    atoms = with_labels(atoms, KEYS)
    config = complete(config_from_atoms(atoms, specification), atoms, KEYS)
    table = AtomicNumberTable(ELEMENTS)
    return AtomicData.from_config(config, z_table=table, cutoff=float(model.r_max))


@pytest.fixture
def double():
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


def test_the_loss_is_what_it_says_and_masks_what_is_missing(double):
    model = random_model()
    frames = [
        labelled(salty_water(), 1),
        labelled(salty_water(), 2, REF_dipole=None, REF_polarizability=None, total_charge=None),
        labelled(rock_salt(), 3, config_weight=0.5),
        labelled(wet_slab(), 4, REF_born_charges=None, total_charge=None),
        labelled(salty_water(), 5, config_born_charges_weight=0.25, REF_dipole=None),
    ]
    batch = torch_geometric.Batch.from_data_list([graph(atoms, model) for atoms in frames])
    output = model(batch.to_dict())
    base = WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=10.0)
    loss = ElectricalLoss(base, WEIGHTS)
    expected = base(batch, output)
    n_atoms = sum(len(atoms) for atoms in frames)
    for atoms in frames:
        own = evaluate(model, atoms)
        weight = atoms.info.get("config_weight", 1.0) / len(frames)
        for name in ("dipole", "polarizability"):
            if f"REF_{name}" in atoms.info:
                error = own[name][0].detach().numpy().ravel() - atoms.info[f"REF_{name}"]
                expected += WEIGHTS[name] * weight * (error**2).mean() / len(atoms)
        if "total_charge" in atoms.info:
            error = float(own["charges"].detach().sum()) - atoms.info["total_charge"]
            expected += WEIGHTS["total_charge"] * weight * error**2 / len(atoms)
    from mace_polmp.modules.born_charges import born_charges
    from tests.helpers import make_batch

    for atoms, factor in ((frames[0], 1.0), (frames[1], 1.0), (frames[2], 0.5), (frames[4], 0.25)):
        z = born_charges(model, make_batch([atoms], model)).numpy().reshape(-1, 9)
        error = ((z - atoms.arrays["REF_born_charges"]) ** 2).mean(1).sum()
        expected += WEIGHTS["born_charges"] * factor * error / n_atoms
    torch.testing.assert_close(loss(batch, output), expected)
    assert "dipole_weight=2.000" in repr(loss) and "forces_weight=10.000" in repr(loss)


def test_errors_are_those_of_the_labelled_values(double):
    model = random_model()
    frames = [labelled(salty_water(), 1), labelled(rock_salt(), 2), labelled(wet_slab(), 3)]
    frames[2].arrays.pop("REF_born_charges")
    batch = torch_geometric.Batch.from_data_list([graph(atoms, model) for atoms in frames])
    metrics = ElectricalMetrics(ElectricalLoss(WeightedEnergyForcesLoss(), WEIGHTS))
    output = model(batch.to_dict())
    metrics.update(batch, output)
    _, found = metrics.compute()
    assert found["count_dipole"] == 3
    assert found["count_born_charges"] == 9 * (len(frames[0]) + len(frames[1]))
    difference = output["dipole"][0].detach().numpy() - frames[0].info["REF_dipole"]
    assert found["mae_dipole"] == pytest.approx(np.abs(difference).mean())
    assert found["rmse_dipole"] == pytest.approx(math.sqrt((difference**2).mean()))
    assert found["count_total_charge"] == 3
    assert "RMSE_born_charges=" in line_of(found) and " e A" in line_of(found)
    table = str(label_table({"valid": found, "none": {}}))
    assert table.count("valid") == 4 and "none" not in table
    assert label_table({"none": {}}) is None and line_of({}) == ""


def test_weights_of_the_stages():
    options = TrainingOptions(dipole_weight=1.0, swa_dipole_weight=0.0, swa_born_charges_weight=2.0)
    assert options.weights() == {"dipole": 1.0}
    assert options.weights(stage_two=True) == {"born_charges": 2.0}
    assert options.used == ["dipole", "born_charges"]
    kept = TrainingOptions(polarizability_weight=3.0)
    assert kept.weights(stage_two=True) == {"polarizability": 3.0}
    for wrong in (
        dict(dipole_weight=-1.0),
        dict(born_charges_weight=float("nan")),
        dict(training_mode="heads_only"),
        dict(head_epochs=0),
        dict(head_lr="fast"),
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            TrainingOptions(**wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(REF_dipole=[1.0, 2.0]), r"dipole must be \[3\] numbers, got \[2\]"),
        (dict(REF_polarizability=np.full(9, np.nan)), "polarizability holds NaN"),
        (dict(REF_born_charges=np.zeros((7, 3))), r"born_charges must be \[7, 3, 3\]"),
        (dict(total_charge="plus"), "'total_charge' is plus, not one finite number"),
        (dict(total_charge=1.0), "is 1 e, but its Born charges sum to .*0.00 e"),
        (dict(charge=1.0), "is 0 e, but 'charge' is 1 e"),
        (dict(pbc=True), r"has a label of dipole .* is periodic"),
    ],
)
def test_wrong_and_contradictory_labels(changes, message):
    atoms = labelled(salty_water())[:7] if "REF_born_charges" in changes else salty_water()
    atoms = labelled(atoms, **{k: v for k, v in changes.items() if k != "pbc"})
    if "pbc" in changes:
        atoms.set_cell([10, 10, 10])
        atoms.pbc = True
    with pytest.raises(InputError, match=message):
        check_labels(atoms, KEYS, False, "frame 3")


def test_labels_without_weight_and_charged_slabs():
    atoms = labelled(salty_water(), config_dipole_weight=0.0)
    atoms.set_cell([20, 20, 20])
    atoms.pbc = True
    del atoms.info["REF_polarizability"]
    assert check_labels(atoms, KEYS, False, "frame") == {"born_charges", "total_charge"}
    slab = labelled(wet_slab(), total_charge=1.0, REF_born_charges=None)
    keys = {"total_charge": "total_charge"}
    assert check_labels(slab, keys, False, "frame") == {"total_charge"}
    with pytest.raises(InputError, match="is 1 e, and the structure a slab"):
        check_labels(slab, keys, True, "frame")


def test_labels_that_nobody_has():
    atoms = labelled(salty_water())
    with pytest.raises(InputError, match="none of 5 frames has the label 'REF_dipole'.*REF_energy"):
        check_presence({"born_charges": 3}, OPTIONS, 5, "train.xyz", atoms)
    check_presence(dict.fromkeys(WEIGHTS, 1), OPTIONS, 5, "train.xyz", atoms)


def test_labels_that_ase_moved_are_found():
    """A dipole under ASE's own name ends up in a calculator when a file is read."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = salty_water()
    atoms.calc = SinglePointCalculator(atoms, dipole=np.array([1.0, 2.0, 3.0]))
    found = with_labels(atoms, {"dipole": "dipole"})
    np.testing.assert_array_equal(found.info["dipole"], [1.0, 2.0, 3.0])
    assert "dipole" not in atoms.info
