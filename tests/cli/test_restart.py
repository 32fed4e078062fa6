"""An interrupted training goes on as if nothing had happened, and writes over nothing."""

import shutil

import numpy as np
import pytest
import torch
from mace.modules import ScaleShiftMACE

from mace_polmp.cli.run_train import main
from mace_polmp.modules.io import load_any, load_model
from mace_polmp.training import checkpoints
from tests.cli.runs import flags, log_of, open_frames, periodic_frames, write_data
from tests.helpers import backbone_settings

pytestmark = pytest.mark.usefixtures("clean_state")

TINY = {"num_channels": 4, "max_L": 0, "num_interactions": 1, "max_ell": 1}


def train(folder, **changes):
    main(flags(folder, model="MultipoleMACE", **{**TINY, **changes}))


def interrupted(folder, monkeypatch, epoch, **changes):
    """A training that ends when it is about to write the checkpoint of an epoch."""

    def stop(self, content, now):
        if now == epoch:
            raise KeyboardInterrupt
        write(self, content, now)

    write = checkpoints.CheckpointHandler.save_last
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.CheckpointHandler, "save_last", stop)
        with pytest.raises(SystemExit) as stopped:
            train(folder, **changes)
    assert stopped.value.code == 130


def assert_same(one, other):
    first, second = (load_any(path).state_dict() for path in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-9, atol=1e-12, msg=name)


def electrical(frames):
    for number, atoms in enumerate(frames):
        atoms.info["REF_dipole"] = np.array([0.1 * number, 0.0, 0.2])
        each = atoms.info.get("total_charge", 0.0) / len(atoms)
        atoms.arrays["REF_born_charges"] = np.tile(each * np.eye(3).ravel(), (len(atoms), 1))
    return frames


RUNS = {
    "plain": ({}, [2]),
    "averages": (dict(ema=True), [1, 3]),
    "plateau": (dict(scheduler="ReduceLROnPlateau", scheduler_patience=0, ema=True), [3]),
    "stage two": (
        dict(swa=True, start_swa=3, swa_lr=0.002, scheduler="ExponentialLR", ema=True),
        [2, 3, 4],
    ),
    "labels": (dict(dipole_weight=5.0, ema=True), [2]),
    "labels of Born charges": (dict(born_charges_weight=1.0), [2]),
    "head first": (dict(training_mode="head_first", head_epochs=2), [1, 2, 3]),
    "warm-up": (dict(head_warmup_epochs=3), [2]),
    "head only": (dict(training_mode="head_only"), [2]),
    "fine-tuning": (
        dict(
            foundation_model="base.model",
            multiheads_finetuning="False",
            E0s="foundation",
            head_growth_epochs=3,
            ema=True,
        ),
        [1, 3],
    ),
    "a foundation model that stays the best": (
        dict(
            foundation_model="base.model",
            multiheads_finetuning="False",
            E0s="foundation",
            lr=0.0,
        ),
        [2],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, name):
    """Weights, averages, best model and rates, wherever it was interrupted."""
    changes, epochs = RUNS[name]
    changes = {"max_num_epochs": 5, "lr": 0.02, "lr_scheduler_gamma": 0.8, **changes}
    frames = electrical(open_frames()) if "labels" in name else open_frames()
    data = write_data(tmp_path, frames)
    if "foundation_model" in changes:
        base = ScaleShiftMACE(**backbone_settings(hidden_irreps="4x0e", r_max=3.5)).double()
        torch.save(base, tmp_path / "base.model")
        changes["foundation_model"] = tmp_path / "base.model"
        changes["r_max"] = None
    train(tmp_path / "whole", train_file=data, **changes)
    for epoch in epochs:
        parts = tmp_path / f"parts{epoch}"
        interrupted(parts, monkeypatch, epoch, train_file=data, **changes)
        assert not (parts / "m.model").exists()
        train(parts, train_file=data, restart_latest=True, **changes)
        assert_same(tmp_path / "whole" / "m.model", parts / "m.model")
        if changes.get("swa"):
            assert_same(tmp_path / "whole" / "m_stagetwo.model", parts / "m_stagetwo.model")
        last = "checkpoints/m_run-3_epoch-4.pt"
        one, other = (
            torch.load(tmp_path / folder / last, weights_only=False)
            for folder in ("whole", parts.name)
        )
        assert one["progress"]["lowest_loss"] == pytest.approx(other["progress"]["lowest_loss"])
        rates = [[g["lr"] for g in c["optimizer"]["param_groups"]] for c in (one, other)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-12)


def test_a_resumed_lbfgs_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    """After Adam, whose gradients give its metric; curvature and all."""
    data = write_data(tmp_path, open_frames(6))
    for name in ("whole", "parts"):
        train(tmp_path / name, train_file=data, max_num_epochs=2)
    more = dict(train_file=data, lbfgs=True, restart_latest=True, max_num_epochs=5)
    train(tmp_path / "whole", **more)
    interrupted(tmp_path / "parts", monkeypatch, 4, **more)
    train(tmp_path / "parts", **more)
    assert_same(tmp_path / "whole" / "m.model", tmp_path / "parts" / "m.model")


def test_the_best_model_is_kept_apart_and_survives_a_restart(tmp_path):
    """With a rate that ruins it: the model is that of the first epoch, also after a restart."""
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=1)
    best = torch.load(tmp_path / "checkpoints" / "m_run-3_best.pt", weights_only=False)
    assert best["epoch"] == 0
    shutil.copy(tmp_path / "m.model", tmp_path / "first.model")
    checkpoint = tmp_path / "checkpoints" / "m_run-3_epoch-0.pt"
    content = torch.load(checkpoint, weights_only=False)
    for group in content["optimizer"]["param_groups"]:
        group["lr"] = 3.0
    torch.save(content, checkpoint)
    train(tmp_path, train_file=data, max_num_epochs=3, restart_latest=True)
    assert_same(tmp_path / "first.model", tmp_path / "m.model")
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert kept == ["m_run-3_best.pt", "m_run-3_epoch-1.pt", "m_run-3_epoch-2.pt"]


