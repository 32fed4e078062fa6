"""The particle mesh is the direct sum to its accuracy, and exact in its own derivatives."""

import math

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients, checks
from mace_polmp.electrostatics import mesh as mesh_module
from tests.devices import there
from tests.electrostatics.common import (
    TRICLINIC,
    cast,
    check_second_derivatives,
    evaluate,
    random_system,
)

pytestmark = pytest.mark.usefixtures("device")

CELL = 1.6 * TRICLINIC  # 11 to 14 Å: room for every window


def system(n=40, seed=0, cell=CELL):
    """Random multipoles anywhere in and around the cell."""
    positions, multipoles, response = random_system(n, seed=seed, size=1.0)
    return (3.0 * positions - 1.0) @ cell, multipoles, response


def forces_and_stress(positions, multipoles, response, cell, engine):
    positions = positions.clone().requires_grad_(True)
    strain = torch.zeros(3, 3, dtype=positions.dtype, requires_grad=True)
    out = evaluate(
        positions + positions @ strain, multipoles, response, cell + cell @ strain, engine
    )
    gradients = torch.autograd.grad(out.energy.sum(), [positions, strain])
    return out, *gradients


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("accuracy", [1e-3, 1e-4, 1e-5, 1e-6, 5e-8])
@pytest.mark.parametrize("spacing", [2.0, 1.3])
def test_agrees_with_the_direct_sum(accuracy, spacing):
    """In forces to the accuracy asked for; energies, potentials and fields are better."""
    direct = Electrostatics(kspace_spacing=spacing, solver="ewald")
    mesh = Electrostatics(kspace_spacing=spacing, solver="mesh", mesh_accuracy=accuracy)
    for cell in (CELL, CELL[[1, 0, 2]], 12.0 * torch.eye(3, dtype=torch.float64)):
        arguments = (*system(cell=cell), cell)
        a, forces_a, stress_a = forces_and_stress(*arguments, mesh)
        b, forces_b, stress_b = forces_and_stress(*arguments, direct)
        assert relative(forces_a, forces_b) < accuracy
        assert relative(stress_a, stress_b) < accuracy
        assert relative(a.energy, b.energy) < accuracy
        assert relative(a.potential, b.potential) < accuracy
        assert relative(a.field, b.field) < accuracy


@pytest.mark.parametrize("lmax", [0, 1])
def test_fewer_multipoles_are_more_accurate(lmax):
    """Each degree of the multipoles differentiates the window once more."""
    positions, multipoles, response = system()
    multipoles = Multipoles(multipoles.charge, multipoles.dipole if lmax else None)
    out = [
        forces_and_stress(positions, multipoles, response, CELL, Electrostatics(solver=name))[1]
        for name in ("mesh", "ewald")
    ]
    assert relative(*out) < mesh_module.DEFAULT_ACCURACY / 5


def test_float32_agrees_with_float64():
    positions, multipoles, response = system(60)
    engine = Electrostatics(solver="mesh", mesh_accuracy=1e-7)
    _, forces, stress = forces_and_stress(positions, multipoles, response, CELL, engine)
    single = ResponseCoefficients(response.softness.float(), response.polarizability.float())
    _, forces32, stress32 = forces_and_stress(
        positions.float(), cast(multipoles, torch.float32), single, CELL.float(), engine
    )
    assert relative(forces32.double(), forces) < 5e-6
    assert relative(stress32.double(), stress) < 5e-6


def test_batch_of_different_cells():
    """Structures in one batch share the mesh of the largest, in unsorted order."""
    engine = Electrostatics(solver="mesh", mesh_accuracy=1e-7)
    cells = [CELL, 11.0 * torch.eye(3, dtype=torch.float64), 1.2 * CELL[[0, 2, 1]]]
    sizes = [9, 4, 14]
    systems = [system(n, seed=n, cell=c) for n, c in zip(sizes, cells, strict=True)]
    batch = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))

    def join(pick):
        return torch.cat([pick(s) for s in systems])[order]

    out = there(engine)(
        join(lambda s: s[0]),
        torch.stack(cells),
        torch.ones(3, 3, dtype=torch.bool),
        batch[order],
        Multipoles(*(join(lambda s, k=k: getattr(s[1], k)) for k in vars(systems[0][1]))),
        ResponseCoefficients(join(lambda s: s[2].softness), join(lambda s: s[2].polarizability)),
    )
    for number, (s, cell) in enumerate(zip(systems, cells, strict=True)):
        single = evaluate(*s, cell, Electrostatics(solver="ewald"))
        mine = batch[order] == number
        back = torch.argsort(order[mine])
        assert relative(out.energy[number], single.energy[0]) < 1e-7
        assert relative(out.potential[mine][back], single.potential) < 1e-7
        assert relative(out.field[mine][back], single.field) < 1e-7


