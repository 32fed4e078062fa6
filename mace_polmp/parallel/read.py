"""What the readouts say of the atoms of one process, and the fields that these have energies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics import BondResponse, Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.external_field import is_along_periodic
from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions
from mace_polmp.parallel.halo import gathered
from mace_polmp.parallel.processes import Processes


@dataclass(frozen=True, eq=False)
class Read:
    """What the readouts say of the atoms of this process.

    Attributes:
        multipoles, response: as of LongRangeHead.read, without constraints.
        moments: of bonds, [n_atoms, 3], e Å, or None: see HeadOutput.
    """

    multipoles: Multipoles
    response: ResponseCoefficients
    moments: Tensor | None

    def off(self) -> Read:
        """Of a row that stands for no atom: nothing."""

        def zero(values: Tensor | None) -> Tensor | None:
            return None if values is None else 0.0 * values

        multipoles, response = self.multipoles, self.response
        return Read(
            Multipoles(
                0.0 * multipoles.charge, zero(multipoles.dipole), zero(multipoles.quadrupole)
            ),
            ResponseCoefficients(
                zero(response.softness), zero(response.polarizability), response.bonds
            ),
            zero(self.moments),
        )


def gathered_bonds(
    bonds: BondResponse, first: int, n_own: int, processes: Processes
) -> BondResponse:
    """The edges of all processes, between rows of all atoms.

    Args:
        bonds: of this process, to its own atoms.
        first: the place of its first atom among all.
        n_own: its rows of own atoms.
        processes: that share the structure.
    """
    number = torch.arange(n_own, dtype=torch.float64, device=bonds.index.device) + first
    everywhere = number if bonds.extend is None else bonds.extend(number[:, None])[:, 0]
    index, _ = processes.gather(everywhere.long()[bonds.index].t().contiguous())
    return BondResponse(
        gathered(bonds.softness, processes), index.t(), gathered(bonds.vectors, processes)
    )


def check_field(
    field: Tensor | None, cell: Tensor, pbc: Sequence[bool], options: LongRangeOptions
) -> None:
    """Refuse a field along periodic directions, where charges have no energy.

    Formal charges have one that jumps where atoms are wrapped, as simulation programs do.

    Args:
        field: [3], V/Å, or None.
        cell: [3, 3], Å.
        pbc: the boundary conditions.
        options: of the head.

    Raises:
        InputError: says so.
    """
    if field is None or (options.defines_polarization and not options.formal_charges):
        return
    if is_along_periodic(field, cell, pbc):
        raise InputError(
            f"external_field {field.view(3).tolist()} along a periodic direction: the energy of a "
            "charge is not defined there; a model with --charge_readout bond and without formal "
            "charges has one"
        )
