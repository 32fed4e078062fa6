"""Fine-tuning and electrical labels as a user runs them."""

import copy
import re

import mace  # noqa: F401  before e3nn
import numpy as np
import pytest
import torch
from ase import Atoms
from e3nn import o3
from mace.modules import ScaleShiftMACE

from mace_polmp.cli.main import main as command
from mace_polmp.cli.run_train import main
from mace_polmp.modules.io import write_model
from tests.cli.runs import flags, log_of, open_frames, periodic_frames, write_data
from tests.helpers import backbone_settings, evaluate, make_batch, random_model

pytestmark = pytest.mark.usefixtures("clean_state")

ELEMENTS = [1, 6, 8, 11, 17]
BACKBONES = {
    "two layers": {},
    "scalars, one layer": dict(num_interactions=1, hidden_irreps=o3.Irreps("16x0e")),
    "scalars, two layers": dict(hidden_irreps=o3.Irreps("16x0e")),
    "ZBL repulsion": dict(pair_repulsion=True, distance_transform="Agnesi"),
    "density blocks": dict(interaction="RealAgnosticDensityResidualInteractionBlock"),
    "several heads": dict(
        heads=["pt_head", "dft"],
        atomic_energies=np.linspace(-1.0, -2.0, 10).reshape(2, 5),
        atomic_inter_scale=[1.0, 1.3],
        atomic_inter_shift=[0.0, 0.2],
    ),
}


def foundation(path, name="two layers", **changes):
    """A random short-range MACE of five elements in a file."""
    settings = {**BACKBONES[name], **changes}
    interaction = settings.pop("interaction", "RealAgnosticResidualInteractionBlock")
    torch.manual_seed(5)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        base = backbone_settings(elements=ELEMENTS, interaction=interaction, r_max=3.5)
        model = ScaleShiftMACE(**{**base, **settings})
    finally:
        torch.set_default_dtype(previous)
    torch.save(model, path)
    return model


def tune(folder, **changes):
    settings = dict(model="MultipoleMACE", r_max=None, E0s="foundation", lr=1e-3)
    for name in ("num_channels", "max_L", "max_ell", "correlation", "num_interactions"):
        settings[name] = None
    settings["multiheads_finetuning"] = False
    main(flags(folder, **{**settings, **changes}))
    path = folder / "m.model"
    return torch.load(path, weights_only=False) if path.exists() else None


def change_at_start(folder):
    """What the log says the head changes: meV/atom, meV/Å."""
    found = re.search(r"at most ([\d.]+) meV/atom and forces by at most ([\d.]+)", log_of(folder))
    return tuple(map(float, found.groups()))


@pytest.mark.parametrize("name", BACKBONES)
def test_any_foundation_model_is_carried_over(tmp_path, name):
    """Energies of the backbone are the foundation model's, and the head starts small."""
    old = foundation(tmp_path / "f.model", name)
    data = write_data(tmp_path)
    head = "dft" if name == "several heads" else None
    model = tune(
        tmp_path,
        train_file=data,
        foundation_model=tmp_path / "f.model",
        foundation_head=head,
        lr=0.0,
        max_num_epochs=1,
    )
    energy, force = change_at_start(tmp_path)
    assert 0 < energy < 1 and 0 < force < 5
    assert model.atomic_numbers.tolist() == [1, 8, 17]
    frame = open_frames(1)[0]
    batch = make_batch([frame], model)
    batch["node_attrs"] = (
        batch["node_attrs"]
        .new_zeros(len(frame), 5)
        .index_copy(1, torch.tensor([0, 2, 4]), batch["node_attrs"])
    )
    if head:
        batch["head"] = torch.tensor([1])
    expected = old(batch)
    got = evaluate(model, frame)
    np.testing.assert_allclose(
        got["short_range_energy"].detach(), expected["energy"].detach(), atol=1e-9
    )
    assert abs(got["forces"] - expected["forces"]).max() < 5e-3


