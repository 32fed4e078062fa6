"""Slabs: two-dimensional lattice sums, the limit of growing vacuum, exact derivatives."""

import math

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from mace_polmp.units import COULOMB_CONSTANT, EPS0
from tests.devices import there
from tests.electrostatics.common import evaluate, random_system

pytestmark = pytest.mark.usefixtures("device")

# At the published spacing of 2 Å the sharp sphere of wave vectors makes energies depend on the
# height of the cell; here it is converged.
TIGHT = Electrostatics(kspace_spacing=1.2)
IN_PLANE = torch.tensor([[8.0, 0.0], [2.0, 7.5]], dtype=torch.float64)


def slab(height, axis=2, n=12, thickness=5.0, seed=0):
    """A random slab with a Cartesian axis for normal."""
    positions, multipoles, response = random_system(n, seed=seed, size=1.0)
    inside = torch.cat([positions[:, :2] @ IN_PLANE, thickness * positions[:, 2:]], dim=1)
    cell = torch.block_diag(IN_PLANE, torch.tensor([[height]], dtype=torch.float64))
    turn = torch.roll(torch.arange(3), axis + 1)  # cyclic: no reflection
    pbc = torch.tensor([True, True, False])[turn]

    def turned(x):
        for dim in range(1, x.dim()):
            x = x.index_select(dim, turn)
        return x

    multipoles = Multipoles(
        multipoles.charge, turned(multipoles.dipole), turned(multipoles.quadrupole)
    )
    response = ResponseCoefficients(response.softness, turned(response.polarizability))
    return turned(inside), multipoles, response, turned(cell)[turn], pbc


def run(positions, multipoles, response, cell, pbc, engine=TIGHT, strain=None):
    strain = torch.zeros(3, 3, dtype=positions.dtype) if strain is None else strain
    return there(engine)(
        positions + positions @ strain,
        (cell + cell @ strain)[None],
        pbc[None],
        torch.zeros(len(positions), dtype=torch.int64),
        multipoles,
        response,
    )


