"""The ensembles of a run, with thermostats that count what moves, and the state of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKBarostat, IsotropicMTKNPT
from ase.md.nose_hoover_chain import NoseHooverChainThermostat as Chain
from ase.md.verlet import VelocityVerlet

from mace_polmp.errors import InputError
from mace_polmp.simulation.temperature import ThermalMotion

ENSEMBLES = ("nve", "langevin", "bussi", "npt")
State = dict[str, "np.ndarray | float"]


@dataclass(frozen=True)
class Ensemble:
    """What a run is coupled to.

    Attributes:
        name: of ENSEMBLES.
        timestep: fs.
        temperature: K.
        friction: of Langevin dynamics, 1/fs.
        time_constant: of the Bussi thermostat and of that of npt, fs.
        pressure: bar.
        pressure_time: of the barostat, fs.
    """

    name: str
    timestep: float
    temperature: float
    friction: float
    time_constant: float
    pressure: float
    pressure_time: float

    def dynamics(self, atoms: Atoms, motion: ThermalMotion, rng: np.random.Generator) -> Any:
        """ASE's dynamics of atoms whose thermal motion is known.

        Raises:
            InputError: nothing can move.
        """
        step, kelvin = self.timestep * units.fs, self.temperature
        if self.name == "nve":
            return VelocityVerlet(atoms, step)
        if motion.count < 1:
            raise InputError(
                f"ensemble {self.name}: nothing in the structure moves freely; use nve, or free "
                "atoms"
            )
        if self.name == "langevin":
            friction = self.friction / units.fs
            return Langevin(
                atoms, step, temperature_K=kelvin, friction=friction, fixcm=False, rng=rng
            )
        damping = self.time_constant * units.fs
        if self.name == "bussi":
            return ThermalBussi(atoms, step, kelvin, damping, motion, rng)
        return ThermalNPT(
            atoms,
            step,
            kelvin,
            self.pressure * units.bar,
            damping,
            self.pressure_time * units.fs,
            motion,
        )


class ThermalBussi(Bussi):  # type: ignore[misc]
    """Stochastic velocity rescaling of what moves (Bussi, J. Chem. Phys. 126, 014101 (2007)).

    ASE's own counts 3N degrees of freedom less constraints, and heats what moves beside a centre of
    mass at rest by as much as it holds less energy. A drift stays what it is.

    Args:
        atoms, timestep, temperature, time_constant: in ASE's units and K.
        motion: what is thermal.
        rng: random numbers.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        temperature: float,
        time_constant: float,
        motion: ThermalMotion,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(atoms, timestep, temperature_K=temperature, taut=time_constant, rng=rng)
        self._motion = motion
        self.ndof = motion.count
        self.target_kinetic_energy = 0.5 * self.temp * self.ndof

    def scale_velocities(self) -> None:
        """Scale the thermal motion."""
        kinetic = self._motion.kinetic_energy(self.atoms)
        alpha = self.calculate_alpha(kinetic)
        momenta = self.atoms.get_momenta()
        drift = self._motion.drift(self.atoms)
        self.atoms.set_momenta(drift + alpha * (momenta - drift))
        self.transferred_energy += (alpha**2 - 1.0) * kinetic


class ThermalNPT(IsotropicMTKNPT):  # type: ignore[misc]
    """The isotropic ensemble of Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994).

    ASE's own counts 3N degrees of freedom. Its equations hold with the number of those that move,
    3N − 3 where the centre of mass rests: they enter as N, a third of them.

    Args:
        atoms: without constraints, its centre of mass at rest.
        timestep, temperature, pressure, time_constant, pressure_time: in ASE's units and K.
        motion: what is thermal.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        temperature: float,
        pressure: float,
        time_constant: float,
        pressure_time: float,
        motion: ThermalMotion,
    ) -> None:
        super().__init__(
            atoms,
            timestep,
            temperature_K=temperature,
            pressure_au=pressure,
            tdamp=time_constant,
            pdamp=pressure_time,
        )
        third = motion.count / 3.0
        self._num_atoms_global = third
        self._thermostat = Chain(third, self.masses, temperature, time_constant)
        self._barostat = IsotropicMTKBarostat(third, temperature, pressure_time)


def state_of(dynamics: Any) -> State:
    """The numbers that a dynamics and its thermostat and barostat hold, by name."""
    state: State = {}
    for prefix, part in _parts(dynamics).items():
        for name, value in vars(part).items():
            if isinstance(value, float | np.ndarray):
                state[prefix + name] = value
    return state


def set_state(dynamics: Any, state: dict[str, np.ndarray]) -> None:
    """Put the numbers of state_of back."""
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
