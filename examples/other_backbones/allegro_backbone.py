"""The long-range head on Allegro.

    python examples/other_backbones/allegro_backbone.py --epochs 60 --output allegro

Allegro: Musaelian et al., Nat. Commun. 14, 579 (2023), doi:10.1038/s41467-023-36329-y.
"""

# %%
from __future__ import annotations

import math

import torch
from allegro.model import AllegroModel
from common import CUTOFF, Backbone, Features, Statistics, Structures, compare
from nequip.data import AtomicDataDict as Keys
from nequip_backbone import SYMBOLS, as_nequip
from torch import Tensor

# %% [markdown]
# Allegro has features of edges, not of atoms. All of them vanish at the cutoff, so their sums over
# the edges of an atom are smooth features of the atom: the scalars that Allegro reads its energy
# from, and the tensors that the last but one layer leaves (the last makes scalars only).


# %%
class AllegroBackbone(Backbone):
    """A small Allegro.

    Args:
        statistics: of the training data.
        seed: of its weights.
    """

    def __init__(self, statistics: Statistics, seed: int) -> None:
        super().__init__()
        n_scalars, n_tensors = 32, 8
        model = AllegroModel(
            seed=seed,
            model_dtype="float64",
            type_names=SYMBOLS,
            r_max=CUTOFF,
            l_max=2,
            parity=False,
            radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"},
            num_layers=2,
            num_scalar_features=n_scalars,
            num_tensor_features=n_tensors,
            tp_path_channel_coupling=False,  # five times faster here
            allegro_mlp_hidden_layers_width=n_scalars,
            avg_num_neighbors=statistics.avg_num_neighbors,
            per_type_energy_scales=statistics.force_rms,
            per_type_energy_shifts=dict(zip(SYMBOLS, statistics.e0s, strict=True)),
            do_derivatives=False,
        )
        self.row = model.model.func
        self.norm = 1 / math.sqrt(statistics.avg_num_neighbors)
        self.last_tensors = self.row.allegro.tps[-2]
        tensors = "+".join(f"{n_tensors}x{irrep}" for _, irrep in self.last_tensors.irreps_out)
        self.layer_irreps = [str(self.row.allegro.irreps_out[Keys.EDGE_FEATURES_KEY]), tensors]
        self.n_radial = n_scalars

    def forward(self, structures: Structures, vectors: Tensor) -> Features:
        data = as_nequip(structures, vectors)
        scalars, tensors = [], []
        # The layer leaves [n_edges, n_tensors, components of all irreps].
        with self.last_tensors.register_forward_hook(lambda *args: tensors.append(args[-1])):
            for name, module in self.row.named_children():
                data = module(data)
                if name == "allegro":
                    scalars.append(data[Keys.EDGE_FEATURES_KEY])
        slices = self.last_tensors.irreps_out.slices()
        of_edges = scalars + [tensors[0][..., part].flatten(1) for part in slices]
        features = torch.cat(of_edges, dim=1)
        zero = features.new_zeros(len(structures.positions), features.shape[1])
        return Features(
            energy=data[Keys.PER_ATOM_ENERGY_KEY].squeeze(1),
            node_feats=self.norm * zero.index_add(0, structures.edges[1], features),
            radial=data[Keys.EDGE_EMBEDDING_KEY],
        )


# %%
if __name__ == "__main__":
    compare("Allegro", AllegroBackbone, epochs=60, rate=0.02)
