"""The long-range head on a plain invariant network: no tensors, no tensor products.

Atoms know their element; each of two layers sends messages along the edges, filtered by distance
and by the elements of both atoms. What directions the head needs it takes from the edges itself.

    python examples/other_backbones/plain_network.py --epochs 80 --output plain
"""

# %%
from __future__ import annotations

import math

import torch
from common import CUTOFF, ELEMENTS, Backbone, Features, Statistics, Structures, compare
from torch import Tensor

# %% [markdown]
# The network: h⁰_i depends on the element of atom i only, then, layer by layer,
#
# m_ic = Σ_j Σ_n B_n(r_ij) W_nc(Z_i, Z_j) (A h_j)_c,   h_i ← h_i + MLP(m_i),
#
# and at the end E_i = E0(Z_i) + MLP(h_i),
#
# with the radial functions B_n(r) = √(2/r_c) sin(nπr/r_c)/r times a polynomial that vanishes with
# two derivatives at the cutoff r_c.


# %%
class PlainNetwork(Backbone):
    """Sums of filtered messages and dense layers.

    Args:
        statistics: of the training data.
        seed: of its weights.
        width: features of an atom.
        n_layers: rounds of messages.
        n_radial: radial functions.
    """

    e0s: Tensor

    def __init__(
        self,
        statistics: Statistics,
        seed: int,
        width: int = 64,
        n_layers: int = 2,
        n_radial: int = 8,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer_irreps = [f"{width}x0e"] * n_layers
        self.n_radial = n_radial
        self.scale = statistics.force_rms
        self.norm = 1 / math.sqrt(statistics.avg_num_neighbors)
        self.register_buffer("e0s", torch.tensor(statistics.e0s))
        self.embedding = torch.nn.Embedding(len(ELEMENTS), width)
        shape = (n_layers, len(ELEMENTS) ** 2, n_radial, width)
        self.filters = torch.nn.Parameter(torch.randn(shape))
        self.senders = torch.nn.ModuleList(
            torch.nn.Linear(width, width, bias=False) for _ in range(n_layers)
        )
        self.updates = torch.nn.ModuleList(_dense(width, width) for _ in range(n_layers))
        self.energies = _dense(width, 1)

    def forward(self, structures: Structures, vectors: Tensor) -> Features:
        sender, receiver = structures.edges
        radial = self.radial_functions(torch.linalg.vector_norm(vectors, dim=1))
        pair = len(ELEMENTS) * structures.species[receiver] + structures.species[sender]
        h = self.embedding(structures.species)
        layers = []
        for filters, linear, update in zip(self.filters, self.senders, self.updates, strict=True):
            weights = torch.einsum("en,enc->ec", radial, filters[pair])
            messages = torch.zeros_like(h).index_add(0, receiver, weights * linear(h)[sender])
            h = h + update(self.norm * messages)
            layers.append(h)
        energy = self.e0s[structures.species] + self.scale * self.energies(h).squeeze(1)
        return Features(energy, torch.cat(layers, dim=1), radial)

    def radial_functions(self, lengths: Tensor) -> Tensor:
        """B_n of every edge, [n_edges, n_radial]."""
        n = torch.arange(1, self.n_radial + 1, dtype=lengths.dtype)
        x = lengths[:, None] / CUTOFF
        envelope = (1 - x.square()).clamp(min=0) ** 3
        return envelope * math.sqrt(2 / CUTOFF) * torch.sin(n * math.pi * x) / lengths[:, None]


def _dense(n_in: int, n_out: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(n_in, n_in), torch.nn.SiLU(), torch.nn.Linear(n_in, n_out)
    )


# %%
if __name__ == "__main__":
    compare("plain network", PlainNetwork, epochs=80, rate=0.005)
