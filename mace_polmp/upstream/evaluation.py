"""The wiring to mace-torch's mace_eval_configs."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mace.cli import eval_configs as upstream_eval
from numpy.typing import NDArray

from mace_polmp.files import write_torch
from mace_polmp.modules.labelled import asking
from mace_polmp.structures import Moved, near_origin, total_charge
from mace_polmp.upstream.data import own_graphs
from mace_polmp.upstream.names import check_names, replaced

check_names(
    {
        upstream_eval: ("get_model_output", "parse_args", "run"),
        upstream_eval.data: ("config_from_atoms",),
    }
)


def parse_eval_args(
    own: argparse.ArgumentParser, argv: list[str] | None = None
) -> argparse.Namespace:
    """Upstream's arguments of mace_eval_configs, from the command line, and some more.

    Args:
        own: a parser of those that upstream does not have.
        argv: the arguments; those of the process if None.
    """
    given, rest = own.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        print(f"Besides upstream's options, with a MultipoleMACE:\n{own.format_help()}")
    everything = sys.argv
    sys.argv = [everything[0], *rest]
    try:
        args = upstream_eval.parse_args()
    finally:
        sys.argv = everything
    for name, value in vars(given).items():
        setattr(args, name, value)
    return args


def write_for_upstream(model: torch.nn.Module, dtype: str, path: str) -> None:
    """Write a model as upstream's evaluation reads it: a pickle in the precision asked for."""
    write_torch(path, copy.deepcopy(model).to(getattr(torch, dtype)))


def evaluate(
    args: argparse.Namespace,
    charge_key: str,
    on_output: Callable[[dict[str, Any], dict[str, Any]], None],
) -> list[NDArray[np.float64] | None]:
    """Run upstream's mace_eval_configs on a MultipoleMACE.

    Args:
        args: upstream's arguments, and total_charge for structures that say none.
        charge_key: of the total charge of structures.
        on_output: called with each batch and what the model returned for it, in the order of the
            structures.

    Returns:
        By structure, what was added to its positions to bring it near the origin, or None.
    """
    get_model_output = upstream_eval.get_model_output
    moved: list[NDArray[np.float64] | None] = []

    def recording(model: torch.nn.Module, batch: dict[str, Any], *rest: Any) -> dict[str, Any]:
        with asking(model, ["polarizability"]):
            output: dict[str, Any] = get_model_output(model, batch, *rest)
        on_output(batch, output)
        return output

    config_from_atoms = upstream_eval.data.config_from_atoms

    def with_charge(atoms: Any, *rest: Any, **named: Any) -> Any:
        """Upstream's evaluation reads no labels, of which models may need the total charge."""
        near = near_origin(atoms) if args.default_dtype == "float32" else Moved(atoms, None)
        moved.append(near.by)
        config = config_from_atoms(near.atoms, *rest, **named)
        charge = total_charge(atoms, key=charge_key)
        charge = args.total_charge if charge is None else charge
        if charge is not None:
            config.properties["total_charge"] = charge
        return config

    with (
        replaced(upstream_eval, get_model_output=recording),
        replaced(upstream_eval.data, config_from_atoms=with_charge),
        own_graphs(),
    ):
        upstream_eval.run(args)
    return moved


def evaluate_unchanged(args: argparse.Namespace) -> None:
    """Run upstream's mace_eval_configs as it is."""
    upstream_eval.run(args)