def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys):
    data = write_data(tmp_path)
    train(tmp_path / "whole", train_file=data, max_num_epochs=4)
    train(tmp_path / "parts", train_file=data, max_num_epochs=3)
    folder = tmp_path / "parts" / "checkpoints"
    (folder / "m_run-3_epoch-2.pt").write_bytes(b"")
    train(tmp_path / "parts", train_file=data, max_num_epochs=4, restart_latest=True)
    assert "m_run-3_epoch-2.pt: not readable as a checkpoint" in log_of(tmp_path / "parts")
    assert_same(tmp_path / "whole" / "m.model", tmp_path / "parts" / "m.model")
    for path in folder.glob("*_epoch-*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "parts", train_file=data, restart_latest=True)
    assert stopped.value.code == 1
    assert "neither is any before it; remove" in capsys.readouterr().err.splitlines()[-1]


def test_stage_two_can_be_added(tmp_path):
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=2)
    more = dict(swa=True, start_swa=2, restart_latest=True, max_num_epochs=4)
    train(tmp_path, train_file=data, **more)
    assert (tmp_path / "m_stagetwo.model").exists()
    log = log_of(tmp_path)
    assert "Changing loss based on Stage Two Weights" in log
    assert "Restart: --swa is True, in the run so far it was False" in log


def test_what_another_run_made_is_not_written_over(tmp_path, capsys):
    data = write_data(tmp_path)
    train(tmp_path, train_file=data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(message, **changes):
        with pytest.raises(SystemExit):
            train(tmp_path, train_file=data, **changes)
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error

    refused("is there already, from another run; give --restart_latest")
    refused("m.model: is there already", seed=4)
    for name, was, now in (
        ("num_channels", None, 8),
        ("multipole_lmax", 2, 1),
        ("induced", "both", "none"),
        ("r_max", 3.5, 3.0),
        ("smearing", 1.0, 2.0),
    ):
        said = f"belongs to a run with --{'hidden_irreps 4x0e' if was is None else f'{name} {was}'}"
        refused(said, restart_latest=True, **{name: now})
    gold = open_frames()
    for atoms in gold:
        atoms.numbers[atoms.numbers == 17] = 79
    with pytest.raises(SystemExit):
        train(tmp_path, train_file=write_data(tmp_path, gold, "gold.xyz"), restart_latest=True)
    assert "with elements H O Cl, now it is H O Au" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_two_processes_do_not_train_the_same_run(tmp_path, capsys):
    from mace_polmp.files import locked

    data = write_data(tmp_path)
    folder = tmp_path / "work" / "checkpoints"
    folder.mkdir(parents=True)
    with locked(folder / ".m_run-3.lock", "test"), pytest.raises(SystemExit):
        train(tmp_path / "work", train_file=data)
    assert "the run m_run-3 is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / "work" / "logs").exists()


def test_a_run_whose_loss_is_no_number_ends_without_a_model(tmp_path, capsys):
    data = write_data(tmp_path, periodic_frames())
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, train_file=data, lr=1e200, clip_grad="None", max_num_epochs=4)
    assert stopped.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "mace_run_train: error: " in error and "lower --lr or --head_lr" in error
    assert not (tmp_path / "m.model").exists()
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_checkpoints_of_upstreams_format_still_load(tmp_path, capsys):
    """Those of earlier versions hold model, optimizer and lr_scheduler only."""
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=1, kspace_taper=0.0)
    folder = tmp_path / "checkpoints"
    content = torch.load(folder / "m_run-3_epoch-0.pt", weights_only=False)
    kept = {key: content[key] for key in ("model", "optimizer", "lr_scheduler")}
    (folder / "m_run-3_best.pt").unlink()
    torch.save(kept, folder / "m_run-3_epoch-0.pt")
    more = dict(train_file=data, max_num_epochs=2, restart_latest=True, ema=True)
    with pytest.raises(SystemExit):  # their sums had a sharp edge
        train(tmp_path, **more)
    assert "with --kspace_taper 0.0, now it is 0.1; give the same" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # which has the same weights
        train(tmp_path, **more, kspace_taper=0.0, response="self_consistent")
    assert "with --response one_step, now it is self_consistent" in capsys.readouterr().err
    train(tmp_path, **more, kspace_taper=0.0)
    log = log_of(tmp_path)
    assert "does not say its settings" in log and "kept averages (--ema) in place" in log
    assert load_model(tmp_path / "m.model")


