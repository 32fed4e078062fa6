"""Model files that run no code: weights in safetensors, the configuration as JSON beside them.

A file holds the tensors of the model's state and, in the header, format, format_version and config:
what the constructors of the backbone and the head need, as numbers, names and lists, and the
SHA-256 of all of it. Names of classes are looked up among those of mace-torch that a MACE can be
made of; nothing else is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mace  # noqa: F401  before e3nn
import numpy as np
import safetensors
import safetensors.torch
import torch
from e3nn import o3
from mace.modules import gate_dict, interaction_classes, readout_classes
from mace.tools.scripts_utils import extract_config_mace_model

from mace_polmp.errors import InputError
from mace_polmp.files import write_bytes
from mace_polmp.head.options import LongRangeOptions
from mace_polmp.modules.backbone import double_e0s
from mace_polmp.modules.model import FORMAT_VERSION, MultipoleMACE
from mace_polmp.modules.record import TrainingRecord
from mace_polmp.modules.summary import dtype_name
from mace_polmp.reading import existing_file

SUFFIX = ".safetensors"
_FORMAT = "mace_polmp"
_CHECKSUM_SINCE = 2  # version; files of it that were written before have none
_LONGEST_HEADER = 100_000_000  # bytes, of the format
# Models of earlier releases of mace-torch lack these buffers, which follow from the configuration.
_NEW_FLAGS = "_zeroed"
_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
_ARRAYS = ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift")

Config = dict[str, Any]
State = dict[str, torch.Tensor]


def _atomic_charges(config: Config, state: State) -> tuple[Config, State]:
    """Version 1 had no other readout of charges than from each atom alone, and one sign."""
    options = {**config["long_range"], "charge_readout": "atomic"}
    sign = torch.ones_like(state["multipole_readouts.element_bias"][0, 0])
    return {**config, "long_range": options}, {**state, "multipole_readouts.orientation": sign}


def _sharp_edge(config: Config, state: State) -> tuple[Config, State]:
    """Until version 2 the sums over wave vectors had a sharp edge."""
    return {**config, "long_range": {**config["long_range"], "kspace_taper": 0.0}}, state


def _unchanged(config: Config, state: State) -> tuple[Config, State]:
    """Versions 4 to 6 brought readouts and responses; defaults say what there was before."""
    return config, state


def _one_step(config: Config, state: State) -> tuple[Config, State]:
    """Until version 4 there was no other response than one step."""
    return {**config, "long_range": {**config["long_range"], "response": "one_step"}}, state


UPGRADES: dict[int, Callable[[Config, State], tuple[Config, State]]] = {
    1: _atomic_charges,
    2: _sharp_edge,
    3: _unchanged,
    4: _one_step,
    5: _unchanged,
}
"""By version n, what makes config and tensors of version n those of version n + 1."""


def is_safe(path: str | Path) -> bool:
    """Whether a file's content is of this kind, whatever its name.

    It begins with the length of a JSON header; a pickle or an archive does not.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and 0 < length <= _LONGEST_HEADER


def save(model: MultipoleMACE, path: str | Path) -> None:
    """Write a model; the file appears whole or not at all.

    Raises:
        InputError: a backbone that cannot be described by a configuration, for instance one
            converted for an accelerator, weights that are NaN, or a file that cannot be written.
    """
    path = Path(path)
    config = describe(model)
    # Tensors may share memory or be views, which the format does not know.
    state = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    _rebuild(config, state, str(path))  # refuses what would not come back
    text = json.dumps(config)
    metadata = {
        "format": _FORMAT,
        "format_version": str(model.format_version),
        "config": text,
        "sha256": _checksum(text, state),
    }
    write_bytes(path, safetensors.torch.save(state, metadata))


def load(path: str | Path, device: str | torch.device = "cpu") -> MultipoleMACE:
    """Read a model; runs no code from the file.

    Raises:
        InputError: no such file, a truncated, damaged or changed one or one of another kind, a
            format that is not known, tensors that do not belong to the configuration, or weights
            that are NaN.
    """
    path = Path(path)
    version, config = read_header(path)
    try:
        state = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: truncated or damaged ({error}); copy it again") from error
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    known = metadata.get("sha256") if version >= _CHECKSUM_SINCE else None
    if known is not None and known != _checksum(metadata["config"], state):
        raise InputError(
            f"{path}: its content was changed after it was written (the checksum differs); copy it "
            "again or make it anew with mace_polmp convert"
        )
    for number in range(version, FORMAT_VERSION):
        config, state = UPGRADES[number](config, state)
    return _rebuild(config, state, str(path)).to(device)


