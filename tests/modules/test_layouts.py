"""Backbones whose features lie in another order, as cuEquivariance has them."""

import importlib.util

import mace  # noqa: F401  before e3nn
import pytest
import torch
from e3nn import o3

from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from mace_polmp.modules.backbone import feature_layout
from tests.devices import moved
from tests.helpers import evaluate, random_model, rock_salt, salty_water

pytestmark = pytest.mark.usefixtures("device")

EVERYTHING = LongRangeOptions(polarizability="anisotropic")


def test_multipoles_do_not_depend_on_the_order_of_features():
    """(irrep, multiplicity) in place of (multiplicity, irrep), in rows of two layers."""
    torch.manual_seed(0)
    model = random_model(EVERYTHING)
    readouts = model.multipole_readouts
    layers = [o3.Irreps(str(product.linear.irreps_out)) for product in model.products]
    order, start = [], 0
    for irreps in layers:
        for multiplicity, irrep in irreps:
            part = torch.arange(start, start + multiplicity * irrep.dim)
            order.append(part.view(multiplicity, irrep.dim).T.flatten())
            start += multiplicity * irrep.dim
    features = moved(torch.randn(5, start, dtype=torch.float64))
    for degree in (0, 1):
        readouts.layout = "mul_ir"
        expected = readouts._gather(features, degree)
        assert expected.shape == (5, 16 if degree == 0 else 8, 2 * degree + 1)
        readouts.layout = "ir_mul"
        assert torch.equal(readouts._gather(features[:, torch.cat(order)], degree), expected)


@pytest.mark.skipif(
    importlib.util.find_spec("cuequivariance_torch") is None, reason="needs cuequivariance-torch"
)
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_a_converted_backbone_gives_the_same_model(layout, device):
    from mace.cli.convert_e3nn_cueq import run as convert

    model = random_model(EVERYTHING, hidden_irreps="8x0e+8x1o+8x2e")
    backbone = convert(model.short_range(), layout=layout)
    assert feature_layout(backbone) == layout
    converted = MultipoleMACE.from_mace(backbone, EVERYTHING).double().to(device)
    head = model.multipole_readouts.state_dict()
    converted.multipole_readouts.load_state_dict(head)
    for atoms in (salty_water(), rock_salt()):
        expected, found = evaluate(model, atoms), evaluate(converted, atoms)
        for name in ("energy", "forces", "charges", "atomic_dipoles", "atomic_quadrupoles"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
