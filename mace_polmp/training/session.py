"""One training of a MultipoleMACE: what is done in place of upstream's functions, and when.

Each method that upstream/training.py puts in the place of a function of the same name takes that
function as its first argument and calls it, where it does not say otherwise.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
from collections.abc import Callable
from typing import Any

import torch
from ase import Atoms

from mace_polmp.calculators.verdict import log_verdict
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.accelerated import with_cuequivariance
from mace_polmp.modules.labelled import asking
from mace_polmp.modules.record import TrainingRecord
from mace_polmp.repeatable import repeatable
from mace_polmp.training import atomic_energies
from mace_polmp.training.averages import HeadEnergies
from mace_polmp.training.checkpoints import CheckpointHandler
from mace_polmp.training.curves import draw_label_curves
from mace_polmp.training.fine_tuning import (
    check_carried_over,
    check_cutoff,
    freeze_the_rest,
    inherit,
    keep_one_head,
    sample,
    start_from,
    start_small,
)
from mace_polmp.training.held_out import HeldOut
from mace_polmp.training.lbfgs import PreconditionedLBFGS
from mace_polmp.training.loaders import check_counts, with_label
from mace_polmp.training.loop import TrainingLoop, Upstream
from mace_polmp.training.loss import ElectricalLoss
from mace_polmp.training.messages import names_of_groups, offset_said
from mace_polmp.training.metrics import ElectricalMetrics, label_table, line_of, warn_of_branches
from mace_polmp.training.options import TrainingOptions
from mace_polmp.training.orientation import MOST_ATOMS, Orientation, is_free
from mace_polmp.training.phases import HEAD_GROUP, plan_phases
from mace_polmp.training.statistics import log_head
from mace_polmp.upstream import training as upstream
from mace_polmp.upstream.data import own_labels

_DEFAULT_R_MAX = 5.0

# Learning rate of the head of a model that starts from nothing, in units of the backbone's, and its
# limit: charges must become large before the backbone has learned to do without.
_NEW_HEAD, _FASTEST = 5.0, 0.05

Original = Callable[..., Any]


def train(
    args: argparse.Namespace,
    asked: dict[str, Any],
    training: TrainingOptions,
    record: TrainingRecord,
    facts: dict[str, Any],
    notes: list[str],
    frames: dict[str, list[Atoms]],
    after_evaluation: Callable[[torch.nn.Module, dict[str, Any]], None],
) -> None:
    """Run upstream's training on a MultipoleMACE.

    Args:
        args: upstream's arguments, with model "MultipoleMACE".
        asked: settings of the head that were asked for.
        training: labels and what is trained when.
        record: what the model is to remember of its training.
        facts: what checkpoints hold besides: the settings that a restart is compared with.
        notes: lines for the log on what a restart changes.
        frames: structure files that were read already.
        after_evaluation: called with the trained model and the loaders of training and
            validation data, for each stage of the training.

    Raises:
        InputError: a loss or weights that become NaN, or what only upstream's reading finds.
    """
    session = _Session(asked, training, args, record, facts, notes, after_evaluation)
    session.held_out = HeldOut(frames, {n: training.key(n) for n in ("dipole", "born_charges")})
    if args.r_max is None:
        args.r_max = _DEFAULT_R_MAX
    keys = {name: training.key(name) for name in training.used}
    keys["total_charge"] = training.key("total_charge")
    with own_labels(keys, frames), repeatable(args.device):
        upstream.run(args, session, ElectricalMetrics)


class _Session:
    """What stands in for upstream's functions in one training.

    Args:
        asked, training, record, facts, notes, after_evaluation: as of train.
        args: upstream's arguments, with the cutoff that was asked for or None.
    """

    def __init__(
        self,
        asked: dict[str, Any],
        training: TrainingOptions,
        args: argparse.Namespace,
        record: TrainingRecord,
        facts: dict[str, Any],
        notes: list[str],
        after_evaluation: Callable[[torch.nn.Module, dict[str, Any]], None],
    ) -> None:
        self._asked = asked
        self._training = training
        self._args = args
        self._r_max = args.r_max
        self._record = record
        self._facts = facts
        self._notes = notes
        self._after_evaluation = after_evaluation
        self._scaled = 1.0  # factor by which a new head was made smaller
        self._optimizer: torch.optim.Optimizer | None = None
        self._metrics: dict[int, dict[str, Any]] = {}  # by id of the loader
        self._energies = HeadEnergies()
        self.held_out = HeldOut({}, {})

    # Data.

    def get_dataset_from_xyz(self, original: Original, **named: Any) -> Any:
        """Structures, and energies of isolated atoms if they are those of all elements."""
        collections, energies = original(**named)
        self.held_out.add(collections)
        elements = {
            int(z)
            for configs in (collections.train, collections.valid)
            for config in configs
            for z in config.atomic_numbers
        }
        if self._args.atomic_numbers is not None:
            elements |= set(json.loads(self._args.atomic_numbers))
        known = {z: energy for z, energy in (energies or {}).items() if z in elements}
        if elements <= set(known):
            return collections, known
        self._energies.keep_isolated(collections.train, known)
        return collections, None

    def get_atomic_energies(
        self, original: Original, E0s: Any, train_collection: Any, z_table: Any
    ) -> dict[int, float]:
        """Averages over the energies that count, or what was given, by element."""
        return self._energies.of(original, E0s, train_collection, [int(z) for z in z_table.zs])

    def estimate_e0s_from_foundation(
        self, original: Original, *, foundation_model: Any, collections_train: Any, **named: Any
    ) -> Any:
        """Upstream's estimate from the energies that count, in the precision of the training."""
        model = copy.deepcopy(foundation_model).to(torch.get_default_dtype())
        counted = atomic_energies.counted(collections_train)
        return original(foundation_model=model, collections_train=counted, **named)

    def scaling(self, original: Original, train_loader: Any, energies: Any) -> Any:
        """Upstream's shift and scale of energies, each of the structures that have its label.

        The shift is a mean of energies; the scale is their spread (std_scaling) or the size of the
        forces (rms_forces_scaling).
        """
        with_energy = with_label(train_loader, "energy")
        shift, scale = original(with_energy, energies)
        if self._args.scaling == "rms_forces_scaling":
            with_forces = with_label(train_loader, "forces")
            if with_forces is not with_energy:
                scale = original(with_forces, energies)[1]
        return shift, scale

    # Model.

    def configure_model(
        self, original: Original, args: argparse.Namespace, train_loader: Any, *rest: Any
    ) -> Any:
        """The backbone, with a foundation model's weights, as upstream makes it; then the head."""
        energies, foundation, *others = rest
        self.held_out.forget_others()
        if self._r_max is not None and foundation is not None:
            check_cutoff(self._r_max, foundation)
        former = foundation if isinstance(foundation, MultipoleMACE) else None
        backbone_of = foundation if former is None else former.short_range()
        args.model = "MACE"
        try:
            backbone, output_args = original(args, train_loader, energies, backbone_of, *others)
        finally:
            args.model = "MultipoleMACE"
        # Upstream leaves a part of a foundation model where it was; it moves the whole afterwards.
        backbone = backbone.to("cpu")
        model = MultipoleMACE.from_mace(backbone, inherit(self._asked, former))
        model.trained_on = self._record
        logging.info("Long-range head: its size at the start is measured on some structures")
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
        else:
            energies = self._energies.beside_ions(model, energies, train_loader.dataset, *others)
        exact = torch.as_tensor(energies, dtype=torch.float64)
        if exact.numel() == backbone.atomic_energies_fn.atomic_energies.numel():
            model.keep_atomic_energies(exact)
        log_head(model)
        if args.enable_cueq and not args.only_cueq:
            model = with_cuequivariance(model)
        args.enable_cueq = False  # upstream would convert the whole model, class by class
        return model, output_args

    def inject_LoRAs(self, original: Original, model: MultipoleMACE, **named: Any) -> MultipoleMACE:
        """Upstream's adapters for the backbone; the head is new and trained as it is."""
        head = model.multipole_readouts
        del model.multipole_readouts
        original(model, **named)
        model.multipole_readouts = head
        for parameter in model.head_parameters():
            parameter.requires_grad_(True)
        return model

    def remove_pt_head(
        self, original: Original, model: torch.nn.Module, name: str | None = None
    ) -> torch.nn.Module:
        """One of several heads of a foundation model."""
        if isinstance(model, MultipoleMACE):
            return keep_one_head(model, name, original)
        kept: torch.nn.Module = original(model, name)
        return kept

    # Optimizer and loss.

    def get_params_options(
        self, original: Original, args: argparse.Namespace, model: torch.nn.Module
    ) -> dict[str, Any]:
        """Upstream's groups of parameters and one for the head."""
        groups: dict[str, Any] = original(args, model)
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
        freeze_the_rest(model, groups["params"])
        logging.info(f"Param groups: {names_of_groups(groups['params'])}")
        return groups

    def get_optimizer(
        self, original: Original, *positional: Any, **named: Any
    ) -> torch.optim.Optimizer:
        """Upstream's optimizer, which is filled from the checkpoint before L-BFGS replaces it."""
        optimizer: torch.optim.Optimizer = original(*positional, **named)
        self._optimizer = optimizer
        return optimizer

    def LBFGS(self, original: Original, parameters: Any, **named: Any) -> PreconditionedLBFGS:
        """L-BFGS that knows how stiff the optimizer before it has found the parameters."""
        return PreconditionedLBFGS(parameters, self._optimizer, **named)

    def get_loss_fn(self, original: Original, *positional: Any, **named: Any) -> torch.nn.Module:
        """Upstream's loss, of the labels that count, and that of electrical labels."""
        return self._with_labels(original(*positional, **named), stage_two=False)

    def get_swa(self, original: Original, *positional: Any, **named: Any) -> Any:
        """Upstream's stage two with its own weights of electrical labels."""
        container, flags = original(*positional, **named)
        container.loss_fn = self._with_labels(container.loss_fn, stage_two=True)
        logging.info(f"Loss of stage two: {container.loss_fn}")
        return container, flags

    def _with_labels(self, loss: torch.nn.Module, stage_two: bool) -> ElectricalLoss:
        # Labels in use in either stage are reported in both.
        weights = dict.fromkeys(self._training.used, 0.0) | self._training.weights(stage_two)
        return ElectricalLoss(loss, weights)

    # Processes.

    def init_distributed(self, original: Original, args: argparse.Namespace) -> Any:
        """Upstream's processes, and those on CPUs, which it starts no communication for."""
        found = original(args)
        if args.distributed and args.device == "cpu" and not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend="gloo", init_method="env://")
        return found

    def DDP(self, original: Original, model: torch.nn.Module, device_ids: Any = None) -> Any:
        """Upstream's distributed model, on CPUs as well."""
        return original(model, device_ids=None if self._args.device == "cpu" else device_ids)

    # Training.

    def CheckpointHandler(self, original: Original, *rest: Any, **named: Any) -> CheckpointHandler:
        """A handler that loses nothing."""
        for note in self._notes:
            logging.warning(f"Restart: {note}")
        return CheckpointHandler(*rest, **named)

    def train(self, original: Original, **settings: Any) -> None:
        """The loop over epochs, in the phases that were asked for."""
        model, loader = settings["model"], settings["train_loader"]
        handler: CheckpointHandler = settings["checkpoint_handler"]
        if self._args.restart_latest and not handler.resumed:  # an optimizer that was changed
            settings["start_epoch"] = handler.load_weights(model) or settings["start_epoch"]
        handler.keep_all(self._args.keep_checkpoints or settings["save_all_checkpoints"])
        datasets = [loader.dataset, *(x.dataset for x in settings["valid_loaders"].values())]
        check_counts(loader.dataset, "training", self._training.used)
        for name, valid in settings["valid_loaders"].items():
            check_counts(valid.dataset, f"validation ({name})", self._training.used)
        before_best = None
        if is_free(model, datasets, self._training.used):
            few = sample(loader.dataset, most_atoms=MOST_ATOMS)
            before_best = Orientation(model, few, settings["device"])
        loop = TrainingLoop(
            settings,
            Upstream(**upstream.loop_functions()),
            handler,
            facts=self._facts,
            before_best=before_best,
            keeps_start=bool(self._args.foundation_model),
        )
        loop.resume()
        # The loss of L-BFGS must be the same in every evaluation.
        directions = 3 if self._args.lbfgs else self._training.born_charges_directions
        seed = self._args.seed
        with asking(model, self._training.used, directions):
            loop.run(plan_phases(settings, self._training, self._scaled, seed, loop.progress))
        if loop.is_first and self._args.plot and self._training.used:
            draw_label_curves(settings["logger"].path)

    def valid_err_log(
        self,
        original: Original,
        valid_loss: float,
        eval_metrics: dict[str, Any],
        logger: Any,
        log_errors: str,
        epoch: int | None = None,
        valid_loader_name: str = "Default",
    ) -> None:
        """Upstream's line of errors in an epoch, and one of the electrical labels."""
        original(valid_loss, eval_metrics, logger, log_errors, epoch, valid_loader_name)
        line = line_of(eval_metrics)
        if line:
            when = "Initial" if epoch is None else f"Epoch {epoch}"
            logging.info(f"{when}: head: {valid_loader_name}, {line}")
        if epoch is None:
            warn_of_branches(eval_metrics, "Before the first epoch")

    # Results.

    def evaluate(self, original: Original, *positional: Any, data_loader: Any, **named: Any) -> Any:
        """Upstream's evaluation of one set of data, whose errors of labels are kept."""
        model = named.get("model") or positional[0]
        with asking(getattr(model, "module", model), self._training.used):
            loss, metrics = original(*positional, data_loader=data_loader, **named)
        self._metrics[id(data_loader)] = metrics
        return loss, metrics

    def create_error_table(self, original: Original, *positional: Any, **named: Any) -> Any:
        """Upstream's table of errors; then one of electrical labels, and of the multipoles."""
        self._metrics.clear()
        table = original(*positional, **named)
        loaders = named.get("all_data_loaders", {})
        metrics = {
            name: self._metrics[id(loader)]
            for name, loader in loaders.items()
            if id(loader) in self._metrics
        }
        for name, values in metrics.items():
            if offset_said(values):
                logging.info(f"Energies of {name}: {offset_said(values)}")
            warn_of_branches(values, name)
        labels = label_table(metrics)
        if labels is not None:
            logging.info("Errors of electrical labels:\n" + labels)
        if any(name.startswith("train_") for name in loaders):
            model = getattr(named["model"], "module", named["model"])  # of a distributed one
            self._after_evaluation(model, loaders)
            if not self._args.distributed or torch.distributed.get_rank() == 0:
                log_verdict(model, self.held_out.frames, self.held_out.keys)
        return table
