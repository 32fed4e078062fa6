"""The one place that touches mace-torch's private behaviour.

Training is upstream's own `mace.cli.run_train.run`; for the time of a run a few functions are
replaced by name in the module that calls them. Every name is checked when this module is
imported. Tested with mace-torch 0.3.16.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mace
import torch
from mace import tools as upstream_tools
from mace.cli import eval_configs as upstream_eval
from mace.cli import run_train as upstream_train
from mace.cli import visualise_train as upstream_plots
from mace.data import atomic_data as upstream_data
from mace.data import utils as upstream_data_utils
from mace.tools import tables_utils as upstream_tables
from torch.nn.parallel import DistributedDataParallel

from mace_polmp.modules import MultipoleMACE
from mace_polmp.structures import total_charge
from mace_polmp.training.fine_tuning import (
    check_carried_over,
    check_cutoff,
    inherit,
    keep_one_head,
    sample,
    start_from,
    start_small,
)
from mace_polmp.training.labels import complete, with_labels
from mace_polmp.training.lbfgs import PreconditionedLBFGS
from mace_polmp.training.loss import ElectricalLoss
from mace_polmp.training.metrics import ElectricalMetrics, label_table, line_of
from mace_polmp.training.options import TrainingOptions
from mace_polmp.training.orientation import MOST_ATOMS, Orientation, is_free
from mace_polmp.training.phases import HEAD_GROUP, run_phases
from mace_polmp.training.statistics import log_head

TESTED_VERSIONS = ">=0.3.16,<0.4"

_DEFAULT_R_MAX = 5.0

# Learning rate of the head of a model that starts from nothing, in units of the backbone's, and its
# limit: charges must become large before the backbone has learned to do without.
_NEW_HEAD, _FASTEST = 5.0, 0.05

# mace.tools.train is a function that hides the module it comes from.
upstream_loop = importlib.import_module("mace.tools.train")

# Methods of _Run by these names stand in for upstream's functions.
_IN_TRAINING = (
    "LBFGS",
    "configure_model",
    "create_error_table",
    "get_loss_fn",
    "get_optimizer",
    "get_params_options",
    "get_swa",
    "inject_LoRAs",
    "remove_pt_head",
)
_REPLACED = {
    upstream_train: (*_IN_TRAINING, "run"),
    upstream_tools: ("train",),
    upstream_loop: ("MACELoss", "valid_err_log"),
    upstream_tables: ("evaluate",),
    upstream_data_utils: ("config_from_atoms",),
    upstream_plots: ("filter_nonzero_weight",),
    upstream_eval: ("get_model_output", "parse_args", "run"),
    upstream_eval.data: ("config_from_atoms",),
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


def train(
    args: argparse.Namespace,
    asked: dict[str, Any],
    training: TrainingOptions,
    after_evaluation: Callable[[torch.nn.Module, dict[str, Any]], None],
) -> None:
    """Run upstream's training on a MultipoleMACE.

    Args:
        args: upstream's arguments, with model "MultipoleMACE".
        asked: settings of the head that were asked for.
        training: labels and what is trained when.
        after_evaluation: called with the trained model and the loaders of training and
            validation data, for each stage of the training.
    """
    run = _Run(asked, training, args, after_evaluation)
    if args.r_max is None:
        args.r_max = _DEFAULT_R_MAX
    with (
        _replaced(upstream_train, **{name: getattr(run, name) for name in _IN_TRAINING}),
        _replaced(upstream_tools, train=run.train),
        _replaced(upstream_loop, MACELoss=ElectricalMetrics, valid_err_log=run.valid_err_log),
        _replaced(upstream_tables, evaluate=run.evaluate),
        _replaced(upstream_data_utils, config_from_atoms=run.config_from_atoms),
        _replaced(upstream_plots, filter_nonzero_weight=_filter_by_weight),
        _cells_of_slabs(),
    ):
        upstream_train.run(args)


class _Run:
    """What stands in for upstream's functions in one training; each calls the one it replaces.

    Args:
        asked, training, after_evaluation: as of train.
        args: upstream's arguments, with the cutoff that was asked for or None.
    """

    def __init__(
        self,
        asked: dict[str, Any],
        training: TrainingOptions,
        args: argparse.Namespace,
        after_evaluation: Callable[[torch.nn.Module, dict[str, Any]], None],
    ) -> None:
        self._asked = asked
        self._training = training
        self._r_max = args.r_max
        self._seed = args.seed
        self._after_evaluation = after_evaluation
        self._scaled = 1.0  # what a new head was scaled by
        self._optimizer: torch.optim.Optimizer | None = None
        self._metrics: dict[int, dict[str, Any]] = {}
        self._upstream = {
            name: getattr(module, name)
            for module in (upstream_train, upstream_loop, upstream_data_utils, upstream_tables)
            for name in _REPLACED[module]
        }
        self._upstream["train"] = upstream_tools.train

    def configure_model(
        self, args: argparse.Namespace, train_loader: Any, *positional: Any, **named: Any
    ) -> Any:
        """The backbone, with a foundation model's weights, as upstream makes it; then the head."""
        energies, foundation, *rest = positional
        if self._r_max is not None and foundation is not None:
            check_cutoff(self._r_max, foundation)
        former = foundation if isinstance(foundation, MultipoleMACE) else None
        backbone_of = foundation if former is None else former.short_range()
        args.model = "MACE"
        try:
            backbone, output_args = self._upstream["configure_model"](
                args, train_loader, energies, backbone_of, *rest, **named
            )
        finally:
            args.model = "MultipoleMACE"
        model = MultipoleMACE.from_mace(backbone, inherit(self._asked, former))
        if foundation is not None:
            # Upstream overwrites atomic energies by the foundation model's where shapes agree.
            buffer = backbone.atomic_energies_fn.atomic_energies
            buffer.copy_(torch.as_tensor(energies).view(buffer.shape))
            batches = sample(train_loader.dataset)
            if args.foundation_filter_elements:
                check_carried_over(backbone, backbone_of, batches)
            if former is None:
                self._scaled = start_small(model, batches)
            else:
                start_from(model, former, batches)
        log_head(model)
        return model, output_args

    def get_params_options(
        self, args: argparse.Namespace, model: torch.nn.Module
    ) -> dict[str, Any]:
        """Upstream's groups of parameters and one for the head."""
        groups: dict[str, Any] = self._upstream["get_params_options"](args, model)
        default = 1.0
        if not args.foundation_model and args.lr > 0:
            default = max(1.0, min(_NEW_HEAD, _FASTEST / args.lr))
        factor = json.loads(args.lr_params_factors).get("long_range_lr_factor", default)
        rate = self._training.head_lr
        groups["params"].append(
            {
                "name": HEAD_GROUP,
                "params": model.head_parameters(),
                "weight_decay": 0.0,
                "lr": factor * args.lr if rate is None else rate,
            }
        )
        return groups

    def get_optimizer(self, *positional: Any, **named: Any) -> torch.optim.Optimizer:
        """Upstream's optimizer, which is filled from the checkpoint before L-BFGS replaces it."""
        optimizer: torch.optim.Optimizer = self._upstream["get_optimizer"](*positional, **named)
        self._optimizer = optimizer
        return optimizer

    def LBFGS(self, parameters: Any, **named: Any) -> PreconditionedLBFGS:
        """L-BFGS that knows how stiff the optimizer before it has found the parameters."""
        return PreconditionedLBFGS(parameters, self._optimizer, **named)

    def get_loss_fn(self, *positional: Any, **named: Any) -> torch.nn.Module:
        """Upstream's loss and that of electrical labels."""
        loss = self._upstream["get_loss_fn"](*positional, **named)
        return self._with_labels(loss, stage_two=False)

    def get_swa(self, *positional: Any, **named: Any) -> Any:
        """Upstream's stage two with its own weights of electrical labels."""
        container, flags = self._upstream["get_swa"](*positional, **named)
        container.loss_fn = self._with_labels(container.loss_fn, stage_two=True)
        logging.info(f"Loss of stage two: {container.loss_fn}")
        return container, flags

    def _with_labels(self, loss: torch.nn.Module, stage_two: bool) -> torch.nn.Module:
        if not self._training.used:
            return loss
        # Labels in use in either stage are reported in both.
        weights = dict.fromkeys(self._training.used, 0.0) | self._training.weights(stage_two)
        return ElectricalLoss(loss, weights)

    def config_from_atoms(
        self, atoms: Any, key_specification: Any = None, *positional: Any, **named: Any
    ) -> Any:
        """Upstream's configuration of a structure, and the electrical labels that it leaves out."""
        keys = {name: self._training.key(name) for name in self._training.used}
        keys |= {n: k for n, k in key_specification.info_keys.items() if n in keys}
        keys |= {n: k for n, k in key_specification.arrays_keys.items() if n in keys}
        atoms = with_labels(atoms, keys)
        config = self._upstream["config_from_atoms"](atoms, key_specification, *positional, **named)
        return complete(config, atoms, keys)

    def inject_LoRAs(self, model: MultipoleMACE, **named: Any) -> MultipoleMACE:
        """Upstream's adapters for the backbone; the head is new and trained as it is."""
        head = model.multipole_readouts
        del model.multipole_readouts
        self._upstream["inject_LoRAs"](model, **named)
        model.multipole_readouts = head
        for parameter in model.head_parameters():
            parameter.requires_grad_(True)
        return model

    def remove_pt_head(self, model: torch.nn.Module, name: str | None = None) -> torch.nn.Module:
        """One of several heads of a foundation model."""
        upstream = self._upstream["remove_pt_head"]
        if isinstance(model, MultipoleMACE):
            return keep_one_head(model, name, upstream)
        return upstream(model, name)

    def train(self, **settings: Any) -> None:
        """Upstream's loop over epochs, in the phases that were asked for."""
        model, loader = settings["model"], settings["train_loader"]
        datasets = [loader.dataset, *(x.dataset for x in settings["valid_loaders"].values())]
        if not self._training.used and is_free(model, datasets):
            few = sample(loader.dataset, most_atoms=MOST_ATOMS)
            orientation = Orientation(model, few, settings["device"])
            handler = settings["checkpoint_handler"]
            handler.save = orientation.before(handler.save)
        run_phases(self._upstream["train"], settings, self._training, self._scaled, self._seed)

    def valid_err_log(
        self,
        valid_loss: float,
        eval_metrics: dict[str, Any],
        logger: Any,
        log_errors: str,
        epoch: int | None = None,
        valid_loader_name: str = "Default",
    ) -> None:
        """Upstream's line of errors in an epoch, and one of the electrical labels."""
        self._upstream["valid_err_log"](
            valid_loss, eval_metrics, logger, log_errors, epoch, valid_loader_name
        )
        line = line_of(eval_metrics)
        if line:
            when = "Initial" if epoch is None else f"Epoch {epoch}"
            logging.info(f"{when}: head: {valid_loader_name}, {line}")

    def evaluate(self, *positional: Any, data_loader: Any, **named: Any) -> Any:
        """Upstream's evaluation of one set of data, whose errors of labels are kept."""
        loss, metrics = self._upstream["evaluate"](*positional, data_loader=data_loader, **named)
        self._metrics[id(data_loader)] = metrics
        return loss, metrics

    def create_error_table(self, *positional: Any, **named: Any) -> Any:
        """Upstream's table of errors; then one of electrical labels, and of the multipoles."""
        self._metrics.clear()
        table = self._upstream["create_error_table"](*positional, **named)
        loaders = named.get("all_data_loaders", {})
        metrics = {
            name: self._metrics[id(loader)]
            for name, loader in loaders.items()
            if id(loader) in self._metrics
        }
        labels = label_table(metrics)
        if labels is not None:
            logging.info("Errors of electrical labels:\n" + str(labels))
        if any(name.startswith("train_") for name in loaders):
            model = named["model"]
            if isinstance(model, DistributedDataParallel):
                model = model.module
            self._after_evaluation(model, loaders)
        return table


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


_filter_nonzero_weight = upstream_plots.filter_nonzero_weight


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

    config_from_atoms = upstream_eval.data.config_from_atoms

    def with_charge(atoms: Any, *rest: Any, **named: Any) -> Any:
        """Upstream's evaluation reads no labels, of which models may need the total charge."""
        config = config_from_atoms(atoms, *rest, **named)
        charge = total_charge(atoms)
        if charge is not None:
            config.properties["total_charge"] = charge
        return config

    with (
        _replaced(upstream_eval, get_model_output=recording),
        _replaced(upstream_eval.data, config_from_atoms=with_charge),
        _cells_of_slabs(),
    ):
        upstream_eval.run(args)


def evaluate_unchanged(args: argparse.Namespace) -> None:
    """Run upstream's mace_eval_configs as it is."""
    upstream_eval.run(args)
