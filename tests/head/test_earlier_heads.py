"""Heads that torch.save wrote by themselves, by an earlier version, give what they gave.

tests/models/head.pt is LongRangeHead(None, ["6x0e"], [1, 8], n_radial=4, avg_num_neighbors=3.0,
cutoff=5.0) after torch.manual_seed(0), of 25 November 2026: before charges were read by layers or
induced along bonds, and before the soft edge. head.json is what it gave then for what given() has.
"""

import json
from pathlib import Path

import pytest
import torch

from mace_polmp.head import Edges, HeadInput, LongRangeHead

MODELS = Path(__file__).parents[1] / "models"


def given():
    generator = torch.Generator().manual_seed(1)
    x = 2.0 * torch.randn(3, 3, generator=generator)
    x.requires_grad_()
    index = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
    vectors = x[index[1]] - x[index[0]]
    radial = torch.exp(-vectors.norm(dim=1, keepdim=True) * torch.arange(1, 5))
    features = torch.zeros(3, 6).index_add(0, index[1], radial.repeat(1, 2)[:, :6])
    cell, pbc = 7.3 * torch.eye(3)[None], torch.ones(1, 3, dtype=torch.bool)
    atoms = torch.eye(2)[[1, 0, 0]]
    batch = torch.zeros(3, dtype=torch.int64)
    return x, HeadInput(x, cell, pbc, batch, features, atoms, Edges(index, vectors, radial))


@pytest.fixture
def head(double):
    return torch.load(MODELS / "head.pt", weights_only=False)


def test_a_head_of_an_earlier_version_gives_what_it_gave(head):
    expected = json.loads((MODELS / "head.json").read_text())
    x, inputs = given()
    out = head(inputs)
    (gradient,) = torch.autograd.grad(out.energy.sum(), x)
    found = {"energy": out.energy.sum(), "charges": out.charges, "gradient": gradient}
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].detach(), torch.tensor(value), rtol=1e-12, atol=1e-12, msg=name
        )


def test_it_says_what_it_does_and_goes_on_as_one_of_today(head, tmp_path):
    """With the sharp edge and one-step response that it had; saved again nothing changes."""
    assert head.options is head.readouts.options
    assert head.options.kspace_taper == head.electrostatics.taper == 0.0
    assert head.options.response == "one_step"
    again = LongRangeHead(head.options, ["6x0e"], [1, 8], 4, 3.0, 5.0)
    again.load_state_dict(head.state_dict())
    torch.save(again, tmp_path / "head.pt")
    loaded = torch.load(tmp_path / "head.pt", weights_only=False)
    assert loaded.options == head.options
    assert float(loaded(given()[1]).energy.detach().sum()) == float(
        head(given()[1]).energy.detach().sum()
    )


def test_readouts_by_themselves(head, tmp_path):
    """They lack the same parts: without them they are as ready."""
    readouts = head.readouts
    for name in ("layers", "bond_softness"):
        assert getattr(readouts, name) is None
        vars(readouts).pop(name, None)
        readouts._modules.pop(name, None)
    torch.save(readouts, tmp_path / "readouts.pt")
    loaded = torch.load(tmp_path / "readouts.pt", weights_only=False)
    inputs = given()[1]
    multipoles, _ = loaded(inputs.node_feats, inputs.node_attrs, inputs.edges)
    assert multipoles.charge.abs().max() > 1e-3
