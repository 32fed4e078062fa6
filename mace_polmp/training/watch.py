"""What ends a run that goes wrong, and small things that checkpoints hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from mace_polmp.errors import InputError

ADVICE = (
    "lower --lr or --head_lr, train in --default_dtype float64, or look at the data with "
    "mace_polmp check-data"
)

WORSE = (
    "No epoch was better on the validation data than the model that was given: that model is "
    "written, with a long-range head that has learned nothing. Give a smaller --lr (a tenth), more "
    "epochs or more structures"
)


class Watch:
    """Upstream's log of metrics, which ends a run whose loss is no number.

    Args:
        logger: upstream's.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def log(self, metrics: dict[str, Any]) -> None:
        """Write one line.

        Raises:
            InputError: a training loss that is NaN or infinite.
        """
        loss = metrics.get("loss")
        if loss is not None and not np.isfinite(loss).all():
            raise InputError(
                f"epoch {metrics.get('epoch')}: the training loss is {float(loss)}; the run ends "
                f"at its last checkpoint and no model is written. To go on, {ADVICE}"
            )
        self._logger.log(metrics)


def check_weights(model: torch.nn.Module, epoch: int) -> None:
    """End a run whose weights are no numbers.

    Raises:
        InputError: names the first.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            raise InputError(
                f"epoch {epoch}: weights of the model ({name}) are NaN or infinite; the run ends "
                f"at its last checkpoint and no model is written. To go on, {ADVICE}"
            )


def copy_into(values: list[torch.Tensor], targets: Iterable[torch.Tensor]) -> None:
    """Weights into averages, or averages into weights."""
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)


def random_state() -> dict[str, Any]:
    """Of torch and numpy."""
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state()}


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with random numbers from a state."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
