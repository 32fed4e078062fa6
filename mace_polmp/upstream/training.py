"""The wiring to mace-torch's training: which of its functions are replaced while a run lasts.

Training is upstream's own `mace.cli.run_train.run`. For the time of a run a few functions are
replaced by name in the module that calls them; what takes their place is in training/session.py.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from mace import data as upstream_data
from mace import modules as upstream_modules
from mace import tools as upstream_tools
from mace.cli import run_train as upstream_train
from mace.cli import visualise_train as upstream_plots
from mace.tools import tables_utils as upstream_tables

from mace_polmp.errors import InputError
from mace_polmp.files import write_torch
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.accelerated import is_accelerated, without_cuequivariance
from mace_polmp.upstream.data import own_graphs
from mace_polmp.upstream.names import TESTED_VERSIONS, check_names, replaced

# mace.tools.train is a function that hides the module it comes from.
upstream_loop = importlib.import_module("mace.tools.train")

# By module, the functions that methods of a session stand in for.
_REPLACED = {
    upstream_train: (
        "DDP",
        "LBFGS",
        "configure_model",
        "create_error_table",
        "get_atomic_energies",
        "get_dataset_from_xyz",
        "get_loss_fn",
        "get_optimizer",
        "get_params_options",
        "get_swa",
        "init_distributed",
        "inject_LoRAs",
        "remove_pt_head",
    ),
    upstream_tools: ("CheckpointHandler", "train"),
    upstream_loop: ("valid_err_log",),
    upstream_tables: ("evaluate",),
    upstream_data: ("estimate_e0s_from_foundation",),
}
check_names(
    {
        **_REPLACED,
        upstream_train: (*_REPLACED[upstream_train], "run"),
        upstream_loop: ("MACELoss", "evaluate", "train_one_epoch", "valid_err_log"),
        upstream_plots: ("filter_nonzero_weight",),
    }
)
_SCALINGS = ("std_scaling", "rms_forces_scaling")


def extend_parser(parser: argparse.ArgumentParser, model_name: str, notes: dict[str, str]) -> None:
    """Let upstream's --model accept one more name, and forget some defaults of upstream's.

    Args:
        parser: upstream's.
        model_name: the name.
        notes: by flag whose default depends on the model, what it is with this one.

    Raises:
        ImportError: the parser has no --model with choices, or lacks one of the flags.
    """
    actions = {action.dest: action for action in parser._actions}
    missing = [name for name in ("model", *notes) if name not in actions]
    if missing or actions["model"].choices is None:
        raise ImportError(
            f"mace_polmp works with mace-torch{TESTED_VERSIONS}; the installed one's training "
            f"parser has no --{(missing or ['model with choices'])[0]}"
        )
    actions["model"].choices = [*actions["model"].choices, model_name]
    for name, note in notes.items():
        action = actions[name]
        action.help = f"{action.help} (default {action.default}; {note})"
        action.default = argparse.SUPPRESS


def normalised(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the folders and irreps that upstream makes of them.

    Raises:
        InputError: what upstream refuses.
    """
    try:
        found, _ = upstream_tools.check_args(copy.deepcopy(args))
    except (AssertionError, ValueError, TypeError) as error:
        raise InputError(str(error).split("\n")[0] or "the arguments do not fit") from error
    return found


def run(args: argparse.Namespace, session: Any, metrics: type) -> None:
    """Run upstream's training with a session's methods in place of its functions.

    Args:
        args: upstream's arguments.
        session: an object with a method for each replaced function, of the same name, that takes
            the function as its first argument.
        metrics: in place of upstream's class of errors during a training.
    """
    with (
        _in_place(session),
        own_graphs(),
        _quiet(),
        replaced(upstream_loop, MACELoss=metrics),
        replaced(upstream_plots, filter_nonzero_weight=_filter_by_weight),
        replaced(upstream_train, torch=_Torch(args.only_cueq), jit=_NoScript()),
    ):
        upstream_train.run(args)


@contextmanager
def _in_place(session: Any) -> Iterator[None]:
    scalings = {name: upstream_modules.scaling_classes[name] for name in _SCALINGS}
    with ExitStack() as stack:
        for module, names in _REPLACED.items():
            own = {name: partial(getattr(session, name), getattr(module, name)) for name in names}
            stack.enter_context(replaced(module, **own))
        stack.callback(upstream_modules.scaling_classes.update, scalings)
        for name, scaling in scalings.items():
            upstream_modules.scaling_classes[name] = partial(session.scaling, scaling)
        yield


class _Torch:
    """torch as upstream's training sees it: its files appear whole or not at all.

    Args:
        keeps_accelerated: whether models stay cuEquivariance's in their files (--only_cueq).
    """

    def __init__(self, keeps_accelerated: bool) -> None:
        self._keeps_accelerated = keeps_accelerated

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def save(self, obj: Any, f: Any, **named: Any) -> None:
        """Of torch, to a file that replaces the one before; no weight in it is frozen."""
        if isinstance(obj, torch.nn.Module):  # a copy; what this run has frozen ends with it
            obj.requires_grad_(True)
        if isinstance(obj, MultipoleMACE) and is_accelerated(obj) and not self._keeps_accelerated:
            obj = without_cuequivariance(obj)
        write_torch(f, obj, **named)


class _NoScript:
    """TorchScript, which does not know these models: upstream tries it last and goes on without."""

    @staticmethod
    def compile(*_: Any, **__: Any) -> None:
        """Upstream catches this."""
        raise NotImplementedError


@contextmanager
def _quiet() -> Iterator[None]:
    """Without upstream's line of a compiled file that is never written."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Compiling model, saving metadata")

    logging.getLogger().addFilter(keep)
    # A log that cannot be written, to a full disk, is no reason for a traceback in each line: what
    # matters more cannot be written either, and ends the run with one.
    raises, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        logging.getLogger().removeFilter(keep)


_filter_nonzero_weight = upstream_plots.filter_nonzero_weight


def _filter_by_weight(
    batch: Any,
    quantities: list[torch.Tensor],
    weight: torch.Tensor,
    quantity_weight: torch.Tensor,
    spread_atoms: bool = False,
    spread_quantity_vector: bool = True,
) -> Any:
    """Upstream's plots would repeat weights that are per component already (dipoles) once more."""
    repeat = quantity_weight.shape != quantities[-1].shape
    return _filter_nonzero_weight(
        batch,
        quantities,
        weight,
        quantity_weight,
        spread_atoms=spread_atoms and repeat,
        spread_quantity_vector=spread_quantity_vector and repeat,
    )


def loop_functions() -> dict[str, Callable[..., Any]]:
    """Upstream's functions of one epoch as they are now, by name."""
    return {
        name: getattr(upstream_loop, name)
        for name in ("train_one_epoch", "evaluate", "valid_err_log")
    }
