"""Born charges: finite differences in large cells are the test, invariance a necessity."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.born_charges import (
    MACEAtStructures,
    _with_some_errors,
    acoustic_sum,
    born_charges,
    enforce_sum_rule,
)
from mace_polmp.modules.graph import Graph
from mace_polmp.modules.selection import select_structures
from mace_polmp.units import EPS0
from tests.devices import moved
from tests.helpers import (
    evaluate,
    make_batch,
    make_calculator,
    random_model,
    rock_salt,
    rounding,
    salty_water,
    wet_slab,
)

pytestmark = pytest.mark.usefixtures("device")

PERIODIC = LongRangeOptions(induced="dipole", polarizability="anisotropic")
BLOCKS = {
    "one layer": dict(num_interactions=1, hidden_irreps="8x0e"),
    "two layers": dict(num_interactions=2),
    "three layers": dict(num_interactions=3),
    "two density layers": dict(
        num_interactions=2, interaction="RealAgnosticDensityResidualInteractionBlock"
    ),
    "two attention layers": dict(
        num_interactions=2, interaction="RealAgnosticAttResidualInteractionBlock"
    ),
    "two non-linear layers": dict(
        num_interactions=2, interaction="RealAgnosticResidualNonLinearInteractionBlock"
    ),
}


def finite_differences(model, atoms, atom, axis, repeats=(3, 3, 3), step=1e-4):
    """∂(Σ q r + Σ (μ + Δμ))/∂r of one atom, moved alone in a supercell, minimum images.

    Dipoles are induced everywhere, so all atoms of the supercell are summed; for the charge part
    the vectors are those of the nearest image of each atom.
    """
    big = atoms.repeat(repeats)
    vectors = big.get_distances(atom, range(len(big)), mic=True, vector=True)
    total, own = [], []
    for sign in (-1, 1):
        moved = big.copy()
        moved.positions[atom, axis] += sign * step
        out = evaluate(model, moved, compute_force=False)
        charge = (out["charges"] - out["induced_charges"]).detach().numpy()
        own.append(charge[atom])
        total.append(charge @ vectors + out["atomic_dipoles"].detach().numpy().sum(0))
    column = (total[1] - total[0]) / (2 * step)
    column[axis] += np.mean(own)
    return column


def born(model, atoms):
    return born_charges(model, make_batch([atoms], model)).cpu().numpy()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("kind", ["triclinic", "left-handed"])
def test_periodic_born_charges_equal_finite_differences_in_a_large_cell(name, kind):
    """The cell is shorter than the receptive field: several images of each atom respond."""
    r_max = 3.2
    repeats = (4, 4, 4) if name == "three layers" else (3, 3, 3)
    model = random_model(PERIODIC, r_max=r_max, **BLOCKS[name])
    atoms = rock_salt(kind)
    z = born(model, atoms)
    for atom, axis in ((0, 0), (5, 2)):
        numerical = finite_differences(model, atoms, atom, axis, repeats)
        np.testing.assert_allclose(z[atom, :, axis], numerical, atol=1e-6)


@pytest.mark.parametrize("options", [PERIODIC, LongRangeOptions()], ids=["dipoles", "both"])
def test_periodic_born_charges_do_not_depend_on_the_supercell(options):
    for name in BLOCKS:
        model = random_model(options, r_max=3.2, **BLOCKS[name])
        for kind in ("cubic", "triclinic", "left-handed"):
            atoms = rock_salt(kind)
            one, eight = born(model, atoms), born(model, atoms.repeat(2))
            np.testing.assert_allclose(eight, np.tile(one, (8, 1, 1)), atol=1e-8)


def waves(model, atoms, atom, axis, direction, n, names, step=1e-4):
    """q, e^{−iq·(r − r_atom)}, and changes of outputs per displacement of one atom of n cells.

    The atom is displaced by a cosine and a sine wave q along a row of n cells.
    """
    repeats = [1, 1, 1]
    repeats[direction] = n
    row, size = atoms.repeat(repeats), len(atoms)
    q = 2 * np.pi * atoms.cell.reciprocal()[direction] / n
    along = (row.positions[::size] - row.positions[0]) @ q
    changes = []
    for wave in (np.cos(along), np.sin(along)):
        outputs = []
        for sign in (-1, 1):
            moved = row.copy()
            moved.positions[atom::size, axis] += sign * step * wave
            out = evaluate(model, moved, compute_force=False)
            outputs.append([out[key].detach().numpy() for key in names])
        changes.append([(b - a) / (2 * step) for a, b in zip(*outputs, strict=True)])
    phase = np.exp(-1j * (row.positions - atoms.positions[atom]) @ q)
    return q, phase, [c + 1j * s for c, s in zip(*changes, strict=True)]


def charge_wave(model, atoms, atom, axis, direction, n):
    """The first moment along a wave of the charges that a wave of displacements makes.

    One atom of n cells in a row is displaced by a cosine and a sine wave q. The charges that
    follow, −κφ included, are summed with e^{−iq·(r_j − r_i)}; what the macroscopic field does,
    the term k = q of the Coulomb sum, is taken off.
    """
    names = ("charges", "induced_charges", "atomic_dipoles", "induced_dipoles")
    q, phase, changed = waves(
        model, atoms, atom, axis, direction, n, (*names, "atomic_quadrupoles")
    )
    charge, induced, dipole, response, quadrupole = changed
    out = evaluate(model, atoms)
    kappa = out["softness"].detach().sum().item()
    own = [(out[a] - out[b])[atom].detach().numpy() for a, b in (names[:2], names[2:])]
    own.append(out["atomic_quadrupoles"][atom].detach().numpy())

    def source(q_, mu, quad):
        return q_ - 1j * mu @ q - 0.5 * np.einsum("...ab,a,b->...", quad, q, q)

    at_q = (phase * source(charge - induced, dipole - response, quadrupole)).sum() / n
    at_q = at_q - 1j * q[axis] * source(*own)
    macroscopic = np.exp(-0.5 * q @ q) / (q @ q * EPS0 * atoms.get_volume()) * at_q
    total = (phase * charge).sum() / n + kappa * macroscopic
    length = np.linalg.norm(q)
    return -total.imag / length, q / length


@pytest.mark.parametrize("conserve", [False, True])
def test_induced_charges_follow_the_long_wavelength_limit(conserve):
    """Born charges along q are the limit of long waves of displacements, response included.

    The k-space sum is converged here: waves q + G must not cross its sharp cutoff.
    """
    options = LongRangeOptions(conserve_charge=conserve, kspace_spacing=1.1)
    model, atoms = random_model(options, r_max=3.2), rock_salt("left-handed")
    z = born(model, atoms)
    still = evaluate(model, atoms)["charges"].detach().numpy()
    for atom, axis, direction in ((0, 0, 2), (3, 1, 0)):
        dipoles = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * 1e-4
            out = evaluate(model, moved, compute_force=False)
            dipoles.append(out["atomic_dipoles"].detach().numpy().sum(0))
        moments = z[atom, :, axis] - (dipoles[1] - dipoles[0]) / 2e-4
        moments[axis] -= still[atom]
        short, _ = charge_wave(model, atoms, atom, axis, direction, 8)
        long, unit = charge_wave(model, atoms, atom, axis, direction, 16)
        limit = (4 * long - short) / 3  # the error falls with q²
        assert unit @ moments == pytest.approx(limit, abs=2e-6)
        assert abs(limit) > 1e-4


SELF_CONSISTENT = dict(response="self_consistent", kspace_spacing=1.1)


def self_consistent_wave(model, atoms, atom, axis, direction, n):
    """What charge_wave gives, of all multipoles, with a self-consistent response.

    The macroscopic field, v ρ of the charge density ρ of the wave, moves charges itself: all that a
    uniform potential induces, W. Without it ρ would be ρ + W v ρ.
    """
    names = ("charges", "atomic_dipoles", "atomic_quadrupoles")
    q, phase, changed = waves(model, atoms, atom, axis, direction, n, names)
    out = evaluate(model, atoms)
    own = [out[key].detach().numpy()[atom] for key in names]

    def source(q_, mu, quad):
        return q_ - 1j * mu @ q - 0.5 * np.einsum("...ab,a,b->...", quad, q, q)

    density = (phase * source(*changed)).sum() / n - 1j * q[axis] * source(*own)
    with torch.no_grad():
        head_out = model.long_range(Graph.of(make_batch([atoms], model)))[1]
        flow = float(head_out.in_field.to_uniform_potential()[1][:, 0].sum())
    macroscopic = np.exp(-0.5 * q @ q) / (q @ q * EPS0 * atoms.get_volume())
    length = np.linalg.norm(q)
    return -(density * (1 + flow * macroscopic)).imag / length, q / length


@pytest.mark.parametrize("settings", [{}, {"induced": "charge"}, {"conserve_charge": True}])
def test_self_consistent_charges_follow_the_long_wavelength_limit(settings):
    options = LongRangeOptions(polarizability="anisotropic", **SELF_CONSISTENT, **settings)
    model, atoms = random_model(options, r_max=3.2), rock_salt("left-handed")
    z, (atom, axis, direction) = born(model, atoms), (0, 0, 2)
    found = [self_consistent_wave(model, atoms, atom, axis, direction, n) for n in (12, 24, 48)]
    (short, unit), (middle, _), (long, _) = found
    limit = (64 * long - 20 * middle + short) / 45  # errors in q² and q⁴ are taken off
    assert unit @ z[atom, :, axis] == pytest.approx(limit, abs=3e-6)
    assert abs(limit) > 0.01


@pytest.mark.parametrize("induced", ["charge", "dipole", "both"])
def test_self_consistent_born_charges_do_not_depend_on_the_supercell(induced):
    options = LongRangeOptions(induced=induced, response="self_consistent")
    model, atoms = random_model(options), rock_salt("triclinic")
    one, eight = born(model, atoms), born(model, atoms.repeat(2))
    np.testing.assert_allclose(eight, np.tile(one, (8, 1, 1)), atol=1e-8)


def test_self_consistent_dipoles_equal_finite_differences_in_a_large_cell():
    options = replace(PERIODIC, response="self_consistent")
    model, atoms = random_model(options, r_max=3.2), rock_salt("triclinic")
    z = born(model, atoms)
    for atom, axis in ((0, 0), (5, 2)):
        numerical = finite_differences(model, atoms, atom, axis)
        np.testing.assert_allclose(z[atom, :, axis], numerical, atol=1e-6)


@pytest.mark.parametrize("response", ["one_step", "self_consistent"])
def test_open_born_charges_equal_finite_differences_of_the_dipole(response):
    options = LongRangeOptions(polarizability="anisotropic", response=response)
    model, atoms = random_model(options), salty_water()
    z, step = born(model, atoms), 1e-4
    for atom, axis in ((0, 0), (2, 1), (7, 2)):
        dipoles = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            dipoles.append(evaluate(model, moved)["dipole"][0].detach().numpy())
        numerical = (dipoles[1] - dipoles[0]) / (2 * step)
        np.testing.assert_allclose(z[atom, :, axis], numerical, atol=1e-6)


def test_large_box_agrees_with_open_structure():
    """Without response everything is local: the same molecule, the same Born charges.

    The latent charges of a molecule need not be conserved; what then depends on the origin of the
    coordinates, r_i ⊗ ∂(Σ q)/∂r_i, is in the dipole of the open structure only.
    """
    model = random_model(LongRangeOptions(induced="none"))
    atoms = salty_water()
    boxed = atoms.copy()
    boxed.set_cell(20.0 * np.eye(3))
    boxed.pbc = True
    boxed.positions += 9.5  # some atoms beyond the boundary of the cell
    boxed.wrap()
    batch = make_batch([atoms], model)
    total = model.read_multipoles(batch)[1].charge.sum()
    (change,) = torch.autograd.grad(total, batch["positions"])
    expected = born(model, atoms) - atoms.positions[:, :, None] * change.cpu().numpy()[:, None, :]
    np.testing.assert_allclose(born(model, boxed), expected, atol=1e-9)


def test_mesh_gives_the_same_born_charges():
    model, atoms = random_model(), rock_salt("triclinic").repeat(2)
    exact = born(model, atoms)
    model.electrostatics.solver = "mesh"
    np.testing.assert_allclose(born(model, atoms), exact, atol=1e-5)


def test_hooks_are_gone_afterwards():
    model, atoms = random_model(PERIODIC), rock_salt()
    before = evaluate(model, atoms)
    born(model, atoms)
    after = evaluate(model, atoms)
    torch.testing.assert_close(after["forces"], before["forces"], rtol=0, atol=rounding())


def test_sum_rule_and_screening():
    model, atoms = random_model(), rock_salt("triclinic")
    batch = make_batch([atoms, rock_salt()], model)
    z = born_charges(model, batch)
    assert acoustic_sum(z, batch["batch"], 2).abs().max() > 0.01
    charged = torch.tensor([0.0, 2.0], dtype=z.dtype, device=z.device)
    enforced = enforce_sum_rule(z, batch["batch"], 2, charged)
    expected = charged[:, None, None] * torch.eye(3, dtype=z.dtype, device=z.device)
    torch.testing.assert_close(acoustic_sum(enforced, batch["batch"], 2), expected)
    torch.testing.assert_close(
        born_charges(model, batch, sum_rule=True), enforce_sum_rule(z, batch["batch"], 2)
    )
    out = model(batch)
    for number, structure in enumerate((atoms, rock_salt())):
        mine = batch["batch"] == number
        trace = out["atomic_polarizabilities"][mine].detach().sum(0).trace()
        chi = trace / (3 * EPS0 * structure.get_volume())
        screened = born_charges(model, batch, epsilon_infinity=2.25, divide_by_chi=True)
        torch.testing.assert_close(screened[mine], z[mine] * 1.5 / torch.sqrt(1 + chi))
    # A molecule in vacuum is not screened.
    batch = make_batch([salty_water()], model)
    z = born_charges(model, batch)
    screened = born_charges(model, batch, epsilon_infinity=2.25, divide_by_chi=True)
    torch.testing.assert_close(screened, z, rtol=0, atol=rounding())


def test_refusals():
    model = random_model(PERIODIC)
    with pytest.raises(InputError, match="separate batches"):
        born_charges(model, make_batch([rock_salt(), salty_water()], model))
    with pytest.raises(InputError, match="of a slab need a model with --charge_readout bond"):
        born(model, wet_slab())
    with pytest.raises(InputError, match="number of 1 or more, got 0.5"):
        born_charges(model, make_batch([rock_salt()], model), epsilon_infinity=0.5)


CONSTRAINTS = ("none", "softness", "uniform")


def some_parameters(model):
    """Of the backbone, where messages begin, and of every part of the head."""
    names = ["interactions.0.conv_tp_weights.layer0.weight", "products.0.linear.weight"]
    head = [
        n for n, _ in model.named_parameters() if not n.startswith(("interactions", "products"))
    ]
    names += [n for n in head if n.startswith(("multipole_readouts", "raw"))]
    return {n: p for n, p in model.named_parameters() if n in names}


@pytest.mark.parametrize(
    ("kind", "charges", "response"),
    [(k, c, "one_step") for k in ("open", "periodic", "attention") for c in CONSTRAINTS]
    + [("open", "none", "self_consistent"), ("periodic", "softness", "self_consistent")],
)
def test_training_on_born_charges_has_the_right_gradient(kind, charges, response):
    """The gradient of a loss of Z* by the parameters equals finite differences."""
    options = LongRangeOptions(
        polarizability="anisotropic",
        constrain_charge=charges,
        epsilon_infinity="learn",
        response=response,
    )
    block = BLOCKS["two attention layers" if kind == "attention" else "two layers"]
    model = random_model(options, **block)
    atoms = salty_water() if kind == "open" else rock_salt("triclinic")
    data = make_batch([atoms], model)
    random = torch.Generator().manual_seed(0)
    target = moved(torch.randn(len(atoms), 3, 3, generator=random, dtype=torch.float64))

    def loss(training=False):
        return (born_charges(model, dict(data), training=training) * target).sum()

    parameters = some_parameters(model)
    value = loss(training=True)
    assert value.item() == pytest.approx(loss().item(), abs=1e-10)
    slopes = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
        direction = moved(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
        ends = []
        for sign in (-1, 1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
            ends.append(loss().item())
            with torch.no_grad():
                parameter -= sign * 1e-5 * direction
        numerical = (ends[1] - ends[0]) / 2e-5
        analytic = 0.0 if slope is None else float((slope * direction).sum())
        assert analytic == pytest.approx(numerical, rel=1e-5, abs=1e-6), name


def test_labelled_structures_of_a_mixed_batch():
    """Each labelled structure gets its own Born charges, whatever else is in the batch."""
    model = random_model()
    structures = [salty_water(), rock_salt(), wet_slab(), rock_salt("triclinic"), salty_water()]
    data = make_batch(structures, model)
    data["born_charges_weight"] = moved(torch.tensor([1.0, 0.5, 0.0, 2.0, 0.0]))
    found = model(data)["born_charges"].split([len(atoms) for atoms in structures])
    for atoms, part, weight in zip(structures, found, data["born_charges_weight"], strict=True):
        expected = born(model, atoms) if weight > 0 else np.zeros((len(atoms), 3, 3))
        np.testing.assert_allclose(part.detach().cpu().numpy(), expected, atol=1e-10)


def labelled_batch(model):
    """Structures of both kinds with random labels, and these as [n_atoms, 3, 3]."""
    data = make_batch([salty_water(), rock_salt("triclinic")], model)
    n_atoms = len(data["positions"])
    random = torch.Generator().manual_seed(5)
    labels = moved(torch.randn(n_atoms, 3, 3, generator=random, dtype=torch.float64))
    data["born_charges_weight"] = moved(torch.ones(2, dtype=torch.float64))
    return data | {"born_charges": labels.reshape(-1, 9)}, labels


@pytest.mark.parametrize("charges", ["none", "softness"])
def test_errors_along_random_directions_are_on_average_all_errors(charges):
    """One direction of three leaves two thirds out and counts three times; three are all."""
    model = random_model(LongRangeOptions(constrain_charge=charges), r_max=3.2)
    data, labels = labelled_batch(model)
    exact = model(dict(data), training=True)["born_charges"]
    torch.manual_seed(0)
    squares = {}
    for model.born_directions, draws in ((1, 60), (2, 20)):
        found = [model(dict(data), training=True)["born_charges"] for _ in range(draws)]
        squares[model.born_directions] = [float(((z - labels) ** 2).mean().detach()) for z in found]
    for k, values in squares.items():
        mean, spread = np.mean(values), np.std(values) / np.sqrt(len(values))
        assert mean == pytest.approx(
            float(((exact - labels) ** 2).mean().detach()), abs=4 * spread
        ), k
        assert np.std(values) > 0
    evaluated = model(dict(data))["born_charges"]  # is not trained on: nothing is left out
    torch.testing.assert_close(evaluated, exact, rtol=0, atol=1e-10)


def test_all_directions_together_leave_nothing_out():
    model = random_model()
    data, _ = labelled_batch(model)
    exact = model(dict(data), training=True)["born_charges"].split(8)
    for number, atoms in enumerate((salty_water(), rock_salt("triclinic"))):
        backbone = MACEAtStructures(model, Graph.of(make_batch([atoms], model)))
        part, _ = select_structures(data, moved(torch.arange(2)) == number)
        found = _with_some_errors(backbone, part, 3, None)
        torch.testing.assert_close(found, exact[number], rtol=0, atol=1e-9)


@pytest.mark.parametrize("charges", ["softness", "uniform"])
def test_constrained_charges_keep_born_charges_independent_of_the_supercell(charges):
    model = random_model(LongRangeOptions(constrain_charge=charges))
    atoms = rock_salt("triclinic")
    small, large = born(model, atoms), born(model, atoms.repeat((2, 2, 2)))
    np.testing.assert_allclose(large, np.tile(small, (8, 1, 1)), atol=1e-8)


def test_the_models_own_permittivity_screens_born_charges():
    model = random_model(LongRangeOptions(epsilon_infinity=1.7))
    bare = born_charges(model, make_batch([rock_salt()], model), epsilon_infinity=1.0).cpu()
    np.testing.assert_allclose(born(model, rock_salt()), np.sqrt(1.7) * bare, rtol=1e-12)
    molecule = make_batch([salty_water()], model)
    np.testing.assert_allclose(
        born(model, salty_water()),
        born_charges(model, molecule, epsilon_infinity=1.0).cpu(),
        rtol=1e-12,
    )


def test_born_charges_of_molecules_in_a_field_are_those_in_the_field():
    """∂(dipole)/∂r by finite differences, response to the field included."""
    field = np.array([0.2, 0.1, -0.1])
    model = random_model(LongRangeOptions(induced="both"))
    calc = make_calculator(models=model, default_dtype="float64", external_field=field)
    atoms = salty_water()
    found = calc.get_property("born_charges", atoms)
    for atom, axis in ((0, 0), (3, 2)):
        dipoles = []
        for step in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            dipoles.append(calc.get_property("dipole", moved))
        slope = (dipoles[0] - dipoles[1]) / 2e-4
        np.testing.assert_allclose(found[atom, :, axis], slope, atol=1e-7)
