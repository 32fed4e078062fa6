"""Born charges: finite differences in a large supercell are the test, invariance a necessity."""

import numpy as np
import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.born_charges import born_charges
from tests.helpers import evaluate, make_batch, random_model, rock_salt, salty_water

PERIODIC = LongRangeOptions(induced="dipole", polarizability="anisotropic")
BLOCKS = {
    "one layer": dict(num_interactions=1, hidden_irreps="8x0e"),
    "two layers": dict(num_interactions=2),
    "two density layers": dict(
        num_interactions=2, interaction="RealAgnosticDensityResidualInteractionBlock"
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
    return born_charges(model, make_batch([atoms], model)).numpy()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("kind", ["triclinic", "left-handed"])
def test_periodic_born_charges_equal_finite_differences_in_a_large_cell(name, kind):
    """The cell is half as long as the receptive field: several images of each atom respond."""
    r_max = 3.2
    model = random_model(PERIODIC, r_max=r_max, **BLOCKS[name])
    atoms = rock_salt(kind)
    z = born(model, atoms)
    for atom, axis in ((0, 0), (5, 2)):
        numerical = finite_differences(model, atoms, atom, axis)
        np.testing.assert_allclose(z[atom, :, axis], numerical, atol=1e-6)


def test_periodic_born_charges_do_not_depend_on_the_supercell():
    model = random_model(PERIODIC)
    for kind in ("cubic", "triclinic", "left-handed"):
        atoms = rock_salt(kind)
        one, eight = born(model, atoms), born(model, atoms.repeat(2))
        np.testing.assert_allclose(eight, np.tile(one, (8, 1, 1)), atol=1e-8)


def test_open_born_charges_equal_finite_differences_of_the_dipole():
    model, atoms = random_model(LongRangeOptions(polarizability="anisotropic")), salty_water()
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
    expected = born(model, atoms) - atoms.positions[:, :, None] * change.numpy()[:, None, :]
    np.testing.assert_allclose(born(model, boxed), expected, atol=1e-9)


def test_hooks_are_gone_afterwards():
    model, atoms = random_model(PERIODIC), rock_salt()
    before = evaluate(model, atoms)
    born(model, atoms)
    after = evaluate(model, atoms)
    assert torch.equal(before["forces"], after["forces"])


def test_refusals():
    with pytest.raises(InputError, match="periodic structure with induced charges"):
        born(random_model(), rock_salt())
    model = random_model(PERIODIC)
    with pytest.raises(InputError, match="separate batches"):
        born_charges(model, make_batch([rock_salt(), salty_water()], model))
