"""One-step linear response: charges and dipoles induced by the field of the permanent multipoles.

Δq_i = −κ_i φ_i, U_i = −½ κ_i φ_i²; Δμ_i = α_i·E_i, U_i = −½ E_i·α_i·E_i (arXiv:2605.05746). Charges
that are induced along bonds: bonds.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mace_polmp.electrostatics.bonds import induced_along_bonds
from mace_polmp.electrostatics.external_field import ExternalField
from mace_polmp.electrostatics.multipoles import ResponseCoefficients
from mace_polmp.electrostatics.result import ElectrostaticsResult, Permanent
from mace_polmp.electrostatics.sums import AtomSums


def induced_charges(
    softness: Tensor, potential: Tensor, sums: AtomSums, conserve_charge: bool
) -> tuple[Tensor, Tensor]:
    """Induced charges [n_atoms] e and their energy [n_structures] eV.

    Args:
        softness: κ, [n_atoms], e²/eV.
        potential: φ, [n_atoms], V.
        sums: over the atoms.
        conserve_charge: measure φ from its κ-weighted mean over the structure, so that the
            induced charges of a structure sum to zero.
    """
    if conserve_charge:
        total, weighted = sums.total(torch.stack([softness, softness * potential], 1)).unbind(1)
        # A structure without any softness has no induced charge and any mean will do.
        mean = weighted / torch.where(total > 0, total, torch.ones_like(total))
        potential = potential - sums.at_atoms(mean)
    charge = -softness * potential
    return charge, sums.own(0.5 * charge * potential)


def induced_dipoles(polarizability: Tensor, field: Tensor, sums: AtomSums) -> tuple[Tensor, Tensor]:
    """Induced dipoles [n_atoms, 3] e Å and their energy [n_structures] eV.

    Args:
        polarizability: α, [n_atoms] or [n_atoms, 3, 3], e² Å²/eV.
        field: [n_atoms, 3], V/Å, the external field included.
        sums: over the atoms.
    """
    if polarizability.dim() == 1:
        dipole = polarizability[:, None] * field
    else:
        dipole = (polarizability * field[:, None, :]).sum(-1)
    return dipole, sums.own(-0.5 * (dipole * field).sum(-1))


def one_step(
    known: Permanent,
    response: ResponseCoefficients,
    external: ExternalField | None,
    conserve_charge: bool,
) -> ElectrostaticsResult:
    """Add the response to the permanent multipoles and, but of softness, to the external field.

    Args:
        known: of the permanent multipoles.
        response: softness and polarizability, or None for those that are not there.
        external: the external field.
        conserve_charge: induced charges sum to zero in each structure.
    """
    sums, permanent = known.operator.plan.sums, known.energy
    energy, potential, field = permanent, known.potential, known.field
    at_atoms = None if external is None else sums.at_atoms(external.whole)
    moment = None
    if response.bonds is not None:
        assert potential is not None
        charge, moment, each = induced_along_bonds(response.bonds, potential, at_atoms)
        energy_charge = sums.own(each)
        energy = energy + energy_charge
    elif response.softness is not None:
        assert potential is not None
        found = induced_charges(response.softness, potential, sums, conserve_charge)
        charge, energy_charge = found
        energy = energy + energy_charge
    else:
        charge, energy_charge = torch.zeros_like(known.positions[:, 0]), torch.zeros_like(permanent)
    if response.polarizability is not None:
        assert field is not None
        whole = field if at_atoms is None else field + at_atoms
        dipole, energy_dipole = induced_dipoles(response.polarizability, whole, sums)
        energy = energy + energy_dipole
    else:
        dipole, energy_dipole = torch.zeros_like(known.positions), torch.zeros_like(permanent)
    return ElectrostaticsResult(
        energy=energy,
        energy_permanent=permanent,
        energy_induced_charge=energy_charge,
        energy_induced_dipole=energy_dipole,
        potential=potential,
        field=field,
        induced_charge=charge,
        induced_dipole=dipole,
        induced_moment=moment,
    )
