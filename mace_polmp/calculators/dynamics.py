"""Molecular dynamics with electrical observables, trajectories and restarts.

A run writes to a folder: trajectory.xyz (extended XYZ with velocities, forces and observables),
trajectory.traj (ASE's), md.csv, and restart.npz, which is replaced at every frame. After a kill the
run goes on from there: files are cut back to that frame, and positions, momenta, thermostat and
random numbers are as they were, so that nothing tells the trajectory from an uninterrupted one.
"""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory
from ase.md.velocitydistribution import ZeroRotation
from tqdm import tqdm

from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator
from mace_polmp.errors import InputError

ENSEMBLES = ("nve", "langevin", "bussi", "npt")
OBSERVABLES = ("dipole", "current", "polarizability")
_BURST = 1e5
"""A kinetic temperature (K) that no sound run reaches."""
_POSITIVE = ("timestep", "friction", "time_constant", "pressure_time", "every")


@dataclass(frozen=True)
class MDSettings:
    """Settings of a run.

    Attributes:
        ensemble: "nve", "langevin", "bussi" (both NVT) or "npt" (Martyna-Tobias-Klein, isotropic).
        timestep: fs.
        temperature: K, of the initial velocities and the thermostat.
        friction: of Langevin dynamics, 1/fs.
        time_constant: of the Bussi thermostat and of that of npt, fs.
        pressure: bar.
        pressure_time: of the barostat, fs.
        every: steps between frames.
        observables: of OBSERVABLES, written with every frame.
        seed: of velocities and thermostat.
        rotation: whether initial velocities that are drawn may turn the structure as a whole.

    Raises:
        InputError: a value that is not valid.
    """

    ensemble: str = "nve"
    timestep: float = 0.5
    temperature: float = 300.0
    friction: float = 0.01
    time_constant: float = 100.0
    pressure: float = 1.0
    pressure_time: float = 1000.0
    every: int = 10
    observables: tuple[str, ...] = ("dipole",)
    seed: int = 1
    rotation: bool = True

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise InputError(
                f"ensemble must be one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}"
            )
        unknown = sorted(set(self.observables) - set(OBSERVABLES))
        if unknown:
            raise InputError(f"observables must be of {', '.join(OBSERVABLES)}, got {unknown[0]!r}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be a positive number, got {value}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be 0 K or more, got {self.temperature}")
        if self.ensemble != "nve" and self.temperature == 0:
            raise InputError(f"ensemble {self.ensemble} needs a temperature above 0 K")


def run_md(
    atoms: Atoms,
    calculator: MultipoleMACECalculator,
    settings: MDSettings,
    steps: int,
    folder: Path,
    same: dict[str, Any] | None = None,
) -> Atoms:
    """Run dynamics up to a number of steps, or go on with those of the folder.

    Args:
        atoms: the start; its momenta are kept if it has any.
        calculator: of the model; its external field may depend on time.
        settings: of the run.
        steps: the last step.
        folder: to write to; one with a restart file is continued.
        same: what else must be the same in a continued run, for instance the model's name.

    Returns:
        The last structure.

    Raises:
        InputError: a structure, ensemble, field or observable that do not go together, or a folder
            of a run with other settings.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    _check(atoms, calculator, settings)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(settings.seed)
    at_rest = not atoms.has("momenta") or not atoms.get_momenta().any()
    if not atoms.has("momenta") or (at_rest and settings.ensemble == "bussi"):
        draw_momenta(atoms, settings.temperature, rng)
        if not settings.rotation:
            ZeroRotation(atoms)
    dynamics = _dynamics(atoms, settings, rng)
    record = _Record(folder, calculator, settings, same or {})
    if record.restart.exists():
        record.resume(atoms, dynamics, rng)
    else:
        record.begin()
    calculator.follow(dynamics)
    bar = tqdm(total=steps, initial=dynamics.nsteps, unit="step", desc="MD", disable=None)
    try:
        if dynamics.nsteps == 0:
            atoms.get_forces()
            record.write(atoms, dynamics, rng)
        while dynamics.nsteps < steps:
            chunk = min(settings.every - dynamics.nsteps % settings.every, steps - dynamics.nsteps)
            dynamics.run(chunk)
            _check_alive(atoms, dynamics.nsteps)
            if dynamics.nsteps % settings.every == 0:
                record.write(atoms, dynamics, rng)
            bar.set_postfix_str(f"{atoms.get_temperature():.0f} K", refresh=False)
            bar.update(chunk)
    finally:
        bar.close()
    return atoms


def _check_alive(atoms: Atoms, step: int) -> None:
    temperature = atoms.get_temperature()
    if not (np.isfinite(atoms.positions).all() and temperature < _BURST):
        raise InputError(
            f"step {step}: the temperature is {temperature:.3g} K, the structure has burst: start "
            "from a relaxed one, use a smaller timestep, or train the model on more structures"
        )


def draw_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta without a drift of the centre of mass."""
    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(masses * units.kB * temperature) * rng.standard_normal((len(atoms), 3))
    if len(atoms) > 1:
        momenta -= masses * momenta.sum(0) / masses.sum()
    atoms.set_momenta(momenta)


