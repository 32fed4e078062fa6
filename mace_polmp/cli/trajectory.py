"""What a spectrum needs of a trajectory: read from its frames, or computed with a model."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.analysis import plots, sampling
from mace_polmp.analysis.conductivity import at_mean_cell
from mace_polmp.analysis.correlation import Array, timestep_of
from mace_polmp.cli.common import checked, make_calculator
from mace_polmp.cli.screening import asked_permittivity, number_of, with_permittivity
from mace_polmp.errors import InputError
from mace_polmp.quantities import check_prediction

if TYPE_CHECKING:
    from ase import Atoms

_JUMP = 3.0
"""A dipole that changes by more than this times its usual change where atoms were wrapped jumps."""


@dataclass(frozen=True)
class Series:
    """What a trajectory says, by frame.

    Attributes:
        timestep: between frames, fs.
        integrator_step: of the dynamics, fs, if frames say it.
        temperature: K, mean, of the motion that is thermal; NaN without velocities.
        masses: [n_atoms], amu.
        volume: Å³, mean, of a periodic structure.
        dipole, current: [n_times, 3], e Å and e Å/fs.
        polarizability: [n_times, 3, 3], e² Å²/eV.
        epsilon_infinity: by whose square root current and dipole have been multiplied.
        formula: of the structure.
        model: that the dynamics ran with, if frames say it.
    """

    timestep: float
    integrator_step: float | None
    temperature: float
    masses: Array
    volume: float | None
    dipole: Array | None
    current: Array | None
    polarizability: Array | None
    epsilon_infinity: float
    formula: str
    model: str


def read_series(args: argparse.Namespace) -> Series:
    """What a kind of spectrum needs of a trajectory, computed with the model where not written.

    Raises:
        InputError: uneven time steps, frames that are too far apart, missing velocities or
            observables, or a model that lacks what the spectrum needs.
    """
    from mace_polmp.simulation.temperature import ThermalMotion
    from mace_polmp.structures import read_structures

    frames = read_structures(args.trajectory)
    where = str(args.trajectory)
    check_same(frames, where)
    times = times_of(frames, args.timestep, where)
    step = timestep_of(times, where)
    frames = frames[int(np.searchsorted(times - times[0], args.skip - 1e-6)) :]
    if len(frames) < 2:
        raise InputError(f"--skip {args.skip:g} leaves out the whole run of {times[-1]:g} fs")
    periodic = bool(frames[0].pbc.all())
    moving = all(atoms.has("momenta") for atoms in frames)
    moving = moving and any(atoms.get_momenta().any() for atoms in frames)
    if not moving and args.temperature is None:
        raise InputError(
            f"{where}: has no velocities to take the temperature from; give --temperature or a "
            "trajectory with velocities"
        )
    found = {name: column(frames, name) for name in ("dipole", "current", "polarizability")}
    needed = {"raman": "polarizability"}.get(args.kind, "current" if periodic else "dipole")
    if args.kind == "dielectric" and "displacement_field" in frames[0].info:
        raise InputError(
            f"{where}: ran at a fixed displacement field, where the polarization fluctuates less; "
            "a dielectric constant is taken from a run without one"
        )
    if args.kind == "conductivity":
        needed = _of_conduction(frames, found, where)
        found = {name: series if name == needed else None for name, series in found.items()}
    if needed == "polarizability" and periodic:
        _check_constant_screening(args, frames, where)
    written = found["polarizability"]
    if found[needed] is None:
        found[needed], epsilon = _evaluate(args, frames, needed, moving)
    else:
        check_unused(args, needed, where)
        found[needed], epsilon = as_written(args, frames, needed, found[needed])
    if written is not None:
        found["polarizability"] = with_permittivity(epsilon, frames, written, where)
    if args.kind == "conductivity" and found["dipole"] is not None:
        cells = np.array([atoms.cell.array for atoms in frames])
        found["dipole"] = at_mean_cell(found["dipole"], cells)
    temperature = math.nan
    if moving:
        motion = ThermalMotion.of_frames(frames)
        temperature = float(np.mean([motion.temperature(atoms) for atoms in frames]))
    return Series(
        timestep=step,
        integrator_step=_integrator_step(frames[0], where),
        temperature=temperature,
        masses=frames[0].get_masses(),
        volume=float(np.mean([a.get_volume() for a in frames])) if periodic else None,
        dipole=found["dipole"],
        current=found["current"],
        polarizability=found["polarizability"],
        epsilon_infinity=epsilon,
        formula=frames[0].get_chemical_formula(),
        model=str(frames[0].info.get("model", "")),
    )


def _of_conduction(frames: list[Atoms], found: dict[str, Array | None], where: str) -> str:
    """What a conductivity is made of: the current, or the dipole where it is the polarization.

    Raises:
        InputError: open structures or slabs, or a field.
    """
    if not frames[0].pbc.all():
        raise InputError(
            f"{where}: a conductivity needs a structure that is periodic in three directions"
        )
    if any(np.any(atoms.info.get("external_field", 0.0)) for atoms in frames):
        raise InputError(
            f"{where}: ran in an external field; a conductivity is taken from the fluctuations of "
            "a run without one"
        )
    defined = bool(frames[0].info.get("defines_polarization", False))
    return "dipole" if defined and found["dipole"] is not None else "current"


def check_same(frames: list[Atoms], where: str) -> None:
    """Refuse a file whose frames are not those of one structure."""
    first = frames[0]
    for number, atoms in enumerate(frames):
        if not np.array_equal(atoms.numbers, first.numbers) or (atoms.pbc != first.pbc).any():
            raise InputError(
                f"{where}: frame {number} has other atoms or boundary conditions than the first; a "
                "trajectory is of one structure"
            )


def times_of(frames: list[Any], timestep: float | None, where: str) -> Array:
    """The times of frames, fs: what they say, or even steps.

    Raises:
        InputError: neither is known, or they contradict each other.
    """
    if timestep is not None and not (math.isfinite(timestep) and timestep > 0):
        raise InputError(f"--timestep must be a positive number of fs, got {timestep}")
    missing = [n for n, atoms in enumerate(frames) if "time_fs" not in atoms.info]
    if missing and timestep is None:
        raise InputError(
            f"{where}: frame {missing[0]} does not say its time (time_fs); give --timestep, the fs "
            "between frames"
        )
    if missing:
        assert timestep is not None
        return np.arange(len(frames)) * timestep
    times = np.array([number_of(atoms, "time_fs", n, where) for n, atoms in enumerate(frames)])
    if timestep is not None and len(times) > 1:
        said = float(np.median(np.diff(times)))
        if abs(said - timestep) > 1e-3 * timestep:
            raise InputError(
                f"--timestep {timestep:g}: the frames of {where} say that they are {said:g} fs "
                "apart (time_fs); leave the option out"
            )
    return times


def _integrator_step(atoms: Any, where: str) -> float | None:
    """The time step of the dynamics, fs, if frames say it."""
    if "timestep_fs" not in atoms.info:
        return None
    step = number_of(atoms, "timestep_fs", 0, where)
    if step <= 0:
        raise InputError(f"{where}: frame 0: timestep_fs must be a number above 0, got {step:g}")
    return step


def column(frames: list[Any], name: str) -> Array | None:
    """What all frames have under a name, [n_times, 3], or [n_times, 3, 3] of a polarizability.

    Raises:
        InputError: other shapes, or numbers that are not finite.
    """
    from mace_polmp.quantities import find

    values = [find(atoms, name) for atoms in frames]
    if any(value is None for value in values):
        return None
    shape = (3, 3) if name == "polarizability" else (3,)
    try:
        series = np.array([np.reshape(value, shape) for value in values], dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"the frames' '{name}' is not {list(shape)} numbers ({error})") from error
    if not np.isfinite(series).all():
        raise InputError(f"the frames' '{name}' holds NaN or infinite numbers")
    return series


def check_unused(args: argparse.Namespace, name: str, where: str) -> None:
    """Refuse options of the model where it is not asked: the frames have what is needed.

    Raises:
        InputError: names the option.
    """
    for option in ("head", "total_charge", "sum_rule"):
        if getattr(args, option):
            raise InputError(
                f"--{option}: the frames of {where} have a written {name}, which is used as it is; "
                f"leave the option out, or remove '{name}' from the frames and give --model"
            )


def as_written(
    args: argparse.Namespace, frames: list[Any], name: str, series: Array | None
) -> tuple[Array, float]:
    """A dipole or current of the frames with the screening that was asked for, and its ε∞."""
    assert series is not None
    where = str(args.trajectory)
    if name == "dipole" and frames[0].pbc.any():
        _check_jumps(frames, series, where)
        if not frames[0].pbc.all() and sampling.whole_molecules(frames[0]).any():
            raise InputError(
                f"{where}: molecules of the slab are cut by the cell, the written dipole is not "
                "that of whole ones; remove 'dipole' from the frames and give --model"
            )
    written, asked = asked_permittivity(args, frames, name, where)
    return series * math.sqrt(asked / written), asked


def _check_constant_screening(args: argparse.Namespace, frames: list[Atoms], where: str) -> None:
    """Refuse polarizabilities that 1 + χ has been taken out of, frame by frame.

    Raises:
        InputError: says what to do.
    """
    if args.divide_by_chi or bool(frames[0].info.get("divided_by_chi", False)):
        raise InputError(
            f"{where}: divide_by_chi takes the changes of the polarizability of a periodic "
            "structure away, which a Raman spectrum is made of; leave it out, and give "
            "--epsilon_infinity divided by a fixed 1 + χ"
        )


def _check_jumps(frames: list[Any], dipole: Array, where: str) -> None:
    """Refuse dipoles of atoms that were put back into the cell while they moved."""
    wrapped = sampling.wrapped_between(_fractions(frames), frames[0].pbc)
    changes = np.linalg.norm(np.diff(dipole, axis=0), axis=1)
    if not wrapped.any():
        return
    if wrapped.all():
        raise InputError(
            f"{where}: atoms are wrapped into the cell between all frames, and the written dipole "
            "jumps with them; write unwrapped positions, or remove 'dipole' from the frames and "
            "give --model"
        )
    if changes[wrapped].max() > _JUMP * changes[~wrapped].max():
        frame = int(np.flatnonzero(wrapped)[0])
        raise InputError(
            f"{where}: the dipole jumps where atoms are wrapped into the cell (frame {frame + 1}); "
            "write unwrapped positions, or remove 'dipole' from the frames and give --model"
        )


def _fractions(frames: list[Any]) -> Array:
    return np.array([atoms.cell.complete().scaled_positions(atoms.positions) for atoms in frames])


def _evaluate(
    args: argparse.Namespace, frames: list[Any], name: str, moving: bool
) -> tuple[Array, float]:
    """A series from the model, frame by frame, and the ε∞ in it."""
    from ase import units
    from tqdm import tqdm

    from mace_polmp.simulation.frames import inner_dipole

    where = str(args.trajectory)
    if args.model is None:
        raise InputError(
            f"{where}: frames have no '{name}', which {args.kind} needs; write it with mace_polmp "
            f"md --observables {name}, or give --model to compute it"
        )
    if name == "current" and not moving:
        raise InputError(
            f"{where}: has no velocities, which the current of a periodic structure needs; write "
            "them with the trajectory"
        )
    calculator = make_calculator(args)
    if name == "polarizability":
        for model in calculator.models:
            if not model.long_range_options.is_polarizable:
                raise InputError(
                    "raman: the model has no induced dipoles, hence no polarizability; train one "
                    "with --induced dipole or both"
                )
    key = {"dipole": "dipole", "current": "born_charges"}.get(name, "electronic_polarizability")
    positions = [atoms.positions for atoms in frames]
    if name == "dipole" and frames[0].pbc.any():
        fractions = _fractions(frames)
        fractions += sampling.whole_molecules(frames[0])
        fractions = sampling.unwrapped(fractions, frames[0].pbc)
        positions = [
            atoms.cell.complete().cartesian_positions(fraction)
            for atoms, fraction in zip(frames, fractions, strict=True)
        ]
    values = []
    for number, atoms in enumerate(tqdm(frames, desc=name, unit="frame", disable=None)):
        structure = atoms.copy()
        structure.positions = positions[number]
        structure = checked(args, structure, f"{where}: frame {number}", calculator)
        value = calculator.get_property(key, structure)
        if name == "dipole":
            value = inner_dipole(structure, calculator.results)
        check_prediction(value, key, f"{where}: frame {number}")
        if name == "current":
            value = np.einsum("nab,nb->a", value, atoms.get_velocities() * units.fs)
        values.append(value)
    epsilon = calculator.permittivity() if frames[0].pbc.all() else 1.0
    return np.array(values), epsilon


def details(args: argparse.Namespace, series: Series, temperature: float) -> list[str]:
    """Model, data and temperature for a title."""
    model = series.model if args.model is None else plots.names(args.model)
    data = f"{plots.names(args.trajectory)} ({plots.typeset(series.formula)})"
    return [f"model {model}" if model else "", data, f"{temperature:.0f} K"]
