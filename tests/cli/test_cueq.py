"""Training with cuEquivariance takes the steps of e3nn."""

import importlib.util

import numpy as np
import pytest

from mace_polmp.modules.accelerated import is_accelerated, without_cuequivariance
from mace_polmp.modules.io import load_model
from tests.cli.runs import flags, open_frames, run_module, write_data
from tests.helpers import make_calculator

ABSENT = importlib.util.find_spec("cuequivariance_torch") is None
pytestmark = pytest.mark.skipif(ABSENT, reason="needs cuequivariance-torch")


def trained(folder, name, **more):
    arguments = flags(folder, name, model="MultipoleMACE", train_file=write_data(folder), **more)
    run = run_module("mace_polmp.cli.run_train", arguments, folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return load_model(folder / f"{name}.model")


def energies(model):
    calculator = make_calculator(models=model)
    return [calculator.get_potential_energy(atoms) for atoms in open_frames(3)]


def test_a_training_ends_with_the_same_model(tmp_path):
    plain, fast = trained(tmp_path, "plain"), trained(tmp_path, "fast", enable_cueq="True")
    assert not is_accelerated(fast)
    np.testing.assert_allclose(energies(fast), energies(plain), atol=1e-6)


def test_a_model_of_cuequivariance_alone(tmp_path):
    """It begins with other random weights; the same model as e3nn's has the same energies."""
    model = trained(tmp_path, "only", only_cueq="True")
    assert is_accelerated(model)
    np.testing.assert_allclose(
        energies(without_cuequivariance(model)), energies(model), rtol=1e-6, atol=1e-6
    )
