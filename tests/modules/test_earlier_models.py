"""Model files of earlier versions give what they gave."""

import json
from pathlib import Path

import pytest
import torch
from ase.build import molecule

from mace_polmp.modules.born_charges import born_charges
from mace_polmp.modules.io import load_model
from tests.devices import moved
from tests.helpers import make_batch

pytestmark = pytest.mark.usefixtures("device")

MODELS = Path(__file__).parents[1] / "models"
EXPECTED = json.loads((MODELS / "version2.json").read_text())


@pytest.mark.parametrize("ending", ["model", "safetensors"])
def test_models_of_version_2(ending, device):
    """One layer, a learned permittivity and constrained charges; two layers and vectors."""
    model = load_model(MODELS / f"version2.{ending}").to(device)
    frames = [molecule("H2O"), molecule("H2O", cell=[5.0, 6.0, 7.0], pbc=True)]
    out = moved(model(make_batch(frames, model), compute_stress=True), "cpu")
    found = {name: out[name] for name in EXPECTED[ending] if name in out}
    found["stress"] = out["stress"][1]
    found["born_charges"] = born_charges(model, make_batch(frames[1:], model)).cpu()
    for name, value in EXPECTED[ending].items():
        expected = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(found[name].detach(), expected, rtol=1e-12, atol=1e-12, msg=name)
