"""A plan is a value: made from numbers once, it gives what the engine gives without it."""

import dataclasses

import numpy as np
import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from tests.devices import current

pytestmark = pytest.mark.usefixtures("device")

DOUBLE = torch.float64
F, T = (False,) * 3, (True,) * 3
SLAB = (True, True, False)


def batch_of(kinds, sizes, lengths=None, seed=0, dtype=torch.float64):
    """Random multipoles of neutral structures, their cells, boundary conditions and numbers."""
    rng = torch.Generator().manual_seed(seed)
    positions, cells, batch = [], [], []
    for number, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        length = 12.0 if lengths is None else lengths[number]
        cell = torch.eye(3) * length + 0.3 * torch.rand(3, 3, generator=rng)
        atoms = torch.rand(size, 3, generator=rng) * length
        if kind == SLAB:
            cell = torch.diag(torch.tensor([length, length, 4.0 * length]))
            atoms[:, 2] *= 0.3
        positions.append(atoms)
        cells.append(cell)
        batch += [number] * size
    batch = torch.tensor(batch)
    n = len(batch)
    charge = torch.randn(n, generator=rng).double()
    mean = torch.zeros(len(kinds)).double().index_add(0, batch, charge)
    charge -= (mean / torch.tensor(sizes))[batch]
    quadrupole = torch.randn(n, 3, 3, generator=rng)
    quadrupole = quadrupole + quadrupole.transpose(1, 2)
    trace = quadrupole.diagonal(dim1=1, dim2=2).mean(1)
    quadrupole = quadrupole - trace[:, None, None] * torch.eye(3)
    place = dict(device=current(), dtype=dtype)
    multipoles = Multipoles(
        charge.to(**place), torch.randn(n, 3, generator=rng).to(**place), quadrupole.to(**place)
    )
    response = ResponseCoefficients(*(0.01 * torch.rand(2, n, generator=rng).to(**place)))
    pbc = torch.tensor(kinds, device=current())
    return (
        torch.cat(positions).to(**place),
        torch.stack(cells).to(**place),
        pbc,
        batch.to(current()),
        multipoles,
        response,
    )


CASES = {
    "open": ([F, F], [5, 9]),
    "periodic": ([T], [20]),
    "slab": ([SLAB], [12]),
    "mixed": ([T, F, SLAB, T, F], [7, 4, 6, 20, 3]),
}


@pytest.mark.parametrize("solver", ["auto", "ewald"])
@pytest.mark.parametrize("name", CASES)
def test_with_and_without_a_plan_results_are_the_same(name, solver):
    engine = Electrostatics(solver=solver)
    *system, response = batch_of(*CASES[name])
    positions, cell, pbc, batch, _ = system
    system[0] = positions.requires_grad_(True)
    plan = engine.plan(cell.cpu(), pbc.cpu(), CASES[name][1], device=current())
    for how in (plan, plan.for_cells(cell, cell.dtype)):
        outs = [engine(*system, response, plan=given) for given in (None, how)]
        for field in dataclasses.fields(outs[0]):
            one, other = (getattr(out, field.name) for out in outs)
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        forces = [torch.autograd.grad(out.energy.sum(), positions)[0] for out in outs]
        torch.testing.assert_close(*forces, rtol=1e-12, atol=1e-12)


def test_with_a_plan_nothing_waits_for_the_device():
    engine = Electrostatics()
    *system, response = batch_of(*CASES["mixed"])
    system[0].requires_grad_(True)
    plan = engine.plan(system[1].cpu(), system[2].cpu(), CASES["mixed"][1], device=current())
    shape, index = plan.shape, system[3].to("meta")
    on_meta = [x.to("meta") if torch.is_tensor(x) else x for x in system[:4]]
    multipoles = Multipoles(*(x.to("meta") for x in vars(system[4]).values()))
    coefficients = ResponseCoefficients(
        response.softness.to("meta"), response.polarizability.to("meta")
    )
    out = engine(*on_meta, multipoles, coefficients, plan=type(plan).of(shape, index))
    assert out.energy.device.type == "meta"  # where there are no numbers to wait for


def test_its_shape_is_a_value():
    engine = Electrostatics()
    _, cell, pbc, *_ = batch_of(*CASES["mixed"])
    shapes = [
        engine.plan(kind(cell.cpu()), kind(pbc.cpu()), counts).shape
        for kind, counts in ((torch.as_tensor, CASES["mixed"][1]), (np.asarray, [7, 4, 6, 20, 3]))
    ]
    assert shapes[0] == shapes[1] and hash(shapes[0]) == hash(shapes[1])
    assert len({shapes[0], engine.plan(2 * cell.cpu(), pbc.cpu(), CASES["mixed"][1]).shape}) == 2


