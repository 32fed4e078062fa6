"""Foundation models that mace-torch knows by name and downloads."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from mace.calculators import foundations_models as upstream_models
from mace.tools.utils import get_cache_dir

from mace_polmp.errors import InputError
from mace_polmp.upstream.names import check_names

check_names({upstream_models: ("download_mace_mp_checkpoint", "mace_off", "mace_omol")})

_OFF = {f"{size}_off": size for size in upstream_models.mace_off_urls}
_OMOL = "mace_omol"
_RELEASES = "https://github.com/ACEsuit/mace-foundations/releases"


def known_names() -> list[str]:
    """Names of foundation models that can be fine-tuned."""
    return [*upstream_models.mace_mp_urls, *_OFF, _OMOL]


def load_by_name(name: str) -> torch.nn.Module:
    """A foundation model from upstream's cache, or downloaded into it.

    Raises:
        InputError: a name that nobody knows, a PolarMACE, or no network and nothing in the cache.
    """
    if name in upstream_models.polar_model_urls:
        raise InputError(
            f"--foundation_model {name}: is a PolarMACE, which has electrostatics of its own; take "
            "a MACE model that was trained on energies and forces"
        )
    if name not in known_names():
        near = difflib.get_close_matches(name, known_names(), n=1, cutoff=0.0)
        raise InputError(
            f"--foundation_model {name}: no such file, and no name of a foundation model; names "
            f"are {', '.join(known_names())} (did you mean {near[0]}?)"
        )
    try:
        return _load(name)
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().split("\n")[0] or type(cause).__name__
        raise InputError(
            f"--foundation_model {name}: could not be had from {_url(name)} ({reason}). Without a "
            f"network, fetch it elsewhere and give its file with --foundation_model FILE, or put "
            f"it into {_cached(name)}"
        ) from error


def _load(name: str) -> torch.nn.Module:
    if name in _OFF:
        model = upstream_models.mace_off(_OFF[name], device="cpu", return_raw_model=True)
    elif name == _OMOL:
        model = upstream_models.mace_omol(device="cpu", return_raw_model=True)
    else:
        path = upstream_models.download_mace_mp_checkpoint(name)
        model = torch.load(path, map_location="cpu", weights_only=False)
    assert isinstance(model, torch.nn.Module)
    return model


def _url(name: str) -> str:
    if name in _OFF:
        return str(upstream_models.mace_off_urls[_OFF[name]])
    return str(upstream_models.mace_mp_urls.get(name, _RELEASES))


def _cached(name: str) -> Path:
    """Where upstream looks for the file; the folder alone where its name is not known."""
    folder = Path(get_cache_dir())
    if name == _OMOL:
        return folder
    base = _url(name).rsplit("/", 1)[-1]
    # Upstream drops the dot of the ending for this family.
    return folder / (base if name in _OFF else "".join(c for c in base if c.isalnum() or c == "_"))
