"""The long-range head on NequIP.

    python examples/other_backbones/nequip_backbone.py --epochs 60 --output nequip

NequIP: Batzner et al., Nat. Commun. 13, 2453 (2022), doi:10.1038/s41467-022-29939-5.
"""

# %%
from __future__ import annotations

import torch
from ase.data import chemical_symbols
from common import CUTOFF, ELEMENTS, Backbone, Features, Statistics, Structures, compare
from nequip.data import AtomicDataDict as Keys
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from torch import Tensor

# NequIP sets torch up for itself, seeds and dtype included, before it builds a model.
set_global_state()

SYMBOLS = [chemical_symbols[z] for z in ELEMENTS]

# %% [markdown]
# NequIP is a row of modules that hand on a dictionary. The adapter calls one after the other and
# keeps the node features that each interaction layer leaves there; those of the last are scalars.


# %%
def as_nequip(structures: Structures, vectors: Tensor) -> dict[str, Tensor]:
    """The batch as NequIP's dictionary; an edge there starts at the receiver."""
    return {
        Keys.POSITIONS_KEY: structures.positions,
        Keys.ATOM_TYPE_KEY: structures.species,
        Keys.EDGE_INDEX_KEY: structures.edges.flip(0),
        Keys.EDGE_VECTORS_KEY: -vectors,
        Keys.BATCH_KEY: structures.batch,
        Keys.NUM_NODES_KEY: structures.n_atoms,
    }


class NequIPBackbone(Backbone):
    """A small NequIP.

    Args:
        statistics: of the training data.
        seed: of its weights.
    """

    def __init__(self, statistics: Statistics, seed: int) -> None:
        super().__init__()
        model = NequIPGNNModel(
            seed=seed,
            model_dtype="float64",
            type_names=SYMBOLS,
            r_max=CUTOFF,
            num_layers=2,
            l_max=2,
            parity=False,
            num_features=32,
            radial_mlp_width=32,
            avg_num_neighbors=statistics.avg_num_neighbors,
            per_type_energy_scales=statistics.force_rms,
            per_type_energy_shifts=dict(zip(SYMBOLS, statistics.e0s, strict=True)),
            do_derivatives=False,
        )
        self.row = model.model.func
        self.layer_irreps = [
            str(module.irreps_out[Keys.NODE_FEATURES_KEY])
            for name, module in self.row.named_children()
            if name.endswith("_convnet")
        ]
        self.n_radial = self.row.factor.irreps_out[Keys.EDGE_EMBEDDING_KEY].dim

    def forward(self, structures: Structures, vectors: Tensor) -> Features:
        data = as_nequip(structures, vectors)
        layers = []
        for name, module in self.row.named_children():
            data = module(data)
            if name.endswith("_convnet"):
                layers.append(data[Keys.NODE_FEATURES_KEY])
        return Features(
            energy=data[Keys.PER_ATOM_ENERGY_KEY].squeeze(1),
            node_feats=torch.cat(layers, dim=1),
            radial=data[Keys.EDGE_EMBEDDING_KEY],
        )


# %%
if __name__ == "__main__":
    compare("NequIP", NequIPBackbone, epochs=60, rate=0.02)
