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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from mace.modules.utils import get_edge_vectors_and_lengths
from torch import Tensor

from mace_polmp.electrostatics import ElectrostaticsResult, Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.packing import count_atoms
from mace_polmp.errors import InputError
from mace_polmp.modules.observables import (
    atomic_dipoles,
    polarizability_tensors,
    screening_factor,
    susceptibility,
    total_dipole,
)
from mace_polmp.modules.selection import select_structures
from mace_polmp.modules.tangents import Tangents

if TYPE_CHECKING:
    from mace_polmp.modules.model import MultipoleMACE


def born_charges(
    model: MultipoleMACE,
    data: dict[str, Tensor],
    epsilon_infinity: float | None = None,
    divide_by_chi: bool = False,
    sum_rule: bool = False,
    training: bool = False,
) -> Tensor:
    """Born effective charges of a batch of structures.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary, all structures open or all periodic.
        epsilon_infinity: electronic permittivity ε∞; charges of periodic structures are multiplied
            by √ε∞, which makes physical charges of latent ones. None for the model's own, 1 where
            it was not given or learned.
        divide_by_chi: divide them by √(1 + χ), see observables.screening_factor.
        sum_rule: enforce the acoustic sum rule, see enforce_sum_rule; data["total_charge"]
            [n_structures] is the charge of open structures, 0 if it is not there.
        training: keep what the derivative with respect to the model's parameters needs.

    Returns:
        [n_atoms, 3, 3], e; first index polarization, second displacement.

    Raises:
        InputError: a mixture of open and periodic structures; a slab; an impossible permittivity;
            or a backbone whose messages cannot be followed.
    """
    pbc = data["pbc"].reshape(-1, 3)
    periodic = pbc.all(-1)
    if bool((pbc.any(-1) & ~periodic).any()):
        raise InputError(
            "born_charges of a slab are not available in this version; set pbc to T T T"
        )
    if not bool(periodic.any()):
        charges = _open(model, data, training)
    elif bool(periodic.all()):
        unit = torch.eye(3, dtype=data["positions"].dtype, device=pbc.device)
        directions = unit[:, None].expand(-1, pbc.shape[0], -1)
        charges = _periodic(model, data, directions, training=training)
        charges = charges * _screening(model, data, epsilon_infinity, divide_by_chi)
    else:
        raise InputError("born_charges: give open and periodic structures in separate batches")
    if not sum_rule:
        return charges
    total = None if bool(periodic.any()) else data.get("total_charge")
    return enforce_sum_rule(charges, data["batch"], pbc.shape[0], total)


def labelled_born_charges(model: MultipoleMACE, data: dict[str, Tensor], training: bool) -> Tensor:
    """Born charges of the structures with a positive data["born_charges_weight"], else zero.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary, structures of any boundary conditions, with
            "born_charges_weight" [n_structures].
        training: as of born_charges.

    Returns:
        [n_atoms, 3, 3], e.
    """
    positions = data["positions"]
    out = positions.new_zeros(positions.shape[0], 3, 3)
    labelled = data["born_charges_weight"].view(-1) > 0
    periodic = data["pbc"].reshape(-1, 3).any(-1)
    for chosen in (labelled & periodic, labelled & ~periodic):
        if bool(chosen.any()):
            part, atoms = select_structures(data, chosen)
            out = out.index_copy(0, atoms, born_charges(model, part, training=training))
    return out


def _screening(
    model: MultipoleMACE,
    data: dict[str, Tensor],
    epsilon_infinity: float | None,
    divide_by_chi: bool,
) -> Tensor:
    """√ε_e of each atom's structure, [n_atoms, 1, 1]."""
    pbc, batch, chi = data["pbc"].reshape(-1, 3), data["batch"], None
    if divide_by_chi:
        with torch.no_grad():
            response = model.read_multipoles(data)[2]
        alpha = polarizability_tensors(response, batch.shape[0], data["positions"])
        chi = susceptibility(alpha, data["cell"].reshape(-1, 3, 3), pbc, batch)
    epsilon = model.epsilon_infinity if epsilon_infinity is None else epsilon_infinity
    factor = screening_factor(chi, pbc, epsilon).to(data["positions"].dtype)
    return factor[batch, None, None]


