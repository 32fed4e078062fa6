"""The loop over epochs: training, validation, checkpoints, and the end of a run that goes wrong.

Upstream's trains one epoch and evaluates; what is around it is written here, because a run that is
to go on exactly where it was killed must write down all that it depends on, after every epoch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mace_polmp.errors import InputError
from mace_polmp.training.checkpoints import CheckpointHandler, normalisation_of
from mace_polmp.training.loaders import PlannedLoader
from mace_polmp.training.messages import Clock
from mace_polmp.training.options import loss_settings
from mace_polmp.training.watch import (
    ADVICE,
    WORSE,
    Watch,
    check_weights,
    copy_into,
    random_state,
    set_random_state,
)


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        next_epoch: the next to train.
        lowest_loss: of the validation so far, in the present stage.
        valid_loss: of the last validation.
        waited: validations since the lowest.
        stage_two: whether it has begun.
        ended: whether the run has ended before its last epoch, because nothing improved.
        start_is_best: whether no epoch has been better than a model that was given.
        growth_epochs: in which the head grows at the start; None until that is decided.
    """

    next_epoch: int = 0
    lowest_loss: float = math.inf
    valid_loss: float = math.inf
    waited: int = 0
    stage_two: bool = False
    ended: bool = False
    start_is_best: bool = False
    growth_epochs: int | None = None


@dataclass
class Phase:
    """Some epochs with something of their own.

    Attributes:
        last_epoch: where they end (not included).
        name: for the log; empty for none.
        around: for the number of epochs done, what holds while the phase lasts; it gives the loader
            of training structures and the model that is trained in place of the run's, or None.
    """

    last_epoch: int
    name: str = ""
    around: Callable[[int], AbstractContextManager[tuple[Any, Any] | None]] = nullcontext


@dataclass
class Upstream:
    """Functions of upstream's loop.

    Attributes:
        train_one_epoch, evaluate, valid_err_log: of mace.tools.train.
    """

    train_one_epoch: Callable[..., None]
    evaluate: Callable[..., tuple[float, dict[str, Any]]]
    valid_err_log: Callable[..., None]


