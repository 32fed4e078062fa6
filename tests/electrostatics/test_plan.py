"""Which solver evaluates what, and that the result does not depend on it."""

import logging

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics
from mace_polmp.electrostatics.grouping import direct_cost, mesh_cost
from mace_polmp.electrostatics.mesh import window_width
from tests.devices import there
from tests.electrostatics.common import evaluate, random_system

pytestmark = pytest.mark.usefixtures("device")


def crystal(n_atoms, edge):
    """Random multipoles spread over a cubic cell."""
    positions, multipoles, response = random_system(n_atoms, size=edge)
    return positions, multipoles, response, edge * torch.eye(3, dtype=torch.float64)


def test_auto_takes_the_direct_sum_for_small_and_the_mesh_for_large_cells(caplog):
    caplog.set_level(logging.DEBUG, logger="mace_polmp")
    for n_atoms, edge, words in (
        (8, 5.0, "structure 0: 8 atoms, direct k-space sum, |n| up to 2 × 2 × 2"),
        (192, 12.4, "structure 0: 192 atoms, direct"),
        (3000, 31.0, "structure 0: 3000 atoms, particle mesh, 48 × 48 × 48 points"),
    ):
        caplog.clear()
        found = {}
        for solver in ("auto", "ewald"):
            out = evaluate(*crystal(n_atoms, edge), engine=Electrostatics(solver=solver))
            found[solver] = out.energy.item()
            if solver == "auto":
                assert words in caplog.text
        assert found["auto"] == pytest.approx(found["ewald"], rel=1e-6)
    caplog.clear()
    evaluate(*random_system(5))
    assert "structure 0: 5 atoms, open, all pairs" in caplog.text


def test_costs_grow_as_the_solvers_do():
    """At constant density the direct sum grows with N², the mesh with N."""
    costs = []
    for times in (10, 20, 40):
        n_atoms, limits = 3 * times**3, (times, times, times)
        costs.append((direct_cost(n_atoms, limits), mesh_cost(n_atoms, limits, 10)))
    for (direct, mesh), (direct_8, mesh_8) in zip(costs, costs[1:], strict=False):
        assert direct_8 / direct > 25
        assert mesh_8 / mesh < 8.5


def test_width_of_the_window():
    assert window_width(1e-3) < window_width(1e-5) < window_width(1e-7)
    assert window_width(1.0) == window_width(1e-3)
    for accuracy in (1e-9, 0.0, -1.0):
        with pytest.raises(ValueError, match="mesh_accuracy must be at least 3e-08, got"):
            window_width(accuracy)


def test_check_refuses_without_multipoles():
    """What can be refused before there are charges."""
    engine = Electrostatics(solver="mesh")
    batch = torch.zeros(2, dtype=torch.int64)
    positions = torch.rand(2, 3)
    off = torch.zeros(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="structure 0 is open"):
        there(engine.check)(positions, torch.eye(3)[None], off, batch)
    there(engine.check)(positions, 20 * torch.eye(3)[None], ~off, batch)