def acoustic_sum(charges: Tensor, batch: Tensor, n_structures: int) -> Tensor:
    """Σ_i Z*_i, [n_structures, 3, 3], e: zero for a neutral structure, else its charge times 1."""
    return charges.new_zeros(n_structures, 3, 3).index_add(0, batch, charges)


def enforce_sum_rule(
    charges: Tensor, batch: Tensor, n_structures: int, total_charge: Tensor | None = None
) -> Tensor:
    """Subtract from every atom the same tensor, so that Σ_i Z*_i is the total charge times 1.

    Args:
        charges: [n_atoms, 3, 3], e.
        batch: [n_atoms] int64.
        n_structures: the number of structures.
        total_charge: [n_structures], e; None for neutral structures.
    """
    excess = acoustic_sum(charges, batch, n_structures)
    if total_charge is not None:
        excess = excess - torch.diag_embed(total_charge[:, None].expand(-1, 3))
    counts = count_atoms(batch, n_structures).clamp(min=1)
    return charges - (excess / counts[:, None, None])[batch]


def _leaves(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of data with positions and shifts as leaves to differentiate by."""
    out = dict(data)
    for name in ("positions", "shifts"):
        out[name] = data[name].detach().clone().requires_grad_(True)
    return out


def _open(model: MultipoleMACE, data: dict[str, Tensor], training: bool) -> Tensor:
    """∂/∂r of Σ (q + Δq) r + Σ (μ + Δμ)."""
    data = _leaves(data)
    positions = data["positions"]
    _, multipoles, _, result = model.long_range(data)
    n_structures = data["ptr"].numel() - 1
    dipole = total_dipole(positions, data["batch"], n_structures, multipoles, result).sum(0)
    rows = [_gradient(dipole[a], positions, a < 2, training) for a in range(3)]
    return torch.stack(rows, dim=1)


def field_on_charges(model: MultipoleMACE, data: dict[str, Tensor], field: Tensor) -> Tensor:
    """Forces of a uniform field on the charges of periodic structures, [n_atoms, 3], eV/Å.

    Σ_a F_a Z*_{i,ab} without the dipoles' part of Z*, whose energy in the field is defined and
    part of the model's; induced charges included. Costs about as much as the forces.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary, all structures fully periodic.
        field: [n_structures, 3], V/Å.
    """
    return _periodic(model, data, field[None], dipoles=False)[:, 0]


@dataclass(frozen=True)
class _Held:
    """Values that stay what they are while positions change, though not while parameters do.

    Attributes:
        multipoles: the permanent multipoles.
        softness: κ, [n_atoms], or None without induced charges.
        potential: φ − φ̄, [n_atoms].
        weights: ∂(Σ −κφ)/∂m of each kind of multipole.
    """

    multipoles: Multipoles
    softness: Tensor | None
    potential: Tensor | None
    weights: list[Tensor]

    @classmethod
    def of(
        cls,
        model: MultipoleMACE,
        data: dict[str, Tensor],
        multipoles: Multipoles,
        softness: Tensor | None,
        potential: Tensor | None,
        training: bool,
    ) -> _Held:
        """From what a forward pass gave; in training from one that does not see the positions."""
        weights: list[Tensor] = []
        if softness is not None:
            assert potential is not None
            induced = -(_unseen(softness, training) * potential).sum()
            weights = [
                _unseen(weight, training)
                for weight in torch.autograd.grad(
                    induced, _sources(multipoles), retain_graph=True, create_graph=training
                )
            ]
            softness, potential = _unseen(softness, training), _unseen(potential, training)
            if model.long_range_options.conserves_charge:
                potential = potential - _mean(softness, potential, data)
        kept = {
            name: None if value is None else _unseen(value, training)
            for name, value in vars(multipoles).items()
        }
        return cls(Multipoles(**kept), softness, potential, weights)


def _unseen(tensor: Tensor, training: bool) -> Tensor:
    return tensor if training else tensor.detach()


def _sources(multipoles: Multipoles) -> list[Tensor]:
    return [value for value in vars(multipoles).values() if value is not None]


def _periodic(
    model: MultipoleMACE,
    data: dict[str, Tensor],
    directions: Tensor,
    dipoles: bool = True,
    training: bool = False,
) -> Tensor:
    """Σ_a d_a Z*_{i,ab} for directions d of the polarization, [n_atoms, n_directions, 3].

    Args:
        model, data, training: as of born_charges.
        directions: [n_directions, n_structures, 3].
        dipoles: whether to include the polarization of dipoles.
    """
    data = _leaves(data)
    data.pop("applied_field", None)
    positions, batch = data["positions"], data["batch"]
    sender, receiver = data["edge_index"][0], data["edge_index"][1]
    with torch.no_grad():
        vectors, _ = get_edge_vectors_and_lengths(
            positions=positions, edge_index=data["edge_index"], shifts=data["shifts"]
        )
    with torch.set_grad_enabled(training):
        shift = model.total_charge_shift(_leaves(data))
    with Tangents(model, vectors.shape[0]).on_messages() as tangents:
        _, multipoles, response, result = model.long_range(data, shift)
    seen = (multipoles, response.softness, result.potential)
    if training:
        _, *others = model.long_range(_leaves(data), shift)
        seen = (others[0], others[1].softness, others[2].potential)
    held = _Held.of(model, data, *seen, training)
    local = _local_sum(held, multipoles, response, result)
    moment = torch.zeros_like(directions[0])
    if dipoles:
        moment = moment.index_add(0, batch, atomic_dipoles(multipoles, result))
    if held.softness is not None:
        engine, cell = model.electrostatics, data["cell"].reshape(-1, 3, 3).detach()
        plan = engine.plan_of(cell, data["pbc"].reshape(-1, 3), batch)
        operator = engine.prepare(plan, positions, cell)
        moment = moment + operator.induced_charge_moment(multipoles, held.multipoles, held.softness)
    by_edge = _gradient(local, data["shifts"], True, training)
    charge = _unseen(multipoles.charge + result.induced_charge, training)
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
    return torch.stack(columns, dim=1)


def _local_sum(
    held: _Held,
    multipoles: Multipoles,
    response: ResponseCoefficients,
    result: ElectrostaticsResult,
) -> Tensor:
    """The sum whose changes through edges change Σ (q + Δq): a scalar, linear in what is local.

    Σ q − (φ − φ̄) κ + c·m, with c_l = ∂(Σ_j −κ_j φ_j)/∂m_l of every source m_l, all weights held.
    """
    total = multipoles.charge.sum()
    if response.softness is None:
        return total
    for source, weight in zip(_sources(multipoles), held.weights, strict=True):
        total = total + (weight * source).sum()
    return total - (held.potential * response.softness).sum()


def _mean(softness: Tensor, potential: Tensor, data: dict[str, Tensor]) -> Tensor:
    """φ̄ = Σκφ/Σκ of each atom's structure, [n_atoms]."""
    batch, zero = data["batch"], softness.new_zeros(data["ptr"].numel() - 1)
    total = zero.index_add(0, batch, softness)
    mean = zero.index_add(0, batch, softness * potential) / total.where(total > 0, 1.0)
    return mean[batch]


def _gradient(value: Tensor, leaf: Tensor, retain: bool, training: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        value, leaf, retain_graph=retain or training, create_graph=training, allow_unused=True
    )
    return torch.zeros_like(leaf) if gradient is None else gradient
