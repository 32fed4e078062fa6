"""A model in one line, for those who type its name."""

from __future__ import annotations

from typing import Any

from ase.data import chemical_symbols


def summary(model: Any) -> str:
    """Elements, cutoff, layers, features and head of a MultipoleMACE.

    Args:
        model: the model; print its children for all modules.

    Returns:
        Such as "MultipoleMACE(H O, r_max 4.5 Å, layers 64x0e+64x1o | 64x0e, multipole_lmax 2,
        induced both, float64)".
    """
    layers = " | ".join(str(product.linear.irreps_out) for product in model.products)
    options = model.long_range_options
    parts = [
        " ".join(chemical_symbols[int(z)] for z in model.atomic_numbers),
        f"r_max {float(model.r_max):g} Å",
        f"layers {layers}",
        f"multipole_lmax {options.multipole_lmax}",
        f"induced {options.induced}",
        str(next(model.parameters()).dtype).removeprefix("torch."),
    ]
    return f"{type(model).__name__}({', '.join(parts)})"
