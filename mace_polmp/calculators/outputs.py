"""The electrical outputs of the models on their way to the results of a calculator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mace_polmp.head.observables import screening_factor, susceptibility
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
    return outputs["dipole"].cpu().double() - shift


def spread_of_dipoles(dipoles: torch.Tensor) -> dict[str, Any]:
    """What results have of the dipoles of a committee, [n_models, 3]."""
    each = dipoles.cpu()
    return {"dipole_comm": each.numpy(), "dipole_var": each.var(0, unbiased=False).numpy()}


def screening(
    models: Sequence[Any], outputs: Tensors, atoms: Atoms, epsilon: float | None, chi: bool
) -> torch.Tensor:
    """What makes the dipoles of the models physical ones, [n_models]: screening_factor.

    Args:
        models: of the calculator.
        outputs: theirs, polarizability [n_models, 3, 3] among them where χ is asked for.
        atoms: the structure.
        epsilon: ε∞, or None for that of each model.
        chi: whether to divide by √(1 + χ).
    """
    found = []
    pbc = torch.as_tensor(atoms.pbc)[None]
    cell = torch.as_tensor(atoms.cell.array)[None]
    for number, model in enumerate(models):
        own = None
        if chi:
            own = susceptibility(outputs["polarizability"][number].cpu().double()[None], cell, pbc)
        found.append(
            screening_factor(own, pbc, model.permittivity() if epsilon is None else epsilon)
        )
    return torch.cat(found)


def zero_field_energy(
    energy: float,
    outputs: Tensors,
    factors: torch.Tensor,
    pbc: np.ndarray,
    field: np.ndarray,
    has_polarization: bool,
) -> float:
    """E(0) from E(F) = E(0) − M·F + ½ F·α·F with the dipole M in the field, eV.

    Along periodic directions the field has an energy with atomic dipoles only, unless the
    polarization is defined.

    Args:
        energy: in the field, eV.
        outputs: polarizability, dipole and atomic_dipoles in the field of each model.
        factors: of screening, [n_models], by which the field on latent multipoles is larger.
        pbc: [3] bool.
        field: [3], V/Å.
        has_polarization: whether that of periodic structures is defined.
    """
    if not field.any():
        return energy
    whole = has_polarization or not pbc.all()
    moments = outputs["dipole"] if whole else outputs["atomic_dipoles"].sum(1)
    acting = factors[:, None] * torch.as_tensor(field)
    alpha = outputs["polarizability"].cpu().double()
    first = (moments.cpu().double() * acting).sum(1)
    second = 0.5 * torch.einsum("na,nab,nb->n", acting, alpha, acting)
    return energy + float((first - second).mean())
