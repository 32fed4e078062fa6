"""Plans and total charges of batches that other programs put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from mace_polmp.electrostatics import Electrostatics, Plan
from mace_polmp.errors import InputError
from mace_polmp.quantities import is_finite_number

_MARGIN = 0.03  # by how much lattice vectors may grow before a new plan is made


class BatchPlans:
    """Plans of the electrostatics of one batch after another; the last is kept while it fits."""

    def __init__(self, engine: Electrostatics) -> None:
        self._engine = engine
        self._plan: Plan | None = None
        self._cells: Tensor | None = None

    def knows(self, cells: Tensor, pbc: Tensor, counts: Tensor) -> bool:
        """Whether the last batch was in the same cells, and what holds of it holds of this.

        Not of slabs, whose atoms may have left.
        """
        plan = self._plan
        return (
            plan is not None
            and self._cells is not None
            and not plan.has_slabs
            and plan.shape.settings == self._engine.settings()
            and plan.covers(cells, pbc, counts)
            and torch.equal(cells, self._cells)
        )

    def of(
        self, cells: Tensor, pbc: Tensor, counts: Tensor, device: torch.device, dtype: torch.dtype
    ) -> Plan:
        """The plan of a batch.

        Args:
            cells: [n_systems, 3, 3], Å, rows are lattice vectors, on the host.
            pbc: [n_systems, 3] bool, on the host.
            counts: [n_systems], atoms of each, on the host.
            device, dtype: of the model.

        Raises:
            InputError: its arrays do not fit into memory.
        """
        plan, before = self._plan, self._cells
        if plan is None or plan.shape.settings != self._engine.settings():
            plan = self._made(cells, pbc, counts, 0.0, device, dtype)
        elif not plan.covers(cells, pbc, counts):
            changes = plan.shape.counts == tuple(counts.tolist())
            plan = self._made(cells, pbc, counts, _MARGIN if changes else 0.0, device, dtype)
        elif before is None or not torch.equal(cells, before):
            plan = plan.without_cells()
        elif not plan.geometry and not plan.is_open:  # the same cells again
            plan = plan.for_cells(cells.to(device, dtype), dtype)
        self._plan, self._cells = plan, cells
        return plan

    def _made(
        self,
        cells: Tensor,
        pbc: Tensor,
        counts: Tensor,
        margin: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Plan:
        try:
            return self._engine.plan(cells, pbc, counts, margin, device, dtype)
        except ValueError as error:
            raise InputError(f"state: {error}") from error


def composition(atoms: Atoms) -> tuple[int, ...]:
    return tuple(sorted(atoms.numbers.tolist()))


def charges_by_composition(value: Any) -> float | dict[tuple[int, ...], float]:
    """Total charges in e by atomic numbers, or one for all systems.

    Raises:
        InputError: not numbers, or not by formula.
    """
    if value is None:
        return 0.0
    if is_finite_number(value):
        return float(value)
    if not isinstance(value, Mapping):
        raise InputError(
            "total_charge must be a number in e, or numbers by formula such as "
            f"{{'H3O': 1, 'H2O': 0}}, got {value!r}. One for each system in their order would go "
            "to other systems where torch-sim sorts them into batches"
        )
    charges: dict[tuple[int, ...], float] = {}
    for formula, charge in value.items():
        if not is_finite_number(charge):
            raise InputError(f"total_charge of {formula} must be a number in e, got {charge!r}")
        try:
            elements = composition(Atoms(formula))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"total_charge: {formula!r} is not a chemical formula; write it as 'H3O'"
            ) from error
        if charges.setdefault(elements, float(charge)) != float(charge):
            raise InputError(
                f"total_charge has two numbers for {formula}, as the order of elements does not "
                "matter; evaluate systems of one formula and different charges separately"
            )
    return charges
