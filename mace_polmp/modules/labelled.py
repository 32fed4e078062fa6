"""What only the labels of a training ask for: outputs that a batch's own entries turn on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mace_polmp.head import HeadOutput
from mace_polmp.head.observables import screening_factor
from mace_polmp.modules.graph import Graph

if TYPE_CHECKING:
    from mace_polmp.modules.model import MultipoleMACE

POLARIZATION = "polarization_weight"


def asks_for_labels(graph: Graph) -> bool:
    """Whether a batch is that of a training with labels that ask for more outputs."""
    return graph.born_charges_weight is not None or POLARIZATION in graph.data


def labelled_outputs(model: MultipoleMACE, graph: Graph, out: HeadOutput) -> dict[str, Tensor]:
    """Those besides Born charges, in physical units: see screening_factor.

    Args:
        model: the model.
        graph: the batch.
        out: of the head.

    Returns:
        polarization [n_structures, 3], e Å, of the whole cells, where their labels are in use.
    """
    found = {}
    if POLARIZATION in graph.data and model.long_range_options.defines_polarization:
        found["polarization"] = out.dipole * screening(model, graph)[:, None]
    return found


def screening(model: MultipoleMACE, graph: Graph) -> Tensor:
    """√ε∞ of periodic structures as the model was given it or learns it, else 1, [n_structures]."""
    factor = screening_factor(None, graph.pbc, model.head.epsilon_infinity)
    return factor.to(graph.positions.dtype)
