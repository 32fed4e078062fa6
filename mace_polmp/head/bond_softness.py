"""Softness of bonds: how easily charge moves along the edges of the graph.

k_e = k_0 s_i s_j w(r_e) with positive scalars s of the atoms and a positive function w of the
distance that vanishes with two derivatives at the cutoff. It is the same of an edge and its
reverse, so that what one atom gains the other loses (electrostatics/bonds.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mace_polmp.electrostatics import BondResponse
from mace_polmp.head.convolutions import WIDTHS, Edges, within

# k_0, e²/eV: a bond of 1 Å with this softness has a polarizability of 0.05 e² Å²/eV (0.7 Å³).
_SIZE = 0.05
# w at the start: a bell of the size of covalent bonds, little beyond.
_START = (0.05, 1.0, 0.05, 0.05, 0.05)


class BondSoftness(torch.nn.Module):
    """k_e of edges from a positive scalar of each atom.

    Args:
        cutoff: the backbone's, Å.
    """

    widths: Tensor

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        dtype = torch.get_default_dtype()
        # softplus of these are the heights of the bells
        heights = torch.tensor([math.log(math.expm1(height)) for height in _START], dtype=dtype)
        self.radial = torch.nn.Parameter(heights)
        self.register_buffer("widths", torch.tensor(WIDTHS, dtype=dtype), persistent=False)

    def forward(self, scalars: Tensor, edges: Edges) -> BondResponse:
        """The edges with their softness.

        Args:
            scalars: s, [n_atoms], not negative.
            edges: of the graph, in both directions.
        """
        bells = within(edges, self.widths, self.cutoff)
        weights = bells @ torch.nn.functional.softplus(self.radial)
        senders = edges.of_senders(scalars[:, None])[:, 0]
        softness = _SIZE * (scalars[edges.index[1]] * senders) * weights
        return BondResponse(softness, edges.index, edges.vectors, edges.extend)
