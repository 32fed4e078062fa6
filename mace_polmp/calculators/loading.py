"""The calculator that suits a model file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator


def load_calculator(
    model: str | Path, device: str = "cpu", default_dtype: str | None = None
) -> Calculator:
    """A MultipoleMACECalculator with its defaults, or upstream's for any other MACE.

    Args:
        model: a .model or .safetensors file.
        device: where it is evaluated.
        default_dtype: "float32" or "float64"; None for the precision it was trained in.

    Raises:
        InputError: a file that holds no model.
    """
    import torch
    from mace.calculators import MACECalculator

    from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator
    from mace_polmp.modules import MultipoleMACE
    from mace_polmp.modules.io import load_any

    loaded = load_any(str(model))
    if default_dtype is None:
        double = next(loaded.parameters()).dtype == torch.float64
        default_dtype = "float64" if double else "float32"
    if isinstance(loaded, MultipoleMACE):
        return MultipoleMACECalculator(model, device=device, default_dtype=default_dtype)
    # Upstream warns of a conversion of the precision, which is meant.
    logging.disable(logging.WARNING)
    try:
        return MACECalculator(str(model), device=device, default_dtype=default_dtype)
    finally:
        logging.disable(logging.NOTSET)
