"""Of --heads: the settings of each head of a model, and how upstream takes them."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from mace_polmp.errors import InputError
from mace_polmp.quantities import LABELS
from mace_polmp.training.options import TrainingOptions

# What the settings of a head may hold, besides keys of labels.
_OF_A_HEAD = frozenset(
    [
        "train_file",
        "valid_file",
        "test_file",
        "test_dir",
        "E0s",
        "statistics_file",
        "valid_fraction",
        "config_type_weights",
        "compute_avg_num_neighbors",
        "atomic_numbers",
        "mean",
        "std",
        "avg_num_neighbors",
        "keep_isolated_atoms",
        "info_keys",
        "arrays_keys",
    ]
)


def parse_heads(text: Any) -> dict[str, dict[str, Any]]:
    """Of --heads: the settings of each head.

    Raises:
        InputError: not a dictionary of dictionaries, or a setting that heads do not have.
    """
    try:
        found = ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError) as error:
        raise InputError(f"--heads must be a dictionary of heads, got {text!r}") from error
    valid = isinstance(found, dict) and all(isinstance(v, dict) for v in found.values())
    if not valid or not found:
        raise InputError(
            "--heads must be a dictionary of heads, each with its train_file and so on, got "
            f"{text!r}"
        )
    keys = {f"{name}_key" for name in LABELS} | {"elec_temp_key", "total_spin_key"}
    for name, settings in found.items():
        more = sorted(set(settings) - _OF_A_HEAD - keys)
        if more:
            raise InputError(
                f"--heads: {name} has {more[0]!r}, which is no setting of a head; they are "
                f"{', '.join(sorted(_OF_A_HEAD))} and keys of labels such as energy_key"
            )
        for kind in ("info_keys", "arrays_keys"):
            if not isinstance(settings.get(kind, {}), dict):
                raise InputError(f"--heads: {kind} of {name} must be a dictionary of keys")
    return found


def keys_of(settings: dict[str, Any], otherwise: dict[str, str]) -> dict[str, str]:
    """The keys of labels of a head, by label.

    Args:
        settings: of the head.
        otherwise: of all heads.
    """
    given = {**settings.get("info_keys", {}), **settings.get("arrays_keys", {})}
    return {
        name: str(given.get(name, settings.get(f"{name}_key", key)))
        for name, key in otherwise.items()
    }


def plain_heads(args: argparse.Namespace, training: TrainingOptions) -> str:
    """--heads as upstream takes it: energies by element as text, all keys where it looks for them.

    Raises:
        InputError: as parse_heads; or total charges that have different keys.
    """
    heads = parse_heads(args.heads)
    for name, settings in heads.items():
        if isinstance(settings.get("E0s"), dict):
            settings["E0s"] = str(settings["E0s"])
        own = ("total_charge", "born_charges", "polarization")
        found = keys_of(settings, {key: training.key(key) for key in own})
        if found["total_charge"] != training.key("total_charge"):
            raise InputError(
                f"--heads: the total charge of {name} is at {found['total_charge']!r}, but a model "
                f"remembers one key, {training.key('total_charge')!r}; rename it in one of them "
                "--total_charge_key"
            )
        settings["arrays_keys"] = {
            **settings.get("arrays_keys", {}),
            "born_charges": found["born_charges"],
        }
        settings["info_keys"] = {
            **settings.get("info_keys", {}),
            "polarization": found["polarization"],
        }
    return str(heads)
