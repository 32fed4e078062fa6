"""torch-sim: a batch gives what the ASE calculator gives of each structure, and moves as it should.

Differences to the calculator in double precision are rounding: the same numbers are added in
another order.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.stress import voigt_6_to_full_3x3_stress
from mace import tools

ts = pytest.importorskip("torch_sim")

from mace_polmp.errors import InputError  # noqa: E402
from mace_polmp.interfaces.torch_sim import MultipoleMACEModel  # noqa: E402
from mace_polmp.modules import LongRangeOptions, MultipoleMACE  # noqa: E402
from mace_polmp.modules.io import write_model  # noqa: E402
from mace_polmp.modules.model import ELECTRICAL_OUTPUTS  # noqa: E402
from mace_polmp.modules.record import TrainingRecord  # noqa: E402
from tests.helpers import (  # noqa: E402
    backbone_settings,
    current,
    make_calculator,
    random_model,
    rattled,
    rock_salt,
    salty_water,
    wet_slab,
)

pytestmark = pytest.mark.usefixtures("device")

SLAB = (True, True, False)
FEMTOSECOND = 1e-3  # torch-sim's unit of time is ps
SMALL = {"hidden_irreps": "4x0e", "num_interactions": 1}


@functools.cache
def model_on(device):
    """The model of tests that do not change it: an adapter has a copy of its own."""
    return random_model()


def adapter(model=None, **settings):
    return MultipoleMACEModel(model or model_on(current()), device=current(), **settings)


def state_of(frames, dtype=torch.float64):
    return ts.io.atoms_to_state(frames, torch.device(current()), dtype)


def molecules():
    """Open systems: ions in water, molecules, one of far apart parts, a single ion."""
    dimer = molecule("H2O") + molecule("H2O")
    dimer.positions[3:] += [30.0, 0.0, 0.0]
    return [
        salty_water(),
        molecule("H2O"),
        Atoms("Na"),
        dimer,
        Atoms("NaCl", [[0, 0, 0], [9, 0, 2.5]]),
    ]


def primitive_rock_salt():
    """Two atoms in a triclinic cell of 4 Å: images of images are within the cutoff of 4 Å."""
    return rattled(bulk("NaCl", "rocksalt", a=5.63))


def crystals():
    unwrapped = rock_salt("triclinic")
    unwrapped.positions += [13.0, -40.0, 7.0]
    return [
        rock_salt(),
        rock_salt("triclinic"),
        rock_salt("left-handed"),
        primitive_rock_salt(),
        salty_water(periodic=True),
        unwrapped,
    ]


def slabs():
    return [wet_slab(), wet_slab(25.0)]


KINDS = {"open": (molecules, None), "periodic": (crystals, None), "slab": (slabs, SLAB)}


def assert_as_calculator(out, frames, calculator, rtol=1e-10, atol=1e-10):
    """All results of a batch are those of a calculator for each structure."""
    ends = np.cumsum([len(atoms) for atoms in frames])
    for n, atoms in enumerate(frames):
        own = slice(ends[n] - len(atoms), ends[n])
        calculator.calculate(atoms, ["energy", "forces", "stress"])
        expected = calculator.results
        for name, found in out.items():
            per_atom = name == "forces" or ELECTRICAL_OUTPUTS.get(name, (False,))[0]
            value = expected[name]
            if name == "stress":
                if not atoms.pbc.any():
                    assert torch.isnan(found[n]).all()  # no volume, no stress
                    continue
                value = voigt_6_to_full_3x3_stress(value)
            np.testing.assert_allclose(
                found[own if per_atom else n].cpu(), value, rtol=rtol, atol=atol, err_msg=name
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_the_calculator_gives(kind):
    make, pbc = KINDS[kind]
    model = model_on(current())
    frames = make()
    state = state_of(frames)
    before = state.clone()
    out = adapter(model, pbc=pbc)(state)
    assert set(out) == {"energy", "forces", "stress", *ELECTRICAL_OUTPUTS}
    assert not any(value.requires_grad for value in out.values())
    assert out["long_range_energy"].abs().max() > 0.1  # or there would be nothing to compare
    assert_as_calculator(out, frames, make_calculator(models=model))
    for name in ("positions", "cell", "atomic_numbers", "system_idx"):
        assert torch.equal(getattr(state, name), getattr(before, name))


def test_open_systems_need_no_cell():
    frames = molecules()
    out = adapter()(state_of(frames))
    for atoms in frames:
        atoms.set_cell([30.0, 30.0, 30.0])
    boxed = adapter()(state_of(frames))
    for name in ("energy", "forces", "dipole"):
        torch.testing.assert_close(out[name], boxed[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_that_of_the_calculator(kind):
    """The tolerance is the rounding of positions of 100 Å, 4e-6 Å, times forces of some eV/Å."""
    make, pbc = KINDS[kind]
    frames = make()
    frames[0].positions += [100.0, -70.0, 0.0]
    model = model_on(current())
    out = adapter(model, dtype=torch.float32, pbc=pbc)(state_of(frames, torch.float32))
    assert out["energy"].dtype == torch.float64 and out["forces"].dtype == torch.float32
    assert next(model.parameters()).dtype == torch.float64  # it stays as it was
    single = make_calculator(models=copy.deepcopy(model), default_dtype="float32")
    assert_as_calculator(out, frames, single, rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("formal", ["", "Na:1,Cl:-1"], ids=["no formal charges", "ions"])
def test_dipoles_of_bond_charges_are_those_of_the_place_where_atoms_are(formal):
    """Single precision evaluates them elsewhere; the tolerance is as above."""
    options = LongRangeOptions(charge_readout="bond", induced="none", formal_charges=formal)
    model = random_model(options)
    model.multipole_readouts.transfer.rescale(20.0)
    frames = [rock_salt(), rock_salt("triclinic")]
    frames[0].positions += [100.0, -70.0, 0.0]
    out = adapter(model, dtype=torch.float32)(state_of(frames, torch.float32))
    exact = make_calculator(models=copy.deepcopy(model))
    for number, atoms in enumerate(frames):
        expected = exact.get_property("dipole", atoms)
        np.testing.assert_allclose(out["dipole"][number].cpu(), expected, atol=1e-3)


def test_the_order_of_systems_does_not_matter():
    frames = crystals()
    order = [3, 0, 5, 1, 4, 2]
    model = adapter()
    out = model(state_of(frames))
    shuffled = model(state_of([frames[n] for n in order]))
    atoms = torch.arange(sum(map(len, frames))).split([len(f) for f in frames])
    atoms = torch.cat([atoms[n] for n in order])
    for name, value in out.items():
        per_atom = name == "forces" or ELECTRICAL_OUTPUTS.get(name, (False,))[0]
        expected = value[atoms if per_atom else order]
        torch.testing.assert_close(shuffled[name], expected, rtol=1e-10, atol=1e-10)


def test_forces_and_stress_are_derivatives_of_the_energy():
    """By differences of the energy in one direction of all positions and of all cells."""
    model, frames = adapter(random_model(**SMALL)), crystals()[1:4]
    state = state_of(frames)
    out = model(state)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(state.positions.shape, generator=generator, dtype=torch.float64)
    direction = direction.to(state.positions)
    strain = torch.tensor([[0.5, 0.2, -0.3], [0.2, -0.1, 0.4], [-0.3, 0.4, 0.8]]).to(direction)
    step, energies = 1e-4, {}
    for sign in (1, -1):
        moved, strained = state.clone(), state.clone()
        moved.positions = state.positions + sign * step * direction
        deformation = torch.eye(3).to(strain) + sign * step * strain
        strained.positions = state.positions @ deformation
        strained.row_vector_cell = state.row_vector_cell @ deformation
        energies[sign] = model(moved)["energy"], model(strained)["energy"]
    slopes = [(a - b) / (2 * step) for a, b in zip(energies[1], energies[-1], strict=True)]
    work = torch.zeros_like(out["energy"])
    work.index_add_(0, state.system_idx, -(out["forces"] * direction).sum(1))
    torch.testing.assert_close(slopes[0], work, rtol=1e-5, atol=1e-5)
    volume = torch.linalg.det(state.cell).abs()
    stress = volume * torch.einsum("nab,ab->n", out["stress"], strain)
    torch.testing.assert_close(slopes[1], stress, rtol=1e-5, atol=1e-5)


def energy_changes(model, frames, n_steps, timestep):
    """The largest change of each system's total energy during a run, and their kinetic energies."""
    state = state_of(frames)
    kt, dt = torch.tensor([300.0, timestep * FEMTOSECOND]).to(state.positions) * torch.tensor(
        [ts.units.MetalUnits.temperature, ts.units.MetalUnits.time]
    ).to(state.positions)
    start, step = ts.integrators.nve(model, dt=dt, kT=kt)
    state = start(state, seed=1)

    def kinetic():
        of_atoms = 0.5 * (state.momenta.square().sum(1) / state.masses)
        return torch.zeros_like(state.energy).index_add_(0, state.system_idx, of_atoms)

    totals, at_start = [state.energy + kinetic()], kinetic()
    for _ in range(n_steps):
        state = step(state)
        totals.append(state.energy + kinetic())
    return (torch.stack(totals) - totals[0]).abs().max(0).values, at_start


