"""Blocks that are evaluated again in the backward pass, to any order of derivative."""

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, ewald, pairs
from mace_polmp.electrostatics.recompute import recomputed
from tests.devices import there
from tests.electrostatics.common import TRICLINIC, evaluate, random_system

pytestmark = pytest.mark.usefixtures("device")


def function(x, y):
    return (torch.sin(x) * y, (x * y**3).sum()[None])


def test_derivatives_of_every_order():
    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1.1, 0.4, -0.7], dtype=torch.float64, requires_grad=True)
    fixed = torch.ones(3, dtype=torch.float64)
    for inputs in ((x, y), (x, fixed)):
        leaves = [t for t in inputs if t.requires_grad]
        values = [f(*inputs) for f in (function, there(lambda *t: recomputed(function, *t)))]
        totals = [(a**2).sum() * b.sum() for a, b in values]
        for _ in range(4):
            torch.testing.assert_close(totals[1], totals[0])
            gradients = [torch.autograd.grad(t, leaves, create_graph=True) for t in totals]
            totals = [sum((g**2).sum() for g in gs) for gs in gradients]


def test_without_a_graph():
    x = torch.rand(3, dtype=torch.float64)
    for a, b in zip(there(recomputed)(function, x, x), function(x, x), strict=True):
        torch.testing.assert_close(a, b)
        assert not a.requires_grad


@pytest.mark.parametrize("cell", [None, TRICLINIC])
def test_blocks_of_pairs_and_atoms_do_not_matter(monkeypatch, cell):
    """Energy, forces, and the gradient of a loss on forces, however small the blocks."""
    positions, multipoles, response = random_system(9)
    found = []
    for size in (None, 7):
        if size is not None:
            for limit in ("_BLOCK_CPU", "_BLOCK_GPU"):
                monkeypatch.setattr(pairs, limit, size)
                monkeypatch.setattr(ewald, limit, 400 * size)
        x = positions.clone().requires_grad_(True)
        engine = Electrostatics(solver="ewald")
        energy = evaluate(x, multipoles, response, cell=cell, engine=engine).energy.sum()
        (forces,) = torch.autograd.grad(energy, x, create_graph=True)
        (loss,) = torch.autograd.grad((forces**2).sum(), x)
        found.append((energy, forces, loss))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)


def test_memory_of_many_pairs_is_bounded(monkeypatch):
    """Tensors saved for the backward pass grow with the atoms, not with their pairs."""
    monkeypatch.setattr(pairs, "_BLOCK_GPU", pairs._BLOCK_CPU)  # for which these are few
    positions, multipoles, response = random_system(900, size=20.0)
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    x = positions.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        evaluate(x, multipoles, response)
    assert max(saved) < 20 * 900
    assert sum(saved) < 1000 * 900
