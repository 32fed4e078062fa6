"""mace_run_train with the long-range head and every option of upstream that must go with it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import write

from mace_polmp.cli.run_train import asked_options, build_parser, main
from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from mace_polmp.modules.backbone import double_e0s
from mace_polmp.modules.io import load_model
from mace_polmp.training.options import ELECTRICAL_LABELS
from tests.cli.runs import (
    flags,
    log_of,
    open_frames,
    periodic_frames,
    run_module,
    write_data,
)
from tests.helpers import rattled, salty_water

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = pytest.mark.usefixtures("clean_state")


def train(folder, **changes):
    main(flags(folder, model="MultipoleMACE", **changes))
    return load_model(folder / "m.model")


def test_without_the_new_flags_the_model_is_upstreams_bit_for_bit(tmp_path):
    data = write_data(tmp_path)
    models = []
    for module in ("mace.cli.run_train", "mace_polmp.cli.run_train"):
        folder = tmp_path / module
        folder.mkdir()
        arguments = flags(folder, model="MACE", train_file=data)
        result = run_module(module, arguments, folder)
        assert result.returncode == 0, result.stderr
        models.append(torch.load(folder / "m.model", weights_only=False))
    assert type(models[0]) is type(models[1])
    first, second = (model.state_dict() for model in models)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_flags_from_yaml_reach_the_model_and_the_log(tmp_path):
    settings = {
        "multipole_lmax": 1,
        "induced": "dipole",
        "polarizability": "anisotropic",
        "conserve_charge": True,
        "smearing": 0.9,
        "kspace_spacing": 1.5,
        "long_range_solver": "ewald",
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": "MultipoleMACE", **settings}))
    main(flags(tmp_path, train_file=write_data(tmp_path), config=config))
    model = load_model(tmp_path / "m.model")
    assert model.long_range_options == LongRangeOptions(**settings)
    assert model.electrostatics.smearing == 0.9
    log = log_of(tmp_path)
    head = sum(p.numel() for p in model.multipole_readouts.parameters())
    assert f"Long-range head: {head} parameters" in log
    for element in ("H", "O"):
        row = rf"\|\s+{element}\s+\|\s+\d+\s+\|" + r"\s+-?\d+\.\d+ ± \d+\.\d+\s+\|" * 3
        assert re.search(row, log), element


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_configurations_in_the_repository_are_understood(path):
    args = build_parser().parse_args([f"--config={path}", "--name=m", "--model=MultipoleMACE"])
    assert LongRangeOptions(**asked_options(args)) == LongRangeOptions()
    for key, value in yaml.safe_load(path.read_text()).items():
        if key not in ("name", "model"):  # given above
            got = getattr(args, key)
            assert got == type(got)(value), key


def test_help_has_the_group():
    text = build_parser().format_help()
    assert "Long-range electrostatics" in text
    induced = "--induced {none,charge,dipole,both,bond,bond_dipole}"
    for name in ("--multipole_lmax {0,1,2}", induced, "--smearing"):
        assert name in text


@pytest.mark.parametrize("loss", ["weighted", "universal", "stress", "huber"])
def test_losses_with_ema_stage_two_and_test_data(tmp_path, loss):
    data = write_data(tmp_path, periodic_frames())
    test = write_data(tmp_path, periodic_frames(2), "test.xyz")
    model = train(
        tmp_path,
        train_file=data,
        test_file=test,
        loss=loss,
        ema=True,
        swa=True,
        start_swa=1,
        scheduler="ExponentialLR",
    )
    assert isinstance(model, MultipoleMACE)
    assert (tmp_path / "m_stagetwo.model").exists()
    log = log_of(tmp_path)
    assert log.count("Multipoles, permanent plus induced") == 2  # once for each stage
    assert "Error-table on TEST" in log


def test_training_learns_with_every_head_parameter(tmp_path):
    """The optimizer must know the head: upstream lists the parameters it optimizes by name."""
    data = write_data(tmp_path)
    model = train(tmp_path, train_file=data, max_num_epochs=1)
    (tmp_path / "later").mkdir()
    later = tmp_path / "later"
    main(flags(later, model="MultipoleMACE", train_file=data, max_num_epochs=3))
    after = dict(load_model(later / "m.model").multipole_readouts.named_parameters())
    for name, value in model.multipole_readouts.named_parameters():
        assert not torch.equal(value, after[name]), name


def test_learning_rate_of_the_head(tmp_path):
    train(
        tmp_path,
        train_file=write_data(tmp_path),
        lr_params_factors='{"long_range_lr_factor": 3.0}',
    )
    assert "Param group 5: lr = 0.03" in log_of(tmp_path)
    # By default five times that of the backbone.
    train(tmp_path, name="default", train_file=tmp_path / "train.xyz")
    assert "Param group 5: lr = 0.05" in log_of(tmp_path, name="default")


def test_restart_continues_where_it_stopped(tmp_path):
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=1)
    before = torch.load(tmp_path / "m.model", weights_only=False)
    train(tmp_path, train_file=data, max_num_epochs=3, restart_latest=True)
    log = log_of(tmp_path)
    assert "Loading checkpoint" in log and "Epoch 2:" in log
    after = load_model(tmp_path / "m.model")
    moved = [
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert any(name.startswith("multipole_readouts") for name in moved)


def test_lbfgs_knows_what_adam_has_seen(tmp_path):
    # The log has the loss of the validation frames; of the frames that are fitted it must fall.
    data = write_data(tmp_path, open_frames(6))
    settings = {"train_file": data, "valid_file": data, "valid_fraction": None}
    settings |= {"num_channels": 4, "max_L": 0}
    train(tmp_path, **settings)
    settings |= {"lbfgs": True, "restart_latest": True}
    train(tmp_path, max_num_epochs=3, **settings)
    newest = max((tmp_path / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime)
    scale = torch.load(newest, weights_only=False)["optimizer"]["state"][0]["scale"]
    assert scale.max() > 10.0 * scale.min()
    train(tmp_path, max_num_epochs=4, **settings)
    found = dict(re.findall(r"Epoch (\d+):.* loss= *([0-9.]+)", log_of(tmp_path)))
    losses = [float(found[epoch]) for epoch in "0123"]
    assert losses[3] < losses[2] < losses[1] and losses[3] < 0.5 * losses[1]


def test_amsgrad_can_be_turned_off(tmp_path):
    """Adam then keeps running means of squared gradients and no maxima of them."""
    data = write_data(tmp_path, open_frames(6))
    small = {"num_channels": 4, "max_L": 0, "max_num_epochs": 1, "save_all_checkpoints": True}
    train(tmp_path, train_file=data, no_amsgrad=True, **small)
    newest = max((tmp_path / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime)
    states = torch.load(newest, weights_only=False)["optimizer"]["state"].values()
    assert all("exp_avg_sq" in state and "max_exp_avg_sq" not in state for state in states)


def test_fine_tuning_keeps_the_foundation_models_energies(tmp_path):
    data = write_data(tmp_path)
    base = tmp_path / "base"
    base.mkdir()
    main(flags(base, model="MACE", train_file=data, max_num_epochs=1))
    foundation = torch.load(base / "m.model", weights_only=False)
    model = train(
        tmp_path,
        train_file=data,
        foundation_model=base / "m.model",
        multiheads_finetuning=False,
        E0s="foundation",
        lr=1e-7,
        max_num_epochs=1,
    )
    from tests.helpers import evaluate, make_batch

    frame = open_frames(1)[0]
    expected = foundation(make_batch([frame], model))
    got = evaluate(model, frame)
    per_atom = (got["energy"] - expected["energy"]).abs().item() / len(frame)
    assert 0 < per_atom < 0.01
    np.testing.assert_allclose(
        got["short_range_energy"].detach(), expected["energy"].detach(), atol=1e-4
    )


def test_bad_foundation_models(tmp_path, capsys):
    from mace.modules import ScaleShiftMACE

    from tests.helpers import backbone_settings, random_model

    data = write_data(tmp_path)
    torch.save(random_model(), tmp_path / "other_cutoff.model")
    torch.save(ScaleShiftMACE(**backbone_settings(elements=[1, 8])), tmp_path / "few.model")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.model")
    (tmp_path / "text.model").write_text("no model")
    for name, message in (
        ("other_cutoff", "--r_max 3.5: the foundation model has a cutoff of 4 Å"),
        ("few", "few.model: does not know Cl of the training data"),
        ("linear", "linear.model: holds a Linear, which is not a MACE model"),
        ("text", "text.model: not a model file"),
        ("none", "none.model: no such file"),
    ):
        work = tmp_path / "work"
        model = tmp_path / f"{name}.model"
        with pytest.raises(SystemExit) as stopped:
            r_max = 3.5 if name == "other_cutoff" else None
            changes = dict(train_file=data, foundation_model=model, r_max=r_max)
            main(flags(work, model="MultipoleMACE", **changes))
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not work.exists()


def test_several_training_files(tmp_path):
    a = write_data(tmp_path, open_frames()[:6], "a.xyz")
    b = write_data(tmp_path, periodic_frames(6), "b.xyz")
    heads = {"Default": {"train_file": [str(a), str(b)], "E0s": "average"}}
    train(tmp_path, heads=repr(heads))
    assert "train=8, valid=4" in log_of(tmp_path)


def test_formal_charges_start_near_the_energies(tmp_path):
    """Averages of energies know the Madelung energy, of several eV per atom."""
    data = write_data(tmp_path, periodic_frames(6))
    bonds = dict(charge_readout="bond", induced="bond", formal_charges="Na:1,Cl:-1")
    model = train(tmp_path, train_file=data, max_num_epochs=1, **bonds)
    assert "--E0s average: with formal charges" in log_of(tmp_path)
    initial = re.search(r"Initial: .*RMSE_E_per_atom= *([\d.]+) meV", log_of(tmp_path))
    assert float(initial[1]) < 500.0  # of the untrained backbone
    frame = periodic_frames(1)[0]
    frame.calc = None
    from tests.helpers import evaluate

    assert evaluate(model, frame)["long_range_energy"].item() / len(frame) < -2.0


def test_heads_with_their_own_energies_and_keys(tmp_path, capsys):
    """Energies of atoms as numbers or averages, and labels under other names, by head."""
    frames = open_frames(8)
    other = [atoms.copy() for atoms in frames]
    for atoms in other:
        atoms.info["pbe"] = atoms.info.pop("REF_energy")
        atoms.arrays["pbe_forces"] = atoms.arrays.pop("REF_forces")
    a = write_data(tmp_path, frames, "a.xyz")
    b = write_data(tmp_path, other, "b.xyz")
    heads = {
        "one": {"train_file": str(a), "E0s": {"H": -1.0, 8: -2.0, "Cl": -3.0}},
        "two": {"train_file": str(b), "info_keys": {"energy": "pbe"}, "forces_key": "pbe_forces"},
    }
    model = train(tmp_path, heads=repr(heads), max_num_epochs=1)
    energies = model.atomic_energies_fn.atomic_energies
    torch.testing.assert_close(energies[0], torch.tensor([-1.0, -2.0, -3.0]).to(energies))
    counts = np.array([[(atoms.numbers == z).sum() for z in (1, 8, 17)] for atoms in frames])
    mean = np.mean([atoms.info["REF_energy"] for atoms in frames])
    assert abs((counts.mean(0) @ energies[1].double().numpy()) - mean) < 0.1 * abs(mean)
    for wrong, message in (
        ({"trainfile": "a"}, "one has 'trainfile', which is no setting of a head"),
        ({"train_file": str(a), "total_charge_key": "Q"}, "is at 'Q', but a model remembers one"),
    ):
        arguments = flags(tmp_path / "w", model="MultipoleMACE", heads=repr({"one": wrong}))
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_slabs_and_other_boundaries_together(tmp_path):
    """Frames of all three kinds in one file, with stress where there is one."""
    slabs = periodic_frames(4)
    for atoms in slabs:
        atoms.set_cell([*atoms.cell.lengths()[:2], 16.0])
        atoms.pbc = [True, True, False]
    frames = [*slabs, *periodic_frames(4), *open_frames(4)]
    data = write_data(tmp_path, frames)
    model = train(tmp_path, train_file=data, loss="universal", batch_size=8)
    assert isinstance(model, MultipoleMACE)


def test_training_on_the_mesh(tmp_path):
    """The same model as with the direct sum, to the accuracy of the mesh; the log says which."""
    frames = [rattled(salty_water(periodic=True), seed=n, stdev=0.1) for n in range(6)]
    for number, atoms in enumerate(frames):
        atoms.info["REF_energy"] = 0.1 * number
        atoms.arrays["REF_forces"] = np.random.default_rng(number).normal(size=(8, 3))
    found = {}
    for solver in ("mesh", "ewald"):
        work = tmp_path / solver
        work.mkdir()
        model = train(
            work, train_file=write_data(work, frames), long_range_solver=solver,
            mesh_accuracy=1e-6, log_level="DEBUG", max_num_epochs=1,
        )  # fmt: skip
        found[solver] = torch.cat([p.flatten() for p in model.multipole_readouts.parameters()])
        words = {"mesh": "particle mesh, 14 × 14 × 14 points", "ewald": "direct k-space sum"}
        assert f"structure 0: 8 atoms, {words[solver]}" in log_of(work)
    torch.testing.assert_close(found["mesh"], found["ewald"], rtol=0, atol=1e-4)


def test_hdf5_data(tmp_path, monkeypatch):
    from mace.cli import preprocess_data

    monkeypatch.chdir(tmp_path)
    mixed = open_frames()[:6] + periodic_frames(6)
    arguments = preprocess_data.tools.build_preprocess_arg_parser().parse_args(
        [
            f"--train_file={write_data(tmp_path, mixed)}",
            f"--valid_file={write_data(tmp_path, mixed[4:8], 'valid.xyz')}",
            "--r_max=3.5",
            "--h5_prefix=h5/",
            "--E0s=average",
            "--num_process=1",
        ]
    )
    preprocess_data.run(arguments)
    model = train(
        tmp_path,
        train_file="h5/train",
        valid_file="h5/val",
        atomic_numbers="[1, 8, 11, 17]",
        E0s="{1: -50.0, 8: -20.0, 11: -1.0, 17: -1.0}",
    )
    assert isinstance(model, MultipoleMACE)


def write_lmdb(path, frames):
    from ase.calculators.singlepoint import SinglePointCalculator
    from mace.tools.fairchem_dataset.lmdb_dataset_tools import LMDBDatabase

    with LMDBDatabase(str(path)) as database:
        for atoms in frames:
            clean = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell.array, pbc=True)
            clean.calc = SinglePointCalculator(
                clean, energy=atoms.info["REF_energy"], forces=atoms.arrays["REF_forces"]
            )
            database.write(clean)
    return path


def test_lmdb_data(tmp_path):
    model = train(
        tmp_path,
        train_file=write_lmdb(tmp_path / "train.aselmdb", periodic_frames()),
        valid_file=write_lmdb(tmp_path / "valid.aselmdb", periodic_frames(4)),
        atomic_numbers="[11, 17]",
        E0s="{11: -1.0, 17: -1.0}",
    )
    assert isinstance(model, MultipoleMACE)


@pytest.mark.parametrize("kind", ["train_file", "valid_file"])
@pytest.mark.parametrize("name", ELECTRICAL_LABELS)
def test_electrical_labels_of_hdf5_and_lmdb_are_refused(tmp_path, capsys, name, kind):
    """Of polarizabilities, ε∞ among them: mace_prepare_data does not write REF_epsilon_infinity."""
    crystals = periodic_frames(6)
    for atoms in crystals:
        atoms.info["REF_epsilon_infinity"] = 2.3
    files = {"train_file": write_data(tmp_path, crystals), "valid_file": None}
    for ending in ("h5", "aselmdb"):
        other = tmp_path / f"data.{ending}"
        other.touch()  # refused before it is opened
        more = {f"{name}_weight": 1.0}
        more |= {"charge_readout": "bond", "induced": "dipole"} if name == "polarization" else {}
        with pytest.raises(SystemExit) as stopped:
            main(flags(tmp_path / "w", model="MultipoleMACE", **{**files, kind: other}, **more))
        error = capsys.readouterr().err
        assert stopped.value.code == 1 and not (tmp_path / "w").exists()
        assert f"data.{ending}: HDF5 and LMDB files have no labels for --{name}_weight" in error


def test_plots_are_drawn(tmp_path):
    train(tmp_path, train_file=write_data(tmp_path), plot="True", dipole_weight=1)
    drawn = [path.name for path in tmp_path.rglob("*.png")]
    assert any(name.endswith("_train_labels.png") for name in drawn) and len(drawn) > 1


def spoilt(**changes):
    """Frames of which the second has something wrong."""
    frames = open_frames()
    atoms = frames[1]
    if "position" in changes:
        atoms.positions[0] = changes["position"]
    if changes.get("coincident"):
        atoms.positions[1] = atoms.positions[0]
    if "pbc" in changes:
        atoms.pbc = changes["pbc"]
        atoms.cell = changes.get("cell", np.zeros((3, 3)))
    if "lacking" in changes:
        for atoms in frames:
            atoms.info.pop(changes["lacking"], None)
            atoms.arrays.pop(changes["lacking"], None)
    if "energy" in changes:
        atoms.info["REF_energy"] = changes["energy"]
    return frames


BAD_DATA = {
    "no energies": (spoilt(lacking="REF_energy"), "lacks the energy 'REF_energy' in 12 of 12"),
    "no forces": (spoilt(lacking="REF_forces"), "lacks the forces 'REF_forces' in 12 of 12"),
    "energy NaN": (
        spoilt(energy=float("nan")),
        "frame 1: the energy 'REF_energy' must be one finite number, got nan",
    ),
    "position NaN": (spoilt(position=np.nan), "frame 1: positions hold NaN"),
    "coincident": (spoilt(coincident=True), "frame 1: atoms 0 and 1 are closer"),
    "singular": (spoilt(pbc=True), "frame 1: has pbc T T T and a singular cell"),
    "partial": (
        spoilt(pbc=[True, True, False], cell=9 * np.eye(3)),
        "frame 1: has pbc T T F, and its atoms extend over",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_one_line_and_leaves_nothing(tmp_path, capsys, name):
    frames, message = BAD_DATA[name]
    data = write_data(tmp_path, frames)
    work = tmp_path / "work"
    with pytest.raises(SystemExit) as stopped:
        main(flags(work, model="MultipoleMACE", train_file=data))
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not work.exists()


def test_bad_files_and_flags(tmp_path, capsys):
    data = write_data(tmp_path)
    empty = tmp_path / "empty.xyz"
    empty.touch()
    gold = open_frames(2)
    gold[0].numbers[0] = 79
    other = write_data(tmp_path, gold, "gold.xyz")
    cases = [
        (dict(train_file=empty), "empty.xyz: the file is empty"),
        (dict(train_file=tmp_path / "none.xyz"), "none.xyz: no such file"),
        (dict(train_file=None), "--train_file is missing"),
        (dict(train_file=data, test_file=other), "gold.xyz: holds Au"),
        (dict(train_file=data, smearing=-1.0), "smearing must be a positive length"),
        (
            dict(train_file=data, smearing="wide"),
            "smearing must be a positive length in Å, got 'wide'",
        ),
        (dict(train_file=data, multipole_lmax=3), "multipole_lmax must be one of 0, 1, 2, got 3"),
        (dict(train_file=data, induced="dipoles"), "got 'dipoles'; did you mean dipole?"),
        (dict(train_file=data, E0s=None), "has no isolated atoms to take atomic energies from"),
        (dict(train_file=data, long_range_solver="mesh"), "a mesh needs a periodic cell"),
        (dict(train_file=data, mesh_accuracy=1e-20), "mesh_accuracy must be at least"),
        (dict(train_file=data, batch_size=9), "is more than the 8 structures to train on"),
        (dict(train_file=data, enable_oeq="True"), "--enable_oeq does not work"),
        (dict(train_file=data, model="MACE", multipole_lmax=1), "--multipole_lmax needs --model"),
    ]
    work = tmp_path / "work"
    for changes, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(flags(work, **{"model": "MultipoleMACE", **changes}))
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not work.exists()


def test_isolated_atoms_and_frames_without_weight_need_no_forces(tmp_path):
    frames = open_frames()
    atom = frames[0][:1].copy()
    atom.info = {"config_type": "IsolatedAtom", "REF_energy": -1.0}
    del atom.arrays["REF_forces"]
    frames[1].info["config_forces_weight"] = 0.0
    del frames[1].arrays["REF_forces"]
    data = tmp_path / "train.xyz"
    write(data, [*frames, atom], format="extxyz")
    from mace_polmp.training.data_checks import check_training_data
    from mace_polmp.training.options import TrainingOptions

    args = build_parser().parse_args(flags(tmp_path, train_file=data))
    check_training_data(args, LongRangeOptions(), TrainingOptions())


@pytest.mark.parametrize("where", ["type weights", "validation"])
def test_data_in_which_nothing_counts_are_refused(tmp_path, capsys, where):
    """A loss of 0 from the first epoch on is no training."""
    frames = open_frames()
    for atoms in frames:
        atoms.info["config_type"] = "cluster"
    changes = dict(train_file=write_data(tmp_path, frames))
    if where == "validation":
        for atoms in frames[:3]:
            atoms.info["config_weight"] = 0.0
        changes["valid_file"] = write_data(tmp_path, frames[:3], "valid.xyz")
        changes["valid_fraction"] = None
    else:
        changes["config_type_weights"] = "{'cluster': 0.0}"
        changes["E0s"] = {1: -13.0, 8: -400.0, 11: -100.0, 17: -300.0}
    with pytest.raises(SystemExit) as stopped:
        main(flags(tmp_path, model="MultipoleMACE", **changes))
    assert stopped.value.code == 1
    kind = "validation (Default)" if where == "validation" else "training"
    assert f"no label of the {kind} structures has a weight" in capsys.readouterr().err
    assert not (tmp_path / "m.model").exists()


def test_atomic_energies_keep_their_digits_in_single_precision(tmp_path):
    """Of 500000 eV single precision holds steps of 0.03 eV."""
    energies = {1: -13.0, 8: -400.0, 11: -100.0, 17: -500000.0123}
    frames = open_frames()
    for atoms in frames:
        atoms.info["REF_energy"] += -499700.0123 * list(atoms.numbers).count(17)
    data = write_data(tmp_path, frames)
    changes = dict(model="MultipoleMACE", train_file=data, max_num_epochs=1, E0s=energies)
    main(flags(tmp_path, default_dtype="float32", **changes))
    model = load_model(tmp_path / "m.model")
    assert next(model.parameters()).dtype == torch.float32
    assert double_e0s(model).view(-1)[-1].item() == pytest.approx(-500000.0123, abs=1e-6)
