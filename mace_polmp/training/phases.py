"""The phases of a training: what is trained in which epochs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from mace_polmp.errors import InputError
from mace_polmp.training.fine_tuning import Growth
from mace_polmp.training.head_only import (
    CachedBackbone,
    backbone_parameters,
    cached_loader,
    frozen,
)
from mace_polmp.training.loop import Phase, Progress
from mace_polmp.training.options import TrainingOptions

Settings = dict[str, Any]

HEAD_GROUP = "long_range"  # the optimizer's group of the head's parameters
_MOST_GROWTH = 8  # epochs
# Steps of the optimizer in a run, below which a head does not grow: errors rise while it does, and
# the rest of the run must be long enough for the backbone to recover.
_LEAST_STEPS = 500


def plan_phases(
    settings: Settings,
    training: TrainingOptions,
    scaled: float,
    seed: int,
    progress: Progress | None = None,
) -> list[Phase]:
    """The phases of a run.

    Args:
        settings: what upstream gives to its loop over epochs.
        training: what is trained when.
        scaled: by what a new head was scaled down.
        seed: of the directions of cached forces.
        progress: of the run, which remembers for how many epochs the head grows: a run that goes
            on with more epochs goes on with the same.

    Raises:
        InputError: a phase of the head that leaves no epoch for everything.
    """
    swa, total = settings["swa"], settings["max_num_epochs"]
    # The best model is kept of the epochs of everything before stage two: at least one is left.
    last = (total if swa is None else swa.start) - 1
    everything = Phase(total, "", partial(_warming_up, settings, training.head_warmup_epochs))
    if training.training_mode == "head_only":
        return [Phase(total, "", partial(_head_alone, settings, training, seed))]
    if training.training_mode == "head_first":
        epochs = training.head_epochs or max(1, last // 4)
        if epochs > last:
            raise InputError(
                f"--head_epochs {epochs} leaves no epoch for everything, before stage two if there "
                f"is one; give at most {last}"
            )
        alone = partial(_head_alone, settings, training, seed)
        first = Phase(epochs, "Training the long-range head alone", alone)
    elif scaled < 1.0:
        epochs = min(_growth(settings, training, progress or Progress()), last)
        if epochs < 1:
            return [everything]
        growing = partial(_growing_head, settings, scaled, epochs)
        first = Phase(epochs, "The long-range head grows", growing)
    else:
        return [everything]
    return [first, Phase(total, "Training everything", everything.around)]


def _growth(settings: Settings, training: TrainingOptions, progress: Progress) -> int:
    """For how many epochs a new head grows; decided when a run begins."""
    total, wanted = settings["max_num_epochs"], training.head_growth_epochs
    if not _is_long_enough(total * len(settings["train_loader"]), training):
        wanted = 0
    epochs = min(_MOST_GROWTH, total // 4) if wanted is None else wanted
    if progress.growth_epochs is None:
        progress.growth_epochs = epochs
    elif progress.growth_epochs != epochs:
        logging.info(
            f"The run began with {progress.growth_epochs} epochs in which the long-range head "
            "grows, and goes on so; begin a new run for others"
        )
    return progress.growth_epochs


def _is_long_enough(steps: int, training: TrainingOptions) -> bool:
    """Whether a new head may grow; where it may not, and nobody has asked for it, that is said."""
    if steps >= _LEAST_STEPS or training.head_growth_epochs is not None:
        return True
    labels = "" if training.used else ", or dipoles with --dipole_weight (mace_polmp label)"
    logging.info(
        f"The long-range head starts small and does not grow: errors would rise, and the {steps} "
        f"steps of this run are too few to recover (it takes {_LEAST_STEPS}). For physical charges "
        f"give more epochs or structures{labels}"
    )
    return False


@contextmanager
def _warming_up(settings: Settings, epochs: int, done_epochs: int) -> Iterator[None]:
    """The head's learning rate rises in proportion to the steps made, to its own after so many.

    While the backbone knows nothing, gradients of the head belong to errors of hundreds of meV/Å
    that no charge can mend: charges may shrink to nothing then, and other multipoles grow in their
    place with the sign that they happen to have.
    """
    optimizer, batches = settings["optimizer"], len(settings["train_loader"])
    groups = [g for g in optimizer.param_groups if g.get("name") == HEAD_GROUP]
    steps, done = epochs * batches, done_epochs * batches
    if not groups or done >= steps:
        yield
        return
    (group,) = groups
    rate = 0.0

    def before(*_: Any) -> None:
        nonlocal rate, done
        rate = group["lr"]
        done += 1
        group["lr"] = rate * min(1.0, done / steps)

    def after(*_: Any) -> None:  # checkpoints and schedulers know the rate itself
        group["lr"] = rate

    hooks = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _growing_head(
    settings: Settings, scaled: float, epochs: int, done_epochs: int
) -> Iterator[None]:
    """The backbone is trained while the head grows to its natural size and is then held."""
    model, batches = settings["model"], len(settings["train_loader"])
    steps = epochs * batches // 2
    growth = Growth(model, scaled, steps, max(0, steps - done_epochs * batches))
    handle = settings["optimizer"].register_step_post_hook(growth)
    # Parameters of a distributed model cannot be frozen once it has been made.
    head = [] if settings["distributed"] else model.head_parameters()
    try:
        with frozen(head):
            yield
    finally:
        handle.remove()


@contextmanager
def _head_alone(
    settings: Settings, training: TrainingOptions, seed: int, done_epochs: int
) -> Iterator[tuple[Any, Any] | None]:
    """The head is trained, on cached features of the backbone where that is possible."""
    model, directions = settings["model"], training.head_directions
    obstacles = {
        "--loss with stress or virials": any(
            settings["output_args"][name] for name in ("stress", "virials")
        ),
        "--born_charges_weight": "born_charges" in training.used,
    }
    stopping = [name for name, there in obstacles.items() if there]
    with frozen(backbone_parameters(model)):
        loader = None
        if stopping:
            logging.info(f"Features are not cached with {stopping[0]}")
        elif directions > 0:
            loader = cached_loader(
                model, settings["train_loader"], directions, seed, settings["device"]
            )
        # Upstream's functions train and evaluate the one with cached features instead.
        yield None if loader is None else (loader, CachedBackbone(model))
