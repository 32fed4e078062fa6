"""Born effective charges Z*[i, a, b] = ∂(ΩP_a)/∂r_{i,b} that do not depend on the supercell.

The polarization is Ω P = Σ (q + Δq) r + Σ (μ + Δμ). Its dipole part is periodic and is simply
differentiated. For the charge part every atom j whose charge changes when i moves counts with the
vector from i to j's *right periodic image*,

    Z^q_{i,ab} = q_i δ_ab + Σ_{j, images} (r_j − r_i)_a ∂q_j/∂r_{i,b}.

A message-passing model gives that vector for nothing: a path from an edge to an atom runs over
edges, and their vectors add up to it. At every tensor m_e through which an edge e reaches its
receiver we replace m_e by stop(m_e) + (m_e − stop(m_e)) (1 + ε·D_e), with D_e the edge's vector
held constant and ε = 0. No value changes, but a derivative taken along a path picks up ε·(sum of
the vectors of the path). With A_e = ∂(Σ q)/∂D_e and C_e = ∂²(Σ q)/∂ε ∂D_e,

    Z^q_j = q_j 1 − Σ_{e: sender j} C_e + Σ_{e: receiver j} (C_e − D_e ⊗ A_e).

Scaling m_e itself would be wrong, since the blocks are not linear in the messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from mace.modules.utils import get_edge_vectors_and_lengths
from torch import Tensor

from mace_polmp.errors import InputError
from mace_polmp.modules.observables import atomic_dipoles, total_dipole

if TYPE_CHECKING:
    from mace_polmp.modules.model import MultipoleMACE


def born_charges(model: MultipoleMACE, data: dict[str, Tensor]) -> Tensor:
    """Born effective charges of a batch of structures.

    Args:
        model: a MultipoleMACE.
        data: upstream's batch dictionary, all structures open or all periodic.

    Returns:
        [n_atoms, 3, 3], e; first index polarization, second displacement.

    Raises:
        InputError: a mixture of open and periodic structures; a slab; a periodic structure with
            induced charges, whose polarization is not local; or a backbone whose messages cannot
            be followed.
    """
    pbc = data["pbc"].view(-1, 3)
    periodic = pbc.all(-1)
    if bool((pbc.any(-1) & ~periodic).any()):
        raise InputError(
            "born_charges of a slab are not available in this version; set pbc to T T T"
        )
    if not bool(periodic.any()):
        return _derivative_of_dipole(model, data)
    if not bool(periodic.all()):
        raise InputError("born_charges: give open and periodic structures in separate batches")
    if model.long_range_options.induces_charges:
        raise InputError(
            "born_charges of a periodic structure with induced charges are not available in this "
            "version: their polarization is not local. Train with --induced dipole or none"
        )
    return _derivative_of_dipole(model, data, charges=False) + _charge_part(model, data)


def _leaves(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of data with positions and shifts as leaves to differentiate by."""
    out = dict(data)
    for name in ("positions", "shifts"):
        out[name] = data[name].detach().clone().requires_grad_(True)
    return out


def _derivative_of_dipole(
    model: MultipoleMACE, data: dict[str, Tensor], charges: bool = True
) -> Tensor:
    """∂/∂r of Σ (q + Δq) r + Σ (μ + Δμ), or of its second sum alone."""
    data = _leaves(data)
    positions = data["positions"]
    _, multipoles, _, result = model.long_range(data)
    if charges:
        n_structures = data["ptr"].numel() - 1
        dipole = total_dipole(positions, data["batch"], n_structures, multipoles, result).sum(0)
    else:
        dipole = atomic_dipoles(multipoles, result).sum(0)
    rows = [_gradient(dipole[a], positions, retain=a < 2) for a in range(3)]
    return torch.stack(rows, dim=1)


def _charge_part(model: MultipoleMACE, data: dict[str, Tensor]) -> Tensor:
    data = _leaves(data)
    sender, receiver = data["edge_index"]
    vectors, _ = get_edge_vectors_and_lengths(
        positions=data["positions"].detach(),
        edge_index=data["edge_index"],
        shifts=data["shifts"].detach(),
    )
    epsilon = torch.zeros(3, dtype=vectors.dtype, device=vectors.device, requires_grad=True)
    with _scaled_tangents(model, 1.0 + vectors @ epsilon):
        charge = model.read_multipoles(data)[1].charge
    total = charge.sum()
    out = torch.diag_embed(charge.detach()[:, None].expand(-1, 3)).contiguous()
    if sender.numel() == 0:
        return out
    # An edge vector is r_receiver − r_sender + shift: its derivative is that of the shift.
    first = _gradient(total, data["shifts"], retain=True)
    (along,) = torch.autograd.grad(total, epsilon, create_graph=True)
    second = [_gradient(along[a], data["shifts"], retain=a < 2) for a in range(3)]
    c = torch.stack(second, dim=1)  # [n_edges, ε, D]
    out = out.index_add(0, sender, -c)
    return out.index_add(0, receiver, c - vectors[:, :, None] * first[:, None, :])


def _gradient(value: Tensor, leaf: Tensor, retain: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient.detach()


@contextmanager
def _scaled_tangents(model: MultipoleMACE, factor: Tensor) -> Iterator[None]:
    """Scale the tangents of what every edge sends to its receiver by factor [n_edges]."""

    def scale(module: Any, inputs: Any, output: Tensor) -> Tensor:
        if output.shape[0] != factor.shape[0]:
            raise InputError(
                "born_charges: this backbone fuses its messages over edges; use a model that is "
                "not converted for an accelerator"
            )
        stopped = output.detach()
        return stopped + (output - stopped) * factor.view(-1, *([1] * (output.dim() - 1)))

    hooks = [module.register_forward_hook(scale) for module in _carriers(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _carriers(model: MultipoleMACE) -> list[torch.nn.Module]:
    """The modules whose outputs, one row per edge, are next summed over the edges of a receiver."""
    carriers: list[torch.nn.Module] = []
    for interaction in model.interactions:
        children = dict(interaction.named_children())
        carriers.append(children["conv_tp"])
        if "density_fn" in children:
            if not model.apply_cutoff:
                raise InputError(
                    "born_charges: density-normalised blocks with --apply_cutoff False are not "
                    "supported in periodic structures"
                )
            carriers.append(children["density_fn"])
    lift = model.multipole_readouts.lift
    if lift is not None:
        carriers.append(lift.messages)
    return carriers
