"""The self-consistent response: golden numbers, exact derivatives, limits that are known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.coefficients import largest_coefficients
from mace_polmp.electrostatics.conjugate_gradients import solve
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.units import COULOMB_CONSTANT, EPS0
from tests.devices import there
from tests.electrostatics.common import (
    TRICLINIC,
    cast,
    check_second_derivatives,
    evaluate,
    golden,
    random_system,
)

pytestmark = pytest.mark.usefixtures("device")

GOLDEN = json.loads(Path(__file__).with_name("golden_self_consistent.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
SLAB = torch.tensor([[5.0, 0.3, 0.0], [0.8, 5.2, 0.0], [0.3, 0.0, 16.0]], dtype=torch.float64)
FIELD = torch.tensor([[0.05, -0.12, 0.08]], dtype=torch.float64)


def soft_system(n, seed=0, size=5.0, isotropic=False):
    """A random system with coefficients below the bounds of σ = 1 Å, some close to them."""
    positions, multipoles, response = random_system(n, seed, size)
    alpha = response.polarizability
    alpha = alpha * (0.2 / torch.linalg.eigvalsh(alpha).max())
    if isotropic:
        alpha = torch.diagonal(alpha, dim1=1, dim2=2).mean(1)
    softness = response.softness * (0.06 / response.softness.max())
    return positions, multipoles, ResponseCoefficients(softness, alpha)


def golden_results(case, dtype):
    field = torch.tensor(case["field"], dtype=dtype)[None].requires_grad_(True)
    conserve = case["conserve_charge"]
    seen = golden(case, dtype, external_field=field, conserve_charge=conserve, self_consistent=True)
    out, where = seen.out, [seen.positions, seen.strain, field]
    gradient, virial, by_field = torch.autograd.grad(out.energy.sum(), where)
    found = {
        "energy": out.energy[0],
        "energy_permanent": out.energy_permanent[0],
        "energy_response": (out.energy_induced_charge + out.energy_induced_dipole)[0],
        "delta_q": out.induced_charge,
        "delta_mu": out.induced_dipole,
        "forces": -gradient,
        "dipole_derivative": -by_field[0],
    }
    if seen.volume is not None:
        found["stress"] = seen.stress(virial)
    return {key: value.detach() for key, value in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_float64_reproduces_the_golden_numbers(name):
    results, expected = golden_results(CASES[name], torch.float64), CASES[name]["expected"]
    assert set(expected) == set(results)
    for key, value in expected.items():
        reference = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(results[key], reference, atol=1e-9, rtol=0, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_float64(name):
    """The residual of single precision is 1e-5 of what drives the response.

    What is induced has a few times that error where coefficients are near their bounds.
    """
    single, double = (golden_results(CASES[name], t) for t in (torch.float32, torch.float64))
    for key in ("energy", "forces", "delta_mu"):
        error = (single[key].double() - double[key]).abs().max()
        assert error < 5e-5 * double[key].abs().max(), key


def strained_energy(system, cell, pbc, strain, engine, field, **options):
    positions, multipoles, response = system
    deformation = torch.eye(3, dtype=positions.dtype) + strain
    return there(engine)(
        positions @ deformation,
        (cell @ deformation)[None],
        torch.tensor([pbc]),
        torch.zeros(len(positions), dtype=torch.int64),
        multipoles,
        response,
        external_field=field,
        self_consistent=True,
        **options,
    ).energy.sum()


@pytest.mark.parametrize("kind", ["open", "ewald", "mesh", "slab"])
@pytest.mark.parametrize("conserve", [False, True])
def test_forces_and_stress_in_a_field_equal_finite_differences(kind, conserve):
    """Forces to 1e-6 eV/Å, stress to 1e-7 eV/Å³."""
    cell = {"slab": SLAB}.get(kind, TRICLINIC)
    pbc = {"open": [False] * 3, "slab": [True, True, False]}.get(kind, [True] * 3)
    engine = Electrostatics(taper=0.1, solver="mesh" if kind == "mesh" else "auto")
    system = soft_system(9, size=3.5)
    options = dict(engine=engine, field=FIELD, conserve_charge=conserve)
    positions = system[0].clone().requires_grad_(True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    energy = strained_energy((positions, *system[1:]), cell, pbc, strain, **options)
    gradient, virial = torch.autograd.grad(energy, [positions, strain])

    def numerical(change_positions, change_strain, step=1e-4):
        ends = []
        for sign in (-1, 1):
            moved = system[0] + sign * step * change_positions
            found = strained_energy(
                (moved, *system[1:]), cell, pbc, sign * step * change_strain, **options
            )
            ends.append(found.item())
        return (ends[1] - ends[0]) / (2 * step)

    none = torch.zeros_like(system[0]), torch.zeros(3, 3, dtype=torch.float64)
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        moves = none[0].clone()
        moves[atom, axis] = 1.0
        assert gradient[atom, axis].item() == pytest.approx(numerical(moves, none[1]), abs=1e-6)
    if kind != "open":
        volume = cell.det().abs().item()
        for a, b in ((0, 0), (1, 2), (2, 1)):
            shape = none[1].clone()
            shape[a, b] = 1.0
            found = numerical(none[0], shape) / volume
            assert virial[a, b].item() / volume == pytest.approx(found, abs=1e-7)


@pytest.mark.parametrize("cell", [None, TRICLINIC], ids=["open", "periodic"])
@pytest.mark.parametrize("conserve", [False, True])
@pytest.mark.parametrize("isotropic", [False, True])
def test_second_derivatives(cell, conserve, isotropic):
    """Of positions, strain, multipoles and coefficients, in a field."""
    system = soft_system(3, isotropic=isotropic)
    options = dict(self_consistent=True, conserve_charge=conserve, external_field=FIELD)
    check_second_derivatives(system, cell, fast=True, **options)


def test_second_derivatives_on_a_mesh():
    engine = Electrostatics(solver="mesh")
    check_second_derivatives(soft_system(2), TRICLINIC, engine, fast=True, self_consistent=True)


def dense_polarizability(positions, response, cell, conserve):
    """The polarizability from the whole matrix of interactions, [3, 3]."""
    n = len(positions)
    operator = Electrostatics()
    pbc = torch.tensor([[cell is not None] * 3])
    where = (torch.zeros(1, 3, 3).double() if cell is None else cell[None], pbc)
    plan = operator.plan(*where, [n])
    fields = operator.prepare(plan, positions, where[0])
    columns = []
    for unit in torch.eye(4 * n, dtype=torch.float64).view(-1, n, 4):
        potential, field = fields.field(Multipoles(unit[:, 0], unit[:, 1:].contiguous()))
        columns.append(torch.cat([potential[:, None], -field], 1).reshape(-1))
    matrix = torch.zeros(4 * n, 4 * n, dtype=torch.float64)
    for i in range(n):
        matrix[4 * i, 4 * i] = response.softness[i]
        matrix[4 * i + 1 : 4 * i + 4, 4 * i + 1 : 4 * i + 4] = response.polarizability[i]
    if conserve:
        one = torch.zeros(n, 4, dtype=torch.float64)
        one[:, 0] = 1.0
        flow = matrix @ one.view(-1)
        matrix = matrix - torch.outer(flow, flow) / flow.sum()
    drive = torch.zeros(n, 4, 3, dtype=torch.float64)
    drive[:, 1:] = torch.eye(3)
    if cell is None:
        drive[:, 0] = positions
    drive = drive.view(4 * n, 3)
    unit = torch.eye(4 * n, dtype=torch.float64)
    return drive.T @ matrix @ torch.linalg.solve(unit + torch.stack(columns, 1) @ matrix, drive)


@pytest.mark.parametrize("cell", [None, TRICLINIC], ids=["open", "periodic"])
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_the_second_derivative_by_the_field_is_the_polarizability(cell):
    """−∂²E/∂F² equals what the dense matrix gives, and does not depend on F."""
    positions, multipoles, response = soft_system(5)
    expected = dense_polarizability(positions, response, cell, conserve=True)
    for size in (0.0, 1.0):
        field = (size * FIELD).clone().requires_grad_(True)
        energy = evaluate(
            positions,
            multipoles,
            response,
            cell,
            external_field=field,
            conserve_charge=True,
            self_consistent=True,
        ).energy.sum()
        (slope,) = torch.autograd.grad(energy, field, create_graph=True)
        rows = [torch.autograd.grad(slope[0, a], field, retain_graph=True)[0] for a in range(3)]
        torch.testing.assert_close(-torch.cat(rows), expected, rtol=1e-9, atol=1e-9)


def test_third_derivatives():
    """∂³E/∂F²∂r, the Raman tensor of an atom, equals differences of the polarizability."""
    positions, multipoles, response = soft_system(4)

    def polarizability(r, field, keep=False):
        energy = evaluate(
            r,
            multipoles,
            response,
            external_field=field,
            conserve_charge=True,
            self_consistent=True,
        ).energy.sum()
        (slope,) = torch.autograd.grad(energy, field, create_graph=True)
        return -torch.autograd.grad(slope[0, 0], field, create_graph=keep)[0][0, 2]

    field = FIELD.clone().requires_grad_(True)
    leaf = positions.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(polarizability(leaf, field, keep=True), leaf)
    ends = []
    for sign in (-1, 1):
        moved = positions.clone()
        moved[2, 1] += sign * 1e-4
        ends.append(polarizability(moved, field).item())
    assert slope[2, 1].item() == pytest.approx((ends[1] - ends[0]) / 2e-4, abs=1e-8)


def test_outputs_have_the_derivatives_of_the_whole_response():
    """Induced charges, induced dipoles and each part of the energy."""
    positions, multipoles, response = soft_system(5)

    def outputs(r):
        out = evaluate(r, multipoles, response, TRICLINIC, self_consistent=True)
        parts = (out.energy_permanent, out.energy_induced_charge, out.energy_induced_dipole)
        return torch.cat([out.induced_charge, out.induced_dipole.flatten(), *parts])

    leaf = positions.clone().requires_grad_(True)
    found = outputs(leaf)
    weight = torch.linspace(-1.0, 2.0, len(found), dtype=torch.float64)
    (slope,) = torch.autograd.grad(found @ weight, leaf)
    ends = []
    for sign in (-1, 1):
        moved = positions.clone()
        moved[1, 2] += sign * 1e-4
        ends.append((outputs(moved) @ weight).item())
    assert slope[1, 2].item() == pytest.approx((ends[1] - ends[0]) / 2e-4, abs=1e-7)


def test_two_atoms_have_silbersteins_polarizability():
    """α∥ = 2α/(1 − 2αk/r³) and α⊥ = 2α/(1 + αk/r³) of point dipoles."""
    r, alpha = 6.0, 0.2
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, r]], dtype=torch.float64)
    response = ResponseCoefficients(None, torch.full((2,), alpha, dtype=torch.float64))
    field = torch.tensor([[0.1, 0.0, 0.1]], dtype=torch.float64)
    out = evaluate(
        positions,
        Multipoles(torch.zeros(2, dtype=torch.float64)),
        response,
        external_field=field,
        self_consistent=True,
    )
    coupling = alpha * COULOMB_CONSTANT / r**3
    # Of Gaussians of 1 Å the field at 6 Å is that of points to 1e-3 of it.
    expected = 0.1 * torch.tensor([2 * alpha / (1 + coupling), 0.0, 2 * alpha / (1 - 2 * coupling)])
    torch.testing.assert_close(out.induced_dipole.sum(0), expected.double(), rtol=2e-5, atol=1e-12)


def test_a_cubic_lattice_follows_clausius_mossotti():
    """(ε − 1)/(ε + 2) = α/(3 eps0 V) of point dipoles, Gaussians far narrower than the lattice."""
    length, sigma = 4.0, 0.25
    alpha = torch.tensor([0.9 * largest_coefficients(sigma)[1]], dtype=torch.float64)
    out = evaluate(
        torch.zeros(1, 3, dtype=torch.float64),
        Multipoles(torch.zeros(1, dtype=torch.float64)),
        ResponseCoefficients(None, alpha),
        cell=length * torch.eye(3, dtype=torch.float64),
        engine=Electrostatics(smearing=sigma, kspace_spacing=0.2),
        external_field=torch.tensor([[0.0, 0.1, 0.0]], dtype=torch.float64),
        self_consistent=True,
    )
    volume = length**3
    permittivity = 1.0 + out.induced_dipole[0, 1].item() / (0.1 * EPS0 * volume)
    ratio = (permittivity - 1.0) / (permittivity + 2.0)
    assert ratio == pytest.approx(alpha.item() / (3 * EPS0 * volume), rel=1e-6)


def test_small_coefficients_give_the_one_step_response():
    """What is induced acts on itself in second order of the coefficients."""
    positions, multipoles, response = soft_system(6)
    differences = []
    for factor in (1e-2, 1e-3):
        small = ResponseCoefficients(factor * response.softness, factor * response.polarizability)
        energies = [
            evaluate(positions, multipoles, small, TRICLINIC, self_consistent=flag).energy.item()
            for flag in (False, True)
        ]
        differences.append(abs(energies[1] - energies[0]))
    assert differences[1] == pytest.approx(differences[0] / 100, rel=0.1)


def batch_of_all():
    """Open and periodic structures and a slab, one of a single atom, one that is charged."""
    kinds = [
        (5, None, [False] * 3),
        (6, TRICLINIC, [True] * 3),
        (1, 1.3 * TRICLINIC, [True] * 3),
        (7, SLAB, [True, True, False]),
        (4, 2.0 * TRICLINIC, [True] * 3),
        (1, None, [False] * 3),
        (12, None, [False] * 3),
    ]
    systems = [soft_system(n, seed, 3.0) for seed, (n, _, _) in enumerate(kinds)]
    charged = systems[4][1]
    systems[4] = (systems[4][0], replace(charged, charge=charged.charge + 0.3), systems[4][2])
    return systems, kinds


@pytest.mark.parametrize("conserve", [False, True])
@pytest.mark.parametrize("solver", ["ewald", "auto"])
def test_a_batch_of_all_kinds_gives_what_each_gives_alone(conserve, solver):
    systems, kinds = batch_of_all()
    none = torch.zeros(3, 3, dtype=torch.float64)
    cells = torch.stack([none if cell is None else cell for _, cell, _ in kinds])
    pbc = torch.tensor([flags for _, _, flags in kinds])
    batch = torch.repeat_interleave(torch.tensor([n for n, _, _ in kinds]))
    engine = there(Electrostatics(solver=solver))
    options = dict(conserve_charge=conserve, self_consistent=True)
    positions = torch.cat([s[0] for s in systems]).requires_grad_(True)
    together = Multipoles(
        *(
            torch.cat([getattr(s[1], k) for s in systems])
            for k in ("charge", "dipole", "quadrupole")
        )
    )
    response = ResponseCoefficients(
        *(torch.cat([getattr(s[2], k) for s in systems]) for k in ("softness", "polarizability"))
    )
    fields = torch.arange(len(kinds), dtype=torch.float64)[:, None] * FIELD
    out = engine(positions, cells, pbc, batch, together, response, fields, **options)
    (gradient,) = torch.autograd.grad(out.energy.sum(), positions)
    start = 0
    for number, (r, multipoles, own) in enumerate(systems):
        r = r.clone().requires_grad_(True)
        alone = engine(
            r,
            cells[number : number + 1],
            pbc[number : number + 1],
            torch.zeros(len(r), dtype=torch.int64),
            multipoles,
            own,
            fields[number : number + 1],
            **options,
        )
        (slope,) = torch.autograd.grad(alone.energy.sum(), r)
        rows = slice(start, start + len(r))
        for found, expected in (
            (out.energy[number], alone.energy[0]),
            (out.energy_permanent[number], alone.energy_permanent[0]),
            (out.induced_charge[rows], alone.induced_charge),
            (out.induced_dipole[rows], alone.induced_dipole),
            (gradient[rows], slope),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
        if conserve or number == 3:  # slabs are always neutral
            assert abs(out.induced_charge[rows].sum().item()) < 1e-12
        start += len(r)


def test_atoms_without_response_follow_the_limit_of_small_coefficients():
    """Zero is no special case: values and derivatives, of scalars and of tensors."""
    positions, multipoles, response = soft_system(5)

    def results(smallest):
        kappa, alpha = response.softness.clone(), response.polarizability.clone()
        kappa[0], alpha[0], alpha[2] = smallest, smallest * torch.eye(3), 0.0
        alpha[2, 0, 0] = 0.1
        alpha[2, 1, 1] = alpha[2, 2, 2] = smallest
        leaves = [x.requires_grad_(True) for x in (positions.clone(), kappa, alpha)]
        out = evaluate(
            leaves[0],
            multipoles,
            ResponseCoefficients(*leaves[1:]),
            TRICLINIC,
            self_consistent=True,
        )
        return [out.energy.detach(), *torch.autograd.grad(out.energy.sum(), leaves)]

    for none, small in zip(results(0.0), results(1e-9), strict=True):
        torch.testing.assert_close(none, small, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("induced", ["charge", "dipole"])
def test_charges_alone_respond(induced):
    """Models of lmax 0 and one kind of response: no dipoles or no softness anywhere."""
    positions, multipoles, response = soft_system(5)
    kappa = response.softness if induced == "charge" else None
    alpha = response.polarizability if induced == "dipole" else None
    one = ResponseCoefficients(kappa, alpha)
    zero = ResponseCoefficients(
        torch.zeros_like(response.softness) if kappa is None else kappa,
        torch.zeros_like(response.polarizability) if alpha is None else alpha,
    )
    sources = Multipoles(multipoles.charge)
    for cell in (None, TRICLINIC):
        found, expected = (
            evaluate(positions, sources, r, cell, self_consistent=True) for r in (one, zero)
        )
        torch.testing.assert_close(found.energy, expected.energy, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.induced_dipole, expected.induced_dipole)
        assert (found.energy_induced_charge == 0).all() == (kappa is None)


def test_coefficients_beyond_the_bounds_are_refused():
    positions, multipoles, response = soft_system(4)
    kappa_max, alpha_max = largest_coefficients(1.0)
    assert kappa_max == pytest.approx(0.0870, abs=1e-4)
    assert alpha_max == pytest.approx(0.261, abs=1e-3)

    def fails(softness, polarizability, words):
        wrong = ResponseCoefficients(softness, polarizability)
        with pytest.raises(ValueError, match=words):
            evaluate(positions, multipoles, wrong, self_consistent=True)

    soft = response.softness.clone()
    soft[2] = kappa_max
    fails(soft, response.polarizability, r"softness must be from 0 to below 0.087.*atom 2")
    soft[2] = -0.01
    fails(soft, None, r"got -0.01 \(atom 2\)")
    alpha = response.polarizability.clone()
    alpha[1] = torch.diag(torch.tensor([0.1, 0.1, 0.27]))
    fails(None, alpha, r"eigenvalue of polarizability must be .* got 0.27 \(atom 1\)")
    alpha[1] = torch.diag(torch.tensor([0.1, 0.1, -0.02]))
    fails(response.softness, alpha, r"got -0.02 \(atom 1\)")
    fails(None, torch.full((4,), 0.3, dtype=torch.float64), r"got 0.3 \(atom 0\)")


def test_coefficients_at_the_bounds_converge():
    """Atoms on top of each other with the largest coefficients: no polarization catastrophe."""
    positions, multipoles, response = soft_system(6)
    positions[1], positions[3] = positions[0], positions[2]
    kappa_max, alpha_max = largest_coefficients(1.0)
    most = ResponseCoefficients(
        torch.full_like(response.softness, 0.999 * kappa_max),
        torch.full_like(response.softness, 0.999 * alpha_max),
    )
    for cell in (None, TRICLINIC, 3.0 * TRICLINIC):
        positions_ = positions.clone().requires_grad_(True)
        out = evaluate(positions_, multipoles, most, cell, self_consistent=True)
        (gradient,) = torch.autograd.grad(out.energy.sum(), positions_)
        assert gradient.isfinite().all()
        response = (out.energy_induced_charge + out.energy_induced_dipole).item()
        drive = torch.cat([-out.potential[:, None], out.field], 1)
        induced = torch.cat([out.induced_charge[:, None], out.induced_dipole], 1)
        assert response == pytest.approx(-0.5 * (drive * induced).sum().item(), rel=1e-9)


def test_what_does_not_converge_is_an_error_with_words():
    sums = AtomSums(torch.tensor([0, 0, 1]), 2)
    rhs = torch.ones(3, 4, dtype=torch.float64)
    strong = torch.linspace(1.0, 300.0, 12, dtype=torch.float64).view(3, 4)
    with pytest.raises(ValueError, match="structure 0 has a relative residual of"):
        solve(lambda x: strong * x, lambda y: y, rhs, sums, 1e-10, limit=3)
    found = solve(lambda x: strong * x, lambda y: y, rhs, sums, 1e-10)
    torch.testing.assert_close(found.drive, rhs / (1 + strong), rtol=1e-8, atol=1e-12)


def test_nan_gives_nan():
    positions, multipoles, response = soft_system(4)
    positions[0, 0] = torch.nan
    out = evaluate(positions, multipoles, response, self_consistent=True)
    assert out.energy.isnan().all()


def test_nan_on_the_right_gives_nan_and_leaves_other_structures_alone():
    """As coefficients beyond the bounds are marked on a GPU, where nothing can be refused."""
    strong = torch.linspace(1.0, 30.0, 12, dtype=torch.float64).view(3, 4)
    for batch in ([0, 0, 1], [0, 0, 0]):
        sums = AtomSums(torch.tensor(batch), max(batch) + 1)
        rhs = torch.ones(3, 4, dtype=torch.float64)
        rhs[:2] = torch.nan
        found = solve(lambda x: strong * x, lambda y: y, rhs, sums, 1e-10)
        assert found.drive[:2].isnan().all()
        assert found.drive[2].isnan().all() == (max(batch) == 0)


@pytest.mark.parametrize("cell", [None, TRICLINIC], ids=["open", "periodic"])
def test_hessians_row_by_row_with_vmap(cell):
    positions, multipoles, response = soft_system(4)
    leaf = positions.clone().requires_grad_(True)
    energy = evaluate(leaf, multipoles, response, cell, self_consistent=True).energy.sum()
    (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
    unit = torch.eye(12, dtype=torch.float64)
    rows = torch.vmap(
        lambda v: torch.autograd.grad(gradient.flatten(), leaf, v, retain_graph=True)[0]
    )(unit)
    one = torch.autograd.grad(gradient.flatten()[7], leaf, retain_graph=True)[0]
    torch.testing.assert_close(rows[7], one, rtol=1e-8, atol=1e-9)
    hessian = rows.view(12, 12)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-8, atol=1e-8)


def test_single_precision_inside_a_larger_batch():
    """Errors of single precision stay those of single precision in a cell of hundreds of atoms."""
    positions, multipoles, response = soft_system(200, size=14.0)
    cell = 14.0 * torch.eye(3, dtype=torch.float64)
    double = evaluate(positions, multipoles, response, cell, self_consistent=True)
    single = evaluate(
        positions.float(),
        cast(multipoles, torch.float32),
        ResponseCoefficients(response.softness.float(), response.polarizability.float()),
        cell.float(),
        self_consistent=True,
    )
    error = (single.induced_dipole.double() - double.induced_dipole).abs().max()
    assert error < 3e-5 * double.induced_dipole.abs().max()
