"""What is gathered of a model for the verdict on its charges."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mace_polmp.analysis.verdict import REVERSED, SMALL
from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.calculators.verdict import (
    MOST_STRUCTURES,
    choose,
    log_verdict,
    neutral_molecules,
    observe,
    verdict_of,
)
from mace_polmp.modules import LongRangeOptions
from tests.helpers import random_model, rattled, salty_water

KEYS = {"dipole": "REF_dipole", "born_charges": "REF_born_charges"}
OPTIONS = LongRangeOptions(multipole_lmax=0, induced="none")


def waters(count=4):
    return [rattled(molecule("H2O"), seed, 0.05) for seed in range(count)]


def labelled(model, frames):
    """Dipoles of the model itself as labels, without what its charges do not sum to zero by."""
    calculator = MultipoleMACECalculator(models=model, default_dtype="float64")
    for atoms in frames:
        excess = calculator.get_property("charges", atoms).sum()
        dipole = calculator.get_property("dipole", atoms)
        atoms.info["REF_dipole"] = dipole - excess * atoms.positions.mean(0)
    return calculator


def test_dipoles_of_the_model_itself_have_a_slope_of_one():
    """About the centre of the atoms: wherever the molecules lie."""
    model, frames = random_model(OPTIONS), waters()
    for atoms in frames:
        atoms.positions += [30.0, -20.0, 5.0]
    calculator = labelled(model, frames)
    found = observe(calculator, frames, KEYS)
    for label, predicted in found.dipoles:
        np.testing.assert_allclose(label, predicted, atol=1e-6)


def test_a_reversed_model_is_called_reversed():
    model, frames = random_model(OPTIONS), waters()
    calculator = labelled(model, frames)
    before = verdict_of(calculator, frames, KEYS)[0]
    assert before.word not in (REVERSED, SMALL)
    model.multipole_readouts.turn()
    after, count = verdict_of(MultipoleMACECalculator(models=model), frames, KEYS)
    assert (after.word, count) == (REVERSED, 4)


def test_labels_whose_weight_is_zero_are_left_out():
    model, frames = random_model(OPTIONS), waters()
    calculator = labelled(model, frames)
    frames[0].info["config_dipole_weight"] = 0.0
    frames[0].info["REF_dipole"] = "nonsense"
    assert len(observe(calculator, frames, KEYS).dipoles) == 3


def test_the_model_of_a_training_stays_as_it_is(caplog):
    model = random_model(OPTIONS)
    with caplog.at_level("INFO"):
        log_verdict(model, waters(), KEYS)
    assert "Verdict: charges" in caplog.text and "4 structures" in caplog.text
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_structures_with_labels_come_first_and_a_hundred_are_enough():
    frames = [molecule("H2O") for _ in range(500)]
    for atoms in frames[400:430]:
        atoms.info["REF_dipole"] = np.zeros(3)
    chosen = choose(frames, KEYS)
    assert len(chosen) <= MOST_STRUCTURES
    assert sum("REF_dipole" in atoms.info for atoms in chosen) == 30


@pytest.mark.parametrize("periodic", [False, True])
def test_molecules_are_what_bonds_hold_together(periodic):
    pair = molecule("H2O")
    other = molecule("CH4")
    other.positions += [0.0, 0.0, 4.0]
    both = pair + other
    if periodic:
        both.set_cell([8.0, 8.0, 8.0])
        both.pbc = True
        both.positions += [0.0, 0.3, 0.0]
        both.wrap()  # cuts a molecule
    labels = neutral_molecules(both)
    assert len(set(labels[:3])) == len(set(labels[3:])) == 1
    assert labels[0] != labels[3] and labels.min() >= 0


def test_ions_are_no_neutral_molecules():
    """Sodium, chloride and ammonium are left out; the water between them is not."""
    water, ammonium = molecule("H2O"), Atoms("NH4", molecule("CH4").positions)
    water.positions += [5.0, 0.0, 0.0]
    ammonium.positions += [0.0, 6.0, 0.0]
    ions = Atoms("NaCl", [[0.0, 0.0, -7.0], [0.0, 0.0, 12.0]])
    labels = neutral_molecules(water + ions + ammonium)
    assert labels[:3].min() >= 0
    assert (labels[3:] == -1).all()


def test_ions_in_water_have_no_verdict_that_fails():
    model = random_model(OPTIONS)
    calculator = MultipoleMACECalculator(models=model, default_dtype="float64")
    assert verdict_of(calculator, [salty_water()], KEYS)[0].seen
