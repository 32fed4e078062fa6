"""The model: exact derivatives, symmetries, every backbone, gradients for training."""

import numpy as np
import pytest
import torch
from ase import Atoms
from mace.modules import ScaleShiftMACE
from scipy.spatial.transform import Rotation

from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from tests.devices import moved
from tests.helpers import (
    backbone_settings,
    evaluate,
    make_batch,
    random_model,
    rattled,
    rock_salt,
    rounding,
    salty_water,
    wet_slab,
)

pytestmark = pytest.mark.usefixtures("device")

BACKBONES = {
    "one layer, scalars": dict(num_interactions=1, hidden_irreps="8x0e"),
    "one layer, vectors asked for": dict(num_interactions=1, hidden_irreps="8x0e+8x1o"),
    "two layers, scalars": dict(num_interactions=2, hidden_irreps="8x0e"),
    "two layers, vectors": dict(num_interactions=2, hidden_irreps="8x0e+8x1o"),
    "two layers, tensors": dict(num_interactions=2, hidden_irreps="8x0e+8x1o+8x2e"),
    "three layers, density": dict(
        num_interactions=3,
        hidden_irreps="8x0e+8x1o",
        interaction="RealAgnosticDensityResidualInteractionBlock",
    ),
}
EVERYTHING = LongRangeOptions(multipole_lmax=2, induced="both", polarizability="anisotropic")


def numerical_forces(model, atoms, indices, step=1e-3):
    """Central differences of fourth order, exact to about 1e-10 eV/Å."""
    forces = []
    for i, a in indices:
        energies = []
        for factor in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[i, a] += factor * step
            energies.append(evaluate(model, moved, compute_force=False)["energy"].item())
        low2, low, high, high2 = energies
        forces.append(-(8 * (high - low) - (high2 - low2)) / (12 * step))
    return np.array(forces)


def numerical_stress(model, atoms, step=1e-3):
    stress = np.zeros((3, 3))
    for a in range(3):
        for b in range(a + 1):
            energies = []
            for factor in (-2, -1, 1, 2):
                strain = np.zeros((3, 3))
                strain[a, b] += 0.5 * factor * step
                strain[b, a] += 0.5 * factor * step
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                energies.append(evaluate(model, moved, compute_force=False)["energy"].item())
            low2, low, high, high2 = energies
            value = (8 * (high - low) - (high2 - low2)) / (12 * step)
            stress[a, b] = stress[b, a] = value / atoms.get_volume()
    return stress


@pytest.mark.parametrize("kind", ["cubic", "triclinic", "left-handed"])
def test_periodic_forces_and_stress_are_exact(kind):
    model, atoms = random_model(EVERYTHING), rock_salt(kind)
    out = evaluate(model, atoms, compute_stress=True)
    assert out["long_range_energy"].abs().item() > 0.1
    indices = [(0, 0), (3, 1), (5, 2), (7, 0)]
    forces = out["forces"].detach().numpy()
    assert np.abs(forces).max() > 0.1
    np.testing.assert_allclose(
        [forces[i] for i in indices], numerical_forces(model, atoms, indices), atol=1e-6
    )
    np.testing.assert_allclose(out["stress"][0].detach(), numerical_stress(model, atoms), atol=1e-7)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)


