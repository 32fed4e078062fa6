"""The engine: boundary conditions to solvers, permanent energy, response, external field."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.direct import open_boundary
from mace_polmp.electrostatics.ewald import ewald
from mace_polmp.electrostatics.multipoles import Multipoles, ResponseCoefficients, check_inputs
from mace_polmp.electrostatics.response import induced_charges, induced_dipoles

SOLVERS = ("auto", "ewald", "mesh")


@dataclass(frozen=True)
class ElectrostaticsResult:
    """What the engine returns.

    Attributes:
        energy: [n_structures] eV, the sum of the three that follow.
        energy_permanent: [n_structures] eV, permanent multipoles among themselves and with the
            external field.
        energy_induced_charge: [n_structures] eV.
        energy_induced_dipole: [n_structures] eV.
        potential: [n_atoms] V, of the permanent multipoles without the atom's own; None if it
            was not asked for.
        field: [n_atoms, 3] V/Å, likewise, the external field not included.
        induced_charge: [n_atoms] e; zero without a softness.
        induced_dipole: [n_atoms, 3] e Å; zero without a polarizability.
    """

    energy: Tensor
    energy_permanent: Tensor
    energy_induced_charge: Tensor
    energy_induced_dipole: Tensor
    potential: Tensor | None
    field: Tensor | None
    induced_charge: Tensor
    induced_dipole: Tensor


class Electrostatics(torch.nn.Module):
    """Energy, potential, field and linear response of smeared atomic multipoles.

    Args:
        smearing: width σ of the Gaussian every multipole is smeared with, Å.
        kspace_spacing: dl, Å; the k-space sum of periodic structures runs over |k| ≤ 2π/dl.
        solver: for periodic structures, "ewald" (direct k-space sum) or "auto" (the best one
            there is, at present the direct sum).

    Raises:
        ValueError: a length that is not positive, or a solver that does not exist.
    """

    def __init__(
        self, smearing: float = 1.0, kspace_spacing: float = 2.0, solver: str = "auto"
    ) -> None:
        super().__init__()
        for name, value in (("smearing", smearing), ("kspace_spacing", kspace_spacing)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive length in Å, got {value}")
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        if solver == "mesh":
            raise ValueError(
                "solver 'mesh' is not available in this version: use 'auto' or 'ewald'"
            )
        self.smearing = smearing
        self.kspace_spacing = kspace_spacing
        self.solver = solver

    @property
    def k_cutoff(self) -> float:
        """k_c = 2π/dl, 1/Å."""
        return 2.0 * math.pi / self.kspace_spacing

    def extra_repr(self) -> str:
        lengths = f"smearing={self.smearing}, kspace_spacing={self.kspace_spacing}"
        return f"{lengths}, solver={self.solver!r}"

    def forward(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        batch: Tensor,
        multipoles: Multipoles,
        response: ResponseCoefficients | None = None,
        external_field: Tensor | None = None,
        conserve_charge: bool = False,
        with_field: bool = True,
    ) -> ElectrostaticsResult:
        """Evaluate a batch of structures, open and periodic in any mixture.

        Args:
            positions: [n_atoms, 3], Å.
            cell: [n_structures, 3, 3], Å, rows are lattice vectors; ignored where not periodic.
            pbc: [n_structures, 3] bool, all True (periodic, tin-foil) or all False (open).
            batch: [n_atoms] int64, the structure of each atom.
            multipoles: the permanent multipoles.
            response: softness and polarizability, or None for no response.
            external_field: uniform field, [n_structures, 3], V/Å, or None. It acts on dipoles
                (permanent and induced) everywhere and on charges in open structures; the
                energy of a charge in a periodic cell is not defined, its force is the Born
                charge times the field.
            conserve_charge: induced charges sum to zero in each structure.
            with_field: False spares potential and field where no response needs them.

        Returns:
            ElectrostaticsResult.

        Raises:
            ValueError: a shape that does not fit, a structure periodic in one or two directions
                only, or a periodic one with a singular cell.
            TypeError: a dtype that does not fit.
        """
        check_inputs(positions, cell, pbc, batch, multipoles, response, external_field)
        n_structures = pbc.shape[0]
        softness = None if response is None else response.softness
        polarizability = None if response is None else response.polarizability
        with_field = with_field or softness is not None or polarizability is not None

        permanent, potential, field = self._permanent(
            positions, cell, pbc, batch, multipoles, with_field
        )
        if external_field is not None:
            permanent = permanent + _field_energy(positions, pbc, batch, multipoles, external_field)

        zero = torch.zeros_like(permanent)
        charge, energy_charge = torch.zeros_like(positions[:, 0]), zero
        dipole, energy_dipole = torch.zeros_like(positions), zero
        if softness is not None:
            assert potential is not None
            charge, energy_charge = induced_charges(
                softness, potential, batch, n_structures, conserve_charge
            )
        if polarizability is not None:
            assert field is not None
            acting = field if external_field is None else field + external_field[batch]
            dipole, energy_dipole = induced_dipoles(polarizability, acting, batch, n_structures)
        return ElectrostaticsResult(
            energy=permanent + energy_charge + energy_dipole,
            energy_permanent=permanent,
            energy_induced_charge=energy_charge,
            energy_induced_dipole=energy_dipole,
            potential=potential,
            field=field,
            induced_charge=charge,
            induced_dipole=dipole,
        )

    def _permanent(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        batch: Tensor,
        multipoles: Multipoles,
        with_field: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Energy [n_structures], potential and field of the permanent multipoles."""
        n_structures, n_periodic = pbc.shape[0], _count_periodic(pbc)
        if n_periodic == 0:
            return open_boundary(
                positions, batch, n_structures, multipoles, self.smearing, with_field
            )
        if n_periodic == n_structures:
            return ewald(
                positions, cell, batch, multipoles, self.smearing, self.k_cutoff, with_field
            )
        # A mixture: each kind on its own atoms, renumbered, and the parts put back in place.
        is_periodic = pbc.all(1)
        number = (
            torch.where(is_periodic, is_periodic.long().cumsum(0), (~is_periodic).long().cumsum(0))
            - 1
        )
        atoms_p = is_periodic[batch].nonzero().squeeze(1)
        atoms_o = (~is_periodic[batch]).nonzero().squeeze(1)
        parts = (
            ewald(
                positions[atoms_p],
                cell[is_periodic],
                number[batch[atoms_p]],
                multipoles.select(atoms_p),
                self.smearing,
                self.k_cutoff,
                with_field,
            ),
            open_boundary(
                positions[atoms_o],
                number[batch[atoms_o]],
                n_structures - n_periodic,
                multipoles.select(atoms_o),
                self.smearing,
                with_field,
            ),
        )
        places = torch.cat([is_periodic.nonzero(), (~is_periodic).nonzero()]).squeeze(1)
        energy = torch.cat([p[0] for p in parts])[torch.argsort(places)]
        if not with_field:
            return energy, None, None
        back = torch.argsort(torch.cat([atoms_p, atoms_o]))
        potential = torch.cat([p[1] for p in parts if p[1] is not None])[back]
        field = torch.cat([p[2] for p in parts if p[2] is not None])[back]
        return energy, potential, field