@pytest.mark.parametrize("kind", KINDS)
def test_nve_conserves_the_energy(kind):
    """Over 50 steps of 0.5 fs; what is left is velocity Verlet's, which falls as the step squared.

    Half the step leaves a quarter, somewhat more or less where the runs have diverged.
    """
    make, pbc = KINDS[kind]
    frames = [atoms for atoms in make() if len(atoms) > 2]
    model = adapter(pbc=pbc)
    change, kinetic = energy_changes(model, frames, 50, 0.5)
    assert (change < 0.05 * kinetic).all()
    smaller, _ = energy_changes(model, frames, 100, 0.25)
    assert (smaller < 0.35 * change).all()


def test_cells_that_change_are_followed():
    """Plans and checks are kept while cells are the same, and only then."""
    model, frames = model_on(current()), crystals()[:3]
    adapted, calculator = adapter(model), make_calculator(models=model)
    for scale in (1.0, 1.0, 1.02, 1.3, 0.8, 0.8):
        for atoms in frames:
            atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
        assert_as_calculator(adapted(state_of(frames)), frames, calculator)
        frames[0].rattle(0.02, seed=1)
    frames = [frames[1], molecule("H2O")]  # other numbers of atoms, another boundary
    frames[0].pbc = False
    assert_as_calculator(adapted(state_of(frames)), frames, calculator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("integrator", ["nve", "nvt_langevin", "npt_langevin"])
def test_integrators_run(integrator, dtype):
    frames = [rock_salt(), rock_salt("triclinic")]
    model = adapter(random_model(**SMALL), dtype=dtype)
    more = {"external_pressure": torch.tensor(0.0, dtype=dtype, device=current())}
    state = ts.integrate(
        frames,
        model,
        integrator=getattr(ts.integrators, integrator),
        n_steps=4,
        temperature=300.0,
        timestep=0.5 * FEMTOSECOND,
        **(more if "npt" in integrator else {}),
    )
    assert state.positions.dtype == dtype
    torch.testing.assert_close(state.energy, model(state)["energy"])  # of where the atoms are now


@pytest.mark.filterwarnings("ignore:Optimize has reached max steps")
@pytest.mark.parametrize("optimizer", ["fire", "unit_cell_fire", "frechet_cell_fire"])
def test_optimizers_lower_the_energy(optimizer):
    with_cell = "cell" in optimizer
    frames = [rock_salt(), rock_salt("triclinic")] if with_cell else molecules()[:2]
    model = adapter(random_model(**SMALL))
    before = model(state_of(frames))["energy"]
    state = ts.optimize(
        frames,
        model,
        optimizer=getattr(ts.optimizers, optimizer),
        max_steps=5,
        steps_between_swaps=5,
        convergence_fn=ts.generate_force_convergence_fn(1e-3, include_cell_forces=with_cell),
    )
    assert (state.energy < before).all()
    torch.testing.assert_close(state.energy, model(state)["energy"])


@pytest.mark.parametrize("kind", ["open", "periodic"])
def test_autobatchers_give_each_system_its_own_energy(kind):
    """They sort systems into batches; results come back in the order of the systems."""
    frames = KINDS[kind][0]()[::-1]
    model = adapter(random_model(**SMALL))
    batcher = ts.BinningAutoBatcher(
        model, memory_scales_with=model.memory_scales_with, max_memory_scaler=12
    )
    batcher.load_states(state_of(frames))
    found = []
    for state in batcher:
        found += model(state)["energy"].tolist()
    places = [n for bin_ in batcher.index_bins for n in bin_]
    assert len(batcher.index_bins) > 1 and places != sorted(places)
    energies = model(state_of(frames))["energy"]
    np.testing.assert_allclose(found, energies.cpu()[places], rtol=1e-10)


def test_torch_sims_own_validation_passes():
    model = adapter(random_model(elements=[14, 26], **SMALL))
    ts.models.interface.validate_model_outputs(model, torch.device(current()), torch.float64)


def constrained(**settings):
    model = random_model(LongRangeOptions(constrain_charge="softness"), **SMALL)
    return model, adapter(model, **settings)


@pytest.mark.parametrize("kind", ["open", "periodic"])
def test_charges_sum_to_the_total_charge(kind):
    frames = KINDS[kind][0]()
    model, adapted = constrained()
    state = state_of(frames)
    for total in (None, 0.0, 2, -1.0):
        adapted.total_charge = total
        out = adapted(state)
        sums = torch.zeros_like(out["energy"]).index_add_(0, state.system_idx, out["charges"])
        torch.testing.assert_close(sums, torch.full_like(sums, total or 0.0), rtol=0, atol=1e-12)
        for atoms in frames:
            atoms.info["total_charge"] = total or 0.0
        assert_as_calculator(out, frames, make_calculator(models=model))


def test_total_charges_by_formula_follow_the_systems():
    """In whatever order the systems come, and elements in a formula."""
    frames = [molecule("OH"), molecule("H2O"), Atoms("Na"), molecule("H2O")]
    charges = {"HO": -1.0, "OH2": 0.0, "Na": 1.0}
    model, adapted = constrained(total_charge=charges)
    for atoms, charge in zip(frames, (-1.0, 0.0, 1.0, 0.0), strict=True):
        atoms.info["total_charge"] = charge
    for order in (frames, frames[::-1]):
        assert_as_calculator(adapted(state_of(order)), order, make_calculator(models=model))
    with pytest.raises(InputError, match="system 1 is ClNa, for which total_charge has no number"):
        adapted(state_of([frames[0], Atoms("NaCl", [[0, 0, 0], [2.5, 0, 0]])]))
    adapted.total_charge = 1.0
    state = state_of(frames)
    sums = torch.bincount(state.system_idx, weights=adapted(state)["charges"])
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "value, message",
    [
        ([1.0, 0.0], r"numbers by formula such as .* got \[1.0, 0.0\]. One for each system"),
        ("plus", "must be a number in e"),
        (float("nan"), "must be a number in e"),
        ({"H2O": "one"}, "total_charge of H2O must be a number in e, got 'one'"),
        ({"Hi2O": 0}, "'Hi2O' is not a chemical formula"),
        ({"OH": -1, "HO": 0}, "two numbers for HO"),
    ],
)
def test_total_charges_that_mean_nothing_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        constrained(total_charge=value)


