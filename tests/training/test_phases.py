"""What is trained in which epochs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.training.loop import Progress
from mace_polmp.training.options import TrainingOptions
from mace_polmp.training.phases import HEAD_GROUP, plan_phases

BATCHES, RATE, HEAD_RATE = 3, 0.1, 0.5


def travelled(epochs: int, start_epoch: int = 0, **options: Any) -> tuple[list[float], list[float]]:
    """How far one parameter of backbone and head goes in each step, with a gradient of one."""
    backbone, head = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    optimizer = torch.optim.SGD(
        [
            {"name": "rest", "params": [backbone], "lr": RATE},
            {"name": HEAD_GROUP, "params": [head], "lr": HEAD_RATE},
        ]
    )
    steps: tuple[list[float], list[float]] = ([], [])

    def train(n_epochs: int) -> None:
        for _ in range(n_epochs * BATCHES):
            before = backbone.item(), head.item()
            backbone.grad = head.grad = -torch.ones(())
            optimizer.step()
            steps[0].append(backbone.item() - before[0])
            steps[1].append(head.item() - before[1])
            assert [g["lr"] for g in optimizer.param_groups] == [RATE, HEAD_RATE]

    settings = {
        "model": None,
        "optimizer": optimizer,
        "train_loader": [None] * BATCHES,
        "max_num_epochs": epochs,
        "swa": None,
    }
    (phase,) = plan_phases(settings, TrainingOptions(**options), 1.0, 1)
    with phase.around(start_epoch):
        train(phase.last_epoch - start_epoch)
    return steps


def test_the_rate_of_the_head_rises_with_the_steps() -> None:
    backbone, head = travelled(3, head_warmup_epochs=2)
    assert backbone == pytest.approx([RATE] * 9, rel=1e-5)
    rising = [HEAD_RATE * n / 6 for n in range(1, 7)]
    assert head == pytest.approx(rising + [HEAD_RATE] * 3, rel=1e-5)


def test_an_interrupted_warm_up_goes_on_where_it_was() -> None:
    _, whole = travelled(3, head_warmup_epochs=2)
    for epoch in (1, 2):
        _, rest = travelled(3, start_epoch=epoch, head_warmup_epochs=2)
        assert rest == pytest.approx(whole[epoch * BATCHES :], rel=1e-5)


def test_without_a_warm_up_rates_are_what_they_are() -> None:
    _, head = travelled(1, head_warmup_epochs=0)
    assert head == pytest.approx([HEAD_RATE] * BATCHES, rel=1e-5)


def test_a_head_that_is_trained_alone_has_no_warm_up() -> None:
    with pytest.raises(InputError, match="training_mode all, not head_first"):
        travelled(8, head_warmup_epochs=2, training_mode="head_first")


@pytest.mark.parametrize("epochs", [-1, 2.5])
def test_a_warm_up_is_a_number_of_epochs(epochs: float) -> None:
    with pytest.raises(InputError, match="head_warmup_epochs"):
        TrainingOptions(head_warmup_epochs=epochs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epochs", "options", "grows"),
    [
        (166, {}, False),  # 498 steps
        (167, {}, True),
        (6, {"head_growth_epochs": 2}, True),
        (6, {"training_mode": "head_first", "head_epochs": 2}, True),
    ],
)
def test_a_head_grows_where_the_run_is_long_enough(
    epochs: int, options: dict[str, Any], grows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"train_loader": [None] * BATCHES, "max_num_epochs": epochs, "swa": None}
    with caplog.at_level("INFO"):
        phases = plan_phases(settings, TrainingOptions(**options), 0.1, 1)
    assert (len(phases) == 2) == grows
    assert ("does not grow" in caplog.text) != grows


def test_a_run_goes_on_as_it_began(caplog: pytest.LogCaptureFixture) -> None:
    """More epochs on a restart neither begin a growth in the middle nor change one."""

    def growth(epochs: int, progress: Progress) -> int:
        settings = {"train_loader": [None] * BATCHES, "max_num_epochs": epochs, "swa": None}
        phases = plan_phases(settings, TrainingOptions(), 0.1, 1, progress)
        return phases[0].last_epoch if len(phases) == 2 else 0

    short, long = Progress(), Progress()
    assert growth(6, short) == 0 and growth(400, short) == 0
    assert growth(200, long) == 8
    with caplog.at_level("INFO"):
        assert growth(20, long) == 8
    assert "began with 8 epochs" in caplog.text


def test_no_epochs_of_growth_are_no_phase() -> None:
    settings = {"train_loader": [None] * BATCHES, "max_num_epochs": 400, "swa": None}
    options = TrainingOptions(head_growth_epochs=0)
    assert len(plan_phases(settings, options, 0.1, 1)) == 1