def _check(atoms: Atoms, calculator: MultipoleMACECalculator, settings: MDSettings) -> None:
    if settings.ensemble == "npt":
        if atoms.constraints:
            raise InputError("ensemble npt does not work with constrained atoms; free them")
        if not atoms.pbc.all():
            raise InputError("ensemble npt needs a structure that is periodic in three directions")
        if calculator.external_field is not None:
            raise InputError(
                "ensemble npt with an external field: the stress in a field along a periodic "
                "direction is not defined; use nve, langevin or bussi"
            )
    options = [model.long_range_options for model in calculator.models]
    if "polarizability" in settings.observables and not all(o.induces_dipoles for o in options):
        raise InputError(
            "observable polarizability: the model has no induced dipoles; train with --induced "
            "dipole or both, or leave it out"
        )
    if "current" in settings.observables and atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(
            "observable current: Born charges of a slab are not available; leave it out"
        )


def _dynamics(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> Any:
    from ase.md.bussi import Bussi
    from ase.md.langevin import Langevin
    from ase.md.nose_hoover_chain import IsotropicMTKNPT
    from ase.md.verlet import VelocityVerlet

    step, kelvin = settings.timestep * units.fs, settings.temperature
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if settings.ensemble == "langevin":
        friction = settings.friction / units.fs
        return Langevin(atoms, step, temperature_K=kelvin, friction=friction, fixcm=False, rng=rng)
    damping = settings.time_constant * units.fs
    if settings.ensemble == "bussi":
        return Bussi(atoms, step, temperature_K=kelvin, taut=damping, rng=rng)
    return IsotropicMTKNPT(
        atoms,
        step,
        temperature_K=kelvin,
        pressure_au=settings.pressure * units.bar,
        tdamp=damping,
        pdamp=settings.pressure_time * units.fs,
    )


class _Record:
    """The files of a run."""

    def __init__(
        self,
        folder: Path,
        calculator: MultipoleMACECalculator,
        settings: MDSettings,
        same: dict[str, Any],
    ) -> None:
        self.restart = folder / "restart.npz"
        self._frames = folder / "trajectory.xyz"
        self._trajectory = folder / "trajectory.traj"
        self._table = folder / "md.csv"
        self._calculator = calculator
        self._settings = settings
        self._run = json.dumps({**asdict(settings), **same})
        self._n_frames = 0

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
        try:
            with np.load(self.restart, allow_pickle=False) as file:
                state = dict(file)
        except Exception as error:
            raise InputError(f"{self.restart}: not a restart file ({error}); remove it") from error
        self._check_run(json.loads(str(state["run"])))
        if not np.array_equal(state["numbers"], atoms.numbers):
            raise InputError(
                f"{self.restart}: has {len(state['numbers'])} atoms or elements other than the "
                "structure; give another --output or the same structure"
            )
        atoms.set_cell(state["cell"])
        atoms.positions = state["positions"]
        atoms.set_momenta(state["momenta"])
        rng.bit_generator.state = json.loads(str(state["random"]))
        dynamics.nsteps = int(state["step"])
        _set_state(dynamics, {k[4:]: v for k, v in state.items() if k.startswith("dyn/")})
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
        temporary = self._trajectory.with_name(".trajectory.traj.tmp")
        with Trajectory(temporary, "w") as file:
            for frame in ase.io.iread(self._frames):
                file.write(frame)
        os.replace(temporary, self._trajectory)

    def write(self, atoms: Atoms, dynamics: Any, rng: np.random.Generator) -> None:
        """Append a frame, then replace the restart file."""
        frame, row = self._frame(atoms, dynamics)
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
            "positions": atoms.positions,
            "momenta": atoms.get_momenta(),
            "cell": atoms.cell.array,
            "random": json.dumps(rng.bit_generator.state),
        }
        state.update({f"dyn/{name}": value for name, value in _state(dynamics).items()})
        temporary = self.restart.with_name(".restart.tmp.npz")
        np.savez(temporary, **state)
        os.replace(temporary, self.restart)

    def _frame(self, atoms: Atoms, dynamics: Any) -> tuple[Atoms, dict[str, Any]]:
        """The structure with its observables, and a row of the table."""
        calculator = self._calculator
        forces = atoms.get_forces()
        results = calculator.results
        time = dynamics.nsteps * self._settings.timestep
        field = calculator.field_at(time)
        potential = results.get("energy", results["zero_field_energy"])
        kinetic = atoms.get_kinetic_energy()
        row: dict[str, Any] = {
            "step": dynamics.nsteps,
            "time_fs": time,
            "potential_eV": potential,
            "kinetic_eV": kinetic,
            "total_eV": potential + kinetic,
            "temperature_K": atoms.get_temperature(),
        }
        if atoms.pbc.all():
            row["volume_A3"] = atoms.get_volume()
        info: dict[str, Any] = {
            "time_fs": time,
            "timestep_fs": self._settings.timestep,
            "temperature_K": row["temperature_K"],
        }
        if calculator.external_field is not None:
            info["external_field"] = field
        for name, value in self._observables(atoms).items():
            info[name] = value
            row.update(_columns(name, value))
        row.update(_columns("field_V_per_A", field) if "external_field" in info else {})
        frame = Atoms(
            atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell,
            pbc=atoms.pbc,
            momenta=atoms.get_momenta(),
            info=info,
        )
        known = {"energy": results["energy"]} if "energy" in results else {}
        frame.calc = SinglePointCalculator(frame, forces=forces, **known)
        return frame, row

    def _observables(self, atoms: Atoms) -> dict[str, np.ndarray]:
        calculator, wanted = self._calculator, self._settings.observables
        values: dict[str, np.ndarray] = {}
        if "dipole" in wanted:
            values["dipole"] = calculator.results["dipole"]
        if "current" in wanted:
            born = calculator.get_property("born_charges", atoms)
            values["current"] = np.einsum("nab,nb->a", born, atoms.get_velocities() * units.fs)
        if "polarizability" in wanted:
            values["polarizability"] = calculator.get_property("electronic_polarizability", atoms)
        return values