def test_what_is_assumed_is_said_once(caplog):
    model = random_model(LongRangeOptions(constrain_charge="uniform"))
    model.trained_on = TrainingRecord(boundaries=("periodic",))
    adapted = adapter(model)
    boxed = salty_water(periodic=True)
    boxed.pbc = False
    for _ in range(2):
        adapted(state_of([boxed]))
    adapter(total_charge=1.0)
    said = [record.getMessage() for record in caplog.records if "mace_polmp" in record.name]
    for words in ("total charge 0 e", "evaluated as open", "structure is open", "has no effect"):
        assert sum(words in sentence for sentence in said) == 1, (words, said)


def test_a_slab_is_not_taken_for_what_torch_sim_makes_of_it():
    """torch-sim makes pbc False of T T F and would wrap atoms along all directions with True."""
    state = state_of([wet_slab()])
    assert state.pbc is False
    energies = [adapter(pbc=pbc)(state)["energy"].item() for pbc in (None, SLAB)]
    assert abs(energies[0] - energies[1]) > 1e-3
    state.pbc = True
    with pytest.raises(InputError, match="wraps atoms through the vacuum .* pbc=False"):
        adapter(pbc=SLAB)(state)
    for mixed in (SLAB, torch.tensor(SLAB)):
        state.pbc = mixed
        with pytest.raises(InputError, match=r"pbc must be one flag.*pbc=\(True, True, False\)"):
            adapter()(state)
    state.pbc = torch.tensor([True, True, True])
    assert adapter()(state)["energy"].isfinite().all()
    state = state_of([wet_slab(vacuum=3.0)])
    with pytest.raises(InputError, match="state: system 0: .*of vacuum"):
        adapter(pbc=SLAB)(state)
    for wrong in (True, (True, False, False), (True, True, True), "TTF", (1, 1, 0)):
        with pytest.raises(InputError, match="pbc must be that of a slab"):
            adapter(pbc=wrong)


