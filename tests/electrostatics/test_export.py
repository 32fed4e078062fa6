"""With a plan the engine is a graph: torch.export takes it whole, and gives what it gives."""

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from mace_polmp.head import Edges, HeadInput, LongRangeHead
from tests.electrostatics.test_plan_value import SLAB, F, T, batch_of

CASES = {
    "open": ([F], [6], "auto"),
    "many pairs": ([F], [40], "auto"),
    "direct": ([T], [20], "ewald"),
    "mesh": ([T], [20], "mesh"),
    "slab": ([SLAB], [12], "ewald"),
    "mixed": ([T, F, SLAB], [7, 4, 6], "ewald"),
}


class Planned(torch.nn.Module):
    """The engine for structures that a plan is of."""

    def __init__(self, engine, pbc, batch, plan):
        super().__init__()
        self.engine, self.pbc, self.batch, self.plan = engine, pbc, batch, plan

    def forward(self, positions, cell, charge, dipole, quadrupole, softness, polarizability):
        out = self.engine(
            positions,
            cell,
            self.pbc,
            self.batch,
            Multipoles(charge, dipole, quadrupole),
            ResponseCoefficients(softness, polarizability),
            plan=self.plan,
        )
        return out.energy, out.induced_charge, out.induced_dipole, out.potential, out.field


@pytest.mark.parametrize("fixed_cells", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_engine_is_exported(name, fixed_cells):
    kinds, sizes, solver = CASES[name]
    engine = Electrostatics(solver=solver, taper=0.1)
    positions, cell, pbc, batch, multipoles, response = batch_of(kinds, sizes)
    plan = engine.plan(cell, pbc, sizes)
    plan = plan.for_cells(cell, cell.dtype) if fixed_cells else plan
    module = Planned(engine, pbc, batch, plan)
    inputs = (
        positions,
        cell,
        *vars(multipoles).values(),
        response.softness,
        response.polarizability,
    )
    exported = torch.export.export(module, inputs).module()
    elsewhere = (positions + 0.01 * torch.randn_like(positions), *inputs[1:])
    for given in (inputs, elsewhere):
        for found, expected in zip(exported(*given), module(*given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Head(torch.nn.Module):
    def __init__(self, head, pbc, batch, plan, index):
        super().__init__()
        self.head, self.pbc, self.batch, self.plan, self.index = head, pbc, batch, plan, index

    def forward(self, positions, cell, features, attributes):
        vectors = positions[self.index[1]] - positions[self.index[0]]
        radial = torch.exp(-vectors.norm(dim=1, keepdim=True) * torch.arange(1, 5))
        edges = Edges(self.index, vectors, radial)
        out = self.head(
            HeadInput(
                positions, cell, self.pbc, self.batch, features, attributes, edges, plan=self.plan
            )
        )
        return out.energy, out.charges, out.dipole, out.polarizability


def test_the_head_is_exported():
    torch.manual_seed(0)
    head = LongRangeHead(None, ["6x0e"], [1, 8], n_radial=4, avg_num_neighbors=3.0, cutoff=5.0)
    head = head.double()
    positions, cell, pbc, batch, *_ = batch_of([T], [12])
    plan = head.electrostatics.plan(cell, pbc, [12])
    index = torch.tensor([[a, b] for a in range(12) for b in range(12) if a != b]).t()
    features, attributes = torch.randn(12, 6).double(), torch.eye(2).double().repeat(6, 1)
    module, inputs = Head(head, pbc, batch, plan, index), (positions, cell, features, attributes)
    exported = torch.export.export(module, inputs).module()
    for found, expected in zip(exported(*inputs), module(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
