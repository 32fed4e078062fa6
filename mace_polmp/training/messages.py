"""Sentences of a training's log: groups of the optimizer, time left, offsets of energies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OFFSET, REST = "offset_e_per_atom", "rmse_e_per_atom_without_offset"
_EVERY = 60.0  # s between two lines on the time


def names_of_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    """What upstream's log calls param group 0, 1, … is of."""
    names = [str(group.get("name", "?")).replace("_", " ") for group in groups]
    return ", ".join(f"{number} {name}" for number, name in enumerate(names))


class Clock:
    """How long epochs take and how long the run still does, said once a minute.

    Args:
        now: a clock, s.
    """

    def __init__(self, now: Any = time.monotonic) -> None:
        self._now = now
        self._said: float | None = None
        self._marks: list[float] = [now()]

    def after_epoch(self, left: int) -> str | None:
        """The sentence after an epoch; None while the last one is less than a minute old.

        Args:
            left: epochs that are still to come.
        """
        self._marks = [*self._marks, self._now()][-6:]
        if self._said is not None and self._marks[-1] - self._said < _EVERY and left > 0:
            return None
        self._said = self._marks[-1]
        each = (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1)
        if left <= 0:
            return None
        return f"{each:.2g} s per epoch, at most {duration(each * left)} left"


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60.0:.1f} h"


def offset_of(errors: np.ndarray) -> dict[str, float]:
    """The mean of prediction minus reference, and the RMSE without it, eV/atom.

    Args:
        errors: reference minus prediction, eV/atom.
    """
    return {OFFSET: -float(np.mean(errors)), REST: float(np.std(errors))}


def offset_said(metrics: Mapping[str, Any]) -> str | None:
    """A sentence where the offset of energies is most of their error, else None.

    Args:
        metrics: with the entries of offset_of.
    """
    if OFFSET not in metrics:
        return None
    offset, rest = metrics[OFFSET], metrics[REST]
    if rest == 0.0 or abs(offset) < 2.0 * rest or abs(offset) < 1e-3:
        return None
    return f"offset {1e3 * offset:+.1f} meV/atom, RMSE {1e3 * rest:.1f} meV/atom without it"
