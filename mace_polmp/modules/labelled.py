"""What only the labels of a training ask for: outputs that a batch's own entries turn on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from mace_polmp.head import HeadOutput
from mace_polmp.head.observables import physical_polarizability, screening_factor
from mace_polmp.modules.graph import Graph

if TYPE_CHECKING:
    from mace_polmp.modules.model import MultipoleMACE

_POLARIZATION = "polarization_weight"


@contextmanager
def asking(model: MultipoleMACE, labels: Iterable[str], born_directions: int = 3) -> Iterator[None]:
    """Let a model give what some labels are compared with, and no more, for a while.

    Args:
        model: the model.
        labels: names of those in a loss.
        born_directions: of polarization, in which a training sees Born charges.
    """
    before = model.asked_labels, model.gives_polarizability, model.born_directions
    model.asked_labels = frozenset(labels)
    model.gives_polarizability = "polarizability" in model.asked_labels
    model.born_directions = born_directions
    try:
        yield
    finally:
        model.asked_labels, model.gives_polarizability, model.born_directions = before


def asks_for_labels(model: MultipoleMACE, graph: Graph) -> bool:
    """Whether a batch is that of a training with labels that ask for more outputs."""
    by_batch = graph.born_charges_weight is not None or _POLARIZATION in graph.data
    return by_batch or bool(model.asked_labels)


def labelled_outputs(model: MultipoleMACE, graph: Graph, out: HeadOutput) -> dict[str, Tensor]:
    """Those besides Born charges, in physical units: see screening_factor.

    Args:
        model: the model.
        graph: the batch.
        out: of the head.

    Returns:
        polarization [n_structures, 3], e Å, of the whole cells where their labels are in use, and
        cell_polarizability [n_structures, 3, 3], e² Å²/eV, and physical_charges [n_atoms], e, where
        the model is asked for them.
    """
    found = {}
    if _POLARIZATION in graph.data and model.long_range_options.defines_polarization:
        found["polarization"] = out.dipole * screening(model, graph)[:, None]
    if "polarizability" in model.asked_labels:
        found["cell_polarizability"] = _polarizability(model, graph, out)
    if model.asked_labels & {"charges", "total_charge"}:
        found["physical_charges"] = out.charges * screening(model, graph)[graph.batch]
    return found


def _polarizability(model: MultipoleMACE, graph: Graph, out: HeadOutput) -> Tensor:
    """With local fields and screening where a structure that is not open has a label."""
    weight = graph.data.get("polarizability_weight")
    wanted = graph.pbc.any(1)
    if weight is not None:
        wanted = wanted & (weight.view(len(wanted), -1)[:, 0] > 0)
    if not bool(wanted.any()):
        return out.polarizability
    own = model.local_polarizability(graph, out)
    epsilon = screening(model, graph) ** 2
    return physical_polarizability(own, graph.cell, graph.pbc, epsilon)


def screening(model: MultipoleMACE, graph: Graph) -> Tensor:
    """√ε∞ of periodic structures as the model was given it or learns it, else 1, [n_structures]."""
    factor = screening_factor(None, graph.pbc, model.head.epsilon_infinity)
    return factor.to(graph.positions.dtype)
