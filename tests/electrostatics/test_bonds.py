"""Charges induced along bonds: the functional solved without the engine's method, derivatives."""

from dataclasses import replace

import pytest
import torch

from mace_polmp.electrostatics import (
    BondResponse,
    Electrostatics,
    Multipoles,
    ResponseCoefficients,
)
from mace_polmp.electrostatics.bonds import bounded_bonds
from mace_polmp.electrostatics.coefficients import largest_coefficients
from mace_polmp.units import EPS0
from tests.devices import rounding, there
from tests.electrostatics.common import TRICLINIC, evaluate, random_system

pytestmark = pytest.mark.usefixtures("device")

FIELD = torch.tensor([[0.05, -0.12, 0.08]], dtype=torch.float64)
SLAB = torch.tensor([[5.0, 0.3, 0.0], [0.8, 5.2, 0.0], [0.3, 0.0, 16.0]], dtype=torch.float64)
CELLS = {"open": (None, [False] * 3), "periodic": (TRICLINIC, [True] * 3)}
CELLS["slab"] = (SLAB, [True, True, False])


def bonds_of(positions, cell, pbc, reach=3.2):
    """Edges with their images, and how to make vectors of positions and cell."""
    n = range(-1, 2)
    shifts = [
        torch.tensor([a, b, c], dtype=torch.float64)
        for a in (n if pbc[0] else [0])
        for b in (n if pbc[1] else [0])
        for c in (n if pbc[2] else [0])
    ]
    index, images = [], []
    lattice = torch.zeros(3, 3, dtype=torch.float64) if cell is None else cell
    for j in range(len(positions)):
        for i in range(len(positions)):
            for shift in shifts:
                length = (positions[i] - positions[j] + shift @ lattice).norm()
                if 1e-3 < length < reach:
                    index.append([j, i])
                    images.append(shift)
    return torch.tensor(index).T, torch.stack(images)


def vectors_of(positions, cell, index, images):
    vectors = positions[index[1]] - positions[index[0]]
    return vectors if cell is None else vectors + images @ cell


def softness_of(weights, vectors, index):
    """k of an edge and its reverse alike, from a positive number of each atom."""
    size = 2e-3 * torch.exp(-0.1 * (vectors**2).sum(1))
    return size * weights[index[0]] * weights[index[1]]


class System:
    """Atoms with bonds, and their energy as a function of everything."""

    def __init__(self, kind, n=5, with_dipoles=True, size=4.0):
        self.cell, self.pbc = CELLS[kind]
        self.positions, multipoles, response = random_system(n, 1, size)
        self.charge, self.mu = multipoles.charge, multipoles.dipole
        alpha = response.polarizability
        self.alpha = alpha * (0.1 / torch.linalg.eigvalsh(alpha).max()) if with_dipoles else None
        self.weights = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(3)).double()
        self.index, self.images = bonds_of(self.positions, self.cell, self.pbc)

    def bonds(self, positions=None, cell=None, weights=None):
        positions = self.positions if positions is None else positions
        cell = self.cell if cell is None else cell
        vectors = vectors_of(positions, cell, self.index, self.images)
        weights = self.weights if weights is None else weights
        return BondResponse(softness_of(weights, vectors, self.index), self.index, vectors)

    def evaluate(
        self, positions=None, strain=None, weights=None, charge=None, alpha=None, **options
    ):
        positions = self.positions if positions is None else positions
        cell = self.cell
        if strain is not None:
            positions = positions + positions @ strain
            cell = None if cell is None else cell + cell @ strain
        bonds = self.bonds(positions, cell, weights)
        alpha = self.alpha if alpha is None else alpha
        charge = self.charge if charge is None else charge
        return there(Electrostatics(taper=0.1))(
            positions,
            (torch.zeros(3, 3, dtype=torch.float64) if cell is None else cell)[None],
            torch.tensor([self.pbc]),
            torch.zeros(len(positions), dtype=torch.int64),
            Multipoles(charge, self.mu),
            ResponseCoefficients(None, alpha, bonds),
            **options,
        )


def pairs_of(system):
    """One edge of each pair."""
    seen, chosen = set(), []
    for e, (j, i) in enumerate(system.index.T.tolist()):
        image = tuple(int(x) for x in system.images[e])
        if (i, j, tuple(-x for x in image)) not in seen:
            seen.add((j, i, image))
            chosen.append(e)
    return torch.tensor(chosen)


