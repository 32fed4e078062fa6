"""Electrical observables from multipoles and response: dipole and polarizability of structures."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mace_polmp.electrostatics import (
    BondResponse,
    Electrostatics,
    ElectrostaticsResult,
    Multipoles,
    Plan,
    ResponseCoefficients,
)
from mace_polmp.electrostatics.bonds import induced_along_bonds
from mace_polmp.electrostatics.constants import kept
from mace_polmp.electrostatics.operator import FieldOperator
from mace_polmp.electrostatics.products import cell_volume
from mace_polmp.electrostatics.self_consistent import with_induced
from mace_polmp.electrostatics.self_energy import self_energies
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.errors import InputError
from mace_polmp.units import EPS0


def atomic_dipoles(multipoles: Multipoles, result: ElectrostaticsResult) -> Tensor:
    """Permanent plus induced dipoles, [n_atoms, 3], e Å."""
    if multipoles.dipole is None:
        return result.induced_dipole
    return multipoles.dipole + result.induced_dipole


def total_dipole(
    positions: Tensor, sums: AtomSums, charges: Tensor, atomic_dipoles: Tensor
) -> Tensor:
    """Σ (q + Δq) r + (μ + Δμ), [n_structures, 3], e Å, about the origin of the coordinates.

    For a periodic structure this is the dipole of the atoms as they are given: only its change
    along a trajectory of unwrapped positions has a meaning.
    """
    return sums.total(charges[:, None] * positions + atomic_dipoles)


def atom_energies(
    engine: Electrostatics,
    operator: FieldOperator,
    multipoles: Multipoles,
    response: ResponseCoefficients,
    result: ElectrostaticsResult,
) -> Tensor:
    """Each atom's part of the long-range energy, [n_atoms], eV; they sum to the energy.

    ½ (q φ − μ·E + ½ Q:∇∇φ) of the permanent multipoles in the field of the others, and the energy
    of what is induced at the atom, −½ Δq²/κ − ½ Δμ·E, and where the engine keeps it that of each
    multipole in its own potential. Of a self-consistent response permanent and induced multipoles
    together, and what it costs to induce them. Without an external field.
    """
    own = multipoles
    if result.drive is not None:
        induced = torch.cat([result.induced_charge[:, None], result.induced_dipole], 1)
        multipoles = with_induced(multipoles, induced, response.polarizability is not None)
    energies = operator.atom_energies(multipoles)
    if engine.self_interaction:
        energies = energies + self_energies(own, engine.smearing)
    if result.drive is not None:
        return energies + 0.5 * (induced * result.drive).sum(1)
    if response.softness is not None:
        softness = response.softness
        squares = result.induced_charge**2 / softness.where(softness > 0, 1.0)
        energies = energies - 0.5 * squares
    if response.bonds is not None:
        assert result.potential is not None
        energies = energies + induced_along_bonds(response.bonds, result.potential, None)[2]
    if response.polarizability is not None:
        assert result.field is not None
        energies = energies - 0.5 * (result.induced_dipole * result.field).sum(-1)
    return energies


def polarizability_tensors(response: ResponseCoefficients, n_atoms: int, like: Tensor) -> Tensor:
    """Atomic polarizabilities as tensors, [n_atoms, 3, 3], e² Å²/eV; zero without a response.

    With charges that are induced along bonds each atom has half of those of its edges.
    """
    alpha, bonds = response.polarizability, response.bonds
    if alpha is None:
        found = like.new_zeros(n_atoms, 3, 3)
    elif alpha.dim() == 3:
        found = alpha
    else:
        found = alpha[:, None, None] * _unit(alpha.dtype, alpha.device)
    return found if bonds is None else found + bonds.polarizabilities(n_atoms)


@kept()
def _unit(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(3, dtype=dtype, device=device)


def electronic_polarizability(
    engine: Electrostatics,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    atomic: Tensor,
    plan: Plan | None = None,
    bonds: BondResponse | None = None,
) -> Tensor:
    """The polarizability tensor of each structure in one-step response, [n_structures, 3, 3].

    In open structures Σ_i α_i, the second derivative of the energy by the field. In periodic ones
    the dipoles that a macroscopic field induces act on each other; to first order, as in the
    response to the permanent multipoles, that adds the local-field sum Σ_ij α_i T_ij α_j with the
    tin-foil T (Gaussians, without an atom's own; in slabs with the dipole correction).

    Args:
        engine: the model's electrostatics.
        positions, cell, pbc, batch: as of the engine.
        atomic: α_i of induced dipoles, [n_atoms, 3, 3], e² Å²/eV.
        plan: of the structures; None to make one.
        bonds: along which charges are induced, or None. Their charges and potentials are part of
            the local-field sum.

    Returns:
        e² Å²/eV, differentiable.
    """
    if plan is None:
        plan = engine.checked_plan(positions, cell, pbc, batch)
    n_atoms = len(positions)
    bare = plan.sums.total(atomic if bonds is None else atomic + bonds.polarizabilities(n_atoms))
    if not any(any(flag) for flag in plan.shape.pbc):
        return bare
    operator = engine.prepare(plan, positions, cell)
    rows = []
    for axis in range(3):  # what fields along x, y and z induce
        charge = torch.zeros_like(atomic[:, 0, 0])
        if bonds is not None:
            charge = bonds.to_atoms(bonds.softness * bonds.vectors[:, axis], n_atoms)
        potential, field = operator.field(Multipoles(charge, atomic[:, :, axis]))
        row = torch.einsum("nbc,nc->nb", atomic, field)
        if bonds is not None:
            moved = -bonds.softness * bonds.differences(potential)
            row = row + bonds.moments(moved, n_atoms)
        rows.append(row)
    local = torch.stack(rows, dim=2)
    return bare + plan.sums.total(local * pbc.any(1)[batch, None, None])


def electronic_permittivity(polarizability: Tensor, cell: Tensor) -> Tensor:
    """ε∞ = 1 + α/(eps0 V) of periodic structures, [n_structures, 3, 3].

    Args:
        polarizability: physical_polarizability, or for what induced dipoles alone screen
            electronic_polarizability; e² Å²/eV.
        cell: [n_structures, 3, 3], Å.
    """
    volume = cell_volume(cell)[:, None, None]
    return torch.eye(3).to(polarizability) + polarizability / (EPS0 * volume)


def physical_polarizability(
    polarizability: Tensor, cell: Tensor, pbc: Tensor, screening: Tensor | float
) -> Tensor:
    """The polarizability whose ε∞ is physical, [n_structures, 3, 3], e² Å²/eV.

    Induced dipoles screen latent charges by 1 + α/(eps0 V), and latent charges are physical ones
    divided by √ε_e. Together ε∞ = ε_e (1 + α/(eps0 V)) (see screening_factor), and the
    polarizability of the cell is eps0 V (ε∞ − 1). Structures that are not periodic in three
    directions keep theirs.

    Args:
        polarizability: electronic_polarizability.
        cell, pbc: as of the engine.
        screening: ε_e, [n_structures] or a number.
    """
    periodic = pbc.all(1)[:, None, None]
    factor = torch.as_tensor(screening).to(polarizability).view(-1, 1, 1)
    vacuum = EPS0 * cell_volume(cell.to(polarizability))[:, None, None]
    unit = torch.eye(3).to(polarizability)
    physical = factor * polarizability + (factor - 1.0) * vacuum * unit
    return torch.where(periodic, physical, polarizability)


def susceptibility(polarizability: Tensor, cell: Tensor, pbc: Tensor) -> Tensor:
    """χ = tr α/(3 eps0 V), [n_structures]; zero where not periodic in three directions.

    Args:
        polarizability: of the structures, [n_structures, 3, 3], e² Å²/eV: in one step the sum over
            their atoms.
        cell, pbc: as of the engine.
    """
    trace = torch.einsum("bii->b", polarizability)
    periodic = pbc.all(1)
    volume = torch.where(periodic, cell_volume(cell.to(trace)), 1.0)
    return torch.where(periodic, trace / (3.0 * EPS0 * volume), 0.0)


def screening_factor(
    chi: Tensor | None, pbc: Tensor, epsilon_infinity: float | Tensor | None = None
) -> Tensor:
    """√ε_e, [n_structures]: what latent charges and dipoles are physical ones divided by.

    ε_e is ε∞ of a homogeneous medium for a model without induced dipoles, ε∞/(1 + χ) for one with
    them, and 1 where a structure is not periodic in three directions.

    Args:
        chi: susceptibility [n_structures] to divide by, or None.
        pbc: [n_structures, 3] bool.
        epsilon_infinity: ε∞, a scalar if a tensor; None for 1.

    Raises:
        InputError: ε∞ is not a number of 1 or more.
    """
    epsilon = 1.0 if epsilon_infinity is None else epsilon_infinity
    if not isinstance(epsilon, Tensor) and not (math.isfinite(epsilon) and epsilon >= 1.0):
        raise InputError(f"epsilon_infinity must be a number of 1 or more, got {epsilon_infinity}")
    one = torch.ones(pbc.shape[0], dtype=torch.float64, device=pbc.device)
    if chi is not None:
        one = one + chi
    return torch.where(pbc.all(1), torch.sqrt(epsilon / one), torch.ones_like(one))


def neutral_slabs(multipoles: Multipoles, plan: Plan) -> Multipoles:
    """Shift the charges of each slab by the same number, so that they sum to zero."""
    if not plan.has_slabs:
        return multipoles
    sums, charge = plan.sums, multipoles.charge
    mean = sums.total(charge) / sums.counts().clamp(min=1)
    shift = sums.at_atoms(torch.where(plan.pbc.sum(1) == 2, mean, 0.0))
    return replace(multipoles, charge=charge - shift)


def charge_shift(charge: Tensor, weight: Tensor, total_charge: Tensor, sums: AtomSums) -> Tensor:
    """λ of each structure, [n_structures], such that charges + λ weight sum to the total charge.

    With the softness for weight this is the charges' response to a uniform potential.

    Args:
        charge, weight: [n_atoms].
        total_charge: [n_structures], e.
        sums: over the atoms.
    """
    found, weights = sums.total(torch.stack([charge, weight], 1)).unbind(1)
    return (total_charge - found) / weights.where(weights > 0, 1.0)
