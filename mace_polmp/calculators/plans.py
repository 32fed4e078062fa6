"""The plan of the electrostatics that a calculator keeps while a structure moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mace_polmp.electrostatics import Electrostatics, Plan

_MARGIN = 0.03
"""By how much lattice vectors of a cell that changes may grow before a new plan is made."""


class PlanKeeper:
    """Plans of one structure after another; the last is kept while it fits.

    Args:
        engines: of the models of a committee.
        keeps_cells: whether what follows from a cell is kept while it does not change. A compiled
            function would be another one with it.
    """

    def __init__(self, engines: Sequence[Electrostatics], keeps_cells: bool = True) -> None:
        self._engines = engines
        self._keeps_cells = keeps_cells
        self._plan: Plan | None = None
        self._cell: np.ndarray | None = None

    def knows(self, atoms: Atoms) -> bool:
        """Whether the last structure was in the same cell, and what holds of it holds of this.

        Not of slabs, whose atoms may have left.
        """
        plan = self._plan
        return (
            plan is not None
            and self._cell is not None
            and plan.shape.settings == self._engines[0].settings()
            and plan.shape.counts == (len(atoms),)
            and plan.shape.pbc == (tuple(bool(p) for p in atoms.pbc),)
            and int(atoms.pbc.sum()) != 2
            and np.array_equal(atoms.cell.array, self._cell)
        )

    def of(self, atoms: Atoms, cell: Tensor) -> Plan | None:
        """The plan of a structure; None for a committee of different electrostatics.

        Args:
            atoms: the structure.
            cell: [3, 3], Å, as the model gets it, on its device.
        """
        engine, *others = self._engines
        settings = engine.settings()
        if any(other.settings() != settings for other in others):
            return None
        here, counts = np.array(atoms.cell.array), [len(atoms)]
        # As the model gets it: rounded in single precision.
        numbers = (
            torch.from_numpy(here)[None].to(cell.dtype).double(),
            torch.from_numpy(np.array(atoms.pbc))[None],
        )
        plan = self._plan
        if plan is None or plan.shape.settings != settings or plan.device != cell.device:
            plan = engine.plan(*numbers, counts, device=cell.device, dtype=cell.dtype)
        elif not plan.covers(*numbers, counts):
            changes = plan.shape.counts == tuple(counts)
            margin = _MARGIN if changes else 0.0
            plan = engine.plan(*numbers, counts, margin, cell.device, cell.dtype)
        elif self._cell is None or not np.array_equal(here, self._cell):
            plan = plan.without_cells()
        elif self._keeps_cells and not plan.geometry and not plan.is_open:  # the same cell again
            plan = plan.for_cells(cell.reshape(1, 3, 3), cell.dtype)
        self._plan, self._cell = plan, here
        return plan
