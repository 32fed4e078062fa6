"""Checkpoints of a training: nothing is lost when it is killed, and a resumed run is the same run.

A folder holds, for a run NAME_run-SEED:

    NAME_run-SEED_epoch-N.pt: everything that the run goes on from after epoch N, which are raw
        weights, averages (--ema), optimizer, schedulers, random numbers, the best loss so far and
        the settings; written after every epoch, the last two stay
    NAME_run-SEED_best.pt: the weights with the lowest validation loss; averages where there are any
    NAME_run-SEED_best_stagetwo.pt: the same of stage two

Each file is written beside its place and then renamed, so that a kill leaves the old one or the new
one. A file that cannot be read is named in the log and the one before it is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mace_polmp.errors import InputError
from mace_polmp.files import make_folder, write_torch

Checkpoint = dict[str, Any]

VERSION = 2
"""Of a checkpoint's content; upstream's, which hold less, have none."""

_KEPT = 2
_NORMALISATIONS = ("avg_num_neighbors", "norm")
_SCHEDULE = ("gamma", "factor", "patience")


@dataclass(frozen=True)
class Files:
    """The checkpoints of a run in a folder.

    Args:
        folder: may not exist yet.
        tag: NAME_run-SEED.
    """

    folder: Path
    tag: str

    def last(self) -> list[Path]:
        """Those to go on from, the newest first."""
        pattern = re.compile(re.escape(self.tag) + r"_epoch-(\d+)(_swa)?\.pt")
        found = [
            (int(match.group(1)), path)
            for path in (self.folder.iterdir() if self.folder.is_dir() else ())
            if (match := pattern.fullmatch(path.name)) and path.is_file()
        ]
        return [path for _, path in sorted(found, reverse=True)]

    def of_epoch(self, epoch: int) -> Path:
        """The name of that after an epoch."""
        return self.folder / f"{self.tag}_epoch-{epoch}.pt"

    def best(self, stage_two: bool) -> Path:
        """The name of the best of a stage."""
        return self.folder / f"{self.tag}_best{'_stagetwo' if stage_two else ''}.pt"

    def there(self) -> list[Path]:
        """All that are there."""
        best = [path for path in (self.best(False), self.best(True)) if path.is_file()]
        return [*self.last(), *best]

    def lock(self) -> Path:
        """The file that keeps two processes from writing the same run."""
        return self.folder / f".{self.tag}.lock"

    def readable(self) -> Iterator[tuple[Path, Checkpoint]]:
        """Those to go on from that can be read, the newest first; others are named in the log."""
        for path in self.last():
            try:
                checkpoint = torch.load(path, map_location="cpu", weights_only=False)
                if not isinstance(checkpoint, dict) or "model" not in checkpoint:
                    raise ValueError("holds something else")
            except Exception as error:
                reason = str(error).split("\n")[0] or type(error).__name__
                logging.warning(
                    f"{path}: not readable as a checkpoint ({reason}); the one before it is used"
                )
                continue
            yield path, checkpoint


def epoch_of(path: Path) -> int:
    """The epoch after which a checkpoint was written, from its name."""
    match = re.search(r"_epoch-(\d+)(_swa)?\.pt$", path.name)
    assert match is not None
    return int(match.group(1))


def newest(files: Files) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that can be read; None where there is none at all.

    Raises:
        InputError: there are some, and none can be read.
    """
    found = next(files.readable(), None)
    if found is None and files.last():
        raise InputError(
            f"{files.last()[0]}: not readable as a checkpoint, and neither is any before it; "
            f"remove {files.folder / files.tag}_epoch-*.pt to begin anew"
        )
    return found