@dataclass
class TrainingLoop:
    """A run over epochs.

    Args:
        settings: what upstream gives to its own loop, by name.
        upstream: its functions.
        checkpoints: where to write.
        facts: what else a checkpoint holds, such as the settings asked for.
        before_best: called before the best weights are written.
        keeps_start: whether the weights before the first step are the best until an epoch is
            better: those of a model that is trained on, where nothing new has to grow first.
        progress: where to begin.
    """

    settings: dict[str, Any]
    upstream: Upstream
    checkpoints: CheckpointHandler
    facts: dict[str, Any] = field(default_factory=dict)
    before_best: Callable[[], None] | None = None
    keeps_start: bool = False
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._logger = Watch(self.settings["logger"])
        self._loader = self.settings["train_loader"]
        self._is_own = False
        self._clock = Clock()

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return not self.settings["distributed"] or self.settings["rank"] == 0

    def resume(self) -> None:
        """Put everything back to where a checkpoint that was loaded left it."""
        saved = self.checkpoints.resumed
        known = saved.get("progress", {})
        self.progress = Progress(**known)
        self.progress.next_epoch = max(self.settings["start_epoch"], self.progress.next_epoch)
        if known:
            self._compare_losses(saved)
        if self.progress.next_epoch < self.settings["max_num_epochs"]:
            self.progress.ended = self.progress.ended and not self._prolonged(saved)
        ema = self.settings["ema"]
        if saved.get("ema") is not None:
            if ema is not None:
                decay = ema.decay
                ema.load_state_dict(saved["ema"])
                ema.decay = decay
            else:
                logging.info("The run had averages (--ema) and goes on without, from the averages")
                copy_into(saved["ema"]["shadow_params"], self.settings["model"].parameters())
        elif ema is not None and "version" in saved:  # averages begin here
            copy_into(list(self.settings["model"].parameters()), ema.shadow_params)
        elif ema is not None and saved:
            logging.warning(
                "The checkpoint is of an earlier version, which kept averages (--ema) in place of "
                "the weights: the run goes on from them, with the optimizer's state of the weights"
            )
        swa = self.settings["swa"]
        if swa is not None and saved.get("swa_scheduler") is not None:
            swa.scheduler.load_state_dict(saved["swa_scheduler"])
        if "random" in saved:
            set_random_state(saved["random"])

    def _compare_losses(self, saved: dict[str, Any]) -> None:
        """Forget the best epoch where the loss it had cannot be compared with those to come."""
        before, now = (x.get("settings", {}).get("training", {}) for x in (saved, self.facts))
        names = loss_settings(self.progress.stage_two)
        changed = any(before.get(name, now.get(name)) != now.get(name) for name in names)
        left_stage_two = self.progress.stage_two and self.settings["swa"] is None
        if changed or left_stage_two:
            logging.info("The loss is another one: which epoch is the best is counted anew")
            self.progress.lowest_loss, self.progress.waited = math.inf, 0
            self.progress.start_is_best = False
            self.progress.stage_two = not left_stage_two and self.progress.stage_two
        if "optimizer" in saved and "lr" in before:  # its rates go on
            now["lr"] = before["lr"]

    def _prolonged(self, saved: dict[str, Any]) -> bool:
        """Whether more epochs are asked for than when it ended."""
        before = saved.get("epochs_asked", self.settings["max_num_epochs"])
        return bool(self.settings["max_num_epochs"] > before)

    def run(self, phases: list[Phase]) -> None:
        """Train up to the last epoch, phase by phase.

        Raises:
            InputError: a loss, a weight or a validation error that is no number; no checkpoint is
                written then.
        """
        self._initial_validation()
        if self.keeps_start and len(phases) == 1:
            self._keep_start()
        progress, start = self.progress, 0
        for number, phase in enumerate(phases):
            if number > 0 and progress.next_epoch == start:
                # Which epoch was the best is counted anew in every phase.
                progress.lowest_loss, progress.waited = math.inf, 0
            if progress.next_epoch < phase.last_epoch and not progress.ended:
                if phase.name:
                    epochs = f"{progress.next_epoch} to {phase.last_epoch - 1}"
                    logging.info(f"{phase.name}: epochs {epochs}")
                self._train_phase(phase, may_end=number == len(phases) - 1)
            start = phase.last_epoch
        self.checkpoints.training_ended()
        if progress.start_is_best:
            logging.warning(WORSE)
        logging.info("Training complete")

    def _train_phase(self, phase: Phase, may_end: bool) -> None:
        progress = self.progress
        with phase.around(progress.next_epoch) as other:
            own_loader, own_model = other if isinstance(other, tuple) else (None, None)
            self._loader = own_loader or self.settings["train_loader"]
            self._is_own = own_loader is not None
            self._restore_loader()
            model = own_model or self.settings["distributed_model"]
            while progress.next_epoch < phase.last_epoch and not progress.ended:
                last = progress.next_epoch + 1 == phase.last_epoch
                self._train_epoch(progress.next_epoch, model, may_end, last)

    def _restore_loader(self) -> None:
        """The order of structures goes on where it was, if it was that of this loader."""
        saved = self.checkpoints.resumed.pop("loader", None)
        generator = getattr(self._loader, "generator", None)
        if saved is not None and generator is not None and saved["is_own"] == self._is_own:
            generator.set_state(saved["state"])

    def _initial_validation(self) -> None:
        logging.info("")
        logging.info("===========TRAINING===========")
        logging.info("Started training, reporting errors on validation set")
        loss = self._validate(self.settings["model"], self.settings["loss_fn"], None)
        if not math.isfinite(self.progress.valid_loss):
            self.progress.valid_loss = loss

    def _keep_start(self) -> None:
        """The model before the first step is the best so far."""
        progress = self.progress
        if progress.next_epoch > 0 or not math.isinf(progress.lowest_loss):
            return
        progress.lowest_loss, progress.start_is_best = progress.valid_loss, True
        if self.is_first:
            self.checkpoints.save_best(self.settings["model"], -1, progress.valid_loss, False)

    def _train_epoch(self, epoch: int, model: Any, may_end: bool, last: bool) -> None:
        s, progress = self.settings, self.progress
        last = last or (s["swa"] is not None and epoch + 1 == s["swa"].start)
        loss_fn = self._begin_epoch(epoch)
        self.upstream.train_one_epoch(
            model=s["model"],
            loss_fn=loss_fn,
            data_loader=self._planned(self._loader, f"epoch {epoch}"),
            optimizer=s["optimizer"],
            epoch=epoch,
            output_args=s["output_args"],
            max_grad_norm=s["max_grad_norm"],
            ema=s["ema"],
            logger=self._logger,
            device=s["device"],
            distributed=s["distributed"],
            distributed_model=model,
            rank=s["rank"],
        )
        if s["distributed"]:
            torch.distributed.barrier()
        improved = False
        if last or epoch % s["eval_interval"] == 0:
            with self._averages():
                progress.valid_loss = self._validate(model or s["model"], loss_fn, epoch)
                self._plot(epoch, model or s["model"])
            improved = progress.valid_loss < progress.lowest_loss
            if improved:
                progress.lowest_loss, progress.waited = progress.valid_loss, 0
                progress.start_is_best = False
            else:
                progress.waited += 1
        check_weights(s["model"], epoch)
        progress.next_epoch = epoch + 1
        if may_end and progress.waited >= s["patience"]:
            self._lose_patience()
        self._set_rates()
        if self.is_first:
            self._save(epoch, improved)
        said = self._clock.after_epoch(s["max_num_epochs"] - progress.next_epoch)
        if said and not progress.ended:
            logging.info(f"Epoch {epoch}: {said}")
        if s["distributed"]:
            torch.distributed.barrier()

    def _planned(self, loader: Any, words: str) -> PlannedLoader:
        """A loader with plans of the model's electrostatics, and a bar."""
        s, said = self.settings, words if self.is_first else None
        return PlannedLoader(loader, s["model"].electrostatics, s["device"], said)

    def _begin_epoch(self, epoch: int) -> torch.nn.Module:
        """Returns the loss of the stage."""
        s, swa = self.settings, self.settings["swa"]
        loss_fn: torch.nn.Module = s["loss_fn"]
        if swa is not None and epoch >= swa.start:
            if not self.progress.stage_two:
                logging.info("Changing loss based on Stage Two Weights")
                self.progress.stage_two = True
                self.progress.lowest_loss, self.progress.waited = math.inf, 0
                self.progress.start_is_best = False
            loss_fn = swa.loss_fn
        if s["distributed"]:
            s["train_sampler"].set_epoch(epoch)
        if "ScheduleFree" in type(s["optimizer"]).__name__:
            s["optimizer"].train()
        return loss_fn

    def _set_rates(self) -> None:
        """Let the schedule of the next epoch's stage step."""
        swa = self.settings["swa"]
        if swa is None or self.progress.next_epoch < swa.start:
            self.settings["lr_scheduler"].step(metrics=self.progress.valid_loss)
        else:
            swa.scheduler.step()

    @contextmanager
    def _averages(self) -> Iterator[None]:
        """The averages in place of the weights, where there are any."""
        s = self.settings
        if "ScheduleFree" in type(s["optimizer"]).__name__:
            s["optimizer"].eval()
        with s["ema"].average_parameters() if s["ema"] is not None else nullcontext():
            yield

    def _validate(self, model: Any, loss_fn: torch.nn.Module, epoch: int | None) -> float:
        """Log the errors of all sets of validation data; returns the loss of the last.

        Raises:
            InputError: it is no number.
        """
        s = self.settings
        loss = math.inf
        logged = {}
        for name, loader in s["valid_loaders"].items():
            loss, errors = self.upstream.evaluate(
                model=model,
                loss_fn=loss_fn,
                data_loader=self._planned(loader, "validation"),
                output_args=s["output_args"],
                device=s["device"],
            )
            if self.is_first:
                self.upstream.valid_err_log(loss, errors, s["logger"], s["log_errors"], epoch, name)
                logged[name] = {
                    "epoch": epoch,
                    "valid_loss": loss,
                    "valid_rmse_e_per_atom": errors["rmse_e_per_atom"],
                    "valid_rmse_f": errors["rmse_f"],
                }
            if not math.isfinite(loss):
                when = "before the first epoch" if epoch is None else f"after epoch {epoch}"
                raise InputError(f"{when} the loss on {name} is {loss}; {ADVICE}")
        if s["log_wandb"] and self.is_first and epoch is not None:
            import wandb

            wandb.log(logged)
        return float(loss)

    def _plot(self, epoch: int, model: Any) -> None:
        plotter = self.settings["plotter"]
        if plotter and epoch % plotter.plot_frequency == 0:
            try:
                plotter.plot(epoch, model, self.settings["rank"])
            except Exception as error:  # upstream's plots are a convenience
                logging.debug(f"Plotting failed: {error}")

    def _lose_patience(self) -> None:
        s, progress, swa = self.settings, self.progress, self.settings["swa"]
        words = f"Stopping optimization after {progress.waited} epochs without improvement"
        if swa is not None and progress.next_epoch < swa.start:
            logging.info(f"{words} and starting Stage Two")
            progress.next_epoch = swa.start
            progress.waited = 0
        elif progress.next_epoch < s["max_num_epochs"]:
            logging.info(words)
            progress.ended = True

    def _save(self, epoch: int, improved: bool) -> None:
        s = self.settings
        if improved:
            with self._averages():
                if self.before_best is not None:
                    self.before_best()
                self.checkpoints.save_best(
                    s["model"], epoch, self.progress.valid_loss, self.progress.stage_two
                )
        generator = getattr(self._loader, "generator", None)
        loader = None
        if generator is not None:
            loader = {"is_own": self._is_own, "state": generator.get_state()}
        averages = None if s["ema"] is None else s["ema"].state_dict() | {"collected_params": None}
        content = {
            "model": s["model"].state_dict(),
            "normalisation": normalisation_of(s["model"]),
            "optimizer": s["optimizer"].state_dict(),
            "optimizer_kind": type(s["optimizer"]).__name__,
            "lr_scheduler": s["lr_scheduler"].state_dict(),
            "ema": averages,
            "swa_scheduler": None if s["swa"] is None else s["swa"].scheduler.state_dict(),
            "progress": asdict(self.progress),
            "epochs_asked": s["max_num_epochs"],
            "random": random_state(),
            "loader": loader,
            **self.facts,
        }
        self.checkpoints.save_last(content, epoch)