def _checksum(config: str, state: State) -> str:
    """SHA-256 of a configuration and tensors."""
    found = hashlib.sha256(config.encode())
    for name in sorted(state):
        tensor = state[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()


def rebuilt(model: MultipoleMACE) -> MultipoleMACE:
    """The model made anew from its configuration, with copies of its weights.

    Raises:
        InputError: as save.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    return _rebuild(describe(model), state, "model")


def read_header(path: str | Path) -> tuple[int, Config]:
    """Format version and configuration of a file, without its tensors.

    Raises:
        InputError: as load.
    """
    path = Path(path)
    path = existing_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a safetensors file, or a truncated one ({error}); copy it again or make "
            "it anew with mace_polmp convert"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise InputError(
            f"{path}: is not a model of mace_polmp (format {metadata.get('format')!r}); make one "
            "with mace_polmp convert"
        )
    try:
        version, config = int(metadata["format_version"]), json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: the header lacks or garbles {error}; make the file anew with mace_polmp "
            "convert"
        ) from error
    if version < 1 and version not in UPGRADES:
        raise InputError(
            f"{path}: has format version {version}, which no mace_polmp has written; make the file "
            "anew with mace_polmp convert"
        )
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: has format version {version}, this mace_polmp reads up to {FORMAT_VERSION}; "
            "install a newer mace_polmp"
        )
    return version, config


def describe(model: MultipoleMACE) -> Config:
    """What the constructors need to make the model again: numbers, names and lists.

    Raises:
        InputError: a backbone that mace-torch cannot describe.
    """
    try:
        found = extract_config_mace_model(model.short_range())
    except (AttributeError, RuntimeError) as error:
        raise InputError(
            "this model cannot be written without code: its backbone has no configuration "
            f"({error})"
        ) from error
    products: Any = model.products
    irreps = [str(product.linear.irreps_out) for product in products]
    found["keep_last_layer_irreps"] = len(irreps) > 1 and irreps[-1] == irreps[0]
    if found.pop("cueq_config", None) is not None:
        raise InputError(
            "this model cannot be written without code: it is converted for an accelerator; save "
            "the one it was made from"
        )
    gates = {function: name for name, function in gate_dict.items()}
    backbone_config: Config = {}
    for name, value in found.items():
        if name in _IRREPS:
            value = None if value is None else str(value)
        elif name in _ARRAYS:
            value = np.asarray(value, dtype=float).tolist()
        elif name in ("interaction_cls", "interaction_cls_first", "readout_cls"):
            value = value.__name__
        elif name == "gate":
            value = gates.get(value, "None")
        elif name == "atomic_numbers":
            value = [int(z) for z in value]
        elif isinstance(value, np.generic | torch.Tensor):
            value = value.item()
        backbone_config[name] = value
    backbone_config["atomic_energies"] = double_e0s(model).tolist()
    return {
        "dtype": dtype_name(model),
        "backbone": backbone_config,
        "long_range": asdict(model.long_range_options),
        "trained_on": model.trained_on.describe(),
    }


def constructed(config: Config, where: str) -> MultipoleMACE:
    """The model of a configuration, with weights of a new one.

    Args:
        config: as of describe.
        where: for messages.

    Raises:
        InputError: a configuration that no model can have.
    """
    try:
        settings = _constructor_arguments(config["backbone"])
        options = LongRangeOptions(**config["long_range"])
        dtype = {"float32": torch.float32, "float64": torch.float64}[config["dtype"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where}: the configuration has an unknown entry or lacks {error}"
        ) from error
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return MultipoleMACE(long_range=options, **settings)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _misfit(where, error) from error
    finally:
        torch.set_default_dtype(previous)


def _misfit(where: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[-1].strip()
    return InputError(f"{where}: tensors and configuration do not fit ({reason})")


def _rebuild(config: Config, state: State, where: str) -> MultipoleMACE:
    """The model of a configuration and tensors, which must fit it exactly."""
    model = constructed(config, where)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _misfit(where, error) from error
    missing = [name for name in missing if not name.endswith(_NEW_FLAGS)]
    if missing or unexpected:
        first = f"lacks {missing[0]}" if missing else f"has {unexpected[0]} too much"
        raise InputError(f"{where}: tensors and configuration do not fit: it {first}")
    check_finite(state, where)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.trained_on = TrainingRecord.of(config.get("trained_on", {}))
    _check_settings(config["backbone"], describe(model)["backbone"], where)
    return model


def check_finite(state: State, where: str) -> None:
    """Refuse weights that are no numbers.

    Raises:
        InputError: names the first.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{where}: weights of the model ({name}) are NaN or infinite; train it again, or "
                "take an earlier checkpoint"
            )


def _check_settings(said: Config, found: Config, where: str) -> None:
    """Refuse a configuration that says something else than the tensors, such as another cutoff."""
    for name, value in said.items():
        other = found.get(name, value)
        if isinstance(value, str | bool | None) or isinstance(other, str | bool | None):
            same = value == other
        else:
            a, b = np.asarray(value), np.asarray(other)
            numbers = a.dtype.kind in "if" and b.dtype.kind in "if"
            same = a.shape == b.shape and bool(
                np.allclose(a, b, rtol=1e-5) if numbers else np.array_equal(a, b)
            )
        if not same:
            raise InputError(
                f"{where}: tensors and configuration do not fit: {name} is {value} in the "
                f"configuration and {other} in the tensors; make the file anew with mace_polmp "
                "convert"
            )


def _constructor_arguments(config: Config) -> dict[str, Any]:
    out = dict(config)
    for name in _IRREPS:
        out[name] = None if out[name] is None else o3.Irreps(out[name])
    for name in _ARRAYS:
        out[name] = np.array(out[name])
    for name in ("interaction_cls", "interaction_cls_first"):
        out[name] = interaction_classes[out[name]]
    out["readout_cls"] = readout_classes[out["readout_cls"]]
    out["gate"] = gate_dict[out["gate"]]
    return out
