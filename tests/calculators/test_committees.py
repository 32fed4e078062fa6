"""Committees: only models whose results can be averaged, in whatever order they come."""

import itertools

import numpy as np
import pytest

from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from tests.helpers import ELEMENTS, make_calculator, random_model, salty_water

pytestmark = pytest.mark.usefixtures("device")

OTHERS = {
    "elements": (dict(elements=[*ELEMENTS, 35]), "elements"),
    "order of elements": (dict(elements=ELEMENTS[::-1]), "elements"),
    "heads": ({}, "heads"),
    "charges": (dict(options=LongRangeOptions(constrain_charge="uniform")), "charges that are"),
    "response": (  # their polarizabilities mean different things
        dict(options=LongRangeOptions(response="self_consistent")),
        "a self-consistent response",
    ),
    "cutoff": (dict(r_max=3.5), "a cutoff"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_different_kinds_are_refused_in_any_order(name):
    changes, message = OTHERS[name]
    models = [random_model(), random_model(seed=1), random_model(**changes)]
    if name == "heads":
        models[2].heads = ["one", "two"]
    for order in itertools.permutations(models):
        with pytest.raises(InputError, match=f"models of the same kind: model . has {message}"):
            make_calculator(models=list(order))


def test_energies_with_another_zero_are_refused():
    models = [random_model(), random_model(seed=1)]
    energies = models[1].atomic_energies_fn.atomic_energies
    energies -= 0.5  # as of averages over other structures
    make_calculator(models=models)
    energies -= 20.0
    with pytest.raises(InputError, match="of model 1 differ by 20.5 eV"):
        make_calculator(models=models)


def test_a_committee_is_the_mean_in_any_order():
    models = [random_model(seed=seed) for seed in range(3)]
    alone = []
    for model in models:
        atoms = salty_water()
        atoms.calc = make_calculator(models=model)
        alone.append(atoms.get_potential_energy())
    for order in itertools.permutations(models):
        atoms = salty_water()
        atoms.calc = make_calculator(models=list(order))
        assert atoms.get_potential_energy() == pytest.approx(np.mean(alone), abs=1e-9)
