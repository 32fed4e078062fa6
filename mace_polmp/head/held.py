"""Weights of Born charges: values that are held while positions change.

Induced charges add up to w·b, with b for minus potential and field of the permanent multipoles and
w for what a uniform potential of minus a volt induces. In one step w is κ. In a self-consistent
response w = D y_w has dipoles, too, and its change with the coefficients is y_w·δD y, with y for
what drives the response. Sources then are permanent and induced multipoles together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics import Multipoles
from mace_polmp.electrostatics.coefficients import Couplings
from mace_polmp.electrostatics.equations import placeholders
from mace_polmp.electrostatics.self_consistent import with_induced
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.head.inputs import HeadOutput
from mace_polmp.head.long_range import LongRangeHead


@dataclass(frozen=True)
class Held:
    """Values that stay what they are while positions change, though not while parameters do.

    Attributes:
        acting: the multipoles that potentials come from, see acting.
        sites: −w, by which potentials are weighted; None without induced charges.
        uniform: y_w, [n_atoms, 4], V and V/Å, likewise None.
        drive: y, [n_atoms, 4], measured from its mean where induced charges sum to zero.
        weights: ∂(w·b)/∂m of each kind of permanent multipole.
        charge_shift: λ of constrain_charge, [n_structures], or None.
    """

    acting: Multipoles
    sites: Multipoles | None
    uniform: Tensor | None
    drive: Tensor | None
    weights: list[Tensor]
    charge_shift: Tensor | None

    def select(self, structures: Tensor, atoms: Tensor) -> Held:
        """Those of some structures.

        Args:
            structures: [n_structures] bool, which.
            atoms: the numbers of their atoms.
        """
        return Held(
            self.acting.select(atoms),
            None if self.sites is None else self.sites.select(atoms),
            None if self.uniform is None else self.uniform[atoms],
            None if self.drive is None else self.drive[atoms],
            [weight[atoms] for weight in self.weights],
            None if self.charge_shift is None else self.charge_shift[structures],
        )

    @classmethod
    def of(cls, head: LongRangeHead, seen: HeadOutput, training: bool) -> Held:
        """From what a forward pass gave; in training from one that does not see the positions."""
        softness = seen.response.softness
        kept = _unseen_all(acting(seen), training)
        if softness is None:
            return cls(kept, None, None, None, [], seen.charge_shift)
        potential, field = seen.result.potential, seen.result.field
        assert potential is not None and field is not None
        if seen.in_field is None:
            uniform = torch.zeros_like(seen.positions[:, :1]).expand(-1, 4).clone()
            uniform[:, 0] = 1.0
            w = torch.cat([softness[:, None], torch.zeros_like(seen.positions)], 1)
            drive = torch.cat([-potential[:, None], field], 1)
        else:
            uniform, w = seen.in_field.to_uniform_potential()
            assert seen.result.drive is not None
            drive = seen.result.drive
        w, uniform = unseen(w, training), unseen(uniform, training)
        induced = (w[:, 1:] * field).sum() - (w[:, 0] * potential).sum()
        weights = torch.autograd.grad(
            induced, _sources(seen.multipoles), retain_graph=True, create_graph=training
        )
        softness, drive = unseen(softness, training), unseen(drive, training)
        if head.options.conserves_charge:
            mean = _mean(softness, drive[:, 0], seen.sums)
            drive = torch.cat([drive[:, :1] - mean[:, None], drive[:, 1:]], 1)
        with_dipoles = seen.in_field is not None and seen.response.polarizability is not None
        sites = Multipoles(-w[:, 0], -w[:, 1:] if with_dipoles else None)
        held = [unseen(weight, training) for weight in weights]
        return cls(kept, sites, uniform, drive, held, seen.charge_shift)


def acting(out: HeadOutput) -> Multipoles:
    """The multipoles whose potential induces: all of them in a self-consistent response."""
    if out.in_field is None:
        return out.multipoles
    result = out.result
    induced = torch.cat([result.induced_charge[:, None], result.induced_dipole], 1)
    return with_induced(out.multipoles, induced, out.response.polarizability is not None)


def local_sum(held: Held, out: HeadOutput) -> Tensor:
    """The sum whose changes through edges change Σ (q + Δq): a scalar, linear in what is local.

    Σ q + y_w·D y + c·m, with c_l = ∂(w·b)/∂m_l of every source m_l, all weights held.
    """
    total = out.multipoles.charge.sum()
    if held.uniform is None or held.drive is None:
        return total
    for source, weight in zip(_sources(out.multipoles), held.weights, strict=True):
        total = total + (weight * source).sum()
    if out.in_field is None:
        softness = out.response.softness
        assert softness is not None
        return total + (held.drive[:, 0] * softness).sum()
    response = out.response
    couplings = Couplings(out.sums, True, response.polarizability is not None, None)
    coefficients = placeholders(response, out.multipoles.charge)
    return total + (held.uniform * couplings.induced(*coefficients, held.drive)).sum()


def unseen(tensor: Tensor, training: bool) -> Tensor:
    """Without derivatives, but for a training."""
    return tensor if training else tensor.detach()


def _unseen_all(multipoles: Multipoles, training: bool) -> Multipoles:
    dipole, quadrupole = (
        None if value is None else unseen(value, training)
        for value in (multipoles.dipole, multipoles.quadrupole)
    )
    return Multipoles(unseen(multipoles.charge, training), dipole, quadrupole)


def _sources(multipoles: Multipoles) -> list[Tensor]:
    return [value for value in vars(multipoles).values() if value is not None]


def _mean(softness: Tensor, values: Tensor, sums: AtomSums) -> Tensor:
    """Σκv/Σκ of each atom's structure, [n_atoms]."""
    total, weighted = sums.total(torch.stack([softness, softness * values], 1)).unbind(1)
    return sums.at_atoms(weighted / total.where(total > 0, 1.0))