@pytest.mark.parametrize("field", [None, FIELD], ids=["no field", "field"])
@pytest.mark.parametrize("kind", CELLS)
def test_self_consistent_response_is_the_minimum_over_charges_of_bonds(kind, field):
    """A matrix of what each pair of atoms and each dipole does to the others, solved at once."""
    system = System(kind)
    out = system.evaluate(external_field=field, self_consistent=True)
    bonds, chosen, n = system.bonds(), pairs_of(system), len(system.positions)
    n_pairs = len(chosen)
    assert 2 * n_pairs == len(bonds.softness)
    k, r = bonds.softness[chosen], bonds.vectors[chosen]
    sender, receiver = system.index[:, chosen]
    uniform = torch.zeros(3, dtype=torch.float64) if field is None else field[0]
    operator_args = (
        (torch.zeros(3, 3, dtype=torch.float64) if system.cell is None else system.cell)[None],
        torch.tensor([system.pbc]),
        torch.zeros(n, dtype=torch.int64),
    )
    engine = there(Electrostatics(taper=0.1))

    def fields(charge, dipole):
        found = engine(system.positions, *operator_args, Multipoles(charge, dipole))
        return found.potential, found.field

    def answers(charge, dipole):
        """−(φ_i − φ_j) of the pairs and E of the atoms, one after the other."""
        potential, at_atoms = fields(charge, dipole)
        return torch.cat([-(potential[receiver] - potential[sender]), at_atoms.flatten()])

    def sources(unknown):
        moved = unknown[:n_pairs]
        charge = torch.zeros(n, dtype=torch.float64)
        charge = charge.index_add(0, receiver, moved).index_add(0, sender, -moved)
        return charge, unknown[n_pairs:].view(n, 3)

    size = n_pairs + 3 * n
    unit = torch.eye(size, dtype=torch.float64)
    matrix = -torch.stack([answers(*sources(column)) for column in unit], 1)
    matrix[:n_pairs, :n_pairs] += torch.diag(1 / k)
    matrix[n_pairs:, n_pairs:] += torch.block_diag(*torch.linalg.inv(system.alpha))
    drive = answers(system.charge, system.mu)
    drive = drive + torch.cat([r @ uniform, uniform.repeat(n)])
    unknown = torch.linalg.solve(matrix, drive)
    charge, dipole = sources(unknown)
    torch.testing.assert_close(out.induced_charge, charge, rtol=0, atol=1e-9)
    torch.testing.assert_close(out.induced_dipole, dipole, rtol=0, atol=1e-9)
    moment = (unknown[:n_pairs, None] * r).sum(0)
    torch.testing.assert_close(out.induced_moment.sum(0), moment, rtol=0, atol=1e-9)
    energy = out.energy_permanent[0] - 0.5 * unknown @ drive
    torch.testing.assert_close(out.energy[0], energy, rtol=0, atol=1e-9)
    by_charge = -0.5 * unknown[:n_pairs] @ drive[:n_pairs]
    torch.testing.assert_close(out.energy_induced_charge[0], by_charge, rtol=0, atol=1e-9)
    assert charge.abs().max() > 1e-3 and charge.sum().abs() < 1e-12