def derivatives(*arguments):
    positions = arguments[0].clone().requires_grad_(True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    out = run(positions, *arguments[1:], strain=strain)
    return out, *torch.autograd.grad(out.energy.sum(), [positions, strain])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_limit_of_growing_vacuum(axis):
    """Energy, forces, potential, field and in-plane stress do not depend on the vacuum."""
    a, forces_a, stress_a = derivatives(*slab(20.0, axis))
    b, forces_b, stress_b = derivatives(*slab(80.0, axis))
    plane = torch.arange(3) != axis
    for x, y in (
        (a.energy, b.energy),
        (a.potential, b.potential),
        (a.field, b.field),
        (forces_a, forces_b),
        (stress_a[plane][:, plane], stress_b[plane][:, plane]),
    ):
        assert (x - y).norm() < 1e-4 * y.norm()


def test_which_axis_is_open_does_not_matter():
    """Turning the slab turns the results."""
    reference = run(*slab(24.0, axis=2))
    for axis in (0, 1):
        turned = run(*slab(24.0, axis=axis))
        torch.testing.assert_close(turned.energy, reference.energy)
        torch.testing.assert_close(turned.potential, reference.potential)


def test_lattice_sum_of_charges():
    """½ Σ q_i q_j f(r_ij + T) over all in-plane translations T, by brute force.

    The sum over whole disks of radius R of a neutral cell differs from the limit by c/R + …;
    a smooth edge and two radii remove that term.
    """
    positions, multipoles, _, cell, pbc = slab(30.0, n=6)
    charges = Multipoles(multipoles.charge)
    n = torch.cartesian_prod(*(torch.arange(-60, 61, dtype=torch.float64),) * 2)
    shift = torch.cat([n @ IN_PLANE, torch.zeros(len(n), 1, dtype=torch.float64)], dim=1)
    shift = shift[shift.norm(dim=1) < 400.0]
    distance = (positions[:, None, None] - positions[None, :, None] + shift).norm(dim=-1)
    kernel = COULOMB_CONSTANT * torch.erf(distance / math.sqrt(2.0)) / distance.clamp(min=1e-9)
    kernel = torch.where(distance < 1e-9, 0.0, kernel)
    pairs = charges.charge[:, None] * charges.charge
    sums = []
    for radius in (100.0, 200.0):
        edge = torch.exp(-((shift.norm(dim=1) / radius) ** 4))
        sums.append(0.5 * (pairs * (kernel * edge).sum(-1)).sum())
    limit = 2.0 * sums[1] - sums[0]
    energy = run(positions, charges, None, cell, pbc).energy_permanent[0]
    assert abs(energy - limit) < 1e-4 * abs(limit)


def test_formula_of_yeh_and_berkowitz():
    """With the same cell, slab minus periodic is M²/(2 eps0 V), M = Σ q z + μ_z."""
    positions, multipoles, _, cell, pbc = slab(20.0)
    a = run(positions, multipoles, None, cell, pbc)
    b = run(positions, multipoles, None, cell, torch.ones(3, dtype=torch.bool))
    moment = (multipoles.charge * positions[:, 2] + multipoles.dipole[:, 2]).sum()
    expected = moment**2 / (2.0 * EPS0 * torch.linalg.det(cell))
    torch.testing.assert_close(a.energy[0] - b.energy[0], expected, rtol=1e-9, atol=1e-9)


def test_potential_and_field_are_derivatives_of_the_energy():
    """φ = ∂E/∂q, E = −∂E/∂μ, and ½ ∂²φ/∂r∂r = ∂E/∂Q: corrections act alike on all multipoles."""
    positions, multipoles, _, cell, pbc = slab(20.0, axis=1)
    sources = [x.clone().requires_grad_(True) for x in vars(multipoles).values()]
    out = run(positions, Multipoles(*sources), None, cell, pbc)
    of_charge, of_dipole, of_quadrupole = torch.autograd.grad(out.energy.sum(), sources)
    torch.testing.assert_close(of_charge, out.potential)
    torch.testing.assert_close(of_dipole, -out.field)

    # Of an atom without charge and moments, moved by hand.
    probe = Multipoles(
        *(x.index_fill(0, torch.tensor([3]), 0.0) for x in vars(multipoles).values())
    )
    probe = Multipoles(probe.charge - probe.charge.sum() / 11, probe.dipole, probe.quadrupole)
    probe.charge[3] = 0.0
    sources = [x.clone().requires_grad_(True) for x in vars(probe).values()]
    moved = positions.clone().requires_grad_(True)
    out = run(moved, Multipoles(*sources), None, cell, pbc)
    of_quadrupole = torch.autograd.grad(out.energy.sum(), sources[2], retain_graph=True)[0][3]
    gradient = torch.autograd.grad(out.potential[3], moved, create_graph=True)[0][3]
    torch.testing.assert_close(gradient, -out.field[3])
    rows = [torch.autograd.grad(g, moved, retain_graph=True)[0][3] for g in gradient]
    second = 0.5 * torch.stack(rows)
    second -= second.trace() / 3 * torch.eye(3, dtype=torch.float64)  # Q has no trace
    torch.testing.assert_close(of_quadrupole, second, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["ewald", "mesh"])
def test_second_derivatives_for_training(solver):
    positions, multipoles, response, cell, pbc = slab(16.0, n=3)
    engine = Electrostatics(solver=solver)
    names = (positions, torch.zeros(3, 3, dtype=torch.float64), *vars(multipoles).values())
    inputs = [x.clone().requires_grad_(True) for x in names]

    def energy(r, strain, q, mu, quadrupole):
        sources = Multipoles(q - q.mean(), mu, quadrupole)
        return run(r, sources, response, 1.3 * cell, pbc, engine, strain).energy

    assert torch.autograd.gradcheck(energy, inputs, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(energy, inputs, atol=1e-5, rtol=1e-4)


def test_mixed_with_other_structures(caplog):
    """A slab, an open structure, a small periodic one and one on a mesh in one batch."""
    flat = slab(20.0, axis=0)
    others = [random_system(n, seed=n) for n in (5, 7, 1500)]
    cells = [flat[3], torch.zeros(3, 3).double(), 9.0 * torch.eye(3).double()]
    cells.append(torch.diag(torch.tensor([25.0, 26.0, 25.5], dtype=torch.float64)))
    others[-1] = (5.0 * others[-1][0], *others[-1][1:])
    pbc = torch.stack([flat[4], *(torch.tensor([p] * 3) for p in (False, True, True))])
    systems = [flat[:3], *others]
    batch = torch.repeat_interleave(torch.arange(4), torch.tensor([12, 5, 7, 1500]))
    engine = Electrostatics()
    field = torch.full((4, 3), 0.1, dtype=torch.float64)
    caplog.set_level("DEBUG")
    out = there(engine)(
        torch.cat([s[0] for s in systems]),
        torch.stack(cells),
        pbc,
        batch,
        Multipoles(*(torch.cat([getattr(s[1], k) for s in systems]) for k in vars(flat[1]))),
        ResponseCoefficients(
            *(
                torch.cat([getattr(s[2], k) for s in systems])
                for k in ("softness", "polarizability")
            )
        ),
        external_field=field,
    )
    assert "structure 3: 1500 atoms, particle mesh" in caplog.text
    for number, s in enumerate(systems):
        single = there(engine)(
            s[0],
            cells[number][None],
            pbc[number, None],
            torch.zeros_like(batch[: len(s[0])]),
            *s[1:],
            external_field=field[:1],
        )
        torch.testing.assert_close(out.energy[number], single.energy[0], rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(out.potential[batch == number], single.potential)
        torch.testing.assert_close(out.field[batch == number], single.field)


def test_refusals():
    positions, multipoles, response, cell, pbc = slab(20.0)
    with pytest.raises(ValueError, match=r"pbc T T F, .* leaves 4\.3 Å of vacuum, and 11\.6 Å are"):
        run(positions, multipoles, response, slab(8.0)[3], pbc)
    wrapped = positions.clone()
    wrapped[0, 2] += 20.0
    with pytest.raises(ValueError, match="leaves 0.0 Å of vacuum.*back next to it"):
        run(wrapped, multipoles, response, cell, pbc)
    charged = Multipoles(multipoles.charge + 0.1, multipoles.dipole, multipoles.quadrupole)
    with pytest.raises(ValueError, match=r"charges that sum to 1\.2 e, .* charged slab"):
        run(positions, charged, response, cell, pbc)
    with pytest.raises(ValueError, match="pbc T F F: a single periodic direction"):
        run(positions, multipoles, response, cell, torch.tensor([True, False, False]))
    flat = cell.clone()
    flat[2] = 0.0
    with pytest.raises(ValueError, match="a slab needs vacuum along the third"):
        run(positions, multipoles, response, flat, pbc)


def test_the_open_boundary_needs_no_vacuum():
    """A structure with a cell but pbc F F F is not a slab."""
    positions, multipoles, _, cell, _ = slab(6.0)
    with_cell = run(positions, multipoles, None, cell, torch.zeros(3, dtype=torch.bool))
    without = evaluate(positions, multipoles)
    torch.testing.assert_close(with_cell.energy, without.energy)