def test_messages_are_divided_by_what_the_run_began_with(tmp_path):
    """Also where the data of the restart have other numbers of neighbours."""
    train(tmp_path, train_file=write_data(tmp_path, open_frames()), max_num_epochs=1)
    before = load_model(tmp_path / "m.model")
    dense = open_frames()
    for atoms in dense:
        atoms.positions *= 0.7
        atoms.info["REF_energy"] += 1.0
    other = write_data(tmp_path, dense, "dense.xyz")
    train(tmp_path / "new", train_file=other, max_num_epochs=1)
    new = load_model(tmp_path / "new" / "m.model")
    assert new.interactions[0].avg_num_neighbors != before.interactions[0].avg_num_neighbors
    train(tmp_path, train_file=other, restart_latest=True, max_num_epochs=2)
    after = load_model(tmp_path / "m.model")
    assert after.interactions[0].avg_num_neighbors == before.interactions[0].avg_num_neighbors
    assert after.multipole_readouts.lift.norm == before.multipole_readouts.lift.norm
    torch.testing.assert_close(
        after.atomic_energies_fn.atomic_energies, before.atomic_energies_fn.atomic_energies
    )
    assert "has other atomic energies than these data give" in log_of(tmp_path)


def test_other_atomic_energies_are_refused_on_a_restart(tmp_path, capsys):
    data = write_data(tmp_path)
    energies = {1: -13.0, 8: -400.0, 11: -100.0, 17: -300.0}
    train(tmp_path, train_file=data, max_num_epochs=1, E0s=energies)
    with pytest.raises(SystemExit):
        train(tmp_path, train_file=data, restart_latest=True, E0s=energies | {1: -12.0})
    assert "belongs to a run with --E0s H -13.0, O -400.0" in capsys.readouterr().err
    same = "{'Cl': -300, 'H': -13, 'O': -400, 'Na': -100}"
    train(tmp_path, train_file=data, restart_latest=True, max_num_epochs=2, E0s=same)


def test_every_stage_ends_with_a_validation(tmp_path):
    """Stage two of one epoch, which is not among those of --eval_interval."""
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=4, swa=True, start_swa=3, eval_interval=2)
    one, two = (load_any(tmp_path / f"m{name}.model") for name in ("", "_stagetwo"))
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert not all(same)
    log = log_of(tmp_path)
    assert "Epoch 2: head" in log and "Epoch 3: head" in log and "Epoch 1: head" not in log


def test_learning_rates_are_those_of_the_checkpoint(tmp_path):
    """And what the log says of it stays true at the next restart."""
    data = write_data(tmp_path)
    train(tmp_path / "whole", train_file=data, max_num_epochs=3)
    train(tmp_path / "parts", train_file=data, max_num_epochs=1)
    for epochs, rate in ((2, 0.3), (3, 0.01)):
        more = dict(restart_latest=True, max_num_epochs=epochs, lr=rate)
        train(tmp_path / "parts", train_file=data, **more)
    assert_same(tmp_path / "whole" / "m.model", tmp_path / "parts" / "m.model")
    said = {line for line in log_of(tmp_path / "parts").splitlines() if "Restart: --lr" in line}
    assert len(said) == 1 and "--lr is 0.3, in the run so far it was 0.01" in said.pop()


