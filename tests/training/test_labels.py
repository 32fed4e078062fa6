"""Electrical labels: what counts in the loss, what is refused."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from mace import modules
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.modules import WeightedEnergyForcesLoss
from mace.tools import AtomicNumberTable, torch_geometric

from mace_polmp.errors import InputError
from mace_polmp.labels import LabelRules, check_frame, complete, weight_of, with_labels
from mace_polmp.training.labels import check_presence
from mace_polmp.training.loss import ElectricalLoss
from mace_polmp.training.metrics import ElectricalMetrics, label_table, line_of
from mace_polmp.training.options import TrainingOptions
from mace_polmp.training.session import _Session
from tests.helpers import (
    ELEMENTS,
    evaluate,
    random_model,
    rattled,
    rock_salt,
    salty_water,
    wet_slab,
)

WEIGHTS = dict(dipole=2.0, polarizability=3.0, born_charges=5.0, total_charge=7.0)
OPTIONS = TrainingOptions(**{f"{name}_weight": weight for name, weight in WEIGHTS.items()})
KEYS = {name: OPTIONS.key(name) for name in WEIGHTS}
RULES = LabelRules(used=frozenset({"energy", "forces", *WEIGHTS}))


def labelled(atoms, seed=0, **changes):
    """A frame with random labels of everything; None takes one away."""
    random = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.info.update(REF_energy=0.0, total_charge=0.0)
    atoms.arrays["REF_forces"] = random.normal(size=(len(atoms), 3))
    if not atoms.pbc.any():
        atoms.info["REF_dipole"] = random.normal(size=3)
        alpha = random.normal(size=(3, 3))
        atoms.info["REF_polarizability"] = (alpha + alpha.T).ravel()
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
        | {"energy": "REF_energy", "stress": "REF_stress"},
        arrays_keys={"forces": "REF_forces"},
    )
    atoms = with_labels(atoms, KEYS)
    config = complete(config_from_atoms(atoms, specification), atoms, KEYS)
    table = AtomicNumberTable(ELEMENTS)
    return AtomicData.from_config(config, z_table=table, cutoff=float(model.r_max))


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


LOSSES = {
    "weighted": lambda: modules.WeightedEnergyForcesLoss(1.0, 10.0),
    "stress": lambda: modules.WeightedEnergyForcesStressLoss(1.0, 10.0, 5.0),
    "huber": lambda: modules.WeightedHuberEnergyForcesStressLoss(1.0, 10.0, 5.0, huber_delta=0.01),
    "universal": lambda: modules.UniversalLoss(1.0, 10.0, 5.0, huber_delta=0.01),
    "l1l2energyforces": lambda: modules.WeightedEnergyForcesL1L2Loss(1.0, 10.0),
}
LABEL_NAMES = ("energy", "forces", "stress")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_knows_the_weights_of_structures_and_labels(double, name):
    """What has no weight counts for nothing, whatever its label says; with it, it counts."""
    model = random_model()
    loss = ElectricalLoss(LOSSES[name]())

    def value(wrong, **weights):
        good = labelled(rock_salt(), 1, config_weight=1.0)
        other = labelled(rock_salt(), 2, **weights)
        for atoms in (good, other):
            atoms.info["REF_stress"] = np.full(9, 0.02)
        if wrong:
            other.info.update(REF_energy=50.0, REF_stress=np.full(9, -3.0))
            other.arrays["REF_forces"] = other.arrays["REF_forces"] + 30.0
        batch = torch_geometric.Batch.from_data_list([graph(a, model) for a in (good, other)])
        return float(loss(batch, model(batch.to_dict(), compute_stress=True)).detach())

    without = dict.fromkeys([f"config_{label}_weight" for label in LABEL_NAMES], 0.0)
    for weights in ({"config_weight": 0.0}, without):
        assert value(False, **weights) == pytest.approx(value(True, **weights), rel=1e-12)
    counted = [value(True, config_weight=weight) for weight in (0.0, 0.5, 1.0)]
    assert counted[0] < counted[1] < counted[2]
    # Of weight 1 everywhere the loss is upstream's to the last bit.
    frames = [labelled(rock_salt(), 1), labelled(rock_salt(), 2)]
    for atoms in frames:
        atoms.info["REF_stress"] = np.full(9, 0.02)
    batch = torch_geometric.Batch.from_data_list([graph(atoms, model) for atoms in frames])
    out = model(batch.to_dict(), compute_stress=True)
    assert torch.equal(loss(batch, out), LOSSES[name]()(batch, out))


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
    assert "RMSE_born_charges=" in line_of(found) and " e Å" in line_of(found)
    table = str(label_table({"valid": found, "none": {}}))
    assert table.count("valid") == 4 and "none" not in table
    assert label_table({"none": {}}) is None and line_of({}) == ""
    # Upstream has errors of dipoles and polarizabilities that are no labels of the loss.
    others = ElectricalMetrics(ElectricalLoss(WeightedEnergyForcesLoss(), {"born_charges": 1.0}))
    others.update(batch, output)
    _, found = others.compute()
    found["rmse_polarizability"] = 1.0
    assert "polarizability" not in line_of(found)
    assert str(label_table({"valid": found})).count("valid") == 1


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
        dict(born_charges_directions=0),
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
        (dict(total_charge="plus"), "'total_charge' must be one finite number, got plus"),
        (dict(total_charge=1.0), "is 1 e, but its Born charges sum to .*0.00 e"),
        (dict(charge=1.0), "'total_charge'. is 0 e and info.'charge'. 1 e; both mean"),
        (dict(config_weight=-1), "config_weight must be one number of 0 or more, got -1"),
        (dict(config_dipole_weight="much"), "config_dipole_weight must be one number of 0 or more"),
        (dict(REF_stress=np.eye(3)[:2]), r"stress must be \[3, 3\] numbers, got \[2, 3\]"),
        (dict(REF_stress=np.arange(9.0)), "stress is not symmetric"),
        (dict(REF_forces=np.zeros((3, 8))), r"forces must be \[8, 3\] numbers, got \[3, 8\]"),
        (dict(REF_energy=True), "'REF_energy' must be one finite number, got True; the key has no"),
        (dict(REF_energy="-3.25D+00"), "must be one finite number, got -3.25D.00; write exponents"),
        (dict(REF_energy="1_000"), "must be one finite number, got 1_000"),
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
        check_frame(atoms, RULES, "frame 3")


def test_forces_of_three_atoms_are_no_tensor_that_should_be_symmetric():
    atoms = labelled(salty_water()[:3])
    found = check_frame(atoms, RULES, "frame").values["forces"]
    np.testing.assert_array_equal(found, atoms.arrays["REF_forces"])


def test_labels_without_weight_and_charged_slabs():
    atoms = labelled(salty_water(), config_dipole_weight=0.0)
    atoms.set_cell([20, 20, 20])
    atoms.pbc = True
    del atoms.info["REF_polarizability"]
    counted = {"energy", "forces", "born_charges", "total_charge"}
    assert set(check_frame(atoms, RULES, "frame").values) == counted
    slab = labelled(wet_slab(), total_charge=1.0, REF_born_charges=None)
    assert set(check_frame(slab, RULES, "frame").values) == counted - {"born_charges"}
    with pytest.raises(InputError, match="is 1 e, and the structure a slab"):
        check_frame(slab, replace(RULES, constrained=True), "frame")


def test_labels_of_weight_zero_are_left_out_whatever_they_are():
    """One mask: what does not count is not checked, not needed, and not in the configuration."""
    atoms = labelled(salty_water(), REF_energy=np.nan, config_energy_weight=0)
    found = check_frame(atoms, RULES, "frame")
    assert "energy" not in found.values and not found.missing
    assert "REF_energy" not in with_labels(atoms, RULES.keys).info
    atoms = labelled(salty_water(), REF_energy=None)
    assert check_frame(atoms, RULES, "frame").missing == ["energy"]
    atoms.info["config_weight"] = 0.0
    found = check_frame(atoms, RULES, "frame")
    assert not found.values and not found.missing
    assert (
        weight_of(labelled(salty_water(), config_weight=0.5, config_energy_weight=4), "energy") == 2
    )


def test_forces_of_fixed_atoms_are_those_of_the_file():
    """ASE puts zeros there when it is asked for forces."""
    atoms = labelled(salty_water())
    forces = atoms.arrays.pop("REF_forces")
    atoms.calc = SinglePointCalculator(atoms, forces=forces, energy=1.0)
    atoms.set_constraint(FixAtoms([0, 3]))
    assert not atoms.get_forces()[0].any()
    found = with_labels(atoms, {"forces": "forces", "energy": "energy"})
    np.testing.assert_array_equal(found.arrays["forces"], forces)
    assert found.info["energy"] == 1.0


def test_what_was_checked_is_what_upstream_gets():
    atoms = with_labels(labelled(salty_water()), KEYS | {"energy": "REF_energy"})
    specification = KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={})
    config = config_from_atoms(atoms, specification)
    complete(config, atoms, {"energy": "REF_energy"})
    config.properties["energy"] = 1.0
    with pytest.raises(RuntimeError, match="mace-torch made 1.0 of the label 'REF_energy' 0.0"):
        complete(config, atoms, {"energy": "REF_energy"})


def test_labels_that_nobody_has():
    atoms = labelled(salty_water())
    with pytest.raises(InputError, match="none of 5 frames has the label 'REF_dipole'.*REF_energy"):
        check_presence({"born_charges": 3}, OPTIONS, 5, "train.xyz", atoms)
    check_presence(dict.fromkeys(WEIGHTS, 1), OPTIONS, 5, "train.xyz", atoms)


def test_labels_that_ase_moved_are_found():
    """A dipole under ASE's own name ends up in a calculator when a file is read."""
    atoms = salty_water()
    atoms.calc = SinglePointCalculator(atoms, dipole=np.array([1.0, 2.0, 3.0]))
    found = with_labels(atoms, {"dipole": "dipole"})
    np.testing.assert_array_equal(found.info["dipole"], [1.0, 2.0, 3.0])
    assert "dipole" not in atoms.info