def broken(change):
    frames = [salty_water(), salty_water()]
    change(frames[1])
    return frames


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda a: a.symbols.__setitem__(0, "Au"),
            "system 1: the model does not know Au; it knows",
        ),
        (lambda a: a.positions.__setitem__(3, np.nan), "system 1: positions hold NaN"),
        (
            lambda a: a.positions.__setitem__(3, a.positions[4]),
            "system 1: atoms 3 and 4 are closer",
        ),
        (lambda a: a.positions.__setitem__(3, 1e9), "system 1: has a coordinate that no structure"),
    ],
)
def test_systems_that_cannot_be_evaluated_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        adapter()(state_of(broken(change)))


def test_a_periodic_system_without_a_cell_is_refused():
    frames = [rock_salt(), rock_salt()]
    frames[1].cell[:] = 0.0
    with pytest.raises(InputError, match="state: system 1: .*singular cell"):
        adapter()(state_of(frames))


def test_what_held_of_the_last_state_is_not_held_of_the_next():
    """Checks of cells are spared while they are the same; those of atoms never."""
    model, state = adapter(), state_of([rock_salt(), rock_salt()])
    model(state)
    state.positions[9] = torch.nan
    with pytest.raises(InputError, match="system 1: positions hold NaN"):
        model(state)
    state = state_of([rock_salt(), rock_salt()])
    state.cell[1, :, 2] = 0.0
    with pytest.raises(InputError, match="system 1: .*singular cell"):
        model(state)