@pytest.mark.parametrize("energies", ["foundation", "estimated", "average"])
@pytest.mark.parametrize("elements", [False, True])
def test_atomic_energies_are_those_asked_for(tmp_path, energies, elements):
    """Upstream keeps the foundation model's where the elements are all the same."""
    old = foundation(tmp_path / "f.model")
    if energies == "estimated":  # by a foundation model of another precision than the training's
        torch.save(copy.deepcopy(old).float(), tmp_path / "f.model")
    frames = open_frames()
    carbon = Atoms("CNa", positions=[[0, 0, 0], [1.5, 0, 0]])
    carbon.info["REF_energy"] = -30.0
    carbon.arrays["REF_forces"] = np.zeros((2, 3))
    data = write_data(tmp_path, [*frames, carbon, *([carbon] * 3)] if elements else frames)
    model = tune(
        tmp_path,
        train_file=data,
        foundation_model=tmp_path / "f.model",
        E0s=energies,
        lr=0.0,
        max_num_epochs=1,
        valid_file=data,
    )
    assert len(model.atomic_numbers) == (5 if elements else 3)
    before, new = (m.atomic_energies_fn.atomic_energies.flatten() for m in (old, model))
    own = dict(zip(ELEMENTS, before.tolist(), strict=True))
    numbers = model.atomic_numbers.tolist()
    difference = [e - own[z] for z, e in zip(numbers, new.tolist(), strict=True)]
    if energies == "foundation":
        np.testing.assert_allclose(difference, 0, atol=1e-9)
    else:
        assert np.abs(difference).max() > 1
    if energies == "average":
        logged = re.search(r"Atomic Energies used .*\{(.*)\}", log_of(tmp_path)).group(1)
        values = [float(part.split(":")[1]) for part in logged.split(",")]
        np.testing.assert_allclose(new.detach(), values, rtol=1e-9)


@pytest.mark.parametrize("suffix", [".model", ".safetensors"])
def test_going_on_from_a_multipole_model_with_more_terms(tmp_path, suffix):
    """Energies stay; what was not asked for is inherited; new terms are there and learn."""
    from mace_polmp.modules import LongRangeOptions

    options = LongRangeOptions(multipole_lmax=0, induced="none", smearing=1.3)
    old = random_model(options, elements=ELEMENTS, r_max=3.5)
    path = tmp_path / f"old{suffix}"
    write_model(old, path)
    data = write_data(tmp_path)
    more = dict(multipole_lmax=2, induced="both", polarizability="anisotropic")
    changes = dict(train_file=data, foundation_model=path, max_num_epochs=1, lr=0.0)
    model = tune(tmp_path, **more, **changes)
    assert model.long_range_options == LongRangeOptions(smearing=1.3, **more)
    energy, force = change_at_start(tmp_path)
    assert energy < 1 and force < 5
    frame = open_frames(1)[0]
    expected, got = evaluate(old, frame), evaluate(model, frame)
    assert (expected["energy"] - got["energy"]).abs().item() < 1e-3 * len(frame)
    np.testing.assert_allclose(got["charges"].detach(), expected["charges"].detach(), atol=1e-3)
    again = tmp_path / "again"
    again.mkdir()
    trained = tune(again, **more, **{**changes, "lr": 1e-2, "max_num_epochs": 3})
    out = evaluate(trained, frame)
    assert out["atomic_dipoles"].abs().max() > 1e-4


def test_several_heads_share_the_electrostatics(tmp_path):
    foundation(tmp_path / "f.model")
    data = write_data(tmp_path)
    heads = {name: {"train_file": str(data)} for name in ("a", "b")}
    model = tune(
        tmp_path, heads=str(heads), foundation_model=tmp_path / "f.model", max_num_epochs=1
    )
    assert model.heads == ["a", "b"]
    frame = open_frames(1)[0]
    outs = []
    for head in (0, 1):
        batch = make_batch([frame], model)
        batch["head"] = torch.tensor([head])
        outs.append(model(batch))
    torch.testing.assert_close(outs[0]["long_range_energy"], outs[1]["long_range_energy"])
    # One of them is kept where training goes on with one.
    write_model(model, tmp_path / "two.model")
    single = tmp_path / "single"
    single.mkdir()
    one = tune(
        single,
        train_file=data,
        foundation_model=tmp_path / "two.model",
        foundation_head="b",
        lr=0.0,
    )
    assert len(one.heads) == 1
    torch.testing.assert_close(evaluate(one, frame)["energy"], outs[1]["energy"])


def test_replay_of_pretraining_data(tmp_path):
    """Two heads, of the user's data and of replayed ones, whose file is checked as well."""
    foundation(tmp_path / "f.model")
    data = write_data(tmp_path, open_frames(8))
    replay = write_data(tmp_path, open_frames(20), name="replay.xyz")
    changes = dict(
        train_file=data,
        foundation_model=tmp_path / "f.model",
        multiheads_finetuning="True",
        pt_train_file=replay,
        max_num_epochs=1,
    )
    model = tune(tmp_path, **changes)
    assert model.heads == ["pt_head", "Default"]
    assert "valid_pt_head" in log_of(tmp_path)