@pytest.mark.parametrize("value", ["0 0 1", np.array([1.0, 0.0, 0.0]), -1.0, "much", True])
def test_a_weight_is_one_number(value):
    atoms = labelled(salty_water(), config_dipole_weight=value)
    with pytest.raises(InputError, match="frame 2: config_dipole_weight must be one number"):
        check_frame(atoms, RULES, "frame 2")


@pytest.mark.parametrize("name", ["std_scaling", "rms_forces_scaling"])
def test_the_scale_of_energies_is_that_of_the_labels_that_count(double, name):
    """Half of the structures have energies only, the others forces only."""
    model = random_model()
    energies, forces = [], []
    for seed in range(6):
        atoms = labelled(rattled(rock_salt(), seed), seed, REF_energy=-20.0 - seed)
        if seed % 2:
            energies.append(labelled(atoms, seed, REF_energy=-20.0 - seed, REF_forces=None))
        else:
            forces.append(labelled(atoms, seed, REF_energy=None))

    def loader(frames):
        graphs = [graph(atoms, model) for atoms in frames]
        return torch_geometric.dataloader.DataLoader(dataset=graphs, batch_size=2)

    original = modules.scaling_classes[name]
    zero = np.zeros(len(ELEMENTS))
    session = SimpleNamespace(_args=SimpleNamespace(scaling=name))
    shift, scale = _Session.scaling(session, original, loader(energies + forces), zero)
    expected = original(loader(energies), zero)
    assert shift == pytest.approx(expected[0])
    if name == "rms_forces_scaling":
        expected = original(loader(forces), zero)
    assert scale == pytest.approx(expected[1]) and scale > 0.1


def test_forces_of_three_atoms_need_not_be_symmetric():
    """They are three by three, as a stress is."""
    water = Atoms("OH2", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]])
    water.info["REF_energy"] = -1.0
    water.arrays["REF_forces"] = np.arange(9.0).reshape(3, 3)
    assert {"energy", "forces"} <= set(check_frame(water, RULES, "frame").values)