@pytest.mark.parametrize("conserve", [False, True])
def test_open_forces_are_exact(conserve):
    options = LongRangeOptions(polarizability="anisotropic", conserve_charge=conserve)
    model, atoms = random_model(options), salty_water()
    forces = evaluate(model, atoms)["forces"].detach().numpy()
    indices = [(0, 0), (1, 1), (2, 2), (4, 0), (7, 1)]
    np.testing.assert_allclose(
        [forces[i] for i in indices], numerical_forces(model, atoms, indices), atol=1e-6
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_reads_out_equivariant_multipoles(name):
    """Rotation and inversion turn scalars, vectors and tensors as they must."""
    model = random_model(EVERYTHING, **BACKBONES[name])
    for atoms in (salty_water(), rock_salt("triclinic")):
        turn = -Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
        turned = atoms.copy()
        turned.positions = atoms.positions @ turn.T
        turned.set_cell(atoms.cell.array @ turn.T)
        a = evaluate(model, atoms, compute_stress=True)
        b = evaluate(model, turned, compute_stress=True)
        rotation = torch.tensor(turn)
        scalars = ("energy", "long_range_energy", "charges", "induced_charges", "softness")
        vectors = ("forces", "atomic_dipoles", "induced_dipoles", "dipole")
        tensors = ["atomic_quadrupoles", "atomic_polarizabilities", "polarizability"]
        if atoms.pbc.all():  # the stress of an open structure is over an arbitrary volume
            tensors.append("stress")
        for key in scalars:
            torch.testing.assert_close(b[key], a[key], atol=1e-9, rtol=0)
        for key in vectors:
            assert a[key].abs().max() > 1e-6, key
            torch.testing.assert_close(b[key], a[key] @ rotation.T, atol=1e-9, rtol=0)
        for key in tensors:
            turned_back = rotation.T @ b[key] @ rotation
            torch.testing.assert_close(turned_back, a[key], atol=1e-9, rtol=0)


def test_multipoles_keep_their_symmetry_and_sign():
    out = evaluate(random_model(EVERYTHING), salty_water(), rock_salt())
    quadrupole, alpha = out["atomic_quadrupoles"], out["atomic_polarizabilities"]
    torch.testing.assert_close(quadrupole, quadrupole.transpose(1, 2))
    assert torch.einsum("nii->n", quadrupole).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(alpha).min() >= 0
    assert out["softness"].min() >= 0


def test_translation_permutation_and_wrapping_change_nothing():
    model, atoms = random_model(EVERYTHING), rock_salt("triclinic")
    reference = evaluate(model, atoms, compute_stress=True)
    order = np.random.default_rng(1).permutation(len(atoms))
    changed = atoms[order]
    changed.positions += [0.3, -7.1, 11.0]
    changed.wrap()
    out = evaluate(model, changed, compute_stress=True)
    for key in ("energy", "stress", "polarizability"):
        torch.testing.assert_close(out[key], reference[key], atol=1e-9, rtol=0)
    for key in ("forces", "charges", "atomic_dipoles", "atomic_quadrupoles"):
        torch.testing.assert_close(out[key], reference[key][order], atol=1e-9, rtol=0)


def test_batch_of_open_and_periodic_agrees_with_single_structures():
    model = random_model(EVERYTHING)
    structures = [
        salty_water(),
        rock_salt("triclinic"),
        Atoms("Na"),
        salty_water(periodic=True),
        rattled(salty_water()),
    ]
    batch = evaluate(model, *structures, compute_stress=True)
    start = 0
    for number, atoms in enumerate(structures):
        single = evaluate(model, atoms, compute_stress=True)
        stop = start + len(atoms)
        for key in ("energy", "long_range_energy", "dipole", "stress"):
            torch.testing.assert_close(batch[key][number], single[key][0], atol=1e-9, rtol=0)
        for key in ("forces", "charges", "atomic_dipoles", "softness"):
            torch.testing.assert_close(batch[key][start:stop], single[key], atol=1e-9, rtol=0)
        start = stop


def test_supercell_energy_is_extensive():
    model, atoms = random_model(EVERYTHING), rock_salt("triclinic")
    one = evaluate(model, atoms)
    two = evaluate(model, atoms.repeat((1, 2, 1)))
    torch.testing.assert_close(two["energy"], 2 * one["energy"], atol=1e-9, rtol=0)
    torch.testing.assert_close(two["forces"][: len(atoms)], one["forces"], atol=1e-9, rtol=0)


def test_hessian_is_the_derivative_of_the_forces():
    model, atoms = random_model(EVERYTHING), salty_water()
    hessian = evaluate(model, atoms, compute_hessian=True)["hessian"].reshape(24, 24)
    torch.testing.assert_close(hessian, hessian.T, atol=1e-9, rtol=0)
    step, columns = 1e-3, []
    for factor in (-1, 1):
        moved = atoms.copy()
        moved.positions[2, 1] += factor * step
        columns.append(evaluate(model, moved)["forces"].detach().flatten())
    numerical = -(columns[1] - columns[0]) / (2 * step)
    torch.testing.assert_close(hessian[:, 7].detach(), numerical, atol=1e-4, rtol=1e-4)


def test_every_head_parameter_gets_a_gradient_from_forces():
    for options in (EVERYTHING, LongRangeOptions(), LongRangeOptions(multipole_lmax=1)):
        model = random_model(options, boost=1.0)
        out = evaluate(model, salty_water(), rock_salt(), training=True, compute_stress=True)
        loss = out["forces"].square().sum() + out["stress"].square().sum()
        loss.backward()
        for name, parameter in model.multipole_readouts.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_published_variants_read_out_what_their_names_say():
    les = evaluate(random_model(LongRangeOptions(multipole_lmax=0, induced="none")), rock_salt())
    assert les["charges"].abs().max() > 0
    for key in ("atomic_dipoles", "atomic_quadrupoles", "softness", "atomic_polarizabilities"):
        assert les[key].abs().max() == 0, key
    iq = evaluate(random_model(LongRangeOptions(multipole_lmax=1, induced="charge")), rock_salt())
    assert iq["induced_charges"].abs().max() > 0 and iq["induced_dipoles"].abs().max() == 0
    assert iq["atomic_quadrupoles"].abs().max() == 0


def test_start_is_physical_and_not_a_saddle(device):
    torch.manual_seed(0)
    model = MultipoleMACE(**backbone_settings())
    charges = evaluate(model.double().to(device), salty_water())["charges"]
    sodium, chlorine, oxygen, hydrogen = charges[0], charges[1], charges[2], charges[3]
    assert oxygen < 0 and chlorine < 0 and hydrogen > 0 and sodium > 0


def test_from_mace_keeps_the_backbone(device):
    torch.manual_seed(0)
    backbone = ScaleShiftMACE(**backbone_settings()).double().to(device)
    learning = LongRangeOptions(epsilon_infinity="learn")
    model = MultipoleMACE.from_mace(backbone, learning, initial_scale=0.1)
    short = backbone(make_batch([salty_water()], model))
    out = evaluate(model, salty_water())
    found, expected = out["short_range_energy"], short["energy"].cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding())
    # What the head adds is not in the backbone, neither modules nor parameters of its own.
    assert not hasattr(backbone, "multipole_readouts")
    assert "raw_permittivity" in dict(model.named_parameters())
    assert "raw_permittivity" not in dict(backbone.named_parameters())
    with pytest.raises(TypeError, match="backbone must be a mace.modules.ScaleShiftMACE"):
        MultipoleMACE.from_mace(model)