def _columns(name: str, value: np.ndarray) -> dict[str, float]:
    """Columns of a vector or a symmetric tensor."""
    if value.ndim == 1:
        return {f"{name}_{axis}": float(x) for axis, x in zip("xyz", value, strict=True)}
    pairs = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    return {f"{name}_{'xyz'[a]}{'xyz'[b]}": float(value[a, b]) for a, b in pairs}


def _state(dynamics: Any) -> dict[str, np.ndarray | float]:
    """The numbers that a dynamics and its thermostat and barostat hold, by name."""
    state: dict[str, np.ndarray | float] = {}
    for prefix, part in _parts(dynamics).items():
        for name, value in vars(part).items():
            if isinstance(value, float | np.ndarray):
                state[prefix + name] = value
    return state


def _set_state(dynamics: Any, state: dict[str, np.ndarray]) -> None:
    for prefix, part in _parts(dynamics).items():
        for name, value in vars(part).items():
            if isinstance(value, float | np.ndarray):
                saved = state[prefix + name]
                setattr(part, name, saved if isinstance(value, np.ndarray) else float(saved))


def _parts(dynamics: Any) -> dict[str, Any]:
    parts = {"": dynamics}
    for name in ("_thermostat", "_barostat"):
        if hasattr(dynamics, name):
            parts[f"{name}."] = getattr(dynamics, name)
    return parts
