"""What a trained model's multipoles look like: mean and spread per element."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mace_polmp.analysis.tables import text_table
from mace_polmp.modules import MultipoleMACE
from mace_polmp.unit_names import CHARGE, DIPOLE, POLARIZABILITY, with_unit

_MOST_BATCHES = 50


def multipole_table(model: torch.nn.Module, loaders: dict[str, Any]) -> str:
    """Mean ± standard deviation of charge, |μ| and α per element.

    Args:
        model: a MultipoleMACE.
        loaders: data loaders by name; of each the first batches are used.
    """
    device = next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {"z": [], "charge": [], "dipole": [], "alpha": []}
    for loader in loaders.values():
        for number, batch in enumerate(loader):
            if number == _MOST_BATCHES:
                break
            data = batch.to(device).to_dict()
            data.pop("born_charges_weight", None)  # costly, and not in the table
            data["with_polarizability"] = False
            with torch.no_grad():
                out = model(data, compute_force=False)
            alpha = torch.einsum("nii->n", out["atomic_polarizabilities"]) / 3.0
            parts["z"].append(data["node_attrs"].argmax(-1))
            parts["charge"].append(out["charges"])
            parts["dipole"].append(torch.linalg.vector_norm(out["atomic_dipoles"], dim=-1))
            parts["alpha"].append(alpha)
    values = {name: torch.cat(tensors).cpu() for name, tensors in parts.items()}

    heads = [("charge", CHARGE), ("|dipole|", DIPOLE), ("α", POLARIZABILITY)]
    columns = ["element", "atoms", *(with_unit(what, unit) for what, unit in heads)]
    rows = []
    for index, number in enumerate(model.atomic_numbers.tolist()):
        mine = values["z"] == index
        if not mine.any():
            continue
        cells = [
            f"{values[name][mine].mean():.3f} ± {values[name][mine].std(correction=0):.3f}"
            for name in ("charge", "dipole", "alpha")
        ]
        rows.append([chemical_symbols[number], int(mine.sum()), *cells])
    return text_table(columns, rows)


def log_multipoles(model: torch.nn.Module, loaders: dict[str, Any]) -> None:
    """Log multipole_table of training and validation data."""
    logging.info(
        "Multipoles, permanent plus induced, by element:\n" + multipole_table(model, loaders)
    )


def log_head(model: MultipoleMACE) -> None:
    """Log the settings and the size of the long-range head."""
    head = sum(p.numel() for p in model.head_parameters())
    total = sum(p.numel() for p in model.parameters())
    lift = model.multipole_readouts.lift
    logging.info(f"Long-range head: {model.long_range_options}")
    logging.info(
        f"Long-range head: {head} parameters of {total} ({100 * head / total:.1f} %); "
        f"equivariant lift for l = {lift.degrees if lift is not None else 'none'}"
    )
