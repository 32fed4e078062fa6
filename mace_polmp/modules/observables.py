"""Electrical observables from multipoles and response: dipole and polarizability of structures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mace_polmp.electrostatics import (
    Electrostatics,
    ElectrostaticsResult,
    Multipoles,
    ResponseCoefficients,
)
from mace_polmp.electrostatics.packing import count_atoms
from mace_polmp.electrostatics.products import cell_volume
from mace_polmp.errors import InputError
from mace_polmp.units import EPS0

if TYPE_CHECKING:
    from mace_polmp.modules.model import MultipoleMACE


def atomic_dipoles(multipoles: Multipoles, result: ElectrostaticsResult) -> Tensor:
    """Permanent plus induced dipoles, [n_atoms, 3], e Å."""
    if multipoles.dipole is None:
        return result.induced_dipole
    return multipoles.dipole + result.induced_dipole


def total_dipole(
    positions: Tensor,
    batch: Tensor,
    n_structures: int,
    multipoles: Multipoles,
    result: ElectrostaticsResult,
) -> Tensor:
    """Σ (q + Δq) r + (μ + Δμ), [n_structures, 3], e Å, about the origin of the coordinates.

    For a periodic structure this is the dipole of the atoms as they are given: only its change
    along a trajectory of unwrapped positions has a meaning.
    """
    moment = (multipoles.charge + result.induced_charge)[:, None] * positions
    moment = moment + atomic_dipoles(multipoles, result)
    return moment.new_zeros(n_structures, 3).index_add(0, batch, moment)


def polarizability_tensors(response: ResponseCoefficients, n_atoms: int, like: Tensor) -> Tensor:
    """Atomic polarizabilities as tensors, [n_atoms, 3, 3], e² Å²/eV; zero without a response."""
    alpha = response.polarizability
    if alpha is None:
        return like.new_zeros(n_atoms, 3, 3)
    if alpha.dim() == 3:
        return alpha
    return alpha[:, None, None] * torch.eye(3, dtype=alpha.dtype, device=alpha.device)


def total_polarizability(atomic: Tensor, batch: Tensor, n_structures: int) -> Tensor:
    """Σ_i α_i, [n_structures, 3, 3], e² Å²/eV: what one-step response gives to a uniform field."""
    return atomic.new_zeros(n_structures, 3, 3).index_add(0, batch, atomic)


def electronic_polarizability(
    engine: Electrostatics,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    atomic: Tensor,
) -> Tensor:
    """The polarizability tensor of each structure in one-step response, [n_structures, 3, 3].

    In open structures Σ_i α_i, the second derivative of the energy by the field. In periodic ones
    the dipoles that a macroscopic field induces act on each other; to first order, as in the
    response to the permanent multipoles, that adds the local-field sum Σ_ij α_i T_ij α_j with the
    tin-foil T (Gaussians, without an atom's own; in slabs with the dipole correction).

    Args:
        engine: the model's electrostatics.
        positions, cell, pbc, batch: as of the engine.
        atomic: α_i, [n_atoms, 3, 3], e² Å²/eV.

    Returns:
        e² Å²/eV, differentiable.
    """
    n_structures = pbc.shape[0]
    bare = total_polarizability(atomic, batch, n_structures)
    if not bool(pbc.any()):
        return bare
    # The fields along x, y and z as three copies of the batch.
    dipoles = atomic.permute(2, 0, 1).reshape(-1, 3)
    copies = torch.cat([batch + a * n_structures for a in range(3)])
    result = engine(
        positions.repeat(3, 1),
        cell.repeat(3, 1, 1),
        pbc.repeat(3, 1),
        copies,
        Multipoles(torch.zeros_like(dipoles[:, 0]), dipoles),
    )
    assert result.field is not None
    field = result.field.view(3, -1, 3)
    local = torch.einsum("nbc,anc->nba", atomic, field)
    local = local * pbc.any(1)[batch, None, None]
    return bare + total_polarizability(local, batch, n_structures)


def electronic_permittivity(polarizability: Tensor, cell: Tensor) -> Tensor:
    """ε∞ = 1 + α/(eps0 V) of periodic structures, [n_structures, 3, 3].

    An estimate: of a model trained on energies and forces, what its induced dipoles screen. The
    rest of the screening is in its latent charges (see screening_factor).
    """
    volume = cell_volume(cell)[:, None, None]
    return torch.eye(3).to(polarizability) + polarizability / (EPS0 * volume)


def susceptibility(atomic: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor) -> Tensor:
    """χ = Σ_i tr α_i/(3 eps0 V), [n_structures]; zero where not periodic in three directions."""
    trace = torch.einsum("bii->b", total_polarizability(atomic, batch, pbc.shape[0]))
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


def neutral_slabs(multipoles: Multipoles, pbc: Tensor, batch: Tensor) -> Multipoles:
    """Shift the charges of each slab by the same number, so that they sum to zero.

    Args:
        multipoles: of n_atoms atoms.
        pbc: [n_structures, 3] bool; a slab has two of three.
        batch: [n_atoms] int64.
    """
    charge = multipoles.charge
    counts = count_atoms(batch, pbc.shape[0]).clamp(min=1)
    mean = charge.new_zeros(pbc.shape[0]).index_add(0, batch, charge) / counts
    shift = torch.where(pbc.sum(1) == 2, mean, 0.0)[batch]
    return replace(multipoles, charge=charge - shift)


def charge_shift(charge: Tensor, weight: Tensor, total_charge: Tensor, batch: Tensor) -> Tensor:
    """λ of each structure, [n_structures], such that charges + λ weight sum to the total charge.

    With the softness for weight this is the charges' response to a uniform potential.

    Args:
        charge, weight: [n_atoms].
        total_charge: [n_structures], e.
        batch: [n_atoms] int64.
    """
    sums = charge.new_zeros(2, total_charge.shape[0])
    sums = sums.index_add(1, batch, torch.stack([charge, weight]))
    return (total_charge - sums[0]) / sums[1].where(sums[1] > 0, 1.0)


def polarizability_derivatives(model: MultipoleMACE, data: dict[str, Tensor]) -> Tensor:
    """∂α_ac/∂r_ib of the electronic polarizability, [n_atoms, 3 (b), 3 (a), 3 (c)], e² Å/eV.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary.
    """
    data = dict(data)
    positions = data["positions"].detach().clone().requires_grad_(True)
    data["positions"] = positions
    total = model.electronic_polarizability(data).sum(0)
    out = positions.new_zeros(positions.shape[0], 3, 3, 3)
    if not total.requires_grad:
        return out
    for a in range(3):
        for c in range(a + 1):
            (slope,) = torch.autograd.grad(
                total[a, c], positions, retain_graph=True, allow_unused=True
            )
            if slope is not None:
                out[:, :, a, c] = out[:, :, c, a] = slope
    return out
