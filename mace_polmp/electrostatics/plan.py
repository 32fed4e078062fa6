"""What can be decided about a batch before it is evaluated: a value that is made once and kept.

A plan says which solver evaluates which structure, with which box of wave vectors, and holds the
index tensors that this needs. Its shape is hashable and comes from numbers on the host: cells,
boundary conditions and numbers of atoms. With a plan the engine never waits for the device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.grouping import (
    DIRECT,
    MESH,
    OPEN,
    Flags,
    Group,
    Limits,
    choose_solver,
    grouped,
    letters,
    times,
)
from mace_polmp.electrostatics.packing import Packing
from mace_polmp.electrostatics.pairs import Pairs
from mace_polmp.electrostatics.reciprocal import CellGeometry, largest_orders
from mace_polmp.electrostatics.settings import Settings
from mace_polmp.electrostatics.sums import AtomSums

logger = logging.getLogger(__name__)

_SMALLEST_VOLUME = 1e-6  # Å³
_MOST_WAVES = 1e6  # along one lattice vector


@dataclass(frozen=True)
class PlanShape:
    """The part of a plan that is numbers: plans with equal shapes do the same.

    Attributes:
        settings: of the engine.
        counts: atoms of each structure.
        pbc: of each.
        groups: of structures that are evaluated together.
    """

    settings: Settings
    counts: tuple[int, ...]
    pbc: tuple[Flags, ...]
    groups: tuple[Group, ...]

    def is_of(self, pbc: Tensor, counts: Tensor | Sequence[int]) -> bool:
        """Whether structures have these boundary conditions and numbers of atoms, see covers."""
        return _flags(pbc) == self.pbc and tuple(int(n) for n in counts) == self.counts

    def covers(self, cell: Tensor, pbc: Tensor, counts: Tensor | Sequence[int]) -> bool:
        """Whether a plan of this shape can evaluate structures with these cells.

        Args:
            cell: [n_structures, 3, 3], Å, on the host.
            pbc: [n_structures, 3] bool, on the host.
            counts: [n_structures], atoms of each.
        """
        cell, pbc, counts = _on_host(cell, pbc, counts)
        if not self.is_of(pbc, counts):
            return False
        needed = largest_orders(cell, self.settings.k_cutoff).tolist()
        return all(
            n <= limit
            for group in self.groups
            if group.kind != OPEN
            for member in group.members
            for n, limit in zip(needed[member], group.limits, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Part:
    """The index tensors of a group.

    Attributes:
        group: the group.
        sums: over its atoms, with its structures renumbered.
        structures, atoms: which of the batch they are; None for all, in their order.
        packing: of its atoms as a table, for the direct sum.
        pairs: of its atoms, for open structures.
        normals: [n_structures] int64, the axis without periodicity, 0 where there is none.
        is_slab: [n_structures] bool; None without slabs.
    """

    group: Group
    sums: AtomSums
    structures: Tensor | None
    atoms: Tensor | None
    packing: Packing | None
    pairs: Pairs | None
    normals: Tensor | None
    is_slab: Tensor | None


@dataclass(frozen=True, eq=False)
class Plan:
    """How a batch of structures is evaluated.

    Attributes:
        shape: numbers.
        sums: over the atoms of the whole batch.
        parts: index tensors of each group.
        pbc: [n_structures, 3] bool.
        structures_back, atoms_back: what puts results of the parts one after the other into the
            order of the batch; None for one part.
        geometry: what depends on cells that do not change, by part; empty if they may.
    """

    shape: PlanShape
    sums: AtomSums
    parts: tuple[Part, ...]
    pbc: Tensor
    structures_back: Tensor | None = None
    atoms_back: Tensor | None = None
    geometry: tuple[CellGeometry | None, ...] = ()

    @classmethod
    def of(cls, shape: PlanShape, batch: Tensor, sums: AtomSums | None = None) -> Plan:
        """The plan of a batch of that shape, without waiting for the device.

        Args:
            shape: made from the numbers of the batch.
            batch: [n_atoms] int64, the structure of each atom, in any order.
            sums: over the atoms, where several processes share a single structure.
        """
        n_structures, device = len(shape.counts), batch.device
        sums = sums or AtomSums(batch, n_structures)
        pbc = torch.tensor(shape.pbc, device=device).view(-1, 3)
        if len(shape.groups) == 1:
            whole = _part(shape.groups[0], sums, None, None)
            return cls(shape, sums, (whole,), pbc)
        # Sorting, unlike picking by a mask, does not wait for a GPU.
        rank = [0] * n_structures
        for number, group in enumerate(shape.groups):
            for member in group.members:
                rank[member] = number
        ranks = torch.tensor(rank, device=device)
        by_structure = torch.argsort(ranks, stable=True)
        by_atom = torch.argsort(ranks[batch], stable=True)
        structures = torch.split(by_structure, [len(g.members) for g in shape.groups])
        atoms = torch.split(by_atom, [sum(g.counts) for g in shape.groups])
        parts = []
        for group, structure, atom in zip(shape.groups, structures, atoms, strict=True):
            renumbered = torch.zeros(n_structures, dtype=torch.int64, device=device)
            renumbered[structure] = torch.arange(structure.shape[0], device=device)
            own = AtomSums(renumbered[batch[atom]], structure.shape[0])
            parts.append(_part(group, own, structure, atom))
        back = torch.argsort(by_structure), torch.argsort(by_atom)
        return cls(shape, sums, tuple(parts), pbc, *back)

    def covers(self, cell: Tensor, pbc: Tensor, counts: Tensor | Sequence[int]) -> bool:
        """Whether it can evaluate structures with these cells, see PlanShape.covers."""
        return self.shape.covers(cell, pbc, counts)

    @property
    def device(self) -> torch.device:
        """Where its index tensors are."""
        return self.sums.batch.device

    @property
    def is_open(self) -> bool:
        """Whether no structure is periodic in any direction."""
        return all(part.group.kind == OPEN for part in self.parts)

    @property
    def has_slabs(self) -> bool:
        """Whether any structure is periodic in two directions."""
        return any(part.group.has_slabs for part in self.parts)

    def __deepcopy__(self, memo: Any) -> Plan:
        """Itself: nothing in it changes."""
        return self

    def without_cells(self) -> Plan:
        """The same for cells that may change."""
        return replace(self, geometry=()) if self.geometry else self

    def for_cells(self, cell: Tensor, dtype: torch.dtype) -> Plan:
        """The same with what depends on the cells computed once.

        The engine uses it where the cell it is given needs no derivative. Results for other cells
        are then NaN.

        Args:
            cell: [n_structures, 3, 3], Å, of that precision.
            dtype: of positions.
        """
        found: list[CellGeometry | None] = []
        for part in self.parts:
            own = cell.detach().to(part.sums.batch.device)
            own = own if part.structures is None else own[part.structures]
            kept = None
            if part.group.kind != OPEN:
                kept = CellGeometry.of(own, part.group.limits, self.shape.settings, dtype)
            found.append(kept)
        return replace(self, geometry=tuple(found))


def _part(group: Group, sums: AtomSums, structures: Tensor | None, atoms: Tensor | None) -> Part:
    device, n_structures = sums.batch.device, len(group.members)
    packing = pairs = normals = is_slab = None
    if group.kind == DIRECT:
        largest = sums.batch.shape[0] if n_structures == 1 else max(group.counts)
        packing = Packing.of(sums.batch, n_structures, largest)
    if group.kind == OPEN:
        pairs = Pairs.of(sums.batch, n_structures, group.n_pairs)
    if group.has_slabs:
        normals = torch.tensor([max(axis, 0) for axis in group.normals], device=device)
        is_slab = torch.tensor([axis >= 0 for axis in group.normals], device=device)
    return Part(group, sums, structures, atoms, packing, pairs, normals, is_slab)


def _on_host(
    cell: Tensor, pbc: Tensor, counts: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """As CPU tensors, from those or numpy arrays."""
    return (
        torch.as_tensor(cell, device="cpu").detach().double().reshape(-1, 3, 3),
        torch.as_tensor(pbc, device="cpu").bool().reshape(-1, 3),
        torch.as_tensor(counts, device="cpu").long().reshape(-1),
    )


def _flags(pbc: Tensor) -> tuple[Flags, ...]:
    return tuple((bool(a), bool(b), bool(c)) for a, b, c in pbc.tolist())


def plan_shape(
    cell: Tensor,
    pbc: Tensor,
    counts: Tensor | Sequence[int],
    settings: Settings,
    margin: float = 0.0,
) -> PlanShape:
    """Choose the solvers and group the structures.

    Args:
        cell: [n_structures, 3, 3], Å, on the host.
        pbc: [n_structures, 3] bool, on the host.
        counts: [n_structures], atoms of each.
        settings: of the engine.
        margin: by how much lattice vectors may grow with the plan still valid, as a fraction.

    Raises:
        ValueError: numbers of structures that differ; a structure that is periodic in one
            direction, has a singular cell, or does not suit the solver asked for.
    """
    cell, pbc, counts = _on_host(cell, pbc, counts)
    if not cell.shape[0] == pbc.shape[0] == counts.shape[0]:
        raise ValueError(
            "cell, pbc and counts must be of the same number of structures, got "
            f"{cell.shape[0]}, {pbc.shape[0]} and {counts.shape[0]}"
        )
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin must be a fraction of 0 or more, got {margin}")
    flags, n_atoms = _flags(pbc), [int(n) for n in counts.tolist()]
    orders = largest_orders(cell * (1.0 + margin), settings.k_cutoff).tolist()
    volumes = torch.linalg.det(cell).abs().tolist()
    kinds: list[int] = []
    limits: list[Limits] = []
    for number, flag in enumerate(flags):
        _check_structure(number, flag, volumes[number], orders[number], settings)
        n1, n2, n3 = orders[number] if any(flag) else (0, 0, 0)
        own = (int(n1), int(n2), int(n3))
        limits.append(own)
        kinds.append(choose_solver(number, n_atoms[number], own, settings) if any(flag) else OPEN)
    groups = grouped(kinds, n_atoms, limits, flags, settings)
    return PlanShape(settings, tuple(n_atoms), flags, groups)


def _check_structure(
    number: int, flag: Flags, volume: float, orders: list[float], settings: Settings
) -> None:
    """Refuse what cannot be evaluated whatever its atoms."""
    if sum(flag) == 1:
        raise ValueError(
            f"structure {number} has pbc {letters(flag)}: a single periodic "
            "direction is not supported. Set all three, with vacuum in the cell around the "
            "wire, or none"
        )
    if not any(flag):
        if settings.solver == "mesh":
            raise ValueError(
                f"structure {number} is open (pbc F F F), but solver 'mesh' was asked for and a "
                "mesh needs a periodic cell: use solver 'auto'"
            )
        return
    if not volume > _SMALLEST_VOLUME:
        raise ValueError(
            f"structure {number} has pbc {letters(flag)} and a singular cell "
            f"(volume {volume:.3g} Å³): give three independent lattice vectors (a slab needs "
            "vacuum along the third), or set its pbc to F F F"
        )
    if not max(orders) < _MOST_WAVES:
        raise ValueError(
            f"structure {number} has a lattice vector of more than "
            f"{_MOST_WAVES * 2.0 * math.pi / settings.k_cutoff:.3g} Å, and no sum over its "
            "wave vectors would end: use a smaller cell"
        )


def log_plan(shape: PlanShape) -> None:
    """Say in the log, at level debug, which solver evaluates which structure."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    parts = {}
    for group in shape.groups:
        how = "open, all pairs"
        if group.kind == DIRECT:
            how = f"direct k-space sum, |n| up to {times(group.limits)}"
        elif group.kind == MESH:
            how = f"particle mesh, {times(group.mesh(shape.settings).size)} points"
        for number, n in zip(group.members, group.counts, strict=True):
            parts[number] = f"structure {number}: {n} atoms, {how}"
    logger.debug("%s", "; ".join(parts[number] for number in sorted(parts)))
