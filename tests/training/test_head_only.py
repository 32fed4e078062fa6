"""Training the head alone: what is cached is exact, and what is frozen stays."""

import copy

import numpy as np
import pytest
import torch
from mace.tools import torch_geometric

from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.labelled import asking
from mace_polmp.training import head_only
from mace_polmp.training.head_only import (
    CachedBackbone,
    backbone_parameters,
    cached_loader,
    frozen,
)
from tests.helpers import make_graphs, random_model, rock_salt, salty_water, wet_slab

STRUCTURES = [salty_water(), rock_salt(), wet_slab(), salty_water()]
CPU = torch.device("cpu")


def labelled_graphs(model):
    graphs = make_graphs(STRUCTURES, model)
    random = torch.Generator().manual_seed(0)
    for graph in graphs:
        graph.forces = torch.randn(graph.positions.shape, generator=random, dtype=torch.float64)
    return graphs


def loader_of(graphs):
    return torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs), drop_last=True)


def both(model, n_directions, seed=0):
    """One batch on cached features, and the same structures in the model itself."""
    graphs = labelled_graphs(model)
    loader = cached_loader(model, loader_of(graphs), n_directions, seed, CPU)
    cached = torch_geometric.Batch.from_data_list(list(loader.dataset)).to_dict()
    plain = torch_geometric.Batch.from_data_list(graphs).to_dict()
    return CachedBackbone(model)(cached, training=True), model(plain, training=True), plain


@pytest.mark.parametrize("irreps", ["8x0e", "8x0e+8x1o"])
@pytest.mark.parametrize("charges", ["none", "softness"])
def test_with_all_directions_nothing_is_left_out(irreps, charges):
    options = LongRangeOptions(polarizability="anisotropic", constrain_charge=charges)
    model = random_model(options, hidden_irreps=irreps)
    n_directions = 3 * max(len(atoms) for atoms in STRUCTURES)
    cached, plain, _ = both(model, n_directions)
    for name in ("energy", "interaction_energy", "forces", "dipole", "charges", "polarizability"):
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-9, atol=1e-9)
    slopes = [
        torch.autograd.grad((out["forces"] ** 2).sum() + out["energy"].sum(), parameters)
        for out in (cached, plain)
        for parameters in [model.head_parameters()]
    ]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_labels_of_crystals_are_compared_on_cached_features_too():
    options = LongRangeOptions(charge_readout="bond", induced="dipole", epsilon_infinity=2.0)
    model = random_model(options)
    graphs = labelled_graphs(model)
    for graph in graphs:
        graph.polarization_weight = torch.tensor(1.0, dtype=torch.float64)
        graph.polarizability_weight = torch.ones(1, 3, 3, dtype=torch.float64)
    loader = cached_loader(model, loader_of(graphs), 2, 0, CPU)
    found = []
    with asking(model, ["polarizability", "charges"]):
        for dataset, evaluate in ((list(loader.dataset), CachedBackbone(model)), (graphs, model)):
            data = torch_geometric.Batch.from_data_list(dataset).to_dict()
            found.append(evaluate(data, training=True))
    for name in ("polarization", "cell_polarizability"):
        assert found[1][name].abs().max() > 1e-3
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-10)


def test_few_directions_estimate_the_loss_without_bias():
    """The mean over random directions of the squared errors of forces is that of all forces."""
    model = random_model()
    estimates = []
    for seed in range(60):
        cached, plain, data = both(model, 4, seed)
        estimates.append(float(((cached["forces"] - data["forces"]) ** 2).mean().detach()))
    exact = float(((plain["forces"] - data["forces"]) ** 2).mean().detach())
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - exact) < 4 * error
    assert error < 0.1 * exact


def test_structures_without_cache_are_evaluated_as_ever():
    model = random_model()
    data = torch_geometric.Batch.from_data_list(labelled_graphs(model)).to_dict()
    a, b = CachedBackbone(model)(dict(data)), model(dict(data))
    torch.testing.assert_close(a["forces"], b["forces"])


def test_the_backbone_is_frozen_for_a_while():
    model = random_model(LongRangeOptions(epsilon_infinity="learn"))
    model.node_embedding.linear.weight.requires_grad_(False)  # as --freeze does
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with frozen(backbone_parameters(model)):
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {
            name for name in before if name.startswith(("multipole_readouts", "raw_permittivity"))
        }
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_what_would_not_fit_is_not_cached(monkeypatch, caplog):
    model = random_model()
    monkeypatch.setattr(head_only, "_MOST_MEMORY", 1000)
    assert cached_loader(model, loader_of(labelled_graphs(model)), 8, 0, CPU) is None
    assert "without a cache" in caplog.text


def test_the_given_structures_are_not_changed():
    model = random_model()
    graphs = labelled_graphs(model)
    before = [copy.copy(graph).to_dict() for graph in graphs]
    cached_loader(model, loader_of(graphs), 4, 0, CPU)
    for graph, old in zip(graphs, before, strict=True):
        assert set(graph.to_dict()) == set(old)
        torch.testing.assert_close(graph.positions, old["positions"])
