"""What the log says of time, groups and offsets."""

import numpy as np

from mace_polmp.training.messages import Clock, duration, names_of_groups, offset_of, offset_said


def test_time_left():
    times = iter([0.0, 10.0, 20.0, 80.0, 90.0])
    clock = Clock(lambda: next(times))
    assert clock.after_epoch(99) == "10 s per epoch, at most 16 min left"
    assert clock.after_epoch(98) is None  # said ten seconds ago
    assert clock.after_epoch(97) == "27 s per epoch, at most 43 min left"
    assert clock.after_epoch(0) is None
    assert [duration(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]


def test_offsets():
    errors = 0.435 + 0.001 * np.array([1.0, -1.0, 1.0, -1.0])  # reference minus prediction
    assert offset_said(offset_of(errors)) == "offset -435.0 meV/atom, RMSE 1.0 meV/atom without it"
    assert offset_said(offset_of(np.array([0.01, -0.01, 0.02]))) is None
    assert offset_said(offset_of(np.array([0.4]))) is None  # one structure tells nothing
    assert offset_said({}) is None


def test_groups_have_names():
    groups = [{"name": "embedding"}, {"name": "interactions_decay"}, {}]
    assert names_of_groups(groups) == "0 embedding, 1 interactions decay, 2 ?"
