"""Training the head alone: the backbone is frozen, and what it contributes is computed once.

Energies need the backbone's features of each structure. Forces also need how the features change
with the positions, as many numbers as features times coordinates. Kept are the changes along K
random orthonormal directions w of a structure's 3N coordinates, T_k = ∂(features)/∂r · w_k; then

    ∂E/∂r · w_k = ∂E/∂r|features · w_k + ∂E/∂features · T_k

is exact. Times √(3N/K) the errors of forces along these directions have the size of all, on average
over directions, so that the loss means the same. With K = 3N or more nothing is left out.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mace.tools import torch_geometric
from torch import Tensor
from tqdm import tqdm

from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.graph import Graph
from mace_polmp.modules.labelled import labelled_outputs
from mace_polmp.modules.model import BackboneOutput, electrical_outputs

_MOST_MEMORY = 8 * 2**30  # bytes
_BATCH_ATOMS = 400


@contextmanager
def frozen(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Parameters that have no gradients for a while."""
    before = {parameter: parameter.requires_grad for parameter in parameters}
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, state in before.items():
            parameter.requires_grad_(state)


def backbone_parameters(model: MultipoleMACE) -> list[torch.nn.Parameter]:
    """The parameters that are not the head's."""
    head = {id(parameter) for parameter in model.head_parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in head]


class CachedBackbone(torch.nn.Module):
    """A model that takes the backbone's part from the batch where it is there.

    Args:
        model: with a frozen backbone.
    """

    def __init__(self, model: MultipoleMACE) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, data: dict[str, Tensor], training: bool = False, **flags: bool
    ) -> dict[str, Tensor | None]:
        """As MultipoleMACE.forward; forces of cached structures are the labels plus the errors
        along the cached directions."""
        if "cached_tangents" not in data:
            return self.model(data, training=training, **flags)
        data = dict(data)
        positions = data["positions"].requires_grad_(True)
        features = data["cached_node_feats"].requires_grad_(True)
        energy, interaction = data["cached_energies"].unbind(1)
        short = BackboneOutput(energy, interaction, features, None, {"node_feats": features})
        graph = Graph.of(data)
        out = self.model.long_range(graph, short)[1]
        by_position, by_feature = torch.autograd.grad(
            out.energy.sum(), (positions, features), create_graph=training, retain_graph=True
        )
        directions, batch = data["cached_directions"], data["batch"]
        slopes = torch.einsum("na,nak->nk", by_position, directions)
        slopes = slopes + torch.einsum("nf,nfk->nk", by_feature, data["cached_tangents"])
        residuals = data["cached_residuals"]
        errors = -torch.zeros_like(residuals).index_add(0, batch, slopes) - residuals
        errors = errors * data["cached_scale"][:, None]
        lifted = torch.einsum("nak,nk->na", directions, errors[batch])
        return {
            **short.outputs,
            "energy": energy + out.energy,
            "interaction_energy": interaction + out.energy,
            "forces": data["forces"] + lifted,
            "virials": None,
            "stress": None,
            **electrical_outputs(out, self.model.gives_polarizability),
            **labelled_outputs(self.model, graph, out),
        }


def cached_loader(
    model: MultipoleMACE, loader: Any, n_directions: int, seed: int, device: torch.device
) -> Any | None:
    """A loader of the same structures with the backbone's part in them, None if that is too much.

    Args:
        model: the model.
        loader: upstream's loader of training structures.
        n_directions: K, for structures with fewer coordinates all of them.
        seed: of the directions.
        device: where the model is.
    """
    dataset = loader.dataset
    n_features = sum(product.linear.irreps_out.dim for product in model.products)
    size = next(model.parameters()).element_size()
    per_atom = (n_features + 3) * n_directions + n_features
    atoms = sum(dataset[index].num_nodes for index in range(len(dataset)))
    needed = atoms * per_atom * size
    logging.info(f"Caching features of {len(dataset)} structures: {needed / 2**30:.2f} GiB")
    if needed > _MOST_MEMORY:
        logging.warning(
            f"That is more than {_MOST_MEMORY / 2**30:.0f} GiB: the head is trained without a "
            "cache. Fewer --head_directions need less"
        )
        return None
    random = torch.Generator().manual_seed(seed)
    graphs: list[Any] = []
    for group in tqdm(list(_groups(dataset)), desc="caching features", disable=None):
        graphs += _with_cache(model, group, n_directions, random, device)
    return torch_geometric.dataloader.DataLoader(
        dataset=graphs,
        batch_size=loader.batch_size,
        shuffle=True,
        drop_last=loader.drop_last,
        generator=torch.Generator().manual_seed(seed),
    )


def _groups(dataset: Any) -> Iterator[list[Any]]:
    """Structures in their order, some hundred atoms at a time."""
    group: list[Any] = []
    for index in range(len(dataset)):
        graph = dataset[index]
        if group and sum(g.num_nodes for g in group) + graph.num_nodes > _BATCH_ATOMS:
            yield group
            group = []
        group.append(graph)
    if group:
        yield group


def _with_cache(
    model: MultipoleMACE,
    graphs: list[Any],
    n_directions: int,
    random: torch.Generator,
    device: torch.device,
) -> list[Any]:
    """Copies of the structures with features, tangents, short-range energies and forces."""
    batch = torch_geometric.Batch.from_data_list(graphs).to(device)
    data = batch.to_dict()
    positions = data["positions"].requires_grad_(True)
    short = model.backbone(Graph.of(data))
    (gradient,) = torch.autograd.grad(short.interaction_energy.sum(), positions, retain_graph=True)
    features = short.node_feats
    weights = torch.zeros_like(features, requires_grad=True)
    (pulled,) = torch.autograd.grad(features, positions, weights, create_graph=True)
    counts = [graph.num_nodes for graph in graphs]
    dtype = positions.dtype
    directions = torch.cat([_directions(n, n_directions, random, dtype) for n in counts]).to(device)
    tangents = torch.stack(
        [
            torch.autograd.grad(pulled, weights, directions[:, :, k], retain_graph=True)[0]
            for k in range(n_directions)
        ],
        dim=2,
    )
    residual_forces = data["forces"] + gradient
    residuals = torch.einsum("na,nak->nk", residual_forces, directions)
    residuals = residuals.new_zeros(len(graphs), n_directions).index_add(
        0, data["batch"], residuals
    )
    energies = torch.stack([short.energy, short.interaction_energy], dim=1)
    out = []
    parts = [t.detach().cpu().split(counts) for t in (features, tangents, directions)]
    for number, graph in enumerate(graphs):
        cached = copy.copy(graph)
        cached.cached_node_feats, cached.cached_tangents, cached.cached_directions = (
            part[number].clone() for part in parts
        )
        cached.cached_residuals = residuals[number : number + 1].detach().cpu()
        cached.cached_energies = energies[number : number + 1].detach().cpu()
        scale = math.sqrt(3 * counts[number] / min(n_directions, 3 * counts[number]))
        cached.cached_scale = torch.tensor([scale], dtype=dtype)
        out.append(cached)
    return out


def _directions(
    n_atoms: int, n_directions: int, random: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Random orthonormal directions [n_atoms, 3, n_directions]; zero beyond 3 n_atoms."""
    rank = min(n_directions, 3 * n_atoms)
    matrix = torch.randn(3 * n_atoms, rank, generator=random, dtype=torch.float64)
    orthonormal = torch.linalg.qr(matrix)[0]
    out = torch.zeros(3 * n_atoms, n_directions, dtype=dtype)
    out[:, :rank] = orthonormal.to(dtype)
    return out.view(n_atoms, 3, n_directions)
