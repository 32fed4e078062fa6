"""The calculator: ASE's names and units, committees, dtypes, fields, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.md.verlet import VelocityVerlet

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.io import load_model
from mace_polmp.units import EPS0
from tests.devices import there
from tests.helpers import (
    evaluate,
    make_calculator,
    random_model,
    rock_salt,
    rounding,
    salty_water,
    wet_slab,
)

pytestmark = pytest.mark.usefixtures("device")

FULL = LongRangeOptions(polarizability="anisotropic")


@pytest.fixture
def model_file(tmp_path, device):
    path = tmp_path / "a.model"
    torch.save(random_model(FULL), path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_the_models(model_file, dtype):
    atoms = rock_salt("triclinic")
    atoms.calc = make_calculator(model_file, default_dtype=dtype)
    out = evaluate(random_model(FULL), atoms, compute_stress=True)
    tolerance = 1e-9 if dtype == "float64" else 2e-5
    stress = atoms.get_stress(voigt=False)
    for got, key in (
        (atoms.get_potential_energy(), "energy"),
        (atoms.get_forces(), "forces"),
        (stress, "stress"),
        (atoms.get_charges(), "charges"),
        (atoms.get_dipole_moment(), "dipole"),
    ):
        expected = out[key].detach().numpy().reshape(np.shape(got))
        np.testing.assert_allclose(got, expected, atol=tolerance * max(1, abs(expected).max()))
    for key, shape in {
        "atomic_dipoles": (8, 3),
        "atomic_quadrupoles": (8, 3, 3),
        "atomic_polarizabilities": (8, 3, 3),
        "polarizability": (3, 3),
        "long_range_energy": (),
    }.items():
        got = atoms.calc.get_property(key, atoms)
        assert np.shape(got) == shape
        expected = out[key].detach().numpy().reshape(shape)
        np.testing.assert_allclose(got, expected, atol=tolerance * max(1, abs(expected).max()))


def test_born_charges_when_asked_for(model_file):
    from mace_polmp.modules.born_charges import born_charges
    from tests.helpers import make_batch

    atoms = salty_water()
    atoms.calc = make_calculator(model_file, default_dtype="float64")
    atoms.get_potential_energy()
    assert "born_charges" not in atoms.calc.results
    got = atoms.calc.get_property("born_charges", atoms)
    model = random_model(FULL)
    np.testing.assert_allclose(
        got, born_charges(model, make_batch([atoms], model)).cpu(), atol=1e-9
    )


def test_hessian_of_upstreams_calculator(model_file):
    atoms = salty_water()
    calc = make_calculator(model_file, default_dtype="float64")
    hessian = calc.get_hessian(atoms)
    out = evaluate(random_model(FULL), atoms, compute_hessian=True)
    np.testing.assert_allclose(hessian, out["hessian"].detach(), atol=1e-9)


def test_committee_mean_and_spread(tmp_path):
    for seed in (0, 1):
        torch.save(random_model(FULL, seed=seed), tmp_path / f"m{seed}.model")
    atoms = salty_water()
    calc = atoms.calc = make_calculator(str(tmp_path / "m*.model"), default_dtype="float64")
    singles = [evaluate(random_model(FULL, seed=s), atoms) for s in (0, 1)]
    charges = torch.stack([s["charges"] for s in singles]).mean(0).detach()
    np.testing.assert_allclose(atoms.get_charges(), charges, atol=1e-9)
    energies = [float(s["energy"].detach()) for s in singles]
    np.testing.assert_allclose(atoms.get_potential_energy(), np.mean(energies), atol=1e-9)
    np.testing.assert_allclose(calc.results["energy_var"], np.var(energies), atol=1e-9)
    assert calc.results["dipole_comm"].shape == (2, 3)


@pytest.mark.parametrize("options", [FULL, LongRangeOptions(conserve_charge=True)])
def test_field_is_conservative_and_gives_the_dipole(options):
    """Forces are −dE/dr, −dE/dF is the dipole and −d²E/dF² the polarizability."""
    model, atoms = random_model(options), salty_water()
    field, step = np.array([0.05, -0.03, 0.08]), 1e-3
    calc = make_calculator(models=model, default_dtype="float64", external_field=field)
    atoms.calc = calc
    forces, dipole = atoms.get_forces(), atoms.get_dipole_moment()

    def energy(moved, applied):
        calc.external_field = applied
        moved.calc = calc
        return moved.get_potential_energy()

    moved = [atoms.copy(), atoms.copy()]
    moved[0].positions[2, 1] -= step
    moved[1].positions[2, 1] += step
    slope = (energy(moved[1], field) - energy(moved[0], field)) / (2 * step)
    np.testing.assert_allclose(forces[2, 1], -slope, atol=1e-5)

    calc.external_field = None
    zero = atoms.get_potential_energy()
    calc.external_field = field
    assert calc.get_property("zero_field_energy", atoms) == pytest.approx(zero, abs=1e-9)
    # At zero field the slope is the dipole without what the field induces, −½ F·α·F.
    for axis in range(3):
        high, low = np.zeros(3), np.zeros(3)
        high[axis], low[axis] = step, -step
        slope = (energy(atoms, high) - energy(atoms, low)) / (2 * step)
        calc.external_field = None
        np.testing.assert_allclose(-slope, atoms.get_dipole_moment()[axis], atol=1e-7)
    polarizability = calc.get_property("polarizability", atoms)
    np.testing.assert_allclose(
        dipole - atoms.get_dipole_moment(), polarizability @ field, atol=1e-9
    )


@pytest.mark.parametrize("options", [FULL, LongRangeOptions(induced="dipole")])
def test_forces_of_a_field_in_a_periodic_cell_are_those_of_born_charges(options):
    """To first order Z*ᵀF; to second the gradient of −½ F·α·F. The energy is refused."""
    atoms, field = rock_salt("triclinic"), np.array([0.05, -0.03, 0.08])
    calc = make_calculator(models=random_model(options), default_dtype="float64")
    atoms.calc = calc
    born = calc.get_property("born_charges", atoms)
    zero, energy = atoms.get_forces(), atoms.get_potential_energy()
    forces = {}
    for sign in (-1, 1):
        calc.external_field = sign * field
        forces[sign] = atoms.get_forces()
    odd, even = (forces[1] - forces[-1]) / 2, (forces[1] + forces[-1]) / 2
    np.testing.assert_allclose(odd, np.einsum("a,nab->nb", field, born), atol=1e-9)
    induced = []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.positions[4, 1] += sign * 1e-4
        induced.append(0.5 * field @ calc.get_property("polarizability", moved) @ field)
    slope = (induced[1] - induced[0]) / 2e-4
    assert even[4, 1] - zero[4, 1] == pytest.approx(slope, abs=1e-7)
    atoms.get_forces()
    assert calc.get_property("zero_field_energy", atoms) == pytest.approx(energy, abs=1e-9)
    net = atoms.get_forces().sum(0)
    np.testing.assert_allclose(net, np.einsum("a,nab->b", field, born), atol=1e-9)
    assert np.abs(net).max() > 1e-3
    calc.sum_rule = True
    calc.results = {}
    np.testing.assert_allclose(atoms.get_forces().sum(0), 0, atol=1e-9)
    for name in ("energy", "stress"):
        with pytest.raises(InputError, match=f"{name} in an external_field along a periodic"):
            calc.get_property(name, atoms)


def test_field_along_the_normal_of_a_slab():
    """There the energy is defined: forces are its gradient, and its slope is the dipole."""
    slab, field = wet_slab(), np.array([0.0, 0.0, 0.05])
    calc = make_calculator(models=random_model(FULL), default_dtype="float64")
    slab.calc = calc
    dipole = slab.get_dipole_moment()
    energies = []
    for sign in (-1, 1):
        calc.external_field = sign * field
        energies.append(slab.get_potential_energy())
    assert (energies[0] - energies[1]) / 0.1 == pytest.approx(dipole[2], abs=1e-8)
    forces, energies = slab.get_forces(), []
    for sign in (-1, 1):
        moved = slab.copy()
        moved.positions[1, 2] += sign * 1e-4
        moved.calc = calc
        energies.append(moved.get_potential_energy())
    assert forces[1, 2] == pytest.approx((energies[0] - energies[1]) / 2e-4, abs=1e-6)
    calc.external_field = [0.05, 0, 0]
    with pytest.raises(InputError, match="must be along its normal, .0.000, 0.000, 1.000., got"):
        slab.get_forces()


def test_a_field_that_depends_on_time_follows_the_dynamics():
    """A field that is switched on changes the energy by its work, −∫ D·dF."""
    calc = make_calculator(
        models=random_model(FULL),
        default_dtype="float64",
        external_field=lambda time: [0, 0, 0.3 + 0.3 * np.tanh((time - 2) / 0.7)],
    )
    atoms = salty_water()
    atoms.calc = calc
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    calc.follow(dynamics)
    work, last = 0.0, None
    for _ in range(50):
        dynamics.run(1)
        now = dynamics.get_time() / units.fs
        slope = (calc.field_at(now + 1e-3) - calc.field_at(now - 1e-3))[2] / 2e-3
        power = -slope * atoms.get_dipole_moment()[2]  # dE/dt = −D·dF/dt
        work += 0.0 if last is None else 0.05 * (power + last)
        last = power
        if now < 0.15:
            start = atoms.get_total_energy()
    change = atoms.get_total_energy() - start
    assert abs(work) > 1e-2
    assert change == pytest.approx(work, rel=2e-2)
    assert calc.time == pytest.approx(5.1)


def test_electronic_polarizability_of_a_lattice_follows_clausius_mossotti():
    """To first order in nα/(3 eps0), with the Lorentz field of point-like dipoles."""
    from mace_polmp.electrostatics import Electrostatics
    from mace_polmp.head.observables import electronic_permittivity, electronic_polarizability
    from mace_polmp.units import EPS0

    cell = torch.tensor(np.diag([3.0] * 3), dtype=torch.float64)[None]
    alpha = 0.02 * torch.eye(3, dtype=torch.float64)[None]
    here = torch.zeros(1, 3, dtype=torch.float64)
    pbc, batch = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    engine = Electrostatics(smearing=0.25, kspace_spacing=0.2)
    polarizability = there(electronic_polarizability)
    total = polarizability(engine, here, cell, pbc, batch, alpha)
    lorentz = alpha[0, 0, 0] * (1 + alpha[0, 0, 0] / (3 * EPS0 * 27))
    torch.testing.assert_close(total[0], lorentz * torch.eye(3, dtype=torch.float64))
    permittivity = there(electronic_permittivity)(total, cell)
    expected = 1 + lorentz / (EPS0 * 27)
    assert permittivity[0, 1, 1].item() == pytest.approx(expected.item())
    open_ = polarizability(engine, here, cell, ~pbc, batch, alpha)
    assert torch.equal(open_, alpha)


def test_electrical_properties_on_demand():
    calc = make_calculator(
        models=random_model(FULL), default_dtype="float64", epsilon_infinity=4.0, sum_rule=True
    )
    cell = rock_salt("triclinic")
    cell.calc = calc
    dipole = 2.0 * evaluate(random_model(FULL), cell)["dipole"][0].detach().numpy()
    np.testing.assert_allclose(cell.get_dipole_moment(), dipole, atol=1e-9)
    born = calc.get_property("born_charges", cell)
    np.testing.assert_allclose(born.sum(0), 0, atol=1e-9)
    ion = salty_water()
    ion.info["charge"] = -1
    born = calc.get_property("born_charges", ion)
    np.testing.assert_allclose(born.sum(0), -np.eye(3), atol=1e-9)
    alpha = calc.get_property("electronic_polarizability", cell)
    bare = calc.get_property("polarizability", cell)
    # Of induced dipoles with their local fields, which ε∞ = 4 (1 + own/(eps0 V)) begins with.
    own = (alpha - 3.0 * EPS0 * cell.get_volume() * np.eye(3)) / 4.0
    assert 0.001 < np.abs(own - bare).max() / np.abs(bare).max() < 1.0
    big = calc.get_property("electronic_polarizability", cell.repeat((2, 1, 1)))
    np.testing.assert_allclose(big, 2 * alpha, atol=1e-9)
    permittivity = calc.get_property("electronic_permittivity", cell)
    again = calc.get_property("electronic_permittivity", cell.repeat((2, 1, 1)))
    np.testing.assert_allclose(again, permittivity, atol=1e-9)
    with pytest.raises(InputError, match="needs a structure that is periodic in three"):
        calc.get_property("electronic_permittivity", salty_water())
    with pytest.raises(InputError, match="epsilon_infinity must be a number of 1 or more"):
        make_calculator(models=random_model(), epsilon_infinity=-1.0)


def test_charges_sum_to_the_total_charge_under_either_name_and_follow_its_changes():
    model = random_model(LongRangeOptions(constrain_charge="softness"))
    atoms = salty_water()
    atoms.calc = make_calculator(models=model, default_dtype="float64")
    energies = {}
    for key in ("total_charge", "charge"):
        for total in (0, -1, 2):
            atoms.info[key] = total  # the same positions: results of another charge are stale
            energies[key, total] = atoms.get_potential_energy()
            assert atoms.get_charges().sum() == pytest.approx(total, abs=1e-9)
        del atoms.info[key]
    assert atoms.get_charges().sum() == pytest.approx(0, abs=1e-9)
    for total in (0, -1, 2):
        expected = pytest.approx(energies["total_charge", total], rel=0, abs=rounding())
        assert energies["charge", total] == expected
    assert len({round(energy, 6) for energy in energies.values()}) == 3
    atoms.info.update(total_charge=1, charge=0)
    with pytest.raises(InputError, match="is 1 e and info.'charge'. 0 e; both mean the total"):
        atoms.get_potential_energy()
    own = make_calculator(models=model, info_keys={"total_charge": "ionized"})
    atoms.info["ionized"] = -2
    assert own.get_property("charges", atoms).sum() == pytest.approx(-2, abs=1e-6)


def test_changing_the_field_discards_results(model_file):
    atoms = salty_water()
    atoms.calc = make_calculator(model_file, default_dtype="float64")
    without = atoms.get_potential_energy()
    atoms.calc.external_field = [0, 0, 0.1]
    assert abs(atoms.get_potential_energy() - without) > 1e-4
    atoms.calc.external_field = None
    assert atoms.get_potential_energy() == pytest.approx(without, abs=1e-12)


@pytest.mark.parametrize("periodic", [False, True])
def test_nve_conserves_energy(model_file, periodic):
    """With the exact gradient the drift falls with the square of the time step."""
    drifts = []
    for step in (0.5, 0.25):
        atoms = salty_water(periodic)
        atoms.calc = make_calculator(model_file, default_dtype="float64")
        spread = np.sqrt(atoms.get_masses() * units.kB * 50)[:, None]
        atoms.set_momenta(spread * np.random.default_rng(0).normal(size=(len(atoms), 3)))
        dynamics = VelocityVerlet(atoms, step * units.fs)
        energies = []
        for _ in range(20):
            dynamics.run(round(1 / step))
            energies.append(atoms.get_total_energy())
        drifts.append(np.ptp(energies))
    assert drifts[1] < 0.35 * drifts[0]


def test_molecular_dynamics_of_a_slab(model_file):
    """The slab keeps its cell, its energy and, in the plane, its momentum."""
    atoms = wet_slab()
    atoms.calc = make_calculator(model_file, default_dtype="float64")
    out = evaluate(random_model(FULL), atoms, compute_stress=True)
    assert atoms.get_potential_energy() == pytest.approx(out["energy"].item(), abs=1e-9)
    stress = out["stress"][0].detach().numpy()
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, atol=1e-9)
    fluctuations = []
    for step in (0.5, 0.25):
        atoms = wet_slab()
        atoms.calc = make_calculator(model_file, default_dtype="float64")
        energies = []
        dynamics = VelocityVerlet(atoms, step * units.fs)
        for _ in range(10):
            dynamics.run(round(1 / step))
            energies.append(atoms.get_total_energy())
        fluctuations.append(np.ptp(energies))
    assert fluctuations[1] < 0.35 * fluctuations[0]
    np.testing.assert_allclose(atoms.get_momenta().sum(0), 0, atol=1e-9)


def test_bad_structures_are_refused(model_file):
    calc = make_calculator(model_file, default_dtype="float64")
    good = salty_water()

    def refused(atoms, message):
        atoms.calc = calc
        with pytest.raises(InputError, match=message):
            atoms.get_potential_energy()

    nan = good.copy()
    nan.positions[3, 0] = np.nan
    refused(nan, "positions hold NaN")
    refused(Atoms("NaNa", positions=[[0, 0, 0], [0, 0, 1e-3]]), "atoms 0 and 1 are closer")
    refused(Atoms("Au"), "does not know Au; it knows H, O, Na, Cl")
    across = rock_salt()  # one image apart
    across.positions[1] = across.positions[0] + across.cell.array[1] + [0, 0, 1e-3]
    refused(across, "atoms 0 and 1 are closer")
    singular = good.copy()
    singular.pbc = True
    refused(singular, "atoms: has pbc T T T and a singular cell")
    slab = rock_salt()
    slab.pbc = [True, True, False]
    refused(slab, "leaves 2.8 Å of vacuum, and 8.4 Å are needed")
    wire = rock_salt()
    wire.pbc = [True, False, False]
    refused(wire, "pbc T F F: a single periodic direction is not supported")
    with pytest.raises(InputError, match="born_charges of a slab"):
        calc.get_property("born_charges", wet_slab())


def test_bad_arguments_are_refused(model_file, tmp_path):
    from mace.modules import ScaleShiftMACE

    from tests.helpers import backbone_settings

    other = tmp_path / "other.model"
    torch.save(ScaleShiftMACE(**backbone_settings()), other)
    text = tmp_path / "text.model"
    text.write_text("not a model")
    newer = random_model()
    newer.format_version = 99
    torch.save(newer, tmp_path / "newer.model")
    cases = [
        (dict(model_paths=other), "holds a ScaleShiftMACE, not a MultipoleMACE"),
        (dict(model_paths=text), "not a model file"),
        (dict(model_paths=tmp_path / "none.model"), "no such file"),
        (dict(model_paths=str(tmp_path / "none*.model")), "no file matches"),
        (dict(model_paths=tmp_path / "newer.model"), "format version 99"),
        (dict(model_paths=model_file, enable_oeq=True), "enable_oeq does not work"),
        (dict(model_paths=model_file, compile_mode="fast"), "compile_mode must be one of default"),
        (dict(model_paths=model_file, default_dtype="float16"), "default_dtype must be"),
        (dict(model_paths=model_file, external_field=[0, 1]), "three finite numbers"),
        (dict(model_paths=model_file, head="pt"), "head must be one of Default, got 'pt'"),
        (dict(), "either model_paths or models"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            MultipoleMACECalculator(**arguments)


def test_the_models_own_permittivity_is_the_default():
    """Dipoles and Born charges of periodic structures; another one can be asked for."""
    model = random_model(LongRangeOptions(epsilon_infinity=1.7))
    atoms = rock_salt()
    found = {}
    for epsilon in (None, 1.0, 3.0):
        atoms.calc = make_calculator(models=model, epsilon_infinity=epsilon)
        born = atoms.calc.get_property("born_charges", atoms)
        found[epsilon] = (atoms.get_dipole_moment(), born)
    for bare, own, other in zip(found[1.0], found[None], found[3.0], strict=True):
        np.testing.assert_allclose(own, np.sqrt(1.7) * bare, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(other, np.sqrt(3.0) * bare, rtol=1e-9, atol=1e-12)


def test_the_plan_is_kept_while_it_fits(device, monkeypatch):
    """Atoms and cells that change a little need no new one; results are those without it."""
    from mace_polmp.electrostatics import Electrostatics

    made = []
    plan = Electrostatics.plan
    monkeypatch.setattr(
        Electrostatics, "plan", lambda self, *a, **b: made.append(1) or plan(self, *a, **b)
    )
    model, rng = random_model(), np.random.default_rng(0)
    calc = make_calculator(models=model, default_dtype="float64")
    atoms = rock_salt()
    for step in range(6):
        atoms.positions += 0.01 * rng.normal(size=atoms.positions.shape)
        if step > 2:
            atoms.set_cell(atoms.cell.array * 1.002, scale_atoms=True)
        out = evaluate(model, atoms, compute_stress=True)
        for name in ("energy", "forces"):
            expected = out[name].detach().numpy()
            found = calc.get_property(name, atoms)
            np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=1e-9, atol=1e-10)
    n_plans = len(made)
    assert n_plans <= 2
    for other in (salty_water(), wet_slab(), rock_salt("triclinic")):
        calc.get_property("forces", other)
    assert len(made) == n_plans + 3


def test_one_neighbour_list_serves_a_step(monkeypatch):
    from mace.data import atomic_data

    original, calls = atomic_data.get_neighborhood, []

    def counted(positions, *rest, **named):
        calls.append(positions.copy())
        return original(positions, *rest, **named)

    monkeypatch.setattr(atomic_data, "get_neighborhood", counted)
    atoms, model = rock_salt(), random_model()
    calculator = make_calculator(models=model)
    for step in range(2):
        atoms.rattle(0.05, seed=step)
        found = [calculator.get_property(name, atoms) for name in ("forces", "born_charges")]
        alone = make_calculator(models=model)
        alone.calculate(atoms, ["forces", "born_charges"])
        for name, value in zip(("forces", "born_charges"), found, strict=True):
            np.testing.assert_array_equal(value, alone.results[name])
    assert len(calls) == 4  # two steps, each of two calculators


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("make", [rock_salt, salty_water, wet_slab])
def test_energies_of_atoms_sum_to_the_energy(make, dtype):
    atoms = make()
    options = LongRangeOptions(constrain_charge="softness", conserve_charge=True)
    atoms.calc = make_calculator(models=random_model(options), default_dtype=dtype)
    energies = atoms.get_potential_energies()
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), abs=tolerance)
    atoms.calc.external_field = [0.0, 0.0, 0.01]
    with pytest.raises(InputError, match="energies of atoms in an external field"):
        atoms.get_potential_energies()


def test_a_calculator_says_in_one_line_what_it_is(model_file):
    line = repr(MultipoleMACECalculator(model_file))
    assert line.startswith("MultipoleMACECalculator(MultipoleMACE(") and "\n" not in line
    model = load_model(model_file)
    symbols = " ".join(chemical_symbols[z] for z in model.atomic_numbers.tolist())
    for part in (symbols, f"r_max {float(model.r_max):g} Å", "device="):
        assert part in line


@pytest.mark.parametrize("own", [True, False], ids=["of the model", "of the calculator"])
@pytest.mark.parametrize("readout", ["transfer", "bond"])
def test_a_field_acts_on_physical_charges(readout, own):
    """Latent charges are physical ones over √ε∞; forces in a field are Z*ᵀF of the results."""
    options = LongRangeOptions(charge_readout=readout, induced="dipole")
    if own:
        options = replace(options, epsilon_infinity=4.0)
    atoms, field = rock_salt(), np.array([0.0, 0.0, 0.05])
    calculator = make_calculator(
        models=[random_model(options), random_model(options, seed=1)],
        epsilon_infinity=None if own else 4.0,
    )
    atoms.calc = calculator
    born, zero = calculator.get_property("born_charges", atoms), atoms.get_forces()
    energy = atoms.get_potential_energy()
    forces = []
    for sign in (-1, 1):
        calculator.external_field = sign * field
        forces.append(atoms.get_forces())
    expected = np.einsum("a,nab->nb", field, born)
    np.testing.assert_allclose((forces[1] - forces[0]) / 2, expected, atol=1e-9)
    assert np.abs(forces[1] - zero).max() > 1e-4
    assert calculator.results["zero_field_energy"] == pytest.approx(energy, abs=1e-9)
    calculator.divide_by_chi = True
    calculator.results = {}
    with pytest.raises(InputError, match="give epsilon_infinity divided by a fixed 1"):
        atoms.get_forces()
    alone = salty_water()  # where χ is zero
    assert np.isfinite(calculator.get_property("forces", alone)).all()
