"""Batches as a training reads them."""

import torch
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.tools import AtomicNumberTable, torch_geometric

from mace_polmp.labels import complete, with_labels
from tests.helpers import ELEMENTS


def training_batch(model, frames, keys, info_keys=None, arrays_keys=None):
    """Structures with their labels, in their own cells.

    Args:
        model: whose cutoff they have.
        frames: the structures.
        keys: of labels that upstream does not know.
        info_keys, arrays_keys: of labels that it knows.
    """
    specification = KeySpecification(info_keys=info_keys or {}, arrays_keys=arrays_keys or {})
    graphs = []
    for atoms in frames:
        own = with_labels(atoms, keys)
        config = complete(config_from_atoms(own, specification), own, keys)
        table = AtomicNumberTable(ELEMENTS)
        graph = AtomicData.from_config(config, z_table=table, cutoff=float(model.r_max))
        graph.cell = torch.tensor(atoms.cell.array)  # upstream makes that of a slab longer
        graphs.append(graph)
    return torch_geometric.Batch.from_data_list(graphs)