def test_float32_agrees_with_float64():
    model = random_model(EVERYTHING)
    double = evaluate(model, rock_salt("triclinic"))
    single = evaluate(model.float(), rock_salt("triclinic"))
    for key in ("long_range_energy", "forces"):
        scale = double[key].abs().max()
        assert (single[key].double() - double[key]).abs().max() < 1e-5 * scale, key


def test_what_a_long_range_energy_does_not_have_is_refused():
    model = random_model()
    for flag in ("compute_edge_forces", "compute_atomic_stresses", "lammps_mliap"):
        with pytest.raises(NotImplementedError, match="not a sum over edges"):
            evaluate(model, salty_water(), **{flag: True})
    wire = salty_water(periodic=True)
    wire.pbc = [True, False, False]
    with pytest.raises(ValueError, match="pbc T F F"):
        evaluate(model, wire)


def test_cells_may_be_views():
    """Other programs give cells as transposed views of column vectors, in [n_structures, 3, 3]."""
    model, structures = random_model(), [rock_salt("triclinic"), rock_salt()]
    expected = evaluate(model, *structures, compute_stress=True)
    data = make_batch(structures, model)
    columns = data["cell"].view(-1, 3, 3).transpose(1, 2).contiguous()
    pbc = data["pbc"].view(-1, 3).T.contiguous().T
    for cell in (columns.transpose(1, 2), columns.transpose(1, 2).reshape(-1, 3)):
        out = model({**data, "cell": cell, "pbc": pbc}, compute_stress=True)
        for name in ("energy", "forces", "stress"):
            torch.testing.assert_close(out[name].cpu(), expected[name])


def test_slabs():
    """Exact forces and stress, neutral charges, and no dependence on the vacuum."""
    options = LongRangeOptions(kspace_spacing=1.2)
    model, atoms = random_model(options), wet_slab()
    out = evaluate(model, atoms, compute_stress=True)
    indices = [(0, 0), (1, 2), (4, 2), (7, 1)]
    np.testing.assert_allclose(
        [out["forces"][i].item() for i in indices],
        numerical_forces(model, atoms, indices),
        atol=1e-6,
    )
    np.testing.assert_allclose(out["stress"][0].detach(), numerical_stress(model, atoms), atol=1e-7)
    assert abs((out["charges"] - out["induced_charges"]).sum().item()) < 1e-10

    higher = evaluate(model, wet_slab(vacuum=40.0), compute_stress=True)
    scale = out["long_range_energy"].abs().item()
    assert scale > 0.1
    assert abs(higher["energy"].item() - out["energy"].item()) < 1e-4 * scale
    assert (higher["forces"] - out["forces"]).norm() < 1e-4 * out["forces"].norm()
    # In the plane; the volume counts the vacuum, as ASE's stress does.
    a, b = (
        o["stress"][0, :2, :2] * s.get_volume()
        for o, s in ((out, atoms), (higher, wet_slab(vacuum=40.0)))
    )
    assert (a - b).norm() < 1e-4 * a.norm()


