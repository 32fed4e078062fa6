"""The head alone, on features that belong to no network: what it refuses, what it conserves."""

import dataclasses

import pytest
import torch

from mace_polmp.head import Edges, HeadInput, LongRangeHead, LongRangeOptions
from tests.electrostatics.test_plan_value import SLAB, F, T, batch_of

ELEMENTS = [1, 8]


def make_head(layers=("6x0e+2x1o",), **options):
    torch.manual_seed(0)
    head = LongRangeHead(LongRangeOptions(**options), layers, ELEMENTS, 4, 3.0, 5.0)
    return head.double()


def make_input(kinds=(F,), sizes=(6,), width=12, **changes):
    positions, cell, pbc, batch, *_ = batch_of(list(kinds), list(sizes))
    n = len(positions)
    pairs = [(a, b) for a in range(n) for b in range(n) if a != b and batch[a] == batch[b]]
    index = torch.tensor(pairs).t()
    positions.requires_grad_(True)
    vectors = positions[index[1]] - positions[index[0]]
    radial = torch.exp(-vectors.norm(dim=1, keepdim=True) * torch.arange(1, 5))
    features = torch.randn(n, width, generator=torch.Generator().manual_seed(1)).double()
    attributes = torch.eye(2).double()[torch.arange(n) % 2]
    edges = Edges(index, vectors, radial)
    given = HeadInput(positions, cell, pbc, batch, 0.3 * features, attributes, edges)
    return dataclasses.replace(given, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"node_feats": torch.zeros(6, 13).double()},
            ValueError,
            r"node_feats must be \[n_atoms, 12",
        ),
        (
            {"node_feats": torch.zeros(6, 5).double()},
            ValueError,
            r"node_feats must be \[n_atoms, 12",
        ),
        (
            {"node_attrs": torch.zeros(6, 3).double()},
            ValueError,
            r"node_attrs must be \[n_atoms, 2",
        ),
        ({"node_feats": torch.zeros(6, 12)}, TypeError, "node_feats must have the dtype of pos"),
        ({"edges": None}, ValueError, "edges are missing: this head reads them"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        make_head()(make_input(**changes))


def test_features_without_scalars_are_refused():
    with pytest.raises(ValueError, match="layer_irreps must have scalars"):
        make_head(["4x1o"])


@pytest.mark.parametrize("kind", [F, T, SLAB])
def test_a_plan_changes_nothing(kind):
    head, given = make_head(), make_input([kind], [8])
    plan = head.electrostatics.plan(given.cell, given.pbc, [8])
    out, planned = head(given), head(dataclasses.replace(given, plan=plan))
    for name in ("energy", "charges", "dipole", "polarizability", "atomic_quadrupoles"):
        torch.testing.assert_close(getattr(out, name), getattr(planned, name))


@pytest.mark.parametrize("how", ["softness", "uniform"])
def test_charges_sum_to_the_total_charge(how):
    total = torch.tensor([1.0, -2.0]).double()
    given = make_input([F, T], [5, 7], total_charge=total)
    out = make_head(constrain_charge=how)(given)
    torch.testing.assert_close(out.sums.total(out.charges), total)
    assert out.charge_shift.shape == (2,)


def test_the_charges_of_a_slab_sum_to_zero():
    out = make_head(induced="none")(make_input([SLAB, T], [6, 5]))
    sums = out.sums.total(out.charges)
    assert sums[0].abs().item() < 1e-12 < sums[1].abs().item()


def test_the_dipole_is_the_derivative_by_the_field():
    field = torch.tensor([[0.01, -0.02, 0.03]]).double().requires_grad_(True)
    out = make_head()(make_input(external_field=field))
    (slope,) = torch.autograd.grad(out.energy.sum(), field)
    torch.testing.assert_close(-slope, out.dipole.detach())
