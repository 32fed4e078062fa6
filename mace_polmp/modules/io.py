"""Loading .model files, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import torch

from mace_polmp.errors import InputError
from mace_polmp.modules.model import FORMAT_VERSION, MultipoleMACE


def load_any(path: str | Path, device: str | torch.device = "cpu") -> torch.nn.Module:
    """The module that a .model file holds. Loading runs code from the file: trust its source.

    Raises:
        InputError: no such file, or not a pickled torch module.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        model = torch.load(path, map_location=device, weights_only=False)
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(
            f"{path}: not a model file of mace-torch or mace_polmp ({reason})"
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"{path}: holds a {type(model).__name__}, not a model; checkpoints (.pt) are for "
            "--restart_latest, give the .model file that the training wrote"
        )
    return model


def load_model(path: str | Path, device: str | torch.device = "cpu") -> MultipoleMACE:
    """The MultipoleMACE that a .model file holds.

    Raises:
        InputError: no such file, not a model, another kind of model, or a newer format.
    """
    model = load_any(path, device)
    if not isinstance(model, MultipoleMACE):
        raise InputError(
            f"{path}: holds a {type(model).__name__}, not a MultipoleMACE; train one with "
            "mace_run_train --model MultipoleMACE, or use mace.calculators.MACECalculator for it"
        )
    check_format(model, path)
    return model


def check_format(model: MultipoleMACE, path: str | Path) -> None:
    """Refuse a model of a newer format.

    Raises:
        InputError: the format version is higher than this package's.
    """
    if model.format_version > FORMAT_VERSION:
        raise InputError(
            f"{path}: has format version {model.format_version}, this mace_polmp reads up to "
            f"{FORMAT_VERSION}; install a newer mace_polmp"
        )
