"""Born effective charges Z*[i, a, b] = ∂(ΩP_a)/∂r_{i,b} that do not depend on the supercell.

The polarization is Ω P = Σ (q + Δq) r + Σ (μ + Δμ). Its dipole part is periodic and is simply
differentiated. For the charge part every atom j whose charge changes when i moves counts with the
vector from i to j's *right periodic image*,

    Z^q_{i,ab} = q_i δ_ab + Σ_{j, images} (r_j − r_i)_a ∂q_j/∂r_{i,b}.

A message-passing model gives that vector for nothing: a path from an edge to an atom runs over
edges, and their vectors D_e add up to it. Let the tangent of every tensor m_e through which an edge
reaches its receiver be multiplied by 1 + ε·D_e, with ε → 0: no value changes, and what a derivative
picks up in first order of ε is the sum of the vectors of its path. (Scaling m_e itself would be
wrong, since the blocks are not linear in the messages.) In a backward pass this is an addition to
the gradients at the messages. With λ the gradients of Σ q, of one ordinary backward pass that also
gives A_e = ∂(Σ q)/∂D_e, the pass for ε_a starts from zero and adds D_{e,a} λ_e at every message;
what arrives at the positions is G_{i,ab}, and

    Z^q_{i,ab} = q_i δ_ab + G_{i,ab} − Σ_{e: receiver i} D_{e,a} A_{e,b}.

The last sum takes back the edge's own vector where it is the receiver that moves. Four backward
passes in all, which also carry the dipole part.

Induced charges Δq_j = −κ_j (φ_j − φ̄) are not local. Their first-order changes are −(φ_j − φ̄) δκ_j,
local like q; −κ_j δφ_j with δφ_j from sources m_l, whose vectors are those to l along edges, then
from l to j through the Coulomb sum. The latter is taken in the long-wavelength limit at zero
macroscopic field (electrostatics/long_wavelength.py). δφ̄ is uniform and carries no polarization.

A self-consistent response x = K b is the same with other weights, see held.py: what a uniform
potential induces takes the place of κ, and permanent and induced multipoles together that of the
sources.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mace_polmp.electrostatics import Plan
from mace_polmp.errors import InputError
from mace_polmp.head.held import Held, acting, local_sum, unseen
from mace_polmp.head.inputs import HeadOutput
from mace_polmp.head.long_range import LongRangeHead
from mace_polmp.head.observables import screening_factor, susceptibility
from mace_polmp.head.sum_rule import enforce_sum_rule
from mace_polmp.head.tangents import Tangents


@dataclass(frozen=True, eq=False)
class Structures:
    """Structures whose Born charges are wanted.

    Attributes:
        positions: [n_atoms, 3], Å.
        shifts: [n_edges, 3], Å: lattice vectors that an edge crosses; its vector is
            positions[receiver] − positions[sender] + shifts.
        edge_index: [2, n_edges], sender and receiver.
        cell: [n_structures, 3, 3], Å.
        pbc: [n_structures, 3] bool.
        batch: [n_atoms] int64.
        total_charge: [n_structures], e, of the sum rule; None for 0.
        plan: of the electrostatics; None to make one.
    """

    positions: Tensor
    shifts: Tensor
    edge_index: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    total_charge: Tensor | None = None
    plan: Plan | None = None


class Backbone(Protocol):
    """A model with a long-range head, at given structures."""

    head: LongRangeHead
    structures: Structures

    def head_output(
        self,
        positions: Tensor,
        shifts: Tensor,
        shift: Tensor | None = None,
        hold_shift: bool = False,
        in_field: bool = False,
    ) -> HeadOutput:
        """The head's output for these positions and edge shifts.

        Args:
            positions, shifts: as of the structures, with derivatives.
            shift, hold_shift: as of LongRangeHead.read.
            in_field: with the external field, if there is one.
        """
        ...

    def followed(self, n_edges: int) -> AbstractContextManager[Tangents]:
        """Follow the messages of the forward passes in this context."""
        ...


def born_charges(
    backbone: Backbone,
    epsilon_infinity: float | None = None,
    divide_by_chi: bool = False,
    sum_rule: bool = False,
    training: bool = False,
    known: Held | None = None,
) -> Tensor:
    """Born effective charges of a batch of structures.

    Args:
        backbone: a model at structures that are all open or all periodic.
        epsilon_infinity: electronic permittivity ε∞; charges of periodic structures are multiplied
            by √ε∞, which makes physical charges of latent ones. None for the model's own, 1 where
            it was not given or learned.
        divide_by_chi: divide them by √(1 + χ), see observables.screening_factor.
        sum_rule: enforce the acoustic sum rule, see enforce_sum_rule.
        training: keep what the derivative with respect to the model's parameters needs.
        known: held values of the same structures from another pass, which spares one in training.

    Returns:
        [n_atoms, 3, 3], e; first index polarization, second displacement.

    Raises:
        InputError: an impossible permittivity; and where the polarization of periodic structures
            is not defined (LongRangeOptions.defines_polarization) a mixture of open and periodic
            structures, a slab, or a backbone whose messages cannot be followed.
    """
    structures = backbone.structures
    pbc = structures.pbc
    unit = torch.eye(3, dtype=structures.positions.dtype, device=pbc.device)
    directions = unit[:, None].expand(-1, pbc.shape[0], -1)
    charges = born_charges_along(
        backbone, directions, epsilon_infinity, divide_by_chi, training, known
    )
    if not sum_rule:
        return charges
    total = structures.total_charge
    total = None if total is None else torch.where(pbc.any(1), 0.0, total)
    return enforce_sum_rule(charges, structures.batch, pbc.shape[0], total)


def born_charges_along(
    backbone: Backbone,
    directions: Tensor,
    epsilon_infinity: float | None = None,
    divide_by_chi: bool = False,
    training: bool = False,
    known: Held | None = None,
) -> Tensor:
    """Σ_a d_a Z*_{i,ab} for a few directions d of the polarization, each for one backward pass.

    Args:
        backbone, epsilon_infinity, divide_by_chi, training, known: as of born_charges.
        directions: [n_directions, n_structures, 3].

    Returns:
        [n_atoms, n_directions, 3], e.

    Raises:
        InputError: as born_charges.
    """
    pbc = backbone.structures.pbc
    periodic = pbc.all(-1)
    if backbone.head.options.defines_polarization or not bool(pbc.any()):
        charges, out = _of_dipole(backbone, directions, training)
    elif bool((pbc.any(-1) & ~periodic).any()):
        raise InputError(
            "born_charges of a slab need a model with --charge_readout bond; or set pbc to T T T"
        )
    elif not bool(periodic.all()):
        raise InputError("born_charges: give open and periodic structures in separate batches")
    else:
        charges, out = _periodic(backbone, directions, training=training, known=known)
    return charges * _screening(backbone, out, epsilon_infinity, divide_by_chi)


def _screening(
    backbone: Backbone, out: HeadOutput, epsilon_infinity: float | None, divide_by_chi: bool
) -> Tensor:
    """√ε_e of each atom's structure, [n_atoms, 1, 1]."""
    structures, chi = backbone.structures, None
    batch, positions = structures.batch, structures.positions
    if divide_by_chi:
        with torch.no_grad():
            chi = susceptibility(out.polarizability, structures.cell, structures.pbc)
    epsilon = backbone.head.epsilon_infinity if epsilon_infinity is None else epsilon_infinity
    factor = screening_factor(chi, structures.pbc, epsilon).to(positions.dtype)
    return factor[batch, None, None]


