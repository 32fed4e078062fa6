"""Backbones of cuEquivariance give what e3nn's give, and go back to them."""

import importlib.util

import mace  # noqa: F401  before e3nn
import numpy as np
import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions
from mace_polmp.modules.accelerated import is_accelerated, with_cuequivariance
from mace_polmp.modules.accelerated import without_cuequivariance as without
from mace_polmp.upstream.training import _Torch
from tests.helpers import make_calculator, random_model, rock_salt, salty_water

ABSENT = importlib.util.find_spec("cuequivariance_torch") is None
needed = pytest.mark.skipif(ABSENT, reason="needs cuequivariance-torch")
OPTIONS = LongRangeOptions(polarizability="anisotropic", epsilon_infinity="learn")


@needed
def test_the_calculator_finds_the_same():
    model = random_model(OPTIONS)
    model.set_permittivity(1.7)
    one, other = make_calculator(models=model, enable_cueq=True), make_calculator(models=model)
    assert is_accelerated(one.models[0]) and not is_accelerated(other.models[0])
    for atoms in (rock_salt(), salty_water()):
        for name in ("energy", "forces", "charges", "dipole", "born_charges"):
            found, expected = one.get_property(name, atoms), other.get_property(name, atoms)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=1e-7 * scale, err_msg=name)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(dtype, tmp_path):
    model = random_model(OPTIONS).to(dtype)
    there = with_cuequivariance(model)
    back = without(there)
    assert not is_accelerated(back) and next(back.parameters()).dtype == dtype
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, tensor in back.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], msg=name)
    # A training saves e3nn's backbone.
    for keeps in (False, True):
        _Torch(keeps).save(there, tmp_path / "m.model")
        assert is_accelerated(torch.load(tmp_path / "m.model", weights_only=False)) == keeps


@pytest.mark.skipif(not ABSENT, reason="cuequivariance-torch is there")
def test_without_it_the_option_is_refused():
    with pytest.raises(InputError, match="cuEquivariance is not installed"):
        make_calculator(models=random_model(), enable_cueq=True)