def test_after_a_change_of_the_loss_the_best_is_counted_anew(tmp_path):
    """Losses of another scale cannot be compared: the model is one of the new epochs."""
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=2)
    before = load_model(tmp_path / "m.model").state_dict()
    more = dict(restart_latest=True, max_num_epochs=4, forces_weight=1e5)
    train(tmp_path, train_file=data, **more)
    best = torch.load(tmp_path / "checkpoints" / "m_run-3_best.pt", weights_only=False)
    assert best["epoch"] >= 2
    after = load_model(tmp_path / "m.model").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_stage_two_can_be_left(tmp_path):
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=3, swa=True, start_swa=1)
    train(tmp_path, train_file=data, max_num_epochs=5, restart_latest=True)
    best = torch.load(tmp_path / "checkpoints" / "m_run-3_best.pt", weights_only=False)
    assert best["epoch"] >= 3


def test_a_kill_in_the_first_epoch_blocks_nothing(tmp_path):
    """Between the best weights and what the run goes on from."""
    data = write_data(tmp_path)
    train(tmp_path / "whole", train_file=data, max_num_epochs=2)
    train(tmp_path / "parts", train_file=data, max_num_epochs=1)
    (tmp_path / "parts" / "m.model").unlink()
    (tmp_path / "parts" / "checkpoints" / "m_run-3_epoch-0.pt").unlink()
    train(tmp_path / "parts", train_file=data, max_num_epochs=2, restart_latest=True)
    assert_same(tmp_path / "whole" / "m.model", tmp_path / "parts" / "m.model")


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_best_weights_that_cannot_be_read_are_named(tmp_path, capsys, monkeypatch, how):
    data = write_data(tmp_path)
    train(tmp_path, train_file=data, max_num_epochs=1)
    (tmp_path / "m.model").unlink()
    best = tmp_path / "checkpoints" / "m_run-3_best.pt"
    best.unlink() if how == "missing" else best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, train_file=data, max_num_epochs=1, restart_latest=True)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 1
    assert "m_run-3_best.pt: the best weights of the run cannot be read" in error
    assert not (tmp_path / "m.model").exists()


def test_lbfgs_after_other_weights_counts_the_best_anew(tmp_path):
    data = write_data(tmp_path, open_frames(6))
    train(tmp_path, train_file=data, max_num_epochs=2)
    more = dict(lbfgs=True, restart_latest=True, max_num_epochs=4, forces_weight=1e5)
    train(tmp_path, train_file=data, **more)
    best = torch.load(tmp_path / "checkpoints" / "m_run-3_best.pt", weights_only=False)
    assert best["epoch"] >= 2


def test_averages_after_lbfgs_begin_at_its_weights(tmp_path):
    """Not at those that a new model would have; nothing is said of an earlier version."""
    data = write_data(tmp_path, open_frames(8))
    more = dict(train_file=data, restart_latest=True, batch_size=2)
    train(tmp_path, **more, lbfgs=True, max_num_epochs=2)
    lbfgs = torch.load(tmp_path / "checkpoints" / "m_run-3_epoch-1.pt", weights_only=False)
    train(tmp_path, **more, ema=True, ema_decay=0.999, lr=1e-12, max_num_epochs=3)
    assert "earlier version" not in log_of(tmp_path)
    found = torch.load(tmp_path / "checkpoints" / "m_run-3_epoch-2.pt", weights_only=False)
    weights = [
        lbfgs["model"][name] for name, _ in load_model(tmp_path / "m.model").named_parameters()
    ]
    for average, weight in zip(found["ema"]["shadow_params"], weights, strict=True):
        torch.testing.assert_close(average, weight, rtol=0, atol=1e-9)


def test_other_keys_of_labels_are_said_on_a_restart(tmp_path):
    frames = open_frames(8)
    for atoms in frames:
        atoms.info["other_energy"] = atoms.info["REF_energy"] + 0.01
    more = dict(train_file=write_data(tmp_path, frames), restart_latest=True)
    train(tmp_path, **more, max_num_epochs=1)
    train(tmp_path, **more, max_num_epochs=2, energy_key="other_energy")
    said = "Restart: --energy_key is other_energy, in the run so far it was REF_energy"
    assert said in log_of(tmp_path)