class CheckpointHandler:
    """What stands in for upstream's handler of checkpoints in a training.

    Args:
        directory, tag: of the files.
        keep: whether older checkpoints stay.
        swa_start: of upstream, not used: files of the stages have names of their own.
    """

    def __init__(
        self, directory: str, tag: str, keep: bool = False, swa_start: int | None = None
    ) -> None:
        self.files = Files(Path(directory), tag)
        self._keep = keep
        self._trained = False
        self.resumed: Checkpoint = {}
        """What the run goes on from, for those parts that upstream does not ask for."""

    # What upstream calls.

    def load_latest(
        self, state: Any, swa: bool | None = False, device: Any = None, strict: bool = True
    ) -> int | None:
        """Before the training, what it goes on from; after it, the best of a stage.

        Args:
            state: upstream's model, optimizer and lr_scheduler.
            swa: which stage, after the training.
            device, strict: of upstream; not used.

        Returns:
            The next epoch; after the training, the epoch of the best. None if there is no file.

        Raises:
            InputError: the best weights cannot be read.
            TypeError: what is there belongs to another kind of optimizer: upstream then tries
                again with the one that it changes to.
        """
        return self._load_best(state, bool(swa)) if self._trained else self._load_last(state)

    def save(self, *_: Any, **__: Any) -> None:
        """Upstream's loop over epochs, which would call this, is not used."""
        raise NotImplementedError("checkpoints are written by mace_polmp.training.loop")

    def _load_last(self, state: Any) -> int | None:
        found = newest(self.files)
        if found is None:
            return None
        path, checkpoint = found
        for newer in self.files.last():
            if newer == path:
                break
            newer.rename(newer.with_name(newer.name + ".unreadable"))
        kind = checkpoint.get("optimizer_kind", _kind_of(checkpoint["optimizer"]))
        if kind == "LBFGS" and "LBFGS" not in type(state.optimizer).__name__:
            raise TypeError(f"{path} was written with L-BFGS")
        logging.info(f"Loading checkpoint {path}")
        _load_model(state.model, checkpoint, path)
        load_optimizer(state.optimizer, checkpoint["optimizer"])
        _load_scheduler(state.lr_scheduler, checkpoint["lr_scheduler"])
        self.resumed = checkpoint
        return epoch_of(path) + 1

    def load_weights(self, model: torch.nn.Module) -> int | None:
        """The weights alone of what the run goes on from, for another optimizer."""
        found = newest(self.files)
        if found is None:
            return None
        path, checkpoint = found
        logging.info(f"Going on from the weights in checkpoint {path}")
        _load_model(model, checkpoint, path)
        kept = ("progress", "settings", "version", "ema")
        self.resumed = {key: checkpoint[key] for key in kept if key in checkpoint}
        return epoch_of(path) + 1

    def _load_best(self, state: Any, stage_two: bool) -> int:
        path = self.files.best(stage_two)
        if not path.is_file():
            path = self.files.best(False)
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
            state.model.load_state_dict(checkpoint["model"])
        except Exception as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise InputError(
                f"{path}: the best weights of the run cannot be read ({reason}), and no model is "
                "written; put the file back, or train again under another --name"
            ) from error
        logging.info(f"Loading the best weights from {path}")
        return int(checkpoint["epoch"])

    # What the loop over epochs calls.

    def save_last(self, checkpoint: Checkpoint, epoch: int) -> None:
        """Write what the run goes on from, then remove what is older than the one before."""
        _write(self.files.of_epoch(epoch), checkpoint | {"version": VERSION})
        if not self._keep:
            for path in self.files.last()[_KEPT:]:
                path.unlink(missing_ok=True)

    def save_best(self, model: torch.nn.Module, epoch: int, loss: float, stage_two: bool) -> None:
        """Write weights with the lowest validation loss so far."""
        content = {"model": model.state_dict(), "epoch": epoch, "loss": loss, "version": VERSION}
        _write(self.files.best(stage_two), content)

    def keep_all(self, keep: bool) -> None:
        """Whether the checkpoints of all epochs stay."""
        self._keep = keep

    def training_ended(self) -> None:
        """From now on load_latest means the best."""
        self._trained = True


def _write(path: Path, content: Checkpoint) -> None:
    make_folder(path.parent)
    write_torch(path, content)


def normalisation_of(model: torch.nn.Module) -> dict[str, float]:
    """The numbers by which a model divides its messages, by module: no weights, yet part of it."""
    return {
        f"{where}.{name}": float(getattr(module, name))
        for where, module in model.named_modules()
        for name in _NORMALISATIONS
        if isinstance(getattr(module, name, None), float | int | torch.Tensor)
    }


def _load_model(model: Any, checkpoint: Checkpoint, path: Path) -> None:
    """Weights, and what else a model has of the data that it was begun with."""
    before = model.atomic_energies_fn.atomic_energies.clone()
    model.load_state_dict(checkpoint["model"])
    for where, value in checkpoint.get("normalisation", {}).items():
        module, _, attribute = where.rpartition(".")
        held = getattr(model.get_submodule(module), attribute)
        new = torch.as_tensor(value).to(held) if isinstance(held, torch.Tensor) else value
        setattr(model.get_submodule(module), attribute, new)
    after = model.atomic_energies_fn.atomic_energies
    if not torch.allclose(before, after, rtol=1e-6, atol=1e-6):
        logging.warning(
            f"{path}: has other atomic energies than these data give; those of the checkpoint, "
            f"{[round(float(e), 4) for e in after.view(-1)]} eV, are kept"
        )


def _kind_of(optimizer: dict[str, Any]) -> str:
    """Of an optimizer's state in checkpoints of earlier versions."""
    groups = optimizer.get("param_groups", [{}])
    return "LBFGS" if "max_eval" in groups[0] else ""


def _load_scheduler(scheduler: Any, saved: dict[str, Any]) -> None:
    """Load how far a schedule is; how it goes on is what was asked for now."""
    asked = {name: getattr(scheduler, name) for name in _SCHEDULE if name in saved}
    scheduler.load_state_dict(saved)
    scheduler.lr_scheduler.__dict__.update(asked)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state; settings of groups that the file lacks (of stage two) stay."""
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, former in zip(optimizer.param_groups, before, strict=True):
        for name, value in former.items():
            group.setdefault(name, value)
