"""What a uniform field induces, local fields included: polarizabilities of structures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics import Electrostatics, Plan, ResponseCoefficients
from mace_polmp.electrostatics.equations import Equations, driven, placeholders
from mace_polmp.electrostatics.external_field import ExternalField, acting_on_charges
from mace_polmp.electrostatics.self_consistent import driven_along_bonds


@dataclass(frozen=True, eq=False)
class FieldResponse:
    """The self-consistent response of structures to fields and potentials.

    Attributes:
        engine: the model's electrostatics.
        plan: of the structures.
        positions: [n_atoms, 3], Å.
        cell: [n_structures, 3, 3], Å.
        response: coefficients.
        conserve_charge: whether induced charges of periodic structures sum to zero.
    """

    engine: Electrostatics
    plan: Plan
    positions: Tensor
    cell: Tensor
    response: ResponseCoefficients
    conserve_charge: bool

    def polarizability(self) -> Tensor:
        """−∂²E/∂F², [n_structures, 3, 3], e² Å²/eV, differentiable.

        Induced dipoles and charges along bonds everywhere; other induced charges where the field
        acts on them: in open structures and along the normal of slabs, whose charge stays what it
        is.
        """
        operator = self.engine.prepare(self.plan, self.positions, self.cell)
        equations = Equations.of(
            operator, self.cell, self.response, self.conserve_charge, in_field=True
        )
        where = (self.positions, self.cell, *placeholders(self.response, self.positions[:, 0]))
        sums, bonds = self.plan.sums, self.response.bonds
        none = torch.zeros_like(self.positions[:, :1]).expand(-1, 4)
        drives, induced, moments = [], [], []
        for unit in torch.eye(3, dtype=self.positions.dtype, device=self.positions.device):
            field = unit.expand(self.cell.shape[0], 3)
            external = ExternalField(field, acting_on_charges(field, self.cell, self.plan.pbc))
            alone, rhs, along = driven_along_bonds(bonds, external, equations, operator, none)
            drive = driven(equations, rhs, *where)
            drives.append(alone)
            induced.append(equations.couplings.induced(where[2], where[3], drive))
            if bonds is not None and along is not None:
                moved = bonds.moved(drive[:, 0], along)
                moments.append(bonds.moments(moved, len(none)))
        products = torch.einsum("anc,bnc->nab", torch.stack(induced), torch.stack(drives))
        if moments:
            products = products + torch.stack(moments, dim=1)
        return sums.total(products)

    def to_uniform_potential(self) -> tuple[Tensor, Tensor]:
        """What minus a volt everywhere drives and induces, y and x, [n_atoms, 4] each.

        Whether or not induced charges of the structures have to sum to zero.
        """
        operator = self.engine.prepare(self.plan, self.positions, self.cell)
        equations = Equations.of(operator, self.cell, self.response, conserve_charge=False)
        where = (self.positions, self.cell, *placeholders(self.response, self.positions[:, 0]))
        rhs = torch.zeros_like(self.positions[:, :1]).expand(-1, 4).clone()
        rhs[:, 0] = 1.0
        drive = driven(equations, rhs, *where)
        return drive, equations.couplings.induced(where[2], where[3], drive)
