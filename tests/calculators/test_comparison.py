"""What is compared with labels is the whole structure: charge, head and all."""

import numpy as np
import pytest
from ase.constraints import FixAtoms

from mace_polmp.calculators.comparison import compare
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.record import TrainingRecord
from tests.helpers import make_calculator, random_model, salty_water

pytestmark = pytest.mark.usefixtures("device")


def constrained(key="total_charge"):
    model = random_model(LongRangeOptions(constrain_charge="softness"))
    model.trained_on = TrainingRecord(total_charge_key=key)
    return make_calculator(models=model)


@pytest.mark.parametrize("key", ["total_charge", "charge", "qtot"])
def test_total_charges_are_part_of_a_structure(key):
    """Under the name that the model was trained with, or one that everybody reads."""
    calculator = constrained("qtot" if key == "qtot" else "total_charge")
    frames, energies = [], []
    for charge in (0.0, 2.0, -1.0):
        atoms = salty_water()
        atoms.info[key] = charge
        energies.append(calculator.get_property("energy", atoms))
        assert calculator.results["charges"].sum() == pytest.approx(charge)
        atoms.info["REF_energy"] = energies[-1]
        atoms.arrays["REF_forces"] = calculator.get_property("forces", atoms)
        frames.append(atoms)
    assert np.ptp(energies) > 0.1
    kept = [dict(atoms.info) for atoms in frames]
    for entry in compare(calculator, frames).values():
        np.testing.assert_allclose(entry.predicted, entry.reference, atol=1e-9)
    assert [dict(atoms.info) for atoms in frames] == kept


def test_what_was_assumed_is_said_once(caplog):
    calculator = constrained()
    for _ in range(2):
        calculator.get_property("energy", salty_water())
    said = [r.getMessage() for r in caplog.records if "total charge 0 e" in r.getMessage()]
    assert len(said) == 1 and "nothing given" in said[0] and "--total_charge" in said[0]


def test_charges_that_contradict_each_other_are_refused():
    atoms = salty_water()
    atoms.info.update(charge=1.0, total_charge=2.0)
    with pytest.raises(InputError, match="total charge"):
        constrained().get_property("energy", atoms)


def test_forces_of_fixed_atoms_are_compared():
    calculator = constrained()
    atoms = salty_water()
    atoms.arrays["REF_forces"] = calculator.get_property("forces", atoms)
    atoms.set_constraint(FixAtoms([0, 1]))
    entry = compare(calculator, [atoms])["forces"]
    np.testing.assert_allclose(entry.predicted[0], entry.reference[0], atol=1e-9)
    assert np.abs(entry.predicted[0][:2]).max() > 1e-3
    assert len(atoms.constraints) == 1


@pytest.mark.parametrize(
    ("seen", "pbc", "warned"),
    [
        (("slab",), True, True),
        (("slab",), (True, True, False), False),
        (("periodic",), False, True),
        (("open", "periodic"), True, False),
        ((), True, False),  # a model of an earlier version does not know
    ],
)
def test_boundary_conditions_that_were_not_trained_on_are_said(caplog, seen, pbc, warned):
    model = random_model()
    model.trained_on = TrainingRecord(boundaries=seen)
    atoms = salty_water()
    atoms.set_cell([9.0, 9.0, 24.0])
    atoms.pbc = pbc
    make_calculator(models=model).get_property("energy", atoms)
    said = [r.getMessage() for r in caplog.records if "was trained on" in r.getMessage()]
    assert bool(said) == warned


def test_labels_without_a_weight_are_left_out():
    calculator = constrained()
    good, bad = salty_water(), salty_water()
    for atoms in (good, bad):
        atoms.info["REF_energy"] = calculator.get_property("energy", atoms)
        atoms.arrays["REF_forces"] = calculator.get_property("forces", atoms)
    bad.info.update(REF_energy=-1e6, config_energy_weight=0.0)
    found = compare(calculator, [good, bad])
    assert len(found["energy"].reference) == 1 and len(found["forces"].reference) == 2
    bad.info["config_weight"] = 0.0
    assert "forces" not in compare(calculator, [bad])
