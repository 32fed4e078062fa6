"""The one place that touches mace-torch's private behaviour.

Training is upstream's own `mace.cli.run_train.run`; for the time of a run a few functions are
replaced by name in the module that calls them. Every name is checked when this module is
imported. Tested with mace-torch 0.3.16.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mace
import torch
from mace.cli import eval_configs as upstream_eval
from mace.cli import run_train as upstream_train
from mace.cli import visualise_train as upstream_plots
from mace.data import atomic_data as upstream_data
from torch.nn.parallel import DistributedDataParallel

from mace_polmp.modules import LongRangeOptions, MultipoleMACE

TESTED_VERSIONS = ">=0.3.16,<0.4"

# Size of the head's initial output on a trained backbone: its energies must hardly move.
FINE_TUNING_SCALE = 0.05

_REPLACED = {
    upstream_train: ("configure_model", "get_params_options", "create_error_table", "run"),
    upstream_plots: ("filter_nonzero_weight",),
    upstream_eval: ("get_model_output", "parse_args", "run"),
    upstream_data: ("get_neighborhood",),
}


def _check_names() -> None:
    for module, names in _REPLACED.items():
        missing = [name for name in names if not callable(getattr(module, name, None))]
        if missing:
            raise ImportError(
                f"mace_polmp works with mace-torch{TESTED_VERSIONS}; the installed "
                f"{getattr(mace, '__version__', '(unknown version)')} has no "
                f"{', '.join(f'{module.__name__}.{name}' for name in missing)}. "
                "Install a version in that range"
            )


_check_names()


@contextmanager
def _replaced(module: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    originals = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


@contextmanager
def _cells_of_slabs() -> Iterator[None]:
    """Keep the cells of slabs, which upstream makes much longer where they are not periodic."""
    get_neighborhood = upstream_data.get_neighborhood

    def keep_cell(
        positions: Any, cutoff: float, pbc: Any = None, cell: Any = None, **named: Any
    ) -> tuple[Any, Any, Any, Any]:
        given = None if cell is None else cell.copy()
        found = get_neighborhood(positions, cutoff, pbc, cell, **named)
        if given is None or pbc is None or sum(pbc) != 2:
            return found
        return (*found[:3], given)

    with _replaced(upstream_data, get_neighborhood=keep_cell):
        yield


def extend_parser(parser: argparse.ArgumentParser, model_name: str) -> None:
    """Let upstream's --model accept one more name.

    Raises:
        ImportError: the parser has no --model with choices.
    """
    for action in parser._actions:
        if action.dest == "model" and action.choices is not None:
            action.choices = [*action.choices, model_name]
            return
    raise ImportError(
        f"mace_polmp works with mace-torch{TESTED_VERSIONS}; the installed one's training parser "
        "has no --model with choices"
    )


def train(
    args: argparse.Namespace,
    options: LongRangeOptions,
    after_evaluation: Callable[[torch.nn.Module, dict[str, Any]], None],
) -> None:
    """Run upstream's training on a MultipoleMACE.

    Args:
        args: upstream's arguments, with model "MultipoleMACE".
        options: settings of the head.
        after_evaluation: called with the trained model and the loaders of training and
            validation data, for each stage of the training.
    """
    configure_model = upstream_train.configure_model
    get_params_options = upstream_train.get_params_options
    create_error_table = upstream_train.create_error_table
    filter_nonzero_weight = upstream_plots.filter_nonzero_weight

    def configure_with_head(args: argparse.Namespace, *positional: Any, **named: Any) -> Any:
        foundation = named.get("model_foundation", positional[2] if len(positional) > 2 else None)
        # The backbone is built, and a foundation model's weights loaded, by upstream itself.
        args.model = "MACE"
        try:
            backbone, output_args = configure_model(args, *positional, **named)
        finally:
            args.model = "MultipoleMACE"
        scale = 1.0 if foundation is None else FINE_TUNING_SCALE
        model = MultipoleMACE.from_mace(backbone, options, initial_scale=scale)
        _log_head(model)
        return model, output_args

    def params_with_head(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
        groups: dict[str, Any] = get_params_options(args, model)
        factor = json.loads(args.lr_params_factors).get("long_range_lr_factor", 1.0)
        groups["params"].append(
            {
                "name": "long_range",
                "params": list(model.multipole_readouts.parameters()),
                "weight_decay": 0.0,
                "lr": factor * args.lr,
            }
        )
        return groups

    def error_table(*positional: Any, **named: Any) -> Any:
        table = create_error_table(*positional, **named)
        loaders = named.get("all_data_loaders", {})
        if any(name.startswith("train_") for name in loaders):
            model = named["model"]
            if isinstance(model, DistributedDataParallel):
                model = model.module
            after_evaluation(model, loaders)
        return table

    def filter_by_weight(
        batch: Any,
        quantities: list[torch.Tensor],
        weight: torch.Tensor,
        quantity_weight: torch.Tensor,
        spread_atoms: bool = False,
        spread_quantity_vector: bool = True,
    ) -> Any:
        # The plots would repeat weights that are per component already (dipoles) once more.
        repeat = quantity_weight.shape != quantities[-1].shape
        return filter_nonzero_weight(
            batch,
            quantities,
            weight,
            quantity_weight,
            spread_atoms=spread_atoms and repeat,
            spread_quantity_vector=spread_quantity_vector and repeat,
        )

    with (
        _replaced(
            upstream_train,
            configure_model=configure_with_head,
            get_params_options=params_with_head,
            create_error_table=error_table,
        ),
        _replaced(upstream_plots, filter_nonzero_weight=filter_by_weight),
        _cells_of_slabs(),
    ):
        upstream_train.run(args)


def _log_head(model: MultipoleMACE) -> None:
    head = sum(p.numel() for p in model.multipole_readouts.parameters())
    total = sum(p.numel() for p in model.parameters())
    lift = model.multipole_readouts.lift
    logging.info(f"Long-range head: {model.long_range_options}")
    logging.info(
        f"Long-range head: {head} parameters of {total} ({100 * head / total:.1f} %); "
        f"equivariant lift for l = {lift.degrees if lift is not None else 'none'}"
    )


def parse_eval_args() -> argparse.Namespace:
    """Upstream's arguments of mace_eval_configs, from the command line."""
    return upstream_eval.parse_args()


def evaluate(
    args: argparse.Namespace, on_output: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    """Run upstream's mace_eval_configs on a MultipoleMACE.

    Args:
        args: upstream's arguments.
        on_output: called with each batch and what the model returned for it, in the order of the
            structures.
    """
    get_model_output = upstream_eval.get_model_output

    def recording(model: torch.nn.Module, batch: dict[str, Any], *rest: Any) -> dict[str, Any]:
        output: dict[str, Any] = get_model_output(model, batch, *rest)
        on_output(batch, output)
        return output

    with _replaced(upstream_eval, get_model_output=recording), _cells_of_slabs():
        upstream_eval.run(args)


def evaluate_unchanged(args: argparse.Namespace) -> None:
    """Run upstream's mace_eval_configs as it is."""
    upstream_eval.run(args)