def test_a_margin_lets_a_plan_serve_cells_that_grow():
    engine = Electrostatics(solver="ewald")
    *system, response = batch_of(*CASES["periodic"])
    cell = system[1].cpu()
    plan = engine.plan(cell, system[2].cpu(), [20], margin=0.1, device=current())
    for factor in (0.9, 1.0, 1.05):
        assert plan.covers(factor * cell, system[2].cpu(), [20])
        here = [system[0], factor * system[1], *system[2:]]
        one, other = engine(*here, response), engine(*here, response, plan=plan)
        torch.testing.assert_close(one.energy, other.energy, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.field, other.field, rtol=1e-11, atol=1e-12)


def test_what_a_plan_does_not_cover_is_no_number():
    """Rather than a wrong one."""
    engine = Electrostatics(solver="ewald")
    *system, response = batch_of(*CASES["mixed"])
    counts = CASES["mixed"][1]
    cell, pbc = system[1].cpu(), system[2].cpu()
    plan = engine.plan(cell, pbc, counts, device=current())
    larger = cell.clone()
    larger[3] *= 1.7
    assert plan.covers(cell, pbc, counts) and not plan.covers(larger, pbc, counts)
    assert not plan.covers(cell, ~pbc, counts) and not plan.covers(cell, pbc, counts[::-1])
    out = engine(system[0], larger.to(system[1]), *system[2:], response, plan=plan)
    assert torch.isnan(out.energy).tolist() == [False, False, False, True, False]
    assert torch.isnan(out.field).any(1).sum() == 20
    kept = plan.for_cells(system[1], system[1].dtype)
    out = engine(system[0], 0.99 * system[1], *system[2:], response, plan=kept)
    assert torch.isnan(out.energy).tolist() == [True, False, True, True, False]


def test_plans_of_other_structures_or_engines_are_refused():
    engine = Electrostatics()
    *system, _ = batch_of(*CASES["periodic"])
    cell, pbc = system[1].cpu(), system[2].cpu()
    with pytest.raises(ValueError, match="plan is of 1 structures with 7 atoms, got 1 with 20"):
        engine(*system, plan=engine.plan(cell, pbc, [7], device=current()))
    with pytest.raises(ValueError, match="plan is of an engine with other settings"):
        engine(*system, plan=Electrostatics(smearing=0.8).plan(cell, pbc, [20], device=current()))
    with pytest.raises(ValueError, match="must be of the same number of structures, got 1, 1 and"):
        engine.plan(cell, pbc, [20, 20])
    with pytest.raises(ValueError, match="margin must be a fraction of 0 or more"):
        engine.plan(cell, pbc, [20], margin=-0.1)


def test_unlike_cells_do_not_pay_for_the_largest():
    """Ten small cells and a long one: two groups; alike cells: one."""
    engine = Electrostatics(solver="ewald")
    kinds, sizes, lengths = [T] * 11, [6] * 11, [6.0] * 10 + [60.0]
    *system, response = batch_of(kinds, sizes, lengths)
    plan = engine.plan(system[1].cpu(), system[2].cpu(), sizes, device=current())
    assert [group.members for group in plan.shape.groups] == [tuple(range(10)), (10,)]
    whole = engine(*system, response, plan=plan)
    for number in (0, 9, 10):
        own = system[3] == number
        alone = engine(
            system[0][own],
            system[1][[number]],
            system[2][[number]],
            torch.zeros_like(system[3][own]),
            system[4].select(own),
            ResponseCoefficients(response.softness[own], response.polarizability[own]),
        )
        torch.testing.assert_close(alone.energy, whole.energy[[number]], rtol=1e-12, atol=1e-12)
    alike = batch_of([T] * 4, [20] * 4)
    assert len(engine.plan(alike[1].cpu(), alike[2].cpu(), [20] * 4).shape.groups) == 1