def test_second_derivatives_for_training():
    check_second_derivatives(system(2), CELL, Electrostatics(solver="mesh"))


def test_gradients_of_a_loss_on_forces():
    """What training follows: the derivative of Σ F² by the charges, against the direct sum."""
    positions, multipoles, response = system()
    found = []
    for name in ("mesh", "ewald"):
        x = positions.clone().requires_grad_(True)
        charge = multipoles.charge.clone().requires_grad_(True)
        moving = Multipoles(charge, multipoles.dipole, multipoles.quadrupole)
        out = evaluate(x, moving, response, CELL, Electrostatics(solver=name))
        (gradient,) = torch.autograd.grad(out.energy.sum(), x, create_graph=True)
        found.append(torch.autograd.grad((gradient**2).sum(), [charge, x]))
    assert relative(found[0][0], found[1][0]) < 1e-5
    assert relative(found[0][1], found[1][1]) < 1e-4  # one more derivative of the window


def test_blocks_of_atoms_do_not_matter(monkeypatch):
    arguments = (*system(), CELL, Electrostatics(solver="mesh"))
    whole = forces_and_stress(*arguments)
    for limit in ("_BLOCK_CPU", "_BLOCK_GPU"):
        monkeypatch.setattr(mesh_module, limit, 9**3 * 7)
    parts = forces_and_stress(*arguments)
    for a, b in zip(parts[1:], whole[1:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("width", mesh_module._WINDOWS)
def test_window_has_the_fourier_transform_that_is_divided_out(width, device):
    """Quadrature of the window's polynomials against the closed form, over the wave vectors."""
    limit, size = 16, 48
    band = mesh_module.bandwidth(1.0, math.pi)
    table = mesh_module._window_polynomials(width, band, 0, torch.float64, device).cpu()
    points = 200
    t = (torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5
    values = (t[:, None] ** torch.arange(table.shape[0])) @ table  # [points, width]
    offset = t[:, None] + 0.5 * (width - 1) - torch.arange(width)
    n = torch.arange(-limit, limit + 1, dtype=torch.float64)
    waves = torch.cos(2.0 * math.pi * n[:, None, None] * offset / size)
    transform = (waves * values).sum((1, 2)) / points
    deconvolution = mesh_module._deconvolution(limit, size, width, band)
    # The midpoint rule converges fast: the window vanishes at its ends.
    torch.testing.assert_close(transform * deconvolution, torch.ones_like(n), rtol=0, atol=1e-5)


def test_good_sizes():
    assert [mesh_module.good_size(n) for n in (1, 7, 11, 13, 41, 121)] == [1, 7, 12, 14, 42, 125]


def test_what_a_mesh_cannot_do_is_refused(monkeypatch):
    positions, multipoles, _ = random_system(4)
    engine = Electrostatics(solver="mesh")
    with pytest.raises(ValueError, match="structure 0 is open .*use solver 'auto'"):
        evaluate(positions, multipoles, engine=engine)
    thin = torch.diag(torch.tensor([20.0, 20.0, 3.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="mesh of 32 × 32 × 4 points, thinner than the window of"):
        evaluate(positions, multipoles, cell=thin, engine=engine)
    # "auto" takes the direct sum there.
    auto = evaluate(positions, multipoles, cell=thin)
    direct = evaluate(positions, multipoles, cell=thin, engine=Electrostatics(solver="ewald"))
    torch.testing.assert_close(auto.energy, direct.energy, rtol=0, atol=1e-12)
    huge = 1e4 * torch.eye(3, dtype=torch.float64)
    for name, what in (("mesh", "the mesh of 1 ×"), ("ewald", "the table of wave vectors of 1 ×")):
        with pytest.raises(ValueError, match=f"{what}.* GiB there are: use a larger kspace_spac"):
            evaluate(positions, multipoles, cell=huge, engine=Electrostatics(solver=name))
    monkeypatch.setattr(checks, "_memory", lambda device: 2**30)
    with pytest.raises(ValueError, match="needs about 2 GiB, more than the 1 GiB there are"):
        evaluate(positions, multipoles, cell=230 * torch.eye(3, dtype=torch.float64), engine=engine)
