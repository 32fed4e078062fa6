"""What several test files need: random models, batches, structures."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import mace  # noqa: F401  before e3nn
import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric

from mace_polmp.head.electronegativity import electropositivity
from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from tests import compiled_once
from tests.devices import current, moved, rounding  # noqa: F401
from tests.systems import rattled, rock_salt, salty_water, wet_slab  # noqa: F401

compiled_once.use()  # also in processes that tests start

ELEMENTS = [1, 8, 11, 17]


def backbone_settings(
    num_interactions: int = 2,
    hidden_irreps: str = "8x0e+8x1o",
    interaction: str = "RealAgnosticResidualInteractionBlock",
    r_max: float = 4.0,
    elements: Sequence[int] | None = None,
) -> dict:
    elements = list(elements or ELEMENTS)
    return dict(
        r_max=r_max,
        num_bessel=6,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=modules.interaction_classes[interaction],
        interaction_cls_first=modules.interaction_classes[interaction],
        num_interactions=num_interactions,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(hidden_irreps),
        MLP_irreps=o3.Irreps("8x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.linspace(-1.0, -2.0, len(elements)),
        avg_num_neighbors=8.0,
        atomic_numbers=elements,
        correlation=2,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def random_model(
    options: LongRangeOptions | None = None, seed: int = 0, boost: float = 3.0, **backbone
) -> MultipoleMACE:
    """A float64 model with random weights, the head scaled until its energy matters."""
    if "elements" in backbone:
        backbone["elements"] = tuple(backbone["elements"])
    settings = tuple(sorted(backbone.items()))
    model, random = _built(options or LongRangeOptions(), seed, boost, settings)
    torch.set_rng_state(random)
    return copy.deepcopy(model).to(current())


@functools.cache
def _built(
    options: LongRangeOptions, seed: int, boost: float, backbone: tuple[tuple[str, Any], ...]
) -> tuple[MultipoleMACE, torch.Tensor]:
    """The model, and the state of the random numbers after it: building takes longest."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        model = MultipoleMACE(long_range=options, **backbone_settings(**dict(backbone)))
    finally:
        torch.set_default_dtype(previous)
    readouts = model.multipole_readouts
    with torch.no_grad():
        for parameter in (*readouts.network[-1].parameters(), *readouts.linear.parameters()):
            parameter *= boost
        ions = torch.tensor(electropositivity(model.atomic_numbers.tolist()))
        readouts.element_bias[:, 0] = 0.3 * ions
        if readouts.transfer is not None:  # which would let atoms fall into each other
            readouts.transfer.rescale(0.1)
            last = readouts.network[-1]
            for charge in (last.weight[0], last.bias[0], readouts.linear.weight[0]):
                charge *= 3.0
        readouts.element_bias[:, 1:] = 0.0  # larger response coefficients
    return model, torch.get_rng_state()


def make_graphs(atoms_list: list[Atoms], model: MultipoleMACE) -> list[data.AtomicData]:
    dtype = next(model.parameters()).dtype
    table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    with tools.torch_tools.default_dtype(dtype):
        graphs = [
            data.AtomicData.from_config(
                data.config_from_atoms(atoms), z_table=table, cutoff=float(model.r_max)
            )
            for atoms in atoms_list
        ]
    for graph, atoms in zip(graphs, atoms_list, strict=True):
        if atoms.pbc.sum() == 2:  # upstream makes the cell of a slab longer
            graph.cell = torch.tensor(atoms.cell.array, dtype=dtype)
    return graphs


def make_batch(atoms_list: list[Atoms], model: MultipoleMACE) -> dict[str, torch.Tensor]:
    return moved(torch_geometric.Batch.from_data_list(make_graphs(atoms_list, model)).to_dict())


def evaluate(model: MultipoleMACE, *atoms: Atoms, **flags) -> dict[str, torch.Tensor]:
    return moved(model(make_batch(list(atoms), model), **flags), "cpu")


def make_calculator(*arguments, **settings):
    """A MultipoleMACECalculator on the device of the test."""
    from mace_polmp.calculators import MultipoleMACECalculator

    return MultipoleMACECalculator(*arguments, device=current(), **settings)
