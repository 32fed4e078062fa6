"""Checkpoints: killed while they are written, nothing older is lost."""

import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.training.checkpoints import CheckpointHandler, Files, epoch_of, newest

WRITER = """
import sys, torch
from mace_polmp.training.checkpoints import CheckpointHandler
handler = CheckpointHandler(sys.argv[1], "m_run-1")
epoch = int(sys.argv[2])
while True:  # some milliseconds for each: most of the time is spent in writing
    weights = {"w": torch.full((300_000,), float(epoch))}
    handler.save_last({"model": weights, "optimizer": {}}, epoch)
    handler.save_best(torch.nn.Linear(300, 300), epoch, 1.0, False)
    print(epoch, flush=True)
    epoch += 1
"""


def test_twenty_kills_lose_at_most_one_epoch(tmp_path):
    """SIGKILL at any moment; the next process goes on from what is there."""
    rng = random.Random(0)
    files = Files(tmp_path, "m_run-1")
    epoch = 0
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(epoch)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = int(process.stdout.readline())  # it has begun to write
        time.sleep(rng.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        finished = int(rest[-1]) if rest else first
        path, checkpoint = newest(files)
        assert epoch_of(path) in (finished, finished + 1)  # the kill may come before the print
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
