"""The phases of a training: what is trained in which epochs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mace_polmp.errors import InputError
from mace_polmp.training.fine_tuning import Growth
from mace_polmp.training.head_only import (
    CachedBackbone,
    backbone_parameters,
    cached_loader,
    frozen,
)
from mace_polmp.training.options import TrainingOptions

Settings = dict[str, Any]
Loop = Callable[..., None]

HEAD_GROUP = "long_range"  # the optimizer's group of the head's parameters
_MOST_GROWTH = 8  # epochs


def run_phases(
    loop: Loop, settings: Settings, training: TrainingOptions, scaled: float, seed: int
) -> None:
    """Run upstream's loop over epochs, on what is to be trained in each.

    Args:
        loop: upstream's.
        settings: its arguments.
        training: what is trained when.
        scaled: by what a new head was scaled down.
        seed: of the directions of cached forces.

    Raises:
        InputError: a phase of the head that leaves no epoch for everything.
    """
    swa, total = settings["swa"], settings["max_num_epochs"]
    # Upstream keeps the best model of the epochs before stage two: at least one is left.
    last = (total if swa is None else swa.start) - 1

    def head_alone(part: Settings) -> None:
        _train_head(loop, part, training, seed)

    def growing(part: Settings) -> None:
        _grow_head(loop, part, scaled)

    if training.training_mode == "head_only":
        head_alone(settings)
        return
    if training.training_mode == "head_first":
        epochs = training.head_epochs or max(1, last // 4)
        if epochs > last:
            raise InputError(
                f"--head_epochs {epochs} leaves no epoch for everything, before stage two if there "
                f"is one; give at most {last}"
            )
        _first(epochs, "Training the long-range head alone", settings, head_alone)
    elif scaled < 1.0:
        wanted = training.head_growth_epochs
        epochs = min(_MOST_GROWTH, total // 4) if wanted is None else wanted
        _first(min(epochs, last), "The long-range head grows", settings, growing)
    with _warming_up(settings, training.head_warmup_epochs):
        loop(**settings)


@contextmanager
def _warming_up(settings: Settings, epochs: int) -> Iterator[None]:
    """The head's learning rate rises in proportion to the steps made, to its own after so many.

    While the backbone knows nothing, gradients of the head belong to errors of hundreds of meV/Å
    that no charge can mend: charges may shrink to nothing then, and other multipoles grow in their
    place with the sign that they happen to have.
    """
    optimizer, batches = settings["optimizer"], len(settings["train_loader"])
    groups = [g for g in optimizer.param_groups if g.get("name") == HEAD_GROUP]
    steps, done = epochs * batches, settings["start_epoch"] * batches
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


def _first(epochs: int, what: str, settings: Settings, phase: Callable[[Settings], None]) -> None:
    """A phase of its own at the beginning; which epoch was the best is counted after it."""
    if settings["start_epoch"] < epochs:
        logging.info(f"{what}: epochs {settings['start_epoch']} to {epochs - 1}")
        shorter = {"max_num_epochs": epochs, "swa": None, "patience": epochs + 1}
        phase({**settings, **shorter})
        settings["start_epoch"] = epochs
        logging.info("Training everything")


def _grow_head(loop: Loop, settings: Settings, scaled: float) -> None:
    """The backbone is trained while the head grows to its natural size and is then held."""
    model, epochs = settings["model"], settings["max_num_epochs"]
    steps = epochs * len(settings["train_loader"]) // 2
    done = settings["start_epoch"] * len(settings["train_loader"])
    growth = Growth(model, scaled, steps, max(0, steps - done))
    handle = settings["optimizer"].register_step_post_hook(growth)
    # Parameters of a distributed model cannot be frozen once it has been made.
    head = [] if settings["distributed"] else model.head_parameters()
    with frozen(head):
        loop(**settings)
    handle.remove()


def _train_head(loop: Loop, settings: Settings, training: TrainingOptions, seed: int) -> None:
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
        if stopping:
            logging.info(f"Features are not cached with {stopping[0]}")
        elif directions > 0:
            loader = cached_loader(
                model, settings["train_loader"], directions, seed, settings["device"]
            )
            if loader is not None:
                # Upstream's loop trains and evaluates this one in place of the model.
                cached = CachedBackbone(model)
                settings = {**settings, "train_loader": loader, "distributed_model": cached}
        loop(**settings)