def test_slabs_among_other_structures():
    structures = [salty_water(), wet_slab(), rock_salt("triclinic")]
    model = random_model()
    together = evaluate(model, *structures)
    first = 0
    for number, atoms in enumerate(structures):
        alone = evaluate(model, atoms)
        last = first + len(atoms)
        torch.testing.assert_close(together["energy"][number], alone["energy"][0])
        torch.testing.assert_close(together["charges"][first:last], alone["charges"])
        torch.testing.assert_close(together["forces"][first:last], alone["forces"])
        first = last


@pytest.mark.parametrize("induced", ["none", "both"])
@pytest.mark.parametrize("spread", ["softness", "uniform"])
def test_charges_sum_to_the_total_charge(spread, induced):
    """Of each structure of a batch; forces and stress stay exact derivatives."""
    model = random_model(LongRangeOptions(constrain_charge=spread, induced=induced))
    structures = [salty_water(), rock_salt("triclinic"), salty_water(), wet_slab()]
    data = make_batch(structures, model)
    data["total_charge"] = torch.tensor([1.0, 0.0, -2.0, 0.0], dtype=torch.float64)
    data = moved(data)
    out = model(data)
    charges = out["charges"].detach()
    sums = charges.new_zeros(4).index_add(0, data["batch"], charges)
    torch.testing.assert_close(sums, data["total_charge"], atol=1e-12, rtol=0)
    indices = [(0, 0), (3, 2)]
    for atoms in (rock_salt("left-handed"), salty_water()):
        numerical = numerical_forces(model, atoms, indices)
        forces = evaluate(model, atoms)["forces"]
        np.testing.assert_allclose([forces[i] for i in indices], numerical, atol=1e-6)
    stress = evaluate(model, rock_salt("triclinic"), compute_stress=True)["stress"][0]
    np.testing.assert_allclose(stress, numerical_stress(model, rock_salt("triclinic")), atol=1e-8)


def test_what_is_lacking_is_spread_by_softness():
    """The same model without a constraint, plus λ times the softness."""
    model = random_model(LongRangeOptions(constrain_charge="softness", induced="none"))
    free = MultipoleMACE.from_mace(model.short_range(), LongRangeOptions(induced="charge"))
    free.multipole_readouts.take_over(model.multipole_readouts, model.atomic_numbers.tolist())
    data = make_batch([salty_water()], model)
    data["total_charge"] = moved(torch.tensor([1.0]))
    softness = free(dict(data))["softness"].detach()
    charges = free.read_multipoles(dict(data))[1].charge.detach()
    expected = charges + (1.0 - charges.sum()) * softness / softness.sum()
    torch.testing.assert_close(model(data)["charges"].detach(), expected)


def cluster():
    """32 atoms, open."""
    atoms = salty_water(periodic=True).repeat((4, 1, 1))
    atoms.pbc = False
    return atoms


@pytest.mark.parametrize(
    ("atoms", "options"),
    [
        (salty_water(), {}),
        (cluster(), {}),  # enough pairs for their closed forms
        (rock_salt("triclinic"), {}),
        (salty_water(periodic=True), {"long_range_solver": "mesh"}),
        (wet_slab(), {}),
    ],
)
def test_hessians_are_made_row_by_row_at_once(monkeypatch, atoms, options):
    """By torch.vmap, as those of the backbone alone; upstream's loop gives the same."""
    from mace.modules import utils

    model = random_model(LongRangeOptions(**options))
    by_loop = utils.compute_hessians_loop
    data = make_batch([atoms], model)
    monkeypatch.setattr(utils, "compute_hessians_loop", None)
    found = model(data, compute_hessian=True)["hessian"]
    data = make_batch([atoms], model)
    forces = model(data, training=True)["forces"]
    expected = by_loop(forces, data["positions"])
    torch.testing.assert_close(found.view(-1), expected.view(-1), rtol=1e-9, atol=1e-10)


def test_threads_may_share_a_model():
    """Each pass sees its own edges."""
    from concurrent.futures import ThreadPoolExecutor

    model = random_model()
    structures = [rattled(rock_salt(), seed=seed, stdev=0.02) for seed in range(12)]
    expected = [evaluate(model, atoms)["energy"] for atoms in structures]
    batches = [make_batch([atoms], model) for atoms in structures * 3]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: model(data)["energy"].detach().cpu(), batches))
    for number, energy in enumerate(found):
        torch.testing.assert_close(energy, expected[number % 12].detach(), rtol=0, atol=1e-12)


def test_atomic_energies_may_be_edited_in_place():
    model = random_model().float()
    before = evaluate(model, salty_water())["energy"]
    model.atomic_energies_fn.atomic_energies.data.add_(1.0)
    after = evaluate(model, salty_water())["energy"]
    torch.testing.assert_close(after - before, torch.full_like(before, 8.0), rtol=0, atol=1e-5)
