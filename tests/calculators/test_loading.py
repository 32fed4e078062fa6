"""The calculator that suits a model file."""

import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from mace.modules import ScaleShiftMACE

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.calculators.loading import load_calculator
from tests.helpers import backbone_settings, random_model, salty_water

pytestmark = pytest.mark.usefixtures("device")


def mace_model():
    torch.manual_seed(0)
    return ScaleShiftMACE(**backbone_settings())


@pytest.mark.parametrize(
    ("make", "kind"), [(random_model, MultipoleMACECalculator), (mace_model, MACECalculator)]
)
def test_each_model_has_its_calculator_in_its_own_precision(tmp_path, caplog, device, make, kind):
    atoms = salty_water()
    forces = {}
    for dtype in ("float32", "float64"):
        model = make().to(getattr(torch, dtype))
        torch.save(model, tmp_path / f"{dtype}.model")
        calculator = load_calculator(tmp_path / f"{dtype}.model", str(device))
        assert isinstance(calculator, kind)
        forces[dtype] = calculator.get_property("forces", atoms)
    np.testing.assert_allclose(forces["float32"], forces["float64"], atol=1e-4)
    assert np.abs(forces["float32"] - forces["float64"]).max() > 1e-12

    converted = load_calculator(tmp_path / "float32.model", str(device), default_dtype="float64")
    close = converted.get_property("forces", atoms)
    np.testing.assert_allclose(close, forces["float64"], atol=1e-4)
    assert not caplog.records  # upstream warns of a conversion, which is meant
