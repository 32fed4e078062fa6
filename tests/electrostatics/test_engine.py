"""The physics of the engine: limits, symmetries, exact derivatives, known constants."""

import math
from dataclasses import replace

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from mace_polmp.units import COULOMB_CONSTANT, EPS0
from tests.devices import there
from tests.electrostatics.common import (
    TRICLINIC,
    cast,
    check_second_derivatives,
    evaluate,
    random_system,
)

pytestmark = pytest.mark.usefixtures("device")

# Madelung constants per ion pair, referred to the nearest-neighbour distance.
CRYSTALS = {
    "NaCl": (1.747564594633182, 0.5, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
             [[0.5, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0.5], [0, 0.5, 0]]),
    "CsCl": (1.762674773070988, math.sqrt(3) / 2, [[0, 0, 0]], [[0.5, 0.5, 0.5]]),
    "zincblende": (1.638055053388790, math.sqrt(3) / 4,
                   [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
                   [[0.25, 0.25, 0.25], [0.25, 0.75, 0.75],
                    [0.75, 0.25, 0.75], [0.75, 0.75, 0.25]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CRYSTALS)
def test_madelung_constants(name):
    """At small smearing the Gaussians do not overlap and the ions are points."""
    madelung, distance, cations, anions = CRYSTALS[name]
    a = 4.0
    positions = a * torch.tensor(cations + anions, dtype=torch.float64)
    charge = torch.ones(len(positions), dtype=torch.float64)
    charge[len(cations) :] = -1
    engine = Electrostatics(smearing=0.2, kspace_spacing=0.18)
    out = evaluate(positions, Multipoles(charge), cell=a * torch.eye(3).double(), engine=engine)
    computed = -out.energy.item() * distance * a / (COULOMB_CONSTANT * len(cations))
    assert computed == pytest.approx(madelung, abs=1e-6)


def test_two_far_charges_and_a_charge_with_a_dipole():
    q = torch.tensor([0.5, -1.0], dtype=torch.float64)
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 20.0]], dtype=torch.float64)
    out = evaluate(positions, Multipoles(q))
    assert out.energy.item() == pytest.approx(-0.5 * COULOMB_CONSTANT / 20, rel=1e-12)
    # A dipole pointing at a positive charge: E = +k q μ/r² for μ towards the charge.
    dipole = torch.tensor([[0.0, 0, 0], [0, 0, -0.3]], dtype=torch.float64)
    out = evaluate(positions, Multipoles(torch.tensor([1.0, 0.0]).double(), dipole))
    assert out.energy.item() == pytest.approx(COULOMB_CONSTANT * 0.3 / 400, rel=1e-12)
    expected = torch.tensor([0, 0, COULOMB_CONSTANT / 400], dtype=torch.float64)
    torch.testing.assert_close(out.field[1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("n, cell", [(6, None), (40, None), (12, TRICLINIC)])
def test_a_trace_of_the_quadrupoles_has_no_energy(n, cell):
    positions, multipoles, response = random_system(n)
    trace = torch.arange(n, dtype=torch.float64)[:, None, None] * torch.eye(3, dtype=torch.float64)
    traced = replace(multipoles, quadrupole=multipoles.quadrupole + trace)
    found = evaluate(positions, traced, response, cell)
    expected = evaluate(positions, multipoles, response, cell)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.field, expected.field, rtol=1e-11, atol=1e-11)


def test_dipoles_and_quadrupoles_are_limits_of_point_charges():
    """Charges ±q at ±d/2 make q d; −2, 1, 1 on a line make the second moment without trace."""
    far = torch.tensor([[3.0, 1.0, 7.0]], dtype=torch.float64)
    h = 1e-3
    axis = torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    charges = torch.tensor([1 / h, -1 / h, 1.0], dtype=torch.float64)
    sites = torch.cat([0.5 * h * axis, -0.5 * h * axis, far])
    dipole = torch.cat([axis, 0 * axis])
    expected = evaluate(sites, Multipoles(charges)).energy
    pair = evaluate(sites[:2], Multipoles(charges[:2])).energy
    points = torch.cat([0 * far, far])
    q = torch.tensor([0.0, 1.0], dtype=torch.float64)
    got = evaluate(points, Multipoles(q, dipole)).energy
    torch.testing.assert_close(got, expected - pair, rtol=1e-5, atol=0)

    h = 1e-2
    charges = torch.tensor([-2 / h**2, 1 / h**2, 1 / h**2, 1.0], dtype=torch.float64)
    sites = torch.cat([0 * axis, h * axis, -h * axis, far])
    # The second moment is 2 zz; its trace only matters where the Gaussians overlap.
    quadrupole = torch.zeros(2, 3, 3, dtype=torch.float64)
    quadrupole[0] = torch.diag(torch.tensor([-2 / 3, -2 / 3, 4 / 3], dtype=torch.float64))
    expected = evaluate(sites, Multipoles(charges)).energy
    triple = evaluate(sites[:3], Multipoles(charges[:3])).energy
    got = evaluate(points, Multipoles(q, None, quadrupole)).energy
    torch.testing.assert_close(got, expected - triple, rtol=1e-4, atol=0)


def test_coincident_gaussians_are_finite():
    positions, multipoles, response = random_system(4)
    positions[1] = positions[0]
    positions.requires_grad_(True)
    out = evaluate(positions, multipoles, response)
    (gradient,) = torch.autograd.grad(out.energy.sum(), positions)
    assert out.energy.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("cell", [None, TRICLINIC])
def test_with_their_own_potential_multipoles_in_one_place_are_their_sum(cell):
    """What is split and what is not has the same energy if each part feels itself."""
    positions, parts, _ = random_system(6)
    positions[1] = positions[2] = positions[0]
    keeps = Electrostatics(self_interaction=True)

    def together(values):
        return torch.cat([values[:3].sum(0, keepdim=True), values[3:]])

    whole = Multipoles(*(together(v) for v in (parts.charge, parts.dipole, parts.quadrupole)))
    split = evaluate(positions, parts, cell=cell, engine=keeps)
    joined = evaluate(positions[2:], whole, cell=cell, engine=keeps)
    torch.testing.assert_close(split.energy, joined.energy, rtol=1e-12, atol=1e-12)
    without = evaluate(positions, parts, cell=cell)
    assert (split.energy - without.energy).abs() > 1.0
    assert torch.equal(split.potential, without.potential)


def test_permanent_energy_is_half_the_sources_in_their_field():
    """E = ½ Σ (q φ − μ·E) without quadrupoles, open and periodic alike."""
    positions, multipoles, _ = random_system(7)
    sources = Multipoles(multipoles.charge, multipoles.dipole)
    for cell in (None, TRICLINIC):
        out = evaluate(positions, sources, cell=cell)
        half = 0.5 * (sources.charge @ out.potential - (sources.dipole * out.field).sum())
        torch.testing.assert_close(out.energy[0], half, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cell", [None, TRICLINIC, TRICLINIC[[0, 2, 1]]])
def test_potential_and_field_are_derivatives_of_the_energy(cell):
    """φ_i = ∂E/∂q_i and E_i = −∂E/∂μ_i, quadrupoles present."""
    positions, multipoles, _ = random_system(6)
    q = multipoles.charge.clone().requires_grad_(True)
    mu = multipoles.dipole.clone().requires_grad_(True)
    out = evaluate(positions, Multipoles(q, mu, multipoles.quadrupole), cell=cell)
    phi, minus_field = torch.autograd.grad(out.energy.sum(), [q, mu])
    torch.testing.assert_close(out.potential, phi, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.field, -minus_field, rtol=1e-10, atol=1e-10)


def test_periodic_tends_to_open_in_a_large_cell():
    """Neutral with a dipole D, tin-foil, cubic: E_periodic − E_open → −D²/(6 eps0 V)."""
    positions, multipoles, _ = random_system(5, size=3.0)
    dipole = (multipoles.charge[:, None] * positions + multipoles.dipole).sum(0)
    open_energy = evaluate(positions, multipoles).energy.item()
    engine = Electrostatics(1.0, 1.0)
    errors = []
    for length in (20.0, 40.0):
        cell = length * torch.eye(3, dtype=torch.float64)
        energy = evaluate(positions, multipoles, cell=cell, engine=engine).energy.item()
        expected = open_energy - dipole.square().sum().item() / (6 * EPS0 * length**3)
        errors.append(abs(energy - expected))
    assert errors[0] < 4e-3 and errors[1] < errors[0] / 24  # the next term falls as L⁻⁵


def test_net_charge_gets_a_background():
    """One charge in a cubic box: the Madelung energy of a lattice of charges in a background."""
    length, sigma = 20.0, 1.0
    cell = length * torch.eye(3, dtype=torch.float64)
    engine = Electrostatics(sigma, 0.8)
    origin, one = torch.zeros(1, 3).double(), Multipoles(torch.ones(1).double())
    out = evaluate(origin, one, cell=cell, engine=engine)
    # −ξ k_e/2L with ξ = 2.8372974795, and what smearing takes from the background, σ²/(4 eps0 V).
    expected = -0.5 * COULOMB_CONSTANT * 2.8372974795 / length + sigma**2 / (4 * EPS0 * length**3)
    assert out.energy.item() == pytest.approx(expected, abs=1e-7)


def test_converged_sum_does_not_depend_on_its_cutoff():
    positions, multipoles, response = random_system(6)
    energies = [
        evaluate(
            positions, multipoles, response, cell=TRICLINIC, engine=Electrostatics(1.0, spacing)
        ).energy
        for spacing in (0.8, 0.6)
    ]
    torch.testing.assert_close(*energies, rtol=0, atol=1e-9)


def test_supercell():
    positions, multipoles, response = random_system(4)
    shifts = [TRICLINIC[0] * i + TRICLINIC[2] * k for i in range(2) for k in range(2)]
    many = torch.cat([positions + s for s in shifts])
    cell = TRICLINIC * torch.tensor([[2.0], [1.0], [2.0]])
    one = evaluate(positions, multipoles, response, cell=TRICLINIC)
    four = evaluate(
        many,
        Multipoles(
            multipoles.charge.repeat(4),
            multipoles.dipole.repeat(4, 1),
            multipoles.quadrupole.repeat(4, 1, 1),
        ),
        ResponseCoefficients(response.softness.repeat(4), response.polarizability.repeat(4, 1, 1)),
        cell=cell,
    )
    torch.testing.assert_close(four.energy, 4 * one.energy, rtol=0, atol=1e-9)
    torch.testing.assert_close(four.potential, one.potential.repeat(4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [10.0, 12.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wave_vectors_on_the_cutoff_sphere_count(length, dtype):
    """dl = 2 Å in a cell of a whole even length puts k on k_c; rounding must not decide."""
    positions, multipoles, _ = random_system(5)
    cell = length * torch.eye(3, dtype=torch.float64)
    wide = Electrostatics(1.0, 2.0 * (1 - 1e-5))  # certainly includes them
    turn = torch.linalg.matrix_exp(
        torch.tensor([[0, 0.3, -0.2], [-0.3, 0, 0.7], [0.2, -0.7, 0]], dtype=torch.float64)
    )
    reference = evaluate(positions, multipoles, cell=cell, engine=wide).energy
    for rotation in (torch.eye(3).double(), turn):
        turned = Multipoles(
            multipoles.charge,
            multipoles.dipole @ rotation,
            rotation.T @ multipoles.quadrupole @ rotation,
        )
        out = evaluate(
            (positions @ rotation).to(dtype), cast(turned, dtype), cell=(cell @ rotation).to(dtype)
        )
        tolerance = 1e-9 if dtype == torch.float64 else 2e-5
        assert abs(out.energy.item() - reference.item()) < tolerance * max(1, abs(reference.item()))


@pytest.mark.parametrize("conserve", [False, True])
def test_mixed_unsorted_batch_agrees_with_single_structures(conserve):
    engine = Electrostatics()
    kinds = [None, TRICLINIC, None, TRICLINIC[[0, 2, 1]] * 1.3, 9.0 * torch.eye(3).double()]
    sizes = [5, 3, 1, 6, 4]
    systems = [random_system(n, seed=i) for i, n in enumerate(sizes)]
    batch = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))

    def join(pick):
        return torch.cat([pick(s) for s in systems])[order]

    field = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double() * 0.1
    zero = torch.zeros(3, 3, dtype=torch.float64)
    out = there(engine)(
        join(lambda s: s[0]),
        torch.stack([zero if c is None else c for c in kinds]),
        torch.tensor([[c is not None] * 3 for c in kinds]),
        batch[order],
        Multipoles(
            join(lambda s: s[1].charge),
            join(lambda s: s[1].dipole),
            join(lambda s: s[1].quadrupole),
        ),
        ResponseCoefficients(join(lambda s: s[2].softness), join(lambda s: s[2].polarizability)),
        external_field=field,
        conserve_charge=conserve,
    )
    for number, (system, cell) in enumerate(zip(systems, kinds, strict=True)):
        single = evaluate(
            *system, cell=cell, external_field=field[number : number + 1], conserve_charge=conserve
        )
        mine = batch[order] == number
        back = torch.argsort(order[mine])
        torch.testing.assert_close(out.energy[number], single.energy[0], rtol=0, atol=1e-9)
        for name in ("potential", "field", "induced_charge", "induced_dipole"):
            got = getattr(out, name)[mine][back]
            torch.testing.assert_close(got, getattr(single, name), rtol=0, atol=1e-9, msg=name)


def test_isotropic_polarizability_is_a_multiple_of_the_unit_tensor():
    positions, multipoles, _ = random_system(5)
    alpha = torch.linspace(0.01, 0.1, 5, dtype=torch.float64)
    tensor = alpha[:, None, None] * torch.eye(3, dtype=torch.float64)
    for cell in (None, TRICLINIC):
        a = evaluate(positions, multipoles, ResponseCoefficients(None, alpha), cell=cell)
        b = evaluate(positions, multipoles, ResponseCoefficients(None, tensor), cell=cell)
        torch.testing.assert_close(a.energy, b.energy)
        torch.testing.assert_close(a.induced_dipole, b.induced_dipole)


def test_conserved_charge():
    """Induced charges sum to zero, and their energy is −½ Σ κ (φ − φ̄)²."""
    positions, multipoles, response = random_system(6)
    for cell in (None, TRICLINIC):
        out = evaluate(positions, multipoles, response, cell=cell, conserve_charge=True)
        assert abs(out.induced_charge.sum()) < 1e-12
        kappa, phi = response.softness, out.potential
        mean = (kappa * phi).sum() / kappa.sum()
        expected = -0.5 * (kappa * (phi - mean) ** 2).sum()
        torch.testing.assert_close(out.energy_induced_charge[0], expected)
    none = ResponseCoefficients(torch.zeros(6, dtype=torch.float64))
    out = evaluate(positions, multipoles, none, conserve_charge=True)
    assert out.energy_induced_charge.item() == 0


def test_external_field():
    """−Σ(q r + μ)·F and −½(E + F)·α·(E + F); in a periodic cell −Σ μ·F."""
    positions, multipoles, response = random_system(5)
    response = ResponseCoefficients(None, response.polarizability)
    field = torch.tensor([[0.1, -0.2, 0.05]], dtype=torch.float64)
    for cell in (None, TRICLINIC):
        off = evaluate(positions, multipoles, response, cell=cell)
        on = evaluate(positions, multipoles, response, cell=cell, external_field=field)
        moment = multipoles.dipole.sum(0)
        if cell is None:
            moment = moment + multipoles.charge @ positions
        torch.testing.assert_close(
            on.energy_permanent - off.energy_permanent, -(moment @ field[0])[None]
        )
        acting = off.field + field
        induced = torch.einsum("nab,nb->na", response.polarizability, acting)
        torch.testing.assert_close(on.induced_dipole, induced)
        torch.testing.assert_close(on.energy_induced_dipole, -0.5 * (induced * acting).sum()[None])


@pytest.mark.parametrize("cell", [None, TRICLINIC])
def test_second_derivatives_for_training(cell):
    check_second_derivatives(random_system(3), cell, conserve_charge=True)


@pytest.mark.parametrize("cell", [None, TRICLINIC])
def test_results_and_forces_are_contiguous(cell):
    """So that .view works on them, as upstream's Hessian does on forces."""
    positions, multipoles, response = random_system(4)
    positions.requires_grad_(True)
    out = evaluate(positions, multipoles, response, cell=cell)
    (gradient,) = torch.autograd.grad(out.energy.sum(), positions)
    for tensor in (gradient, out.potential, out.field, out.induced_charge, out.induced_dipole):
        assert tensor.is_contiguous()


def test_third_derivatives_exist():
    """A loss on forces differentiates once more, and so does a Hessian in training."""
    positions, multipoles, response = random_system(3)
    for cell in (None, TRICLINIC):
        x = positions.clone().requires_grad_(True)
        value = evaluate(x, multipoles, response, cell=cell).energy.sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = (gradient**2).sum()
        assert value.isfinite() and value > 0


def test_one_atom_and_empty_response():
    one = Multipoles(torch.tensor([0.7], dtype=torch.float64))
    out = evaluate(torch.zeros(1, 3, dtype=torch.float64), one)
    assert out.energy.item() == 0 and out.potential.item() == 0
    assert out.induced_charge.item() == 0 and out.induced_dipole.abs().max() == 0


def test_refusals_name_argument_and_remedy():
    positions, multipoles, response = random_system(4)
    engine = Electrostatics()
    zero, batch = torch.zeros(1, 3, 3).double(), torch.zeros(4, dtype=torch.int64)
    off = torch.zeros(1, 3, dtype=torch.bool)
    good = dict(positions=positions, cell=zero, pbc=off, batch=batch, multipoles=multipoles)

    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            there(engine)(**{**good, **changes})

    wrong = Multipoles(multipoles.charge[:, None])
    refused(ValueError, r"charge must be \[n_atoms\] = \[4\], got \[4, 1\]", multipoles=wrong)
    refused(ValueError, r"cell must be", cell=zero[0])
    refused(ValueError, r"softness must be", response=ResponseCoefficients(response.softness[:2]))
    refused(TypeError, "pbc must be torch.bool", pbc=off.long())
    refused(TypeError, "batch must be torch.int64", batch=batch.int())
    refused(TypeError, "charge must have the dtype", multipoles=cast(multipoles, torch.float32))
    wire = torch.tensor([[False, True, False]])
    refused(ValueError, "structure 0 has pbc F T F: a single periodic direction", pbc=wire)
    on = torch.ones(1, 3, dtype=torch.bool)
    refused(ValueError, "structure 0 has pbc T T T and a singular cell", pbc=on)
    for settings, message in (
        (dict(smearing=0.0), "smearing must be a positive length"),
        (dict(kspace_spacing=math.nan), "kspace_spacing must be a positive length"),
        (dict(solver="pppm"), "solver must be one of auto, ewald, mesh"),
        (dict(mesh_accuracy=1e-12), "mesh_accuracy must be at least"),
    ):
        with pytest.raises(ValueError, match=message):
            Electrostatics(**settings)
