"""Checkpoints: killed while they are written, nothing older is lost."""

import multiprocessing
import random
import signal
import time
from contextlib import suppress

import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.training.checkpoints import CheckpointHandler, Files, epoch_of, newest


def write_on(folder, epoch, pipe):
    """Some milliseconds for each epoch: most of the time is spent in writing."""
    torch.set_num_threads(1)
    handler = CheckpointHandler(folder, "m_run-1")
    while True:
        weights = {"w": torch.full((300_000,), float(epoch))}
        handler.save_last({"model": weights, "optimizer": {}}, epoch)
        handler.save_best(torch.nn.Linear(300, 300), epoch, 1.0, False)
        pipe.send(epoch)
        epoch += 1


def received(pipe):
    """What a process sent before it ended."""
    found = []
    with suppress(EOFError):
        while True:
            found.append(pipe.recv())
    return found


def test_twenty_kills_lose_at_most_one_epoch(tmp_path):
    """SIGKILL at any moment; the next process goes on from what is there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # all processes import once
    rng = random.Random(0)
    files = Files(tmp_path, "m_run-1")
    epoch = 0
    for _ in range(20):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=write_on, args=(str(tmp_path), epoch, writer))
        process.start()
        writer.close()
        first = reader.recv()  # it has begun to write
        time.sleep(rng.uniform(0.0, 0.08))
        process.kill()
        finished = [first, *received(reader)][-1]
        process.join()
        assert process.exitcode == -signal.SIGKILL
        path, checkpoint = newest(files)
        assert epoch_of(path) in (finished, finished + 1)  # the kill may come before the message
        assert checkpoint["model"]["w"].eq(epoch_of(path)).all()
        assert path == files.last()[0]  # no file that shadows it
        assert torch.load(files.best(False), weights_only=False)["epoch"] >= finished - 1
        epoch = epoch_of(path) + 1
    assert epoch > 20


def test_what_cannot_be_read_does_not_shadow_what_can(tmp_path, caplog):
    handler = CheckpointHandler(str(tmp_path), "m_run-1")
    for epoch in range(4):
        handler.save_last({"model": {"w": torch.full((3,), float(epoch))}}, epoch)
    assert [epoch_of(path) for path in handler.files.last()] == [3, 2]
    handler.files.of_epoch(3).write_bytes(b"")
    path, checkpoint = newest(handler.files)
    assert epoch_of(path) == 2 and checkpoint["model"]["w"].eq(2).all()
    assert "m_run-1_epoch-3.pt: not readable as a checkpoint" in caplog.text
    handler.files.of_epoch(2).write_bytes(b"no")
    with pytest.raises(InputError, match="m_run-1_epoch-3.pt: not readable as a checkpoint, and"):
        newest(handler.files)
    assert newest(Files(tmp_path, "other")) is None


def test_names_of_other_runs_are_not_taken_for_ones_own(tmp_path):
    for tag in ("m_run-1", "m_run-12", "mm_run-1", "m_run-1_epoch-2_run-1"):
        CheckpointHandler(str(tmp_path), tag).save_last({"model": {}}, 0)
    assert [path.name for path in Files(tmp_path, "m_run-1").last()] == ["m_run-1_epoch-0.pt"]
