"""Molecular dynamics with electrical observables, trajectories and restarts.

A run writes to a folder: trajectory.xyz (extended XYZ with velocities, forces and observables),
trajectory.traj (ASE's), md.csv, and restart.npz, which is replaced at every frame. After a kill the
run goes on from there: files are cut back to that frame, and positions, momenta, thermostat and
random numbers are as they were, so that nothing tells the trajectory from an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from tqdm import tqdm

from mace_polmp.analysis.sampling import whole_molecules
from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator
from mace_polmp.calculators.checks import check_field, check_screening, has_formal_charges
from mace_polmp.calculators.fields import permittivities
from mace_polmp.errors import InputError
from mace_polmp.files import locked, make_folder
from mace_polmp.repeatable import repeatable
from mace_polmp.simulation.ensembles import ENSEMBLES, Ensemble
from mace_polmp.simulation.fields import FieldWork, PeriodicField
from mace_polmp.simulation.frames import OBSERVABLES
from mace_polmp.simulation.record import Record
from mace_polmp.simulation.temperature import ThermalMotion, draw_momenta, take_off_drift
from mace_polmp.structures import check_motion

logger = logging.getLogger(__name__)

_POSITIVE = ("timestep", "friction", "time_constant", "pressure_time", "every")
# What no sound run reaches: times the temperature asked for or begun with, beyond so many K; eV per
# atom of potential energy gained or lost since the start, beyond so many kT; and Å in one step.
_HOT, _HOT_ANYWAY = 20.0, 5000.0
_ENERGY, _ENERGY_KT = 10.0, 50.0
_LEAP = 1.0


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
        if not math.isfinite(self.pressure):
            raise InputError(f"pressure must be a number of bar, got {self.pressure}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be 0 K or more, got {self.temperature}")
        if self.ensemble != "nve" and self.temperature == 0:
            raise InputError(f"ensemble {self.ensemble} needs a temperature above 0 K")

    def coupling(self) -> Ensemble:
        """The ensemble alone."""
        return Ensemble(
            self.ensemble,
            self.timestep,
            self.temperature,
            self.friction,
            self.time_constant,
            self.pressure,
            self.pressure_time,
        )


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
        same: what else must be the same in a continued run, for instance the model.

    Returns:
        The last structure.

    Raises:
        InputError: a structure, ensemble, field or observable that do not go together, a folder of
            a run with other settings or in use by another process, or a structure that bursts.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    _check(atoms, calculator, settings)
    make_folder(folder)
    with locked(folder / ".lock", f"{folder}"), repeatable(calculator.device):
        return _run(atoms, calculator, settings, steps, folder, same or {})


def _run(
    atoms: Atoms,
    calculator: MultipoleMACECalculator,
    settings: MDSettings,
    steps: int,
    folder: Path,
    same: dict[str, Any],
) -> Atoms:
    rng = np.random.default_rng(settings.seed)
    motion = _set_in_motion(atoms, calculator, settings, rng)
    dynamics = settings.coupling().dynamics(atoms, motion, rng)
    work = FieldWork.of(atoms, calculator)
    record = Record(folder, calculator, settings, motion, same, atoms, work)
    is_resumed = record.restart.exists()
    if is_resumed:
        record.resume(atoms, dynamics, rng)
        if dynamics.nsteps >= steps:
            logger.warning(
                f"{folder}: has {dynamics.nsteps} steps already, {steps} were asked for: nothing "
                "to do"
            )
    else:
        record.begin()
        _put_together(atoms, settings)
    calculator.follow(dynamics)
    bar = tqdm(total=steps, initial=dynamics.nsteps, unit="step", desc="MD", disable=None)
    try:
        atoms.get_forces()
        # ASE tells observers of the start of a run, but not of that of a resumed one.
        calculator.time = (dynamics.nsteps + 1) * dynamics.dt / units.fs
        if work is not None:
            work.follow(dynamics, settings.timestep)
        start = float(calculator.results["zero_field_energy"])
        hottest = max(settings.temperature, motion.temperature(atoms))
        if not is_resumed:
            record.write(atoms, dynamics, rng)
        while dynamics.nsteps < steps:
            chunk = min(settings.every - dynamics.nsteps % settings.every, steps - dynamics.nsteps)
            dynamics.run(chunk)
            _check_alive(atoms, calculator, motion, dynamics, start, hottest)
            if dynamics.nsteps % settings.every == 0:
                record.write(atoms, dynamics, rng)
            bar.set_postfix_str(f"{motion.temperature(atoms):.0f} K", refresh=False)
            bar.update(chunk)
    finally:
        bar.close()
    return atoms


def _put_together(atoms: Atoms, settings: MDSettings) -> None:
    """Put the molecules of a slab together that its cell cuts.

    In its plane the dipole of a slab is that of whole molecules. Where bonds form a network across
    the boundaries there is none, and the structure stays as it is.
    """
    if "dipole" not in settings.observables or atoms.pbc.all() or not atoms.pbc.any():
        return
    try:
        moves = whole_molecules(atoms)
    except InputError:
        return
    if moves.any():
        atoms.positions += moves @ atoms.cell.complete().array
        logger.warning(
            f"{int(moves.any(1).sum())} atoms were moved by lattice vectors, to the other atoms of "
            "their molecules: the dipole of a slab is that of whole molecules"
        )


def _set_in_motion(
    atoms: Atoms,
    calculator: MultipoleMACECalculator,
    settings: MDSettings,
    rng: np.random.Generator,
) -> ThermalMotion:
    """Draw momenta where there are none; returns what of the motion is thermal."""
    pushed = settings.ensemble == "langevin"
    if not atoms.has("momenta") or (
        settings.ensemble in ("bussi", "npt") and _is_cold(atoms, settings.temperature)
    ):
        # A thermostat that scales momenta makes nothing of none; a drift stays.
        drift = atoms.get_momenta().sum(0) / atoms.get_masses().sum()
        draw_momenta(
            atoms, settings.temperature, rng, drift=pushed, rotation=settings.rotation or pushed
        )
        if drift.any():
            atoms.set_momenta(atoms.get_momenta() + atoms.get_masses()[:, None] * drift)
    turned = calculator.external_field is not None
    motion = ThermalMotion.of(atoms, pushes_atoms=pushed, turned=turned)
    if settings.ensemble == "npt" and motion.drifts:
        speed = take_off_drift(atoms)
        if speed > 1e-6:
            logger.warning(
                f"the structure drifted with {1000 * speed:.3g} Å/ps as a whole: taken off for npt"
            )
    return motion


def _is_cold(atoms: Atoms, temperature: float) -> bool:
    """Whether nothing moves but the structure as a whole."""
    motion = ThermalMotion.of(atoms)
    return motion.count > 0 and motion.temperature(atoms) < 1e-6 * temperature


def _check_alive(
    atoms: Atoms,
    calculator: MultipoleMACECalculator,
    motion: ThermalMotion,
    dynamics: Any,
    start: float,
    hottest: float,
) -> None:
    """Refuse to go on where the structure has burst, however warm a thermostat keeps it.

    Args:
        atoms, calculator, motion, dynamics: of the run.
        start: the potential energy that it began with, without that in a field, eV.
        hottest: K, asked for or begun with.
    """
    temperature = motion.temperature(atoms)
    leap = float(np.abs(atoms.get_velocities()).max()) * dynamics.dt
    change = (float(calculator.results["zero_field_energy"]) - start) / len(atoms)
    if not (np.isfinite(atoms.positions).all() and math.isfinite(temperature)):
        found = " (positions are NaN or infinite)"
    elif not temperature < _HOT * hottest + _HOT_ANYWAY:
        found = ""
    elif not leap < _LEAP:
        found = f" (an atom moves {leap:.2f} Å in one step)"
    elif not abs(change) < _ENERGY + _ENERGY_KT * units.kB * hottest:
        found = f" (the potential energy has changed by {change:.3g} eV per atom)"
    else:
        return
    raise InputError(
        f"step {dynamics.nsteps}: the temperature is {temperature:.3g} K, the structure has "
        f"burst{found}: start from a relaxed one, use a smaller timestep, or train the model on "
        "more structures"
    )


def _check(atoms: Atoms, calculator: MultipoleMACECalculator, settings: MDSettings) -> None:
    check_motion(atoms, "structure")
    if isinstance(calculator.external_field, PeriodicField):  # it begins with zero
        amplitude = np.asarray(calculator.external_field.amplitude)
        check_field(atoms, amplitude, {"forces"}, calculator.defines_polarization)
        check_screening(atoms, calculator.divide_by_chi)
    if settings.ensemble == "npt":
        if atoms.constraints:
            raise InputError("ensemble npt does not work with constrained atoms; free them")
        if not atoms.pbc.all():
            raise InputError("ensemble npt needs a structure that is periodic in three directions")
        if calculator.external_field is not None and not calculator.defines_polarization:
            raise InputError(
                "ensemble npt with an external field: the stress in a field along a periodic "
                "direction is not defined; use nve, langevin or bussi, or train with "
                "--charge_readout bond"
            )
        if calculator.has_field and has_formal_charges(calculator.models):
            raise InputError(
                "ensemble npt with an external field: with formal charges the stress depends on "
                "the periodic images of the ions; use nve, langevin or bussi, or train without "
                "--formal_charges"
            )
    if not settings.rotation and (atoms.pbc.any() or atoms.constraints):
        raise InputError(
            "no_rotation is for open structures whose atoms are all free; leave it out"
        )
    options = [model.long_range_options for model in calculator.models]
    if "polarizability" in settings.observables and not all(o.is_polarizable for o in options):
        raise InputError(
            "observable polarizability: the model has no induced dipoles; train with --induced "
            "dipole or both, or leave it out"
        )
    each = permittivities(calculator)
    if atoms.pbc.all() and np.ptp(each) > 0:
        values = " and ".join(f"{value:.4g}" for value in each)
        logger.warning(
            f"the models have epsilon_infinity {values}: dipoles and currents are means of what "
            f"each gives with its own, and frames say the mean, {each.mean():.4g}"
        )
    is_slab = atoms.pbc.any() and not atoms.pbc.all()
    if "current" in settings.observables and is_slab and not calculator.defines_polarization:
        raise InputError(
            "observable current: Born charges of a slab are not available; leave it out"
        )
