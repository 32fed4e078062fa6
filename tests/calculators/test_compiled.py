"""A calculator with a compiled model gives what one without gives."""

import copy

import numpy as np
import pytest
import torch

from mace_polmp.head import LongRangeOptions
from mace_polmp.modules.compiled import CompiledPass
from tests.helpers import make_calculator, random_model, rock_salt, salty_water

PROPERTIES = ["energy", "forces", "charges", "dipole", "atomic_dipoles", "polarizability"]
SMALL = {"hidden_irreps": "4x0e", "num_interactions": 1}


def compiled_calculator(model, **settings):
    """Without the machine code, which takes minutes."""
    calculator = make_calculator(models=model, compile_mode="default", **settings)
    for own in calculator.models:
        own.compiled = CompiledPass(own, "default", backend="aot_eager")
    return calculator


def assert_same(one, other, atoms, names):
    for name in names:
        found = one.get_property(name, atoms)
        expected = other.get_property(name, atoms)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.slow
def test_steps_of_a_run():
    options = LongRangeOptions(charge_readout="transfer", constrain_charge="softness")
    model = random_model(options, **SMALL)
    one, other = compiled_calculator(model), make_calculator(models=model)
    atoms = rock_salt()
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    for step in range(3):
        atoms.rattle(0.05, seed=step)
        atoms.set_cell(atoms.cell * (1.0 + 1e-3 * step), scale_atoms=True)
        assert_same(one, other, atoms, [*PROPERTIES, "stress"])
    assert counted["stats"]["unique_graphs"] == 1
    assert_same(one, other, atoms, ["born_charges"])
    np.testing.assert_allclose(one.get_hessian(atoms), other.get_hessian(atoms), atol=1e-9)

    with torch.no_grad():  # changed weights are seen
        for parameter in model.parameters():
            parameter.mul_(1.1)
    atoms.rattle(0.01)
    assert_same(one, other, atoms, ["energy", "forces", "stress"])


@pytest.mark.slow
def test_molecules_and_fields():
    model = random_model(LongRangeOptions(), **SMALL)
    one, other = compiled_calculator(model), make_calculator(models=model)
    atoms = salty_water()[:5]
    for calculator in (one, other):
        calculator.external_field = [0.0, 0.01, -0.02]
    assert_same(one, other, atoms, PROPERTIES)


def test_the_callers_model_stays_as_it_is():
    model = random_model(LongRangeOptions())
    calculator = compiled_calculator(model)
    assert model.compiled is None
    assert copy.deepcopy(calculator.models[0]).compiled is None
