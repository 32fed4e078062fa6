"""Where induced charges sit when a source changes: first moments in the long-wavelength limit.

An induced charge Δq_j = −κ_j φ_j answers to every source in the crystal, however far. The
polarization that this makes is defined by a displacement of wave vector p → 0 with the macroscopic
field, the wave k = p of the Coulomb sum, held at zero (tin-foil: it is the boundary condition of
Born charges). All other waves k = p + G are smooth in p, and to first order in p each source l and
site j count with the vector between them,

    H_a = Σ_{j, l, images} −κ_j (r_j − r_l)_a (L_l f)(r_j − r_l).

The kernel r_a f(r) has the transform i ∂f/∂k_a, so with T = Σ_j −κ_j e^{ik·r_j}, the structure
factor S of the sources and S^a = Σ_l (μ_a + i k·Q_a)_l e^{ik·r_l}

    H_a = 1/(eps0 V) Σ_k e^{−σ²k²/2}/k² [k_a (σ² + 2/k²) Im(T S*) + Re(T S^a*)],

which does not depend on the supercell. In a self-consistent response every site has a dipole as
well: what weighs φ_j is then a multipole −w_j, T = Σ_j −(w + i k·w_μ)_j e^{ik·r_j}, and
T^a = Σ_j −(w_μa)_j e^{ik·r_j} adds −Re(T^a S*).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.products import small_product
from mace_polmp.electrostatics.reciprocal import Lattice, Solver


def induced_charge_moment(
    lattice: Lattice,
    solver: Solver,
    moves: Tensor,
    multipoles: Multipoles,
    held: Multipoles,
    weights: Multipoles,
) -> Tensor:
    """H [n_structures, 3], e Å, for its derivatives: its value has no meaning.

    Its derivative with respect to a source, a position or a multipole, is the sum of
    (r_j − r_l) ∂Δq_j over all sites j and images; weights and sites are held.

    Args:
        lattice: of the atoms at their positions, with cells that have no derivative.
        solver: of structure factors at these sites.
        moves: [n_atoms, 3], Å: zero, with the derivative of the positions.
        multipoles: what potentials come from.
        held: the same with no derivative with respect to positions.
        weights: what weighs potentials and fields at the sites, −κ in one step, likewise held.
    """
    sites = lattice.fraction.detach()
    weight = lattice.geometry.weight
    response = solver.structure_factor(sites, lattice.moments(weights))

    def overlap(sources: Multipoles, fraction: Tensor) -> Tensor:
        """T S*, complex, for sources at a fraction."""
        factor = solver.structure_factor(fraction, lattice.moments(sources))
        return response * factor.conj()

    product = overlap(multipoles, lattice.fraction)
    weighted = lattice.geometry.slope * product.imag
    orders = _orders(lattice.geometry.limits, weighted)
    by_order = torch.stack([(n * weighted).sum((1, 2)) for n in orders], dim=1)
    # k = 2π n·(inverse cell)ᵀ
    inverse = lattice.geometry.inverse
    moment = 2.0 * math.pi * small_product(inverse, by_order[..., None]).squeeze(-1)

    if multipoles.dipole is not None:
        quadrupole = multipoles.quadrupole
        columns = [
            overlap(
                Multipoles(
                    multipoles.dipole[:, a], None if quadrupole is None else quadrupole[:, a]
                ),
                lattice.fraction,
            ).real
            for a in range(3)
        ]
        moment = moment + torch.stack([(weight * c).sum((1, 2)) for c in columns], dim=1)
    if weights.dipole is not None:
        factor = solver.structure_factor(lattice.fraction, lattice.moments(multipoles)).conj()
        of_sites = [
            (solver.structure_factor(sites, weights.dipole[:, a, None]) * factor).real
            for a in range(3)
        ]
        moment = moment - torch.stack([(weight * c).sum((1, 2)) for c in of_sites], dim=1)
    # The vector is between atoms and is held while a source moves: undo what moves with it.
    energies = _interaction(held, lambda sources: weight * overlap(sources, sites).real)
    return moment + lattice.sums.total(moves * energies[:, None])


def _orders(limits: tuple[int, int, int], like: Tensor) -> list[Tensor]:
    """n_1, n_2 and n_3 of every wave vector, each to broadcast to [n_1 n_2, n_3]."""
    n1, n2, n3 = (
        torch.arange(low, n + 1, dtype=like.dtype, device=like.device)
        for low, n in zip((-limits[0], -limits[1], 0), limits, strict=True)
    )
    n12 = torch.cartesian_prod(n1, n2)
    return [n12[:, :1], n12[:, 1:], n3]


def _interaction(multipoles: Multipoles, energy: Callable[[Multipoles], Tensor]) -> Tensor:
    """What each source contributes to an energy that is linear in the sources, [n_atoms]."""
    with torch.enable_grad():
        values = {name: value for name, value in vars(multipoles).items() if value is not None}
        leaves = {name: value.detach().requires_grad_(True) for name, value in values.items()}
        total = energy(Multipoles(**leaves)).sum()
        # Slopes do not depend on the sources, but on the weights, which training adapts.
        slopes = torch.autograd.grad(total, list(leaves.values()), create_graph=True)
    parts = [
        (slope * value).flatten(1).sum(1) if value.dim() > 1 else slope * value
        for slope, value in zip(slopes, values.values(), strict=True)
    ]
    return torch.stack(parts).sum(0)
