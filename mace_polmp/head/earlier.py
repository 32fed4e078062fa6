"""Readouts that torch.save wrote before they had all of today's parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mace_polmp.head.options import LongRangeOptions

if TYPE_CHECKING:
    from mace_polmp.head.readouts import MultipoleReadouts

_PARTS = ("transfer", "layers", "bond_softness")
"""In the order in which they came."""

_BEFORE: dict[str, Any] = {
    "charge_readout": "atomic",
    "kspace_taper": 0.0,
    "response": "one_step",
}
"""What heads did before there was an option, where that is not today's default."""


def earlier_options(options: LongRangeOptions) -> LongRangeOptions:
    """Options of a pickle, with what it did where they lack one."""
    lacking = {name: value for name, value in _BEFORE.items() if name not in vars(options)}
    return replace(options, **lacking) if lacking else options


def bring_up_to_date(readouts: MultipoleReadouts) -> None:
    """Give unpickled readouts what they lack, without a change of what they read."""
    readouts.options = earlier_options(readouts.options)
    for name in _PARTS:
        if not hasattr(readouts, name):
            setattr(readouts, name, None)
    if not hasattr(readouts, "orientation"):
        readouts.register_buffer("orientation", torch.ones_like(readouts.element_bias[0, 0]))
