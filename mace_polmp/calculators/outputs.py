"""The electrical outputs of the models on their way to the results of a calculator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mace_polmp.modules.outputs import ELECTRICAL_OUTPUTS, charges_of_place

Tensors = dict[str, torch.Tensor]


def with_outputs(
    tensors: Tensors, n_models: int, n_atoms: int, out: dict[str, Any]
) -> tuple[Tensors, Tensors]:
    """Upstream's table of results [n_models, …], and that with the electrical outputs.

    Args:
        tensors: upstream's table.
        n_models: in the committee.
        n_atoms: of the structure.
        out: outputs of the first model.

    Returns:
        What upstream fills model by model and brings to the host one by one, and what has the
        outputs. Those of a single model upstream need not know.
    """
    shapes = {
        name: (n_atoms, *shape) if per_atom else shape
        for name, (per_atom, shape) in ELECTRICAL_OUTPUTS.items()
        if out[name] is not None
    }
    if n_models == 1:
        found = {name: out[name].detach().view(1, *shape) for name, shape in shapes.items()}
        return {name: t for name, t in tensors.items() if name not in shapes}, found
    empty = {name: out[name].new_zeros(n_models, *shape) for name, shape in shapes.items()}
    tensors = {**tensors, **empty}
    return tensors, tensors


def on_host(tensors: Tensors) -> dict[str, Any]:
    """As numpy arrays and floats, with one transfer."""
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors.values()]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    found = {}
    for (name, tensor), part in zip(tensors.items(), parts, strict=True):
        values = part.to(tensor.dtype).view(tensor.shape).numpy()
        found[name] = values.copy() if values.ndim else float(values)
    return found


def moved_back(
    outputs: Tensors, by: np.ndarray, models: Sequence[Any], numbers: np.ndarray
) -> torch.Tensor:
    """The dipole of structures that were evaluated elsewhere, [n_models, 3], e Å, put in its place.

    Args:
        outputs: of the models; charges [n_models, n_atoms] and dipole.
        by: [n_atoms, 3], Å, what was added to the positions.
        models: whose dipoles they are.
        numbers: [n_atoms], atomic numbers.
    """
    rows = [
        charges_of_place(model, charges, numbers).cpu().double()
        for model, charges in zip(models, outputs["charges"], strict=True)
    ]
    shift = torch.stack(rows) @ torch.as_tensor(by, dtype=torch.float64)
    outputs["dipole"] = outputs["dipole"].cpu().double() - shift
    return outputs["dipole"]


def zero_field_energy(
    results: dict[str, Any], pbc: np.ndarray, field: np.ndarray, has_polarization: bool
) -> float:
    """E(0) from E(F) = E(0) − M·F + ½ F·α·F with the dipole M in the field, eV.

    Along periodic directions the field has an energy with atomic dipoles only, unless the
    polarization is defined.

    Args:
        results: energy, polarizability, dipole and atomic_dipoles in the field.
        pbc: [3] bool.
        field: [3], V/Å.
        has_polarization: whether that of periodic structures is defined.
    """
    if not field.any():
        return float(results["energy"])
    whole = has_polarization or not pbc.all()
    moment = results["dipole"] if whole else results["atomic_dipoles"].sum(0)
    induced = 0.5 * field @ results["polarizability"] @ field
    return float(results["energy"] + moment @ field - induced)