def test_states_of_another_kind_are_refused():
    state = state_of([salty_water()], torch.float32)
    with pytest.raises(InputError, match="positions must be torch.float64 on .* got torch.float32"):
        adapter()(state)
    state = state_of([Atoms("Na"), Atoms("Cl")])
    state.system_idx = state.system_idx.flip(0)
    with pytest.raises(InputError, match="system_idx must grow from 0 on"):
        adapter()(state)


def test_a_dictionary_is_a_state():
    state = state_of(molecules())
    names = ("positions", "cell", "pbc", "atomic_numbers", "system_idx")
    out = adapter()({name: getattr(state, name) for name in names})
    torch.testing.assert_close(out["energy"], adapter()(state)["energy"], rtol=0, atol=1e-12)


def test_results_that_are_not_wanted_are_left_out():
    model = adapter(compute_forces=False, compute_stress=False)
    state = state_of([rock_salt()])
    assert not {"forces", "stress"} & set(model(state))
    model.compute_forces = model.compute_stress = True
    assert {"forces", "stress"} <= set(model(state))
    with torch.no_grad():  # as some loops are written
        torch.testing.assert_close(model(state)["forces"], adapter()(state)["forces"])


@pytest.mark.parametrize("ending", [".model", ".safetensors"])
def test_model_files(tmp_path, ending):
    model = model_on(current())
    path = tmp_path / f"salt{ending}"
    write_model(model, path)
    state = state_of([rock_salt()])
    for given in (path, str(path)):
        energy = adapter(given)(state)["energy"]
        torch.testing.assert_close(energy, adapter(model)(state)["energy"])


def test_files_and_models_of_another_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        adapter(tmp_path / "missing.model")
    torch.save(random_model().short_range(), tmp_path / "plain.model")
    with pytest.raises(InputError, match="holds a ScaleShiftMACE, not a MultipoleMACE"):
        adapter(tmp_path / "plain.model")
    with pytest.raises(InputError, match="model must be a file or a MultipoleMACE, got ScaleShift"):
        adapter(random_model().short_range())


def two_heads(names):
    settings = backbone_settings(**SMALL)
    energies = settings.pop("atomic_energies")
    with tools.torch_tools.default_dtype(torch.float64):
        model = MultipoleMACE(
            heads=names,
            atomic_energies=np.stack([energies, 2.0 * energies]),
            **(settings | dict(atomic_inter_scale=[1.0, 0.5], atomic_inter_shift=[0.0, 0.1])),
        )
    return model.to(current())


def test_heads():
    """The one asked for, or that called default, as of the calculator."""
    model, frames = two_heads(["pbe", "Default"]), [rock_salt()]
    energies = []
    for head in ("pbe", "Default", None):
        out = adapter(model, head=head)(state_of(frames))
        assert_as_calculator(out, frames, make_calculator(models=model, head=head))
        energies.append(out["energy"].item())
    assert energies[2] == energies[1] != energies[0]
    with pytest.raises(InputError, match="head must be one of pbe, Default, got 'lda'"):
        adapter(model, head="lda")
    with pytest.raises(InputError, match="several heads, pbe, scan"):
        adapter(two_heads(["pbe", "scan"]))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dtype": torch.float16}, "dtype must be torch.float64 or torch.float32, got"),
        ({"memory_scales_with": "atoms"}, "memory_scales_with must be n_atoms or n_atoms_x"),
    ],
)
def test_options_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        adapter(**settings)
    with pytest.raises(InputError, match="device nowhere is not available"):
        MultipoleMACEModel(random_model(), device="nowhere")
