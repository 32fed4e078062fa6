"""A model in one line, for those who type its name."""

from __future__ import annotations

from typing import Any

import torch
from ase.data import chemical_symbols


def dtype_name(model: torch.nn.Module) -> str:
    """The precision of a model's weights, such as "float64"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def elements_of(model: Any) -> str:
    """The symbols of a model's elements, such as "H O"."""
    return " ".join(chemical_symbols[int(z)] for z in model.atomic_numbers)


def layers_of(model: Any) -> str:
    """The irreps of each layer's features, such as "64x0e+64x1o | 64x0e"."""
    return " | ".join(str(product.linear.irreps_out) for product in model.products)


def summary(model: Any) -> str:
    """Elements, cutoff, layers, features and head of a MultipoleMACE.

    Args:
        model: the model; print its children for all modules.

    Returns:
        Such as "MultipoleMACE(H O, r_max 4.5 Å, layers 64x0e+64x1o | 64x0e, multipole_lmax 2,
        induced both, float64)".
    """
    options = model.long_range_options
    parts = [
        elements_of(model),
        f"r_max {float(model.r_max):g} Å",
        f"layers {layers_of(model)}",
        f"multipole_lmax {options.multipole_lmax}",
        f"induced {options.induced}",
        dtype_name(model),
    ]
    return f"{type(model).__name__}({', '.join(parts)})"
