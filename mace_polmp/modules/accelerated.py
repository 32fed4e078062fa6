"""Backbones with cuEquivariance's operations in place of e3nn's, and back."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from typing import Any

import torch

from mace_polmp.errors import InputError
from mace_polmp.modules.backbone import double_e0s
from mace_polmp.modules.model import MultipoleMACE


def is_accelerated(model: MultipoleMACE) -> bool:
    """Whether a model's backbone is cuEquivariance's."""
    first: Any = model.interactions
    return bool(getattr(getattr(first[0], "cueq_config", None), "enabled", False))


def check_cuequivariance() -> None:
    """Refuse to go on without cuEquivariance.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("cuequivariance_torch") is None:
        raise InputError(
            "cuEquivariance is not installed: pip install '.[cueq]', and for a GPU "
            "cuequivariance-ops-torch-cu12 of the same version"
        )


def with_cuequivariance(model: MultipoleMACE) -> MultipoleMACE:
    """A copy of a model with a backbone of cuEquivariance.

    Args:
        model: stays as it is.

    Raises:
        InputError: cuEquivariance is not installed.
    """
    check_cuequivariance()
    from mace.cli.convert_e3nn_cueq import run

    return _converted(model, run)


def without_cuequivariance(model: MultipoleMACE) -> MultipoleMACE:
    """A copy of a model with e3nn's backbone, which needs no cuEquivariance."""
    from mace.cli.convert_cueq_e3nn import run

    return _converted(model, run)


def _converted(model: MultipoleMACE, run: Any) -> MultipoleMACE:
    """The model with the backbone that one of upstream's converters makes of its own."""
    reference = next(model.parameters())
    before = torch.get_default_dtype()
    torch.set_default_dtype(reference.dtype)
    try:
        backbone = run(deepcopy(model.short_range()), device=str(reference.device))
    finally:
        torch.set_default_dtype(before)
    new = MultipoleMACE.from_mace(backbone, model.long_range_options)
    new.to(device=reference.device, dtype=reference.dtype)
    new.multipole_readouts.load_state_dict(model.multipole_readouts.state_dict())
    new.electrostatics = deepcopy(model.electrostatics)
    own, other = new._parameters.get("raw_permittivity"), model._parameters.get("raw_permittivity")
    if own is not None and other is not None:
        own.data.copy_(other.data)
    new.keep_atomic_energies(double_e0s(model))
    new.trained_on = model.trained_on
    for parameter, like in zip(new.head_parameters(), model.head_parameters(), strict=True):
        parameter.requires_grad_(like.requires_grad)
    new.train(model.training)
    return new