def _leaves(structures: Structures) -> tuple[Tensor, Tensor]:
    """Positions and shifts to differentiate by."""
    positions, shifts = (
        x.detach().clone().requires_grad_(True) for x in (structures.positions, structures.shifts)
    )
    return positions, shifts


def _of_dipole(backbone: Backbone, directions: Tensor, training: bool) -> tuple[Tensor, HeadOutput]:
    """∂/∂r of a dipole that needs no choice of images, along directions, and the output."""
    positions, shifts = _leaves(backbone.structures)
    out = backbone.head_output(positions, shifts, in_field=True)
    moments = torch.einsum("sa,ksa->k", out.dipole, directions)
    last = len(directions) - 1
    rows = [_gradient(moments[k], positions, k < last, training) for k in range(last + 1)]
    return torch.stack(rows, dim=1), out


def field_on_charges(
    backbone: Backbone, field: Tensor, epsilon_infinity: float | None = None
) -> Tensor:
    """Forces of a uniform field on the charges of periodic structures, [n_atoms, 3], eV/Å.

    Σ_a F_a Z*_{i,ab} without the dipoles' part of Z*, whose energy in the field is defined and
    part of the model's; induced charges included. Costs about as much as the forces.

    Args:
        backbone: a model at fully periodic structures.
        field: [n_structures, 3], V/Å.
        epsilon_infinity: as of born_charges.
    """
    charges, out = _periodic(backbone, field[None], dipoles=False)
    return (charges * _screening(backbone, out, epsilon_infinity, False))[:, 0]


