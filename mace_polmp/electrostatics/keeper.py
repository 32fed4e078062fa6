"""Plans that are kept while structures move: one rule for calculators, batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mace_polmp.electrostatics.engine import Electrostatics
from mace_polmp.electrostatics.plan import Plan, PlanShape
from mace_polmp.electrostatics.settings import Settings

MARGIN = 0.03
"""By how much lattice vectors of a cell that changes may grow before a new plan is made."""


def margin_of_new(
    known: PlanShape | None,
    settings: Settings,
    cells: Tensor,
    pbc: Tensor,
    counts: Tensor | Sequence[int],
) -> float | None:
    """The margin that a new plan gets: some where a cell has outgrown the last plan, else none.

    Args:
        known: of the last plan; None for none.
        settings: of the engine.
        cells: [n_structures, 3, 3], Å, on the host.
        pbc: [n_structures, 3] bool, on the host.
        counts: [n_structures], atoms of each.

    Returns:
        The margin as a fraction; None where the last plan still fits.
    """
    if known is None or known.settings != settings:
        return 0.0
    if known.covers(cells, pbc, counts):
        return None
    same_atoms = known.counts == tuple(int(n) for n in counts)
    return MARGIN if same_atoms else 0.0


class PlanKeeper:
    """Plans of one batch of structures after another; the last is kept while it fits.

    Args:
        engines: that have to share a plan: of one model, or of a committee.
        keeps_cells: whether what follows from cells is kept while they do not change. A compiled
            function would be another one with it.
    """

    def __init__(self, engines: Sequence[Electrostatics], keeps_cells: bool = True) -> None:
        self._engines = engines
        self._keeps_cells = keeps_cells
        self._plan: Plan | None = None
        self._cells: Tensor | None = None

    def knows(self, cells: Tensor, pbc: Tensor, counts: Tensor | Sequence[int]) -> bool:
        """Whether the last batch was in the same cells, and what holds of it holds of this.

        Not of slabs, whose atoms may have left.
        """
        plan = self._plan
        return (
            plan is not None
            and self._cells is not None
            and not plan.has_slabs
            and plan.shape.settings == self._engines[0].settings()
            and plan.shape.is_of(pbc, counts)
            and torch.equal(cells, self._cells)
        )

    def of(
        self,
        cells: Tensor,
        pbc: Tensor,
        counts: Tensor | Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Plan | None:
        """The plan of a batch; None for engines of different settings.

        Args:
            cells: [n_structures, 3, 3], Å, rows are lattice vectors, on the host.
            pbc: [n_structures, 3] bool, on the host.
            counts: [n_structures], atoms of each.
            device, dtype: of the model.

        Raises:
            ValueError: as Electrostatics.plan.
        """
        engine, *others = self._engines
        settings = engine.settings()
        if any(other.settings() != settings for other in others):
            return None
        rounded = cells.to(dtype)  # as the model gets them
        plan, before = self._plan, self._cells
        known = None if plan is None or plan.device != device else plan.shape
        margin = margin_of_new(known, settings, rounded.double(), pbc, counts)
        if plan is None or margin is not None:
            plan = engine.plan(rounded.double(), pbc, counts, margin or 0.0, device, dtype)
        elif before is None or not torch.equal(cells, before):
            plan = plan.without_cells()
        elif self._keeps_cells and not plan.geometry and not plan.is_open:  # the same cells again
            plan = plan.for_cells(rounded.to(device), dtype)
        self._plan, self._cells = plan, cells.clone()
        return plan
