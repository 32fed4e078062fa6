"""Products and determinants whose digits do not depend on what torch is allowed to leave out.

With TF32 (NVIDIA) or bfloat16 (CPU) switched on, torch rounds the factors of a single-precision
matrix product to 10 or 7 bits. A network may live with that; phases, cells and the differences of
large terms in a structure factor cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_EXACT = ("ieee", "none", "")


def _switch(device: torch.device) -> Any:
    """What holds the precision of matrix products on a device; None where nothing does."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    if device.type not in ("cuda", "cpu"):
        return None
    switch = getattr(backend, "matmul", None)
    return switch if hasattr(switch, "fp32_precision") or hasattr(switch, "allow_tf32") else None


def _setting(device: torch.device) -> bool:
    """Whether products in single precision may lose digits."""
    switch = _switch(device)
    if switch is None:
        return False
    if hasattr(switch, "fp32_precision"):  # torch 2.9 and later
        return switch.fp32_precision not in _EXACT
    return bool(switch.allow_tf32)


_is_rounded: Callable[[torch.device], bool] = torch.compiler.assume_constant_result(_setting)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in single precision keep all digits; what was switched on before comes back."""
    if not _is_rounded(device):
        yield
        return
    switch = _switch(device)
    name, exact = (
        ("fp32_precision", "ieee") if hasattr(switch, "fp32_precision") else ("allow_tf32", False)
    )
    before = getattr(switch, name)
    setattr(switch, name, exact)
    try:
        yield
    finally:
        setattr(switch, name, before)


def small_product(a: Tensor, b: Tensor) -> Tensor:
    """a b of [..., n, m] and [..., m, k] with a small m, with all digits."""
    if a.dtype == torch.float64 or not _is_rounded(a.device):
        return torch.matmul(a, b)
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def cell_volume(cell: Tensor) -> Tensor:
    """|a·(b × c)| of [..., 3, 3], Å³.

    (torch.linalg.det has derivatives in torch's default dtype, whatever the cell's.)
    """
    a, b, c = cell.unbind(-2)
    volume: Tensor = (a * torch.linalg.cross(b, c)).sum(-1).abs()
    return volume
