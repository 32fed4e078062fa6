"""Loading and writing model files, with errors that name the file.

.model files are upstream's, pickled modules: loading one runs code from it. .safetensors files are
safe_files.py's.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mace_polmp.errors import InputError
from mace_polmp.files import write_torch
from mace_polmp.modules import safe_files
from mace_polmp.modules.model import FORMAT_VERSION, MultipoleMACE
from mace_polmp.modules.pickled_names import POLAR_MACE, class_in
from mace_polmp.reading import model_file


def check_device(device: str | torch.device, name: str = "--device") -> None:
    """Refuse a device that this machine does not have.

    Raises:
        InputError: names it.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{name} {device} is not available: {reason}") from error


def load_any(path: str | Path, device: str | torch.device = "cpu") -> torch.nn.Module:
    """The MACE model that a file holds. Loading a pickle runs code from it: trust its source.

    What a file is, its content says. A file that is called .safetensors is never unpickled.

    Raises:
        InputError: no such file, or neither a pickled MACE model nor a .safetensors file that can
            be read, or weights that are NaN.
    """
    path = model_file(path)
    if safe_files.is_safe(path) or path.suffix.lower() == safe_files.SUFFIX:
        return safe_files.load(path, device)
    holds = (class_in(path) or ("", ""))[1]
    if holds == "PolarMACE":
        raise InputError(f"{path}: {POLAR_MACE}")
    if holds == "MACELES":
        raise InputError(
            f"{path}: holds a MACELES, which is not read as it is; make a model of it with "
            f"mace_polmp convert {path} {path.with_suffix(safe_files.SUFFIX).name}"
        )
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
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
    if not hasattr(model, "interactions"):
        raise InputError(f"{path}: holds a {type(model).__name__}, which is not a MACE model")
    safe_files.check_finite(model.state_dict(), str(path))
    return model.to(device)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> MultipoleMACE:
    """The MultipoleMACE that a .model or .safetensors file holds; "demo" is the packaged one.

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


def write_model(model: MultipoleMACE, path: str | Path) -> None:
    """Write a .model or .safetensors file, whole or not at all.

    Raises:
        InputError: another ending, or a model that has no safe form.
    """
    path = Path(path)
    if path.suffix.lower() == safe_files.SUFFIX:
        safe_files.save(model, path)
    elif path.suffix == ".model":
        write_torch(path, model)
    else:
        raise InputError(f"{path}: the ending must be .model or {safe_files.SUFFIX}")