@pytest.mark.parametrize("extra", [dict(lora=True), dict(freeze=6), dict(ema=True, swa=True)])
def test_what_upstream_offers_for_fine_tuning(tmp_path, extra):
    old = foundation(tmp_path / "f.model")
    data = write_data(tmp_path)
    model = tune(
        tmp_path,
        train_file=data,
        foundation_model=tmp_path / "f.model",
        max_num_epochs=3,
        lr=1e-2,
        **{k: v if k != "lora" else "True" for k, v in extra.items()},
    )
    assert not [name for name, _ in model.named_modules() if "lora" in name]
    change = (model.products[0].linear.weight - old.products[0].linear.weight).abs().max().item()
    assert (change == 0) == ("freeze" in extra)
    assert evaluate(model, open_frames(1)[0])["charges"].abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["all", "head_first", "head_only"])
def test_what_is_trained_when(tmp_path, mode):
    old = foundation(tmp_path / "f.model")
    data = write_data(tmp_path)
    model = tune(
        tmp_path,
        train_file=data,
        foundation_model=tmp_path / "f.model",
        training_mode=mode,
        head_epochs=2 if mode == "head_first" else None,
        max_num_epochs=4,
        head_lr=2e-2,
        head_directions=6,
    )
    change = (model.products[0].linear.weight - old.products[0].linear.weight).abs().max().item()
    assert (change == 0) == (mode == "head_only")
    log = log_of(tmp_path)
    assert ("Caching features of 8 structures" in log) == (mode != "all")
    assert "lr = 0.02" in log and "lr = 0.001" in log
    epochs = [int(n) for n in re.findall(r"Epoch (\d+): head: Default, loss", log)]
    assert epochs == [0, 1, 2, 3]
    assert all(parameter.requires_grad for parameter in model.parameters())
    errors = re.findall(r"loss=\s*([\d.]+)", log)
    assert float(errors[-1]) < float(errors[0])


def test_head_only_where_nothing_can_be_cached(tmp_path):
    foundation(tmp_path / "f.model")
    data = write_data(tmp_path, periodic_frames())
    tune(
        tmp_path,
        train_file=data,
        foundation_model=tmp_path / "f.model",
        training_mode="head_only",
        loss="stress",
        max_num_epochs=1,
    )
    assert "Features are not cached with --loss with stress" in log_of(tmp_path)


def with_labels(frames, model):
    """Labels of another model's dipoles, polarizabilities and Born charges."""
    from mace_polmp.calculators import MultipoleMACECalculator

    calc = MultipoleMACECalculator(models=model)
    for atoms in frames:
        plain = atoms.copy()
        if not atoms.pbc.any():
            atoms.info["REF_dipole"] = calc.get_property("dipole", plain)
            atoms.info["REF_polarizability"] = calc.get_property("polarizability", plain).ravel()
        born = calc.get_property("born_charges", plain)
        atoms.arrays["REF_born_charges"] = born.reshape(-1, 9)
    return frames


def test_electrical_labels_are_learned_and_reported(tmp_path):
    """Open and periodic structures, labels missing here and there, stage two with other weights."""
    from mace_polmp.modules import LongRangeOptions

    teacher = random_model(LongRangeOptions(epsilon_infinity=2.0), seed=3)
    frames = with_labels([*open_frames(8), *periodic_frames(4)], teacher)
    del frames[0].info["REF_dipole"], frames[1].arrays["REF_born_charges"]
    frames[2].info["born"] = 1
    data = write_data(tmp_path, frames)
    model = tune(
        tmp_path,
        E0s="average",
        r_max=3.5,
        train_file=data,
        num_channels=8,
        max_num_epochs=16,
        swa=True,
        start_swa=12,
        lr=1e-2,
        dipole_weight=100.0,
        polarizability_weight=100.0,
        born_charges_weight=100.0,
        swa_dipole_weight=10.0,
        total_charge_weight=1.0,
        forces_weight=1.0,
        epsilon_infinity="learn",
        valid_file=data,
    )
    log = log_of(tmp_path)
    lines = re.findall(r"RMSE_dipole=\s*([\d.]+) e Å, .*RMSE_born_charges=\s*([\d.]+) e,", log)
    assert len(lines) == 17
    assert float(lines[-1][0]) < 0.5 * float(lines[0][0])
    assert float(lines[-1][1]) < 0.7 * float(lines[0][1])
    assert "Errors of electrical labels" in log and "e² Å²/eV" in log
    assert "dipole_weight=10.000" in log and "total_charge" in log
    assert model.permittivity() != pytest.approx(1.6931, abs=1e-3)  # where it started
    born = [row for row in log.splitlines() if "valid_Default" in row and "born_charges" in row]
    assert f"{9 * (sum(map(len, frames)) - len(frames[1]))}" in born[0]


