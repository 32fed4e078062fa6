"""Convolutions of node scalars along the edges of the graph: what readouts need beyond atoms.

Charge that moves along edges has a dipole that needs no choice of periodic images. With t_e the
charge that edge e = (j → i) brings to its receiver i, and −t_e on the reversed edge,

    q_i = f_i + Σ_{e → i} t_e        D = Σ f_i r_i + ½ Σ_e t_e r_e

where r_e = r_i − r_j is the vector of the edge, across cell boundaries where it crosses them, and
f_i is a constant of the element. In an open structure D is Σ q r. In a periodic one Σ q r depends
on which image of an atom is written down; D does not where all f are zero, and otherwise by f times
lattice vectors, as a polarization must. It has an energy −D·F in a uniform field, and its
derivatives by positions are Born charges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from mace_polmp.head.electronegativity import electropositivity

HIDDEN = 32
CHANNELS = 16

# Widths of the bells that what moves along edges decays with, Å. Charge transfer starts with so
# much (e) along the second of them per unit of electronegativity; size of everything else then.
WIDTHS = (1.0, 1.5, 2.2, 3.2, 4.5)
_BOND, _BOND_CHARGE, _OTHERS = 1, 0.2, 0.3


@dataclass(frozen=True)
class Edges:
    """The edges of the graph as the lift sees them.

    Attributes:
        index: [2, n_edges], sender and receiver.
        vectors: [n_edges, 3], receiver minus sender, Å.
        features: [n_edges, n_radial], the backbone's radial embedding, zero at the cutoff.
        cutoff: [n_edges, 1], the backbone's cutoff function where features do not contain it.
        lengths: [n_edges, 1], of the vectors, where the backbone has them.
        harmonics: [n_edges, (l + 1)²], real spherical harmonics of the vectors' directions of
            degrees 0 … l, e3nn's with normalization "component", where the backbone has them.
        extend: where senders have more rows than there are atoms here, what makes the rows of
            senders from those of atoms: see parallel/halo.py.
    """

    index: Tensor
    vectors: Tensor
    features: Tensor
    cutoff: Tensor | None = None
    harmonics: Tensor | None = None
    lengths: Tensor | None = None
    extend: Callable[[Tensor], Tensor] | None = None

    def of_senders(self, of_atoms: Tensor) -> Tensor:
        """The rows of atoms at the sender of each edge, [n_edges, n]."""
        rows = of_atoms if self.extend is None else self.extend(of_atoms)
        return rows[self.index[0]]


def sum_over(messages: Tensor, receiver: Tensor, n_atoms: int) -> Tensor:
    """The sum of the messages to each atom, [n_atoms, n]."""
    return messages.new_zeros(n_atoms, messages.shape[1]).index_add(0, receiver, messages)


class EquivariantLift(torch.nn.Module):
    """V_i[c, lm] = Σ_j R_cl(r_ij) h_jc Y_lm(r_ij)/√(mean number of neighbours).

    Args:
        n_scalars: node scalars it reads.
        n_radial: width of the radial embedding.
        degrees: the l wanted.
        avg_num_neighbors: the backbone's.
    """

    def __init__(
        self, n_scalars: int, n_radial: int, degrees: list[int], avg_num_neighbors: float
    ) -> None:
        super().__init__()
        self.degrees = degrees
        self.norm = 1.0 / math.sqrt(max(avg_num_neighbors, 1.0))
        self.node_linear = torch.nn.Linear(n_scalars, CHANNELS)
        # No bias: with the radial embedding the messages vanish smoothly at the cutoff.
        self.radial = torch.nn.Sequential(
            torch.nn.Linear(n_radial, HIDDEN, bias=False),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, CHANNELS * len(degrees), bias=False),
        )
        self.messages = torch.nn.Identity()  # what passes here is one message per edge
        self.harmonics = o3.SphericalHarmonics(degrees, normalize=True, normalization="component")

    def take_over(self, other: EquivariantLift) -> None:
        """Become what another lift of the same backbone is, for the degrees that it has."""
        self.node_linear.load_state_dict(other.node_linear.state_dict())
        self.radial[0].load_state_dict(other.radial[0].state_dict())
        outer, former = self.radial[-1], other.radial[-1]
        assert isinstance(outer, torch.nn.Linear) and isinstance(former, torch.nn.Linear)
        last, before = outer.weight, former.weight
        with torch.no_grad():
            for position, degree in enumerate(other.degrees):
                if degree in self.degrees:
                    mine = self.degrees.index(degree) * CHANNELS
                    rows = before[position * CHANNELS : (position + 1) * CHANNELS]
                    last[mine : mine + CHANNELS] = rows.to(last)

    def forward(self, scalars: Tensor, edges: Edges) -> dict[int, Tensor]:
        """{l: [n_atoms, channels, 2l + 1]}."""
        receiver = edges.index[1]
        radial = self.radial(edges.features)
        if edges.cutoff is not None:
            radial = radial * edges.cutoff
        weights = radial.view(-1, len(self.degrees), CHANNELS)
        weights = weights * edges.of_senders(self.norm * self.node_linear(scalars))[:, None]
        harmonics, start = edges.harmonics, 0
        known = harmonics is not None and harmonics.shape[1] >= (max(self.degrees) + 1) ** 2
        if harmonics is None or not known:
            harmonics = self.harmonics(edges.vectors)
        out = {}
        for position, degree in enumerate(self.degrees):
            width = 2 * degree + 1
            start = degree**2 if known else start
            part = harmonics[:, None, start : start + width]
            messages = self.messages((weights[:, position, :, None] * part).flatten(1))
            out[degree] = sum_over(messages, receiver, scalars.shape[0]).view(-1, CHANNELS, width)
            start += width
        return out


@dataclass(frozen=True, eq=False)
class Pairs:
    """What charge transfer reads of the atoms, [n_atoms, n_channels] each.

    Attributes:
        first, second: a and b of q_i = Σ_j Σ_c w_c(r_ij) (b_ic a_jc − a_ic b_jc).
    """

    first: Tensor
    second: Tensor


class ChargeTransfer(torch.nn.Module):
    """Charges that move along edges: q_i = Σ_j Σ_c w_c(r_ij) (b_ic a_jc − a_ic b_jc).

    What one atom gains another loses: the charges of every molecule out of reach of others sum to
    zero whatever the weights, which sums of independent atomic charges learn only slowly. a and b
    are linear in the node scalars with a constant for each element; w_c is a sum of Gaussians times
    a polynomial that vanishes with two derivatives at the cutoff. The start moves charge to the
    more electronegative atom of a bond.

    Args:
        n_scalars: node scalars it reads.
        atomic_numbers: the model's elements.
        cutoff: the backbone's, Å.
        is_driven: whether there is one more channel, whose a is given and whose b is 1: charge
            that moves by the difference of what is given.
    """

    widths: Tensor

    def __init__(
        self,
        n_scalars: int,
        atomic_numbers: list[int],
        cutoff: float,
        is_driven: bool = False,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.node_linear = torch.nn.Linear(n_scalars, 2 * CHANNELS, bias=False)
        self.element_bias = torch.nn.Parameter(torch.zeros(len(atomic_numbers), 2 * CHANNELS))
        n_channels = CHANNELS + int(is_driven)
        self.radial = torch.nn.Parameter(_OTHERS * torch.randn(len(WIDTHS), n_channels))
        self.messages = torch.nn.Identity()  # what passes here is one message per edge
        dtype = torch.get_default_dtype()
        self.register_buffer("widths", torch.tensor(WIDTHS, dtype=dtype), persistent=False)
        with torch.no_grad():
            self.node_linear.weight *= _OTHERS
            self.node_linear.weight[[0, CHANNELS]] = 0.0
            start = torch.tensor(electropositivity(atomic_numbers), dtype=dtype)
            self.element_bias[:, 0] = -_BOND_CHARGE * start
            self.element_bias[:, CHANNELS] = 1.0
            self.radial[:, 0] = 0.0
            self.radial[_BOND, 0] = 1.0

    def rescale(self, scale: float) -> None:
        """Multiply the charges by a factor."""
        with torch.no_grad():
            self.radial.mul_(scale)

    def take_over(self, other: ChargeTransfer, columns: list[int]) -> None:
        """Become what another one of the same backbone is.

        Args:
            other: the other one.
            columns: of each own element, its place among those of the other.
        """
        with torch.no_grad():
            self.node_linear.load_state_dict(other.node_linear.state_dict())
            self.radial.copy_(other.radial)
            self.element_bias.copy_(other.element_bias[columns])

    def pairs(self, scalars: Tensor, node_attrs: Tensor, drive: Tensor | None = None) -> Pairs:
        """a and b of the atoms.

        Args:
            scalars: [n_atoms, n_scalars].
            node_attrs: [n_atoms, n_elements], one-hot.
            drive: a of the last channel, [n_atoms], where it is driven.
        """
        first, second = (self.node_linear(scalars) + node_attrs @ self.element_bias).chunk(2, dim=1)
        if drive is not None:
            first = torch.cat([first, drive[:, None]], dim=1)
            second = torch.cat([second, torch.ones_like(drive)[:, None]], dim=1)
        return Pairs(first, second)

    def forward(self, pairs: Pairs, edges: Edges) -> Tensor:
        """Charges, [n_atoms], e."""
        weights = self._weights(edges)
        both = torch.cat([pairs.first, pairs.second], dim=1)
        messages = self.messages(weights.repeat(1, 2) * edges.of_senders(both))
        sum_a, sum_b = sum_over(messages, edges.index[1], both.shape[0]).chunk(2, dim=1)
        charges: Tensor = (pairs.second * sum_a - pairs.first * sum_b).sum(1)
        return charges

    def along_edges(self, pairs: Pairs, edges: Edges) -> Tensor:
        """t_e, the charge that each edge brings to its receiver, [n_edges], e."""
        both = torch.cat([pairs.first, pairs.second], dim=1)
        a_sender, b_sender = edges.of_senders(both).chunk(2, dim=1)
        receiver = edges.index[1]
        moved = pairs.second[receiver] * a_sender - pairs.first[receiver] * b_sender
        return (self._weights(edges) * moved).sum(1)

    def _weights(self, edges: Edges) -> Tensor:
        """w_c of each edge, [n_edges, n_channels]."""
        return within(edges, self.widths, self.cutoff) @ self.radial


def within(edges: Edges, widths: Tensor, cutoff: float) -> Tensor:
    """Bells that vanish with two derivatives at the cutoff, [n_edges, n_widths].

    Args:
        edges: of the graph.
        widths: [n_widths], Å.
        cutoff: Å.
    """
    lengths = edges.lengths
    if lengths is None:
        lengths = torch.linalg.vector_norm(edges.vectors, dim=-1, keepdim=True)
    inside = (1.0 - (lengths / cutoff) ** 2).clamp(min=0.0) ** 3
    return torch.exp(-((lengths / widths) ** 2)) * inside


def moments_of_bonds(along_edges: Tensor, edges: Edges, n_atoms: int) -> Tensor:
    """½ Σ_{e → i} t_e r_e of each receiver, [n_atoms, 3], e Å.

    Args:
        along_edges: t_e, [n_edges], e.
        edges: of the graph, in both directions.
        n_atoms: the number of receivers.
    """
    return sum_over(0.5 * along_edges[:, None] * edges.vectors, edges.index[1], n_atoms)