def _periodic(
    backbone: Backbone,
    directions: Tensor,
    dipoles: bool = True,
    training: bool = False,
    known: Held | None = None,
) -> tuple[Tensor, HeadOutput]:
    """Σ_a d_a Z*_{i,ab} for directions d of the polarization, [n_atoms, n_directions, 3].

    Args:
        backbone, training, known: as of born_charges.
        directions: [n_directions, n_structures, 3].
        dipoles: whether to include the polarization of dipoles.

    Returns:
        The tensors, and the head's output.
    """
    structures = backbone.structures
    positions, shifts = _leaves(structures)
    sender, receiver = structures.edge_index[0], structures.edge_index[1]
    with torch.no_grad():
        vectors = structures.positions[receiver] - structures.positions[sender] + structures.shifts
    held = known
    if training and held is None:  # values that follow the parameters, not the positions
        held = Held.of(backbone.head, backbone.head_output(*_leaves(structures)), training)
    with backbone.followed(vectors.shape[0]) as tangents:
        # λ of charge constraints is uniform: its change carries no polarization.
        shift = None if held is None else held.charge_shift
        out = backbone.head_output(positions, shifts, shift, hold_shift=True)
    if held is None:
        held = Held.of(backbone.head, out, training)
    local = local_sum(held, out)
    moment = torch.zeros_like(directions[0])
    if dipoles:
        moment = moment + out.sums.total(out.atomic_dipoles)
    if held.sites is not None:
        engine, cell = backbone.head.electrostatics, structures.cell.detach()
        plan = structures.plan
        if plan is None:
            plan = engine.plan_of(cell, structures.pbc, structures.batch)
        operator = engine.prepare(plan, positions, cell)
        moment = moment + operator.induced_charge_moment(acting(out), held.acting, held.sites)
    by_edge = _gradient(local, shifts, True, training)
    charge = unseen(out.charges, training)
    batch = structures.batch
    columns = []
    for number, direction in enumerate(directions):
        projected = (vectors * direction[batch[sender]]).sum(-1)
        tangents.projected = projected
        # Zero times the local sum: its paths are walked, and gain what is added at the messages.
        value = (moment * direction).sum() + 0.0 * local
        column = _gradient(value, positions, number + 1 < len(directions), training)
        column = column.index_add(0, receiver, -projected[:, None] * by_edge)
        columns.append(column + charge[:, None] * direction[batch])
    tangents.finished = True
    return torch.stack(columns, dim=1), out


def _gradient(value: Tensor, leaf: Tensor, retain: bool, training: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        value, leaf, retain_graph=retain or training, create_graph=training, allow_unused=True
    )
    return torch.zeros_like(leaf) if gradient is None else gradient
