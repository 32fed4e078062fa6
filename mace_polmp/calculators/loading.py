"""The calculator that suits a model file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from ase.calculators.calculator import Calculator


@contextmanager
def precision_is_meant() -> Iterator[None]:
    """Without upstream's warnings that a model is converted to another precision, or is not."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def load_calculator(
    model: str | Path, device: str = "cpu", default_dtype: str = "", head: str | None = None
) -> Calculator:
    """A MultipoleMACECalculator with its defaults, or upstream's for any other MACE.

    Args:
        model: a .model or .safetensors file.
        device: where it is evaluated.
        default_dtype: "float32" or "float64"; empty for the precision it was trained in.
        head: of a model with several.

    Raises:
        InputError: a file that holds no model, or one of a newer format.
    """
    from mace_polmp.modules import MultipoleMACE
    from mace_polmp.modules.io import check_format, load_any

    loaded = load_any(model, device)
    if isinstance(loaded, MultipoleMACE):
        check_format(loaded, model)
    return calculator_of(loaded, device, default_dtype, head)


def calculator_of(
    model: torch.nn.Module, device: str = "cpu", default_dtype: str = "", head: str | None = None
) -> Calculator:
    """As load_calculator, of a model that has been read already."""
    from mace.calculators import MACECalculator

    from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator
    from mace_polmp.modules import MultipoleMACE

    kind: Any = MultipoleMACECalculator if isinstance(model, MultipoleMACE) else MACECalculator
    which: dict[str, Any] = {} if head is None else {"head": head}
    with precision_is_meant():
        found: Calculator = kind(models=model, device=device, default_dtype=default_dtype, **which)
        return found