@pytest.mark.parametrize("iterates", [False, True], ids=["one step", "self-consistent"])
@pytest.mark.parametrize("kind", CELLS)
def test_slopes_in_a_field_equal_finite_differences(kind, iterates):
    """Forces to 1e-6 eV/Å, the strain derivative to 1e-6 eV, −∂E/∂F what is induced."""
    system = System(kind)
    options = dict(self_consistent=iterates)
    positions = system.positions.clone().requires_grad_(True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    field = FIELD.clone().requires_grad_(True)
    out = system.evaluate(positions, strain, external_field=field, **options)
    slopes = torch.autograd.grad(out.energy.sum(), [positions, strain, field])

    def energy(moves=0.0, shape=None, change=0.0):
        found = system.evaluate(
            system.positions + moves, shape, external_field=FIELD + change, **options
        )
        return found.energy.item()

    step = 1e-4
    for atom, axis in ((0, 0), (3, 2)):
        move = torch.zeros_like(system.positions)
        move[atom, axis] = step
        slope = (energy(move) - energy(-move)) / (2 * step)
        assert slopes[0][atom, axis].item() == pytest.approx(slope, abs=1e-6)
    for a, b in ((0, 0), (1, 2)):
        shape = torch.zeros(3, 3, dtype=torch.float64)
        shape[a, b] = step
        slope = (energy(shape=shape) - energy(shape=-shape)) / (2 * step)
        assert slopes[1][a, b].item() == pytest.approx(slope, abs=1e-6)
    induced = (out.induced_moment + out.induced_dipole + system.mu).sum(0)
    if kind == "open":  # where the field acts on permanent charges as well
        induced = induced + system.charge @ system.positions
    rows = [2] if kind == "slab" else [0, 1, 2]
    if kind == "slab":
        induced = induced + system.charge @ system.positions
    torch.testing.assert_close(-slopes[2][0][rows], induced[rows], rtol=0, atol=1e-8)


@pytest.mark.parametrize("iterates", [False, True], ids=["one step", "self-consistent"])
@pytest.mark.parametrize("kind", ["open", "periodic"])
def test_second_derivatives(kind, iterates):
    """Of positions, strain, charges and coefficients, in a field, along random directions."""
    system = System(kind, n=3, size=3.0)
    inputs = [
        system.positions,
        torch.zeros(3, 3, dtype=torch.float64),
        system.weights,
        system.charge,
        system.alpha,
        FIELD,
    ]
    inputs = [x.clone().requires_grad_(True) for x in inputs]

    def energy(positions, strain, weights, charge, alpha, field):
        return system.evaluate(
            positions, strain, weights, charge, alpha, external_field=field,
            self_consistent=iterates,
        ).energy  # fmt: skip

    again = dict(nondet_tol=rounding(), fast_mode=True)
    assert torch.autograd.gradcheck(energy, inputs, atol=1e-6, rtol=1e-5, **again)
    assert torch.autograd.gradgradcheck(energy, inputs, atol=1e-5, rtol=1e-4, **again)


def test_small_coefficients_give_the_one_step_response():
    """What is induced acts on itself in second order of the coefficients."""
    system = System("periodic", with_dipoles=False)
    differences = []
    for size in (1.0, 0.1):
        system.weights = system.weights * size**0.5
        found = [system.evaluate(self_consistent=s).induced_charge for s in (False, True)]
        differences.append(((found[1] - found[0]).norm() / found[0].norm()).item())
        system.weights = system.weights / size**0.5
    assert differences[0] > 1e-3
    assert differences[1] == pytest.approx(0.1 * differences[0], rel=0.3)


def test_the_bound_keeps_the_response_stable():
    """However soft the bonds: the largest eigenvalue of their Laplacian stays below the bound."""
    system, n = System("periodic", n=6, with_dipoles=False), 6
    most = largest_coefficients(1.0)[0]
    for size in (1e-3, 1.0, 1e3):
        bonds = system.bonds(weights=system.weights * size)
        found = bounded_bonds(bonds, n, most)
        unit = torch.eye(n, dtype=torch.float64)
        laplacian = torch.stack([found.flow(found.softness, column) for column in unit], 1)
        assert torch.linalg.eigvalsh(laplacian).max() < most
        if size == 1e-3:
            torch.testing.assert_close(found.softness, bonds.softness, rtol=1e-4, atol=0)
    out = there(Electrostatics())(
        system.positions,
        TRICLINIC[None],
        torch.ones(1, 3, dtype=torch.bool),
        torch.zeros(n, dtype=torch.int64),
        Multipoles(system.charge),
        ResponseCoefficients(bonds=found),
        self_consistent=True,
    )
    assert bool(out.energy.isfinite())


def test_a_chain_of_bonds_is_a_dielectric():
    """ε∞ of a cubic lattice of one atom whose bonds go to its images: 1 + Σ k r r/(eps0 V)."""
    cell = 3.0 * torch.eye(3, dtype=torch.float64)
    ways = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    bonds = BondResponse(
        torch.full((6,), 1e-3, dtype=torch.float64),
        torch.zeros(2, 6, dtype=torch.int64),
        ways @ cell,
    )
    field = torch.tensor([[0.0, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    positions = torch.zeros(1, 3, dtype=torch.float64)
    for iterates in (False, True):
        out = evaluate(
            positions,
            Multipoles(positions[:, 0]),
            ResponseCoefficients(bonds=bonds),
            cell,
            external_field=field,
            self_consistent=iterates,
        )
        (slope,) = torch.autograd.grad(out.energy.sum(), field)
        permittivity = 1 - slope[0, 1].item() / (0.1 * EPS0 * 27)
        assert permittivity == pytest.approx(1 + 1e-3 * 9 / (EPS0 * 27))
        assert out.induced_charge.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(softness=torch.zeros(3).double()), r"bonds.softness must be \[\d+\] for"),
        (dict(vectors=torch.zeros(2, 2).double()), "bonds.vectors must be"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    system = System("open")
    bonds = replace(system.bonds(), **change)
    with pytest.raises(ValueError, match=message):
        evaluate(system.positions, Multipoles(system.charge), ResponseCoefficients(bonds=bonds))
    with pytest.raises(ValueError, match="softness and bonds: charges are induced by one"):
        both = ResponseCoefficients(system.charge.abs(), None, system.bonds())
        evaluate(system.positions, Multipoles(system.charge), both)


def test_bonds_that_are_too_soft_are_refused():
    system = System("open")
    for factor, message in ((1e3, "twice the sum of bonds.softness"), (-1.0, "not be negative")):
        bonds = system.bonds()
        bonds = replace(bonds, softness=factor * bonds.softness)
        with pytest.raises(ValueError, match=message):
            evaluate(
                system.positions,
                Multipoles(system.charge),
                ResponseCoefficients(bonds=bonds),
                self_consistent=True,
            )
