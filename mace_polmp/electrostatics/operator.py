"""The field operator: what multipoles at fixed positions do to each other, for any multipoles.

Energies, potentials and fields are linear maps of the multipoles (the energy is a quadratic form).
Lattices, pairs and solvers are made once from the positions; permanent energies, responses and
local-field sums then use the same operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mace_polmp.electrostatics.direct import OpenBoundary
from mace_polmp.electrostatics.ewald import PlaneWaves
from mace_polmp.electrostatics.grouping import DIRECT, OPEN
from mace_polmp.electrostatics.long_wavelength import induced_charge_moment
from mace_polmp.electrostatics.mesh import Mesh
from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.plan import Part, Plan
from mace_polmp.electrostatics.reciprocal import CellGeometry, Lattice, ReciprocalSpace, Solver
from mace_polmp.electrostatics.settings import Settings
from mace_polmp.electrostatics.slab import SlabCorrection

Found = tuple[Tensor, Tensor | None, Tensor | None]


class Operator(Protocol):
    """Energy [n_structures], potential [n_atoms] and field [n_atoms, 3] of multipoles."""

    def evaluate(self, multipoles: Multipoles, with_field: bool) -> Found: ...

    def atom_energies(self, multipoles: Multipoles) -> Tensor: ...

    def at(
        self, positions: Tensor, cell: Tensor, part: Part, kept: CellGeometry | None
    ) -> Operator: ...


@dataclass(frozen=True, eq=False)
class PeriodicOperator:
    """Of structures in periodic cells, slabs among them.

    Attributes:
        space: the sum over wave vectors.
        slabs: the correction of slabs; None without any.
    """

    space: ReciprocalSpace
    slabs: SlabCorrection | None

    @classmethod
    def of(
        cls,
        positions: Tensor,
        cell: Tensor,
        part: Part,
        settings: Settings,
        kept: CellGeometry | None,
        solver: Solver | None = None,
    ) -> PeriodicOperator:
        """Of the atoms of a group; with a solver that was made for the same positions, if any."""
        group, sums = part.group, part.sums
        lattice = Lattice.of(positions, cell, sums, group.limits, settings, kept)
        if solver is None and group.kind == DIRECT:
            assert part.packing is not None
            solver = PlaneWaves(group.limits, lattice.fraction, part.packing)
        elif solver is None:
            solver = Mesh(group.mesh(settings), lattice.fraction, sums.batch)
        slabs = None
        if part.normals is not None and part.is_slab is not None:
            slabs = SlabCorrection.of(
                positions, cell, part.normals, part.is_slab, sums, settings.smearing
            )
        return cls(ReciprocalSpace(lattice, solver, settings), slabs)

    def at(
        self, positions: Tensor, cell: Tensor, part: Part, kept: CellGeometry | None
    ) -> PeriodicOperator:
        """The same at tensors with the same values, see FieldOperator.at."""
        space = self.space
        if not cell.requires_grad:
            kept = space.lattice.geometry.without_derivatives()
        return PeriodicOperator.of(positions, cell, part, space.settings, kept, space.solver)

    def evaluate(self, multipoles: Multipoles, with_field: bool) -> Found:
        energy, potential, field = self.space.evaluate(multipoles, with_field)
        if self.slabs is not None:
            correction = self.slabs.evaluate(multipoles)
            energy = energy + correction[0]
            if potential is not None and field is not None:
                potential, field = potential + correction[1], field + correction[2]
        return energy, potential, field

    def atom_energies(self, multipoles: Multipoles) -> Tensor:
        energies = self.space.atom_energies(multipoles)
        if self.slabs is not None:
            energies = energies + self.slabs.atom_energies(multipoles)
        return energies


@dataclass(frozen=True, eq=False)
class FieldOperator:
    """Of a whole batch of structures, open, periodic and slabs in any mixture.

    Attributes:
        plan: of the batch.
        parts: the operator of each group of the plan.
        positions: [n_atoms, 3], Å.
    """

    plan: Plan
    parts: tuple[Operator, ...]
    positions: Tensor

    @classmethod
    def of(cls, plan: Plan, positions: Tensor, cell: Tensor) -> FieldOperator:
        """Make lattices, pairs and solvers.

        Args:
            plan: of the batch.
            positions: [n_atoms, 3], Å.
            cell: [n_structures, 3, 3], Å.
        """
        settings = plan.shape.settings
        found: list[Operator] = []
        for part, own, cells, kept in _by_part(plan, positions, cell):
            if part.group.kind == OPEN:
                assert part.pairs is not None
                found.append(OpenBoundary(own, part.pairs, part.sums, settings.smearing))
            else:
                found.append(PeriodicOperator.of(own, cells, part, settings, kept))
        return cls(plan, tuple(found), positions)

    def at(self, positions: Tensor, cell: Tensor) -> FieldOperator:
        """The same for tensors of the same values, with other derivatives: solvers are kept."""
        found = [
            operator.at(own, cells, part, kept)
            for operator, (part, own, cells, kept) in zip(
                self.parts, _by_part(self.plan, positions, cell), strict=True
            )
        ]
        return FieldOperator(self.plan, tuple(found), positions)

    def energy(self, multipoles: Multipoles) -> Tensor:
        """Energy of multipoles in each other's field, [n_structures], eV."""
        return self.evaluate(multipoles, with_field=False)[0]

    def field(self, multipoles: Multipoles) -> tuple[Tensor, Tensor]:
        """Potential [n_atoms], V, and field [n_atoms, 3], V/Å, without the atom's own."""
        _, potential, field = self.evaluate(multipoles, with_field=True)
        assert potential is not None and field is not None
        return potential, field

    def atom_energies(self, multipoles: Multipoles) -> Tensor:
        """Each atom's part of the energy, [n_atoms], eV: ½ (q φ − μ·E + ½ Q:∇∇φ).

        They sum to the energy.
        """
        multipoles = multipoles.traceless()
        if len(self.parts) == 1:
            return self.parts[0].atom_energies(multipoles)
        found = [
            operator.atom_energies(multipoles.select(part.atoms))
            for part, operator in zip(self.plan.parts, self.parts, strict=True)
            if part.atoms is not None
        ]
        return torch.cat(found)[self.plan.atoms_back]

    def evaluate(self, multipoles: Multipoles, with_field: bool) -> Found:
        """Energy, and potential and field if they are wanted."""
        multipoles = multipoles.traceless()
        if len(self.parts) == 1:
            return self.parts[0].evaluate(multipoles, with_field)
        found = []
        for part, operator in zip(self.plan.parts, self.parts, strict=True):
            assert part.atoms is not None
            found.append(operator.evaluate(multipoles.select(part.atoms), with_field))
        energy = torch.cat([f[0] for f in found])[self.plan.structures_back]
        if not with_field:
            return energy, None, None
        potential = torch.cat([f[1] for f in found if f[1] is not None])[self.plan.atoms_back]
        field = torch.cat([f[2] for f in found if f[2] is not None])[self.plan.atoms_back]
        return energy, potential, field

    def induced_charge_moment(
        self, multipoles: Multipoles, held: Multipoles, sites: Multipoles
    ) -> Tensor:
        """What Born charges need of induced charges in periodic structures: long_wavelength.py.

        Args:
            multipoles: what potentials come from.
            held: the same without derivatives with respect to positions.
            sites: what weighs potentials and fields, charges −κ in one step, likewise held.

        Returns:
            [n_structures, 3], e Å, of which only derivatives have a meaning.
        """
        multipoles, held = multipoles.traceless(), held.traceless()
        moves = self.positions - self.positions.detach()
        found = []
        for part, operator in zip(self.plan.parts, self.parts, strict=True):
            assert isinstance(operator, PeriodicOperator)
            own = (multipoles, held, sites, moves)
            if part.atoms is not None:
                atoms = part.atoms
                chosen = (multipoles.select(atoms), held.select(atoms), sites.select(atoms))
                own = (*chosen, moves[atoms])
            space = operator.space
            found.append(
                induced_charge_moment(space.lattice, space.solver, own[3], own[0], own[1], own[2])
            )
        if len(found) == 1:
            return found[0]
        return torch.cat(found)[self.plan.structures_back]


def _by_part(
    plan: Plan, positions: Tensor, cell: Tensor
) -> list[tuple[Part, Tensor, Tensor, CellGeometry | None]]:
    """Each part of a plan with its positions, cells and, where known, what follows from these."""
    geometry: tuple[CellGeometry | None, ...] = (None,) * len(plan.parts)
    if plan.geometry and not cell.requires_grad:
        geometry = plan.geometry
    return [
        (
            part,
            positions if part.atoms is None else positions[part.atoms],
            cell if part.structures is None else cell[part.structures],
            kept,
        )
        for part, kept in zip(plan.parts, geometry, strict=True)
    ]
