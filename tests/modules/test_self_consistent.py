"""Models with a self-consistent response: exact derivatives, observables, files, fine-tuning."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mace_polmp.electrostatics.coefficients import bounded, largest_coefficients
from mace_polmp.electrostatics.multipoles import ResponseCoefficients
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.atom_energies import atom_energies
from mace_polmp.modules.born_charges import polarizability_derivatives
from mace_polmp.modules.io import load_model, write_model
from mace_polmp.training.fine_tuning import inherit, start_from
from mace_polmp.units import EPS0
from tests.helpers import (
    evaluate,
    make_batch,
    make_calculator,
    random_model,
    rock_salt,
    salty_water,
    wet_slab,
)

pytestmark = pytest.mark.usefixtures("device")

ONE_STEP = LongRangeOptions(polarizability="anisotropic")
ITERATED = replace(ONE_STEP, response="self_consistent")
CONSERVED = replace(ITERATED, conserve_charge=True)
STRUCTURES = {"open": salty_water, "periodic": lambda: rock_salt("triclinic"), "slab": wet_slab}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_forces_and_stress_equal_finite_differences(kind):
    model, atoms = random_model(ITERATED), STRUCTURES[kind]()
    out = evaluate(model, atoms, compute_stress=kind != "open")

    def energy(moved):
        return evaluate(model, moved, compute_force=False)["energy"].item()

    for atom, axis in ((0, 1), (5, 2)):
        ends = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * 1e-4
            ends.append(energy(moved))
        force = -(ends[1] - ends[0]) / 2e-4
        assert out["forces"][atom, axis].item() == pytest.approx(force, abs=1e-6)
    if kind == "periodic":
        ends = []
        for sign in (-1, 1):
            strain = np.eye(3)
            strain[0, 1] = strain[1, 0] = sign * 0.5e-4
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            ends.append(energy(moved))
        stress = (ends[1] - ends[0]) / 1e-4 / atoms.get_volume() / 2
        assert out["stress"][0, 0, 1].item() == pytest.approx(stress, abs=1e-7)


def test_training_on_forces_has_the_right_gradient():
    """By every kind of parameter of the head, through the response."""
    model = random_model(ITERATED)
    data = make_batch([rock_salt("triclinic"), salty_water()], model)

    def loss(training=False):
        out = model(dict(data), training=training)
        return (out["forces"] ** 2).sum() + 0.1 * (out["dipole"] ** 2).sum()

    parameters = [p for n, p in model.named_parameters() if n.startswith("multipole_readouts")]
    slopes = torch.autograd.grad(loss(training=True), parameters, allow_unused=True)
    random = torch.Generator().manual_seed(1)
    directions = [
        torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device) for p in parameters
    ]
    analytic = sum(
        float((s * d).sum()) for s, d in zip(slopes, directions, strict=True) if s is not None
    )
    ends = []
    for sign in (-1, 1):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += sign * 1e-6 * d
        ends.append(loss().item())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p -= sign * 1e-6 * d
    assert analytic == pytest.approx((ends[1] - ends[0]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_energies_of_atoms_sum_to_the_energy(kind):
    model = random_model(replace(ITERATED, self_interaction=True))
    data = make_batch([STRUCTURES[kind]()], model)
    energies = atom_energies(model, dict(data))
    assert energies.sum().item() == pytest.approx(model(dict(data))["energy"].item(), abs=1e-9)


@pytest.mark.parametrize("kind", ["open", "slab", "periodic"])
def test_polarizability_is_the_change_of_the_dipole_in_a_field(kind):
    """And −∂²E/∂F²; along periodic directions a field acts on dipoles."""
    model, atoms = random_model(CONSERVED), STRUCTURES[kind]()
    data = make_batch([atoms], model)
    alpha = model.electronic_polarizability(dict(data))[0].detach().cpu().numpy()
    axis, step, found = 2, 1e-3, []
    for sign in (-1, 0, 1):
        field = torch.zeros_like(data["positions"][:1])
        field[0, axis] = sign * step
        out = model(dict(data, applied_field=field), compute_force=False)
        moment = out["atomic_dipoles"].sum(0) if kind == "periodic" else out["dipole"][0]
        found.append((out["energy"].item(), moment.detach().cpu().numpy()))
    slope = (found[2][1] - found[0][1]) / (2 * step)
    rows = slice(2, 3) if kind == "slab" else slice(0, 3)
    np.testing.assert_allclose(alpha[rows, axis], slope[rows], atol=1e-9)
    curvature = -(found[2][0] - 2 * found[1][0] + found[0][0]) / step**2
    assert alpha[axis, axis] == pytest.approx(curvature, abs=1e-5)


def test_polarizability_of_a_molecule_does_not_depend_on_its_place():
    model, atoms = random_model(ITERATED), salty_water()
    far = atoms.copy()
    far.positions += [30.0, -20.0, 10.0]
    here, there = (
        model.electronic_polarizability(make_batch([a], model))[0].detach() for a in (atoms, far)
    )
    torch.testing.assert_close(here, there, rtol=0, atol=1e-8)


def test_raman_tensors_equal_finite_differences():
    model, atoms = random_model(CONSERVED), salty_water()
    found = polarizability_derivatives(model, make_batch([atoms], model))
    ends = []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * 1e-4
        ends.append(model.electronic_polarizability(make_batch([moved], model))[0].detach())
    torch.testing.assert_close(found[2, 1], (ends[1] - ends[0]) / 2e-4, rtol=0, atol=1e-7)


def test_calculator_gives_the_polarizability_where_it_is_asked_for():
    """Molecular dynamics does not pay for it; in a field the energy without it follows."""
    atoms = salty_water()
    atoms.calc = make_calculator(models=random_model(CONSERVED))
    free = atoms.get_potential_energy()
    assert "polarizability" not in atoms.calc.results
    alpha = atoms.calc.get_property("polarizability", atoms)
    exact = atoms.calc.get_property("electronic_polarizability", atoms)
    np.testing.assert_allclose(alpha, exact, atol=1e-10)
    atoms.calc.external_field = [0.0, 0.05, -0.1]
    assert atoms.get_potential_energy() != pytest.approx(free, abs=1e-4)
    assert atoms.calc.results["zero_field_energy"] == pytest.approx(free, abs=1e-8)
    crystal = rock_salt()
    crystal.calc = make_calculator(models=random_model(ITERATED))
    permittivity = crystal.calc.get_property("electronic_permittivity", crystal)
    cell = crystal.calc.get_property("electronic_polarizability", crystal)
    np.testing.assert_allclose(
        permittivity, np.eye(3) + cell / (EPS0 * crystal.get_volume()), atol=1e-10
    )


def test_a_field_on_molecules_whose_charge_is_not_conserved_is_refused():
    model = random_model(ITERATED)
    data = make_batch([salty_water()], model)
    field = torch.full_like(data["positions"][:1], 0.01)
    with pytest.raises(InputError, match="structure 0 is open .* --conserve_charge"):
        model(dict(data, applied_field=field))


@pytest.mark.parametrize("ending", ["model", "safetensors"])
def test_files_keep_the_response(tmp_path, ending):
    model, atoms = random_model(ITERATED), rock_salt()
    path = tmp_path / f"x.{ending}"
    write_model(model, path)
    again = load_model(path)
    assert again.long_range_options.response == "self_consistent"
    before, after = (evaluate(m, atoms)["energy"] for m in (model, again))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def test_a_one_step_model_goes_on_as_a_self_consistent_one():
    """Its readouts are kept; small coefficients hardly change, and no way leads back."""
    old, atoms = random_model(ONE_STEP, boost=1.0), rock_salt("triclinic")
    assert inherit({}, old).response == "one_step"
    new = random_model(inherit({"response": "self_consistent"}, old), seed=5)
    start_from(new, old, [make_batch([atoms], old)])
    kept = {n: p for n, p in old.named_parameters() if n.startswith("multipole_readouts")}
    for name, parameter in new.named_parameters():
        if name in kept:
            torch.testing.assert_close(parameter, kept[name], rtol=0, atol=0)
    wanted = {"response": "self_consistent", "conserve_charge": True}
    assert inherit(wanted, old).conserves_charge  # as energies change in any case
    with pytest.raises(InputError, match="--conserve_charge: the foundation model was trained"):
        inherit({"conserve_charge": True}, old)
    with pytest.raises(InputError, match="--response one_step: the foundation model has self"):
        inherit({"response": "one_step"}, random_model(ITERATED))


def test_coefficients_of_any_size_are_bounded():
    """Eigenvalues of tensors as numbers; small ones hardly change."""
    kappa_max, alpha_max = largest_coefficients(1.3)
    values = torch.logspace(-8, 4, 30, dtype=torch.float64)
    random = torch.randn(30, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    frames = torch.linalg.qr(random)[0]
    sizes = torch.stack([values, 0.3 * values, torch.zeros_like(values)], 1)
    tensors = frames @ torch.diag_embed(sizes) @ frames.transpose(1, 2)
    for dtype in (torch.float32, torch.float64):
        given = ResponseCoefficients(values.to(dtype), values.to(dtype))
        found = bounded(given, 1.3)
        assert (found.softness < kappa_max).all() and (found.polarizability < alpha_max).all()
        assert found.polarizability[0].item() == pytest.approx(1e-8, rel=1e-4)
    tensor = bounded(ResponseCoefficients(None, tensors), 1.3).polarizability
    expected = bounded(ResponseCoefficients(None, sizes.flatten()), 1.3).polarizability.view(-1, 3)
    expected = frames @ torch.diag_embed(expected) @ frames.transpose(1, 2)
    torch.testing.assert_close(tensor, expected, rtol=1e-8, atol=1e-10)
