"""With a plan torch.compile takes the engine whole, and once: other positions are no new graph."""

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from mace_polmp.modules.compiled import LIMITS
from tests.electrostatics.test_export import CASES
from tests.electrostatics.test_plan_value import T, batch_of


def energy_and_forces(function, positions, *inputs):
    positions = positions.clone().requires_grad_(True)
    energy = function(positions, *inputs)
    return energy.detach(), torch.autograd.grad(energy.sum(), positions)[0]


@pytest.mark.parametrize("name", CASES)
def test_the_engine_is_compiled_without_a_break(name):
    kinds, sizes, solver = CASES[name]
    engine = Electrostatics(solver=solver, taper=0.1)
    positions, cell, pbc, batch, multipoles, response = batch_of(kinds, sizes)
    plan = engine.plan(cell, pbc, sizes, margin=0.05)

    def energy(positions, cell, charge, dipole, quadrupole, softness, polarizability):
        found = engine(
            positions,
            cell,
            pbc,
            batch,
            Multipoles(charge, dipole, quadrupole),
            ResponseCoefficients(softness, polarizability),
            plan=plan,
        )
        return found.energy

    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(energy, fullgraph=True, backend=backend)
    more = (*vars(multipoles).values(), response.softness, response.polarizability)
    for scale in (1.0, 1.02):  # as in a run at constant pressure
        moved = scale * positions + 0.01 * torch.randn_like(positions)
        given = (moved, scale * cell, *more)
        expected = energy_and_forces(energy, *given)
        for found, value in zip(energy_and_forces(compiled, *given), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    assert len(graphs) == 1


def test_other_meshes_and_settings_are_other_functions():
    """As CompiledPass has it: nothing becomes a symbol but what is said to."""
    positions, cell, pbc, batch, multipoles, response = batch_of([T], [20])
    torch._dynamo.reset()

    def energy(engine, positions, cell, plan):
        return engine(positions, cell, pbc, batch, multipoles, response, plan=plan).energy

    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(LIMITS):
        for smearing, scale in ((1.0, 1.0), (1.0, 1.4), (1.1, 1.4)):
            engine = Electrostatics(smearing=smearing, solver="mesh")
            given = (engine, scale * positions, scale * cell)
            plan = engine.plan(scale * cell, pbc, [20])
            expected = energy(*given, plan)
            torch.testing.assert_close(compiled(*given, plan), expected, rtol=1e-12, atol=1e-12)