@pytest.mark.parametrize("charges", ["softness", "uniform"])
def test_charges_are_constrained_to_the_total_charge(tmp_path, charges):
    """Ions and neutral molecules train together, and calculators know the charge as well."""
    from mace_polmp.calculators import MultipoleMACECalculator

    frames = open_frames(8)
    for atoms in frames[:4]:
        atoms.info["total_charge"] = 1.0
    model = tune(
        tmp_path,
        E0s="average",
        r_max=3.5,
        train_file=write_data(tmp_path, frames),
        num_channels=8,
        constrain_charge=charges,
    )
    for charge in (0.0, 1.0):
        atoms = frames[-1].copy()
        atoms.info = {"charge": charge}
        atoms.calc = MultipoleMACECalculator(models=model)
        assert atoms.get_charges().sum() == pytest.approx(charge, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "frame", "message"),
    [
        (dict(dipole_weight=1.0), {}, "none of 12 frames has the label 'REF_mu'"),
        (dict(dipole_weight=1.0, dipole_key="short"), dict(short=[1.0]), "must be [3] numbers"),
        (dict(born_charges_weight=1.0), dict(REF_born_charges=[1.0]), "must be [8, 3, 3] numbers"),
        (
            dict(constrain_charge="softness"),
            dict(total_charge=1.0, charge=0.0),
            "['charge'] 0 e; both",
        ),
        (dict(constrain_charge="softnes"), {}, "did you mean softness?"),
        (dict(epsilon_infinity=0.5), {}, "epsilon_infinity must be a number of 1 or more"),
        (dict(loss="energy_forces_dipole"), {}, "--loss energy_forces_dipole is not for"),
        (dict(training_mode="head_firs"), {}, "did you mean head_first?"),
        (dict(training_mode="head_only", lora="True"), {}, "--lora adapts the backbone"),
        (dict(training_mode="head_first", head_epochs=2), {}, "--head_epochs 2 leaves no epoch"),
    ],
)
def test_bad_labels_and_flags_are_one_line(tmp_path, capsys, changes, frame, message):
    frames = open_frames(12)
    for atoms in frames:
        atoms.info.pop("REF_dipole", None)
        atoms.info.update(frame)
    data = write_data(tmp_path, frames)
    if "dipole_key" not in changes:
        changes = {**changes, "dipole_key": "REF_mu"}
    work = tmp_path / "work"
    with pytest.raises(SystemExit) as stopped:
        main(flags(work, model="MultipoleMACE", train_file=data, **changes))
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in error and error.count("\n") == 1, error
    assert not work.exists()


def test_a_truncated_safetensors_foundation(tmp_path, capsys):
    path = tmp_path / "f.safetensors"
    write_model(random_model(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit):
        data = write_data(tmp_path)
        main(
            flags(
                tmp_path / "w",
                model="MultipoleMACE",
                train_file=data,
                foundation_model=path,
                r_max=None,
            )
        )
    assert "f.safetensors: " in capsys.readouterr().err


def test_info_says_what_the_permittivity_is(tmp_path, capsys):
    from mace_polmp.modules import LongRangeOptions

    model = random_model(LongRangeOptions(epsilon_infinity="learn"))
    model.set_permittivity(1.8)
    write_model(model, tmp_path / "m.safetensors")
    command(["info", str(tmp_path / "m.safetensors")])
    assert "1.800, learned" in capsys.readouterr().out


@pytest.mark.parametrize("lr", [1.0, 1e-4])
def test_a_short_run_is_never_worse_than_the_foundation_model(tmp_path, lr):
    """Steps that are far too large: the model that is written is the one that was given."""
    old = foundation(tmp_path / "f.model")
    data = write_data(tmp_path)
    model = tune(
        tmp_path, train_file=data, foundation_model=tmp_path / "f.model", lr=lr, max_num_epochs=3
    )
    log = log_of(tmp_path)
    losses = [float(x) for x in re.findall(r"head: Default, loss=\s*([\d.]+)", log)]
    start, best = losses[0], min(losses)
    assert ("No epoch was better" in log) == (best == start)
    assert (best == start) == (lr == 1.0)
    same = torch.equal(model.interactions[0].linear.weight, old.interactions[0].linear.weight)
    assert same == (lr == 1.0)
    assert "does not grow" in log and "Verdict: charges look small" in log