@pytest.mark.parametrize("name", CASES)
def test_the_operator_is_the_permanent_energy_and_field(name):
    """Linear in the multipoles, and symmetric: the energy is half of sources times potentials."""
    engine = Electrostatics()
    *system, response = batch_of(*CASES[name])
    positions, cell, pbc, batch, multipoles = system
    plan = engine.plan(cell.cpu(), pbc.cpu(), CASES[name][1], device=current())
    operator = engine.prepare(plan, positions, cell)
    out = engine(*system, response)
    torch.testing.assert_close(operator.energy(multipoles), out.energy_permanent)
    potential, field = operator.field(multipoles)
    torch.testing.assert_close(potential, out.potential)
    torch.testing.assert_close(field, out.field)
    charges = Multipoles(multipoles.charge)
    dipoles = Multipoles(torch.zeros_like(multipoles.charge), multipoles.dipole)
    potential, _ = operator.field(dipoles)
    _, field = operator.field(charges)
    sums = plan.sums
    one = sums.total(multipoles.charge * potential)
    other = -sums.total((multipoles.dipole * field).sum(1))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    both = Multipoles(multipoles.charge, multipoles.dipole)
    parts = operator.energy(charges) + operator.energy(dipoles) + one
    torch.testing.assert_close(operator.energy(both), parts, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taper", [0.1, 0.2])
def test_a_soft_edge_ends_the_jumps(taper):
    """Energies of a cell that grows: wave vectors cross the sphere."""
    *system, _ = batch_of([T], [60], [9.0])
    found = {}
    for edge in (0.0, taper):
        engine = Electrostatics(solver="ewald", taper=edge)
        energies = []
        for factor in np.linspace(0.98, 1.02, 400):
            here = [factor * system[0], factor * system[1], *system[2:]]
            energies.append(float(engine(*here).energy))
        found[edge] = np.abs(np.diff(energies, n=2)).max()
    assert found[taper] < 0.01 * found[0.0]


@pytest.mark.parametrize("solver", ["ewald", "mesh"])
def test_an_atom_alone_does_not_see_itself_with_a_soft_edge(solver):
    """In a large cell: the self terms are those of the tapered kernel."""
    engine = Electrostatics(solver=solver, taper=0.3, smearing=0.7, kspace_spacing=1.5)
    for name in ("charge", "dipole", "quadrupole"):
        one = {"charge": torch.zeros(1, dtype=torch.float64, device=current())}
        value = {"charge": [1.0], "dipole": [[0.3, -0.5, 0.9]]}.get(name)
        if value is None:
            value = [[[0.4, 0.2, 0.1], [0.2, -0.9, 0.3], [0.1, 0.3, 0.5]]]
        one[name] = torch.tensor(value, dtype=torch.float64, device=current())
        energies = []
        for length in (24.0, 48.0):
            cell = length * torch.eye(3, dtype=torch.float64, device=current())[None]
            where = torch.zeros(1, 3, dtype=torch.float64, device=current())
            flags = torch.ones(1, 3, dtype=torch.bool, device=current())
            batch = torch.zeros(1, dtype=torch.int64, device=current())
            out = engine(where, cell, flags, batch, Multipoles(**one))
            energies.append(float(out.energy))
        # What is left is the interaction with images and the background: L⁻¹ and L⁻³.
        power = 1 if name == "charge" else 3
        rest = (energies[1] * 2**power - energies[0]) / (2**power - 1)
        assert abs(rest) < 2e-3 * abs(energies[0]) + 1e-6, name


def test_plans_of_other_structures_give_no_numbers():
    """The same numbers of atoms in all, in other structures or with other boundary conditions."""
    engine = Electrostatics(solver="ewald")
    *system, response = batch_of([T, T], [4, 2])
    positions, cell, pbc, batch, multipoles = system
    good = engine.plan(cell.cpu(), pbc.cpu(), [4, 2], device=current())
    assert torch.isfinite(engine(*system, response, plan=good).energy).all()
    other_counts = engine.plan(cell.cpu(), pbc.cpu(), [2, 4], device=current())
    other_pbc = engine.plan(cell.cpu(), ~pbc.cpu(), [4, 2], device=current())
    shuffled = torch.tensor([1, 0, 0, 1, 0, 0], device=current())
    for plan, index in ((other_counts, batch), (other_pbc, batch), (good, shuffled)):
        out = engine(positions, cell, pbc, index, multipoles, response, plan=plan)
        assert torch.isnan(out.energy).all() and torch.isnan(out.field).all()


def test_a_plan_with_cells_that_it_does_not_cover_gives_no_numbers():
    engine = Electrostatics(solver="ewald")
    *system, response = batch_of(*CASES["periodic"])
    small = engine.plan(0.5 * system[1].cpu(), system[2].cpu(), [20], device=current())
    assert torch.isnan(engine(*system, response, plan=small.for_cells(system[1], DOUBLE)).energy)
    found = engine.plan_of(0.5 * system[1], system[2], system[3])
    assert torch.isnan(engine(*system, response, plan=found).energy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("excess", [0.0, 1e-15, 1e-9, 1e-7, 3e-7])
def test_wave_vectors_on_the_edge_do_no_harm(excess, dtype):
    """Weights and their slopes vanish there smoothly, also those of long wavelengths."""
    cell = (10.0 * (1.0 + excess)) * torch.linalg.qr(torch.randn(3, 3).double())[0]
    engine = Electrostatics(taper=0.1)
    plan = engine.plan(cell[None], torch.ones(1, 3, dtype=torch.bool), [2])
    (geometry,) = plan.for_cells(cell[None].to(dtype), dtype).geometry
    assert geometry.slope.isfinite().all() and geometry.slope.abs().max() < 1e3
    inside = (geometry.weight > 0) & (geometry.slope > 0)
    ratio = (geometry.slope / geometry.weight)[inside & (geometry.weight > 1e-6)]
    assert ratio.min() > 1.0  # σ² and more