def _count_periodic(pbc: Tensor) -> int:
    """The number of periodic structures; the one place where the engine reads pbc on the host.

    Raises:
        ValueError: a structure is periodic in one or two directions only.
    """
    every, some = pbc.all(1), pbc.any(1)
    n_every, n_some = torch.stack([every.sum(), some.sum()]).tolist()
    if n_some > n_every:
        number = int((some & ~every).nonzero()[0])
        letters = " ".join("T" if p else "F" for p in pbc[number].tolist())
        raise ValueError(
            f"structure {number} has pbc {letters}: only T T T (periodic) and F F F (open) "
            "are supported. Set all three, with enough vacuum in the cell for a slab, or none"
        )
    return int(n_every)


def _field_energy(
    positions: Tensor, pbc: Tensor, batch: Tensor, multipoles: Multipoles, external_field: Tensor
) -> Tensor:
    """−Σ μ_i·F − Σ q_i r_i·F, the second sum for open structures only: [n_structures] eV."""
    moment = multipoles.charge[:, None] * positions * (~pbc[batch])
    if multipoles.dipole is not None:
        moment = moment + multipoles.dipole
    per_atom = -(moment * external_field[batch]).sum(-1)
    return per_atom.new_zeros(pbc.shape[0]).index_add(0, batch, per_atom)
