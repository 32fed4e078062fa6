"""What the engine returns, and what its responses start from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.operator import FieldOperator


@dataclass(frozen=True)
class ElectrostaticsResult:
    """What the engine returns.

    Attributes:
        energy: [n_structures] eV, the sum of the three that follow.
        energy_permanent: [n_structures] eV, permanent multipoles among themselves and with the
            external field.
        energy_induced_charge: [n_structures] eV.
        energy_induced_dipole: [n_structures] eV; of a self-consistent response, where charges and
            dipoles are induced together, each half of what is induced times what drives it.
        potential: [n_atoms] V, of the permanent multipoles without the atom's own; None if it
            was not asked for.
        field: [n_atoms, 3] V/Å, likewise, the external field not included.
        induced_charge: [n_atoms] e; zero without a softness.
        induced_dipole: [n_atoms, 3] e Å; zero without a polarizability.
        induced_moment: of charges that are induced along bonds ½ Σ Δt r of the edges to each atom,
            whose sum is their dipole, [n_atoms, 3] e Å; None without bonds.
        drive: of a self-consistent response minus the potential and the field of permanent and
            induced multipoles (external field included), [n_atoms, 4], V and V/Å; else None.
    """

    energy: Tensor
    energy_permanent: Tensor
    energy_induced_charge: Tensor
    energy_induced_dipole: Tensor
    potential: Tensor | None
    field: Tensor | None
    induced_charge: Tensor
    induced_dipole: Tensor
    drive: Tensor | None = None
    induced_moment: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Permanent:
    """Structures with their permanent multipoles, before any response.

    Attributes:
        positions, cell, multipoles: as of the engine.
        operator: of the structures.
        energy: of the permanent multipoles, external field included, [n_structures], eV.
        potential, field: theirs without the external field, [n_atoms] V and [n_atoms, 3] V/Å; None
            where nothing needs them.
    """

    positions: Tensor
    cell: Tensor
    multipoles: Multipoles
    operator: FieldOperator
    energy: Tensor
    potential: Tensor | None
    field: Tensor | None
