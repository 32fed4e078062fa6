"""The files of a run, and going on with them after it was interrupted."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.trajectory import Trajectory

from mace_polmp.errors import InputError
from mace_polmp.files import replacing, unwritable
from mace_polmp.simulation.ensembles import set_state, state_of
from mace_polmp.simulation.fields import FieldWork
from mace_polmp.simulation.frames import make_frame
from mace_polmp.simulation.temperature import ThermalMotion

if TYPE_CHECKING:
    from mace_polmp.calculators import MultipoleMACECalculator


class Record:
    """The files of a run.

    Args:
        folder: where they are.
        calculator: of the run.
        settings: a dataclass with timestep and observables; a continued run must have the same.
        motion: what is thermal.
        same: what else must be the same.
        start: the structure that the run begins with.
        work: of a field that depends on time, if there is one.
    """

    def __init__(
        self,
        folder: Path,
        calculator: MultipoleMACECalculator,
        settings: Any,
        motion: ThermalMotion,
        same: dict[str, Any],
        start: Atoms,
        work: FieldWork | None = None,
    ) -> None:
        assert is_dataclass(settings) and not isinstance(settings, type)
        self.restart = folder / "restart.npz"
        self._frames = folder / "trajectory.xyz"
        self._trajectory = folder / "trajectory.traj"
        self._table = folder / "md.csv"
        self._calculator = calculator
        self._settings = settings
        self._motion = motion
        self._run = json.dumps({**asdict(settings), **same})
        self._n_frames = 0
        self._start = _digest(start)
        self._work = work

    def begin(self) -> None:
        """Refuse to write over files that no restart file belongs to."""
        for path in (self._frames, self._trajectory, self._table):
            if path.exists():
                raise InputError(
                    f"{path} is there already, without a {self.restart.name} to go on from; remove "
                    "it or give another --output"
                )

    def resume(self, atoms: Atoms, dynamics: Any, rng: np.random.Generator) -> None:
        """Put everything back to the last frame."""
        state = self._read()
        self._check_run(json.loads(str(state["run"])))
        if not np.array_equal(state["numbers"], atoms.numbers):
            raise InputError(
                f"{self.restart}: has {len(state['numbers'])} atoms or elements other than the "
                "structure; give another --output or the same structure"
            )
        for name, value in self._structure(atoms).items():
            if name in state and not _same(state[name], value):
                raise InputError(
                    f"{self.restart}: belongs to a run of a structure with other "
                    f"{name.replace('_', ' ')}; give another --output or the same structure"
                )
        if "start" in state and str(state["start"]) != self._start:
            raise InputError(
                f"{self.restart}: belongs to a run that began with other positions or another "
                "cell; give another --output or the same structure"
            )
        atoms.set_cell(state["cell"])
        atoms.positions = state["positions"]
        atoms.set_momenta(state["momenta"], apply_constraint=False)
        rng.bit_generator.state = json.loads(str(state["random"]))
        dynamics.nsteps = int(state["step"])
        try:
            set_state(dynamics, {k[4:]: v for k, v in state.items() if k.startswith("dyn/")})
            if self._work is not None:
                self._work.value = float(state["work"])
        except KeyError as error:
            raise InputError(
                f"{self.restart}: lacks {error} of the dynamics; it was written by another "
                "version: give another --output"
            ) from error
        self._n_frames = int(state["frames"])
        for path, key in ((self._frames, "frames_size"), (self._table, "table_size")):
            size = int(state[key])
            if not path.exists() or path.stat().st_size < size:
                raise InputError(
                    f"{path} is shorter than when {self.restart.name} was written; put it back or "
                    f"remove {self.restart.name} and the other files to start anew"
                )
            os.truncate(path, size)
        self._mend_trajectory()

    def _structure(self, atoms: Atoms) -> dict[str, Any]:
        """What of a structure stays what it is in a run, besides its elements."""
        charge = self._calculator.total_charge(atoms)
        return {
            "masses": atoms.get_masses(),
            "boundary_conditions": atoms.pbc,
            "constraints": json.dumps([c.todict() for c in atoms.constraints], default=_plain),
            "total_charge": 0.0 if charge is None else charge,
        }

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.restart, allow_pickle=False) as file:
                return dict(file)
        except Exception as error:
            raise InputError(f"{self.restart}: not a restart file ({error}); remove it") from error

    def _check_run(self, saved: dict[str, Any]) -> None:
        now = json.loads(self._run)
        for name, value in now.items():
            if saved.get(name) != value:
                raise InputError(
                    f"{self.restart}: belongs to a run with {name} {saved.get(name)!r}, now it is "
                    f"{value!r}; give another --output or the same settings"
                )

    def _mend_trajectory(self) -> None:
        """Write ASE's trajectory again where it does not have the frames of the others."""
        try:
            with Trajectory(self._trajectory) as file:
                if len(file) == self._n_frames and len(file[-1]) > 0:
                    return
        except Exception:  # cut off while it was written: whatever ASE makes of that
            pass
        with (
            replacing(self._trajectory) as temporary,
            Trajectory(temporary, "w") as file,
        ):
            for frame in ase.io.iread(self._frames):
                file.write(frame)

    def write(self, atoms: Atoms, dynamics: Any, rng: np.random.Generator) -> None:
        """Append a frame, then replace the restart file.

        Raises:
            InputError: they cannot be written, for instance because the disk is full; the run can
                go on from the frame before.
        """
        try:
            self._write(atoms, dynamics, rng)
        except (OSError, InputError) as error:
            if not self.restart.exists():  # nothing to go on from
                for path in (self._frames, self._trajectory, self._table):
                    path.unlink(missing_ok=True)
            if isinstance(error, InputError):
                raise
            raise InputError(unwritable(error.filename or self._frames, error)) from error

    def _write(self, atoms: Atoms, dynamics: Any, rng: np.random.Generator) -> None:
        settings = self._settings
        frame, row = make_frame(
            atoms,
            self._calculator,
            self._motion,
            settings.observables,
            settings.timestep,
            dynamics.nsteps,
            None if self._work is None else self._work.value,
        )
        ase.io.write(self._frames, frame, format="extxyz", append=self._n_frames > 0)
        with Trajectory(self._trajectory, "a" if self._n_frames > 0 else "w") as file:
            file.write(frame)
        with open(self._table, "a" if self._n_frames > 0 else "w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if self._n_frames == 0:
                writer.writeheader()
            writer.writerow(row)
        self._n_frames += 1
        state = {
            "run": self._run,
            "step": dynamics.nsteps,
            "frames": self._n_frames,
            "frames_size": self._frames.stat().st_size,
            "table_size": self._table.stat().st_size,
            "numbers": atoms.numbers,
            **self._structure(atoms),
            "start": self._start,
            "positions": atoms.positions,
            "momenta": atoms.get_momenta(),
            "cell": atoms.cell.array,
            "random": json.dumps(rng.bit_generator.state),
        }
        if self._work is not None:
            state["work"] = self._work.value
        state.update({f"dyn/{name}": value for name, value in state_of(dynamics).items()})
        with replacing(self.restart) as temporary, open(temporary, "wb") as file:
            np.savez(file, **state)


def _digest(atoms: Atoms) -> str:
    """What tells one start from another."""
    content = atoms.positions.tobytes() + atoms.cell.array.tobytes()
    return hashlib.sha256(content).hexdigest()


def _same(saved: np.ndarray, value: Any) -> bool:
    """Whether an array of a restart file is some value."""
    if isinstance(value, str):
        return str(saved) == value
    found = np.asarray(value)
    return saved.shape == found.shape and bool(np.allclose(saved, found, rtol=1e-12, atol=0.0))


def _plain(value: Any) -> Any:
    """Arrays of a constraint as lists."""
    return np.asarray(value).tolist()
