"""`mace_polmp spectrum`: infrared and Raman spectra and dielectric constants of trajectories."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis import dielectric, plots, spectra
from mace_polmp.analysis.correlation import Array, timestep_of, without_verlet_shift
from mace_polmp.cli.common import add_model_options, make_calculator
from mace_polmp.errors import InputError
from mace_polmp.units import WAVENUMBER

KINDS = ("ir", "raman", "dielectric")


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "spectrum",
        help="infrared and Raman spectra and dielectric constants of MD trajectories",
        description="Spectra of a trajectory written by `mace_polmp md`, or of any trajectory with "
        "velocities and even time steps when --model is given.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("kind", help="ir, raman or dielectric")
    parser.add_argument("trajectory", type=Path, help="file that ASE reads, of every frame")
    parser.add_argument(
        "--output", type=Path, help="name without ending of the CSV and PNG; trajectory_KIND if not"
    )
    parser.add_argument("--timestep", type=float, help="fs between frames, where no frame says it")
    parser.add_argument("--skip", type=float, default=0.0, help="fs to leave out at the start")
    parser.add_argument(
        "--resolution", type=float, default=10.0, help="width of a sharp line at half height, cm^-1"
    )
    parser.add_argument("--max_wavenumber", type=float, default=4500.0, help="end of plot and CSV")
    parser.add_argument(
        "--temperature", type=float, help="K; the mean kinetic temperature if not given"
    )
    parser.add_argument(
        "--quantum_correction", default="harmonic", help=", ".join(spectra.QUANTUM_CORRECTIONS)
    )
    parser.add_argument("--laser", type=float, default=532.0, help="of Raman intensities, nm")
    add_model_options(parser, required=False)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Series:
    """What a trajectory says, by frame.

    Attributes:
        timestep: between frames, fs.
        integrator_step: of the dynamics, fs, if frames say it.
        temperature: K, mean; NaN without velocities.
        volume: Å³, mean, of a periodic structure.
        dipole, current: [n_times, 3], e Å and e Å/fs.
        polarizability: [n_times, 3, 3], e² Å²/eV.
    """

    timestep: float
    integrator_step: float | None
    temperature: float
    volume: float | None
    dipole: Array | None
    current: Array | None
    polarizability: Array | None


def run(args: argparse.Namespace) -> None:
    """Compute one kind of spectrum and write it."""
    if args.kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {args.kind!r}")
    series = read_series(args)
    temperature = series.temperature if args.temperature is None else args.temperature
    base = args.output or args.trajectory.with_name(f"{args.trajectory.stem}_{args.kind}")
    base.parent.mkdir(parents=True, exist_ok=True)
    {"ir": _infrared, "raman": _raman, "dielectric": _dielectric}[args.kind](
        args, series, temperature, base
    )


def _infrared(args: argparse.Namespace, series: Series, temperature: float, base: Path) -> None:
    result = spectra.infrared(
        temperature,
        series.timestep,
        args.resolution,
        current=series.current,
        dipole=series.dipole,
        volume=series.volume,
        correction=args.quantum_correction,
    )
    columns = {"wavenumber_cm-1": result.wavenumber}
    if result.absorption is not None:
        columns["n_alpha_cm-1"] = result.absorption
    columns["cross_section_km/mol_per_cm-1"] = result.cross_section
    columns = _write(args, series, base, columns)
    if result.absorption is not None:
        shown, label = columns["n_alpha_cm-1"], "n α / cm⁻¹"
    else:
        shown = columns["cross_section_km/mol_per_cm-1"]
        label = "absorption / (km/mol per cm⁻¹)"
    _draw(base, columns["wavenumber_cm-1"], {"infrared": shown}, label)
    _report(args, series, temperature, base, columns["wavenumber_cm-1"], shown)


def _raman(args: argparse.Namespace, series: Series, temperature: float, base: Path) -> None:
    assert series.polarizability is not None
    result = spectra.raman(
        series.polarizability,
        temperature,
        series.timestep,
        args.resolution,
        laser=args.laser,
        correction=args.quantum_correction,
    )
    columns = _write(
        args,
        series,
        base,
        {
            "wavenumber_cm-1": result.wavenumber,
            "isotropic_A4/amu_per_cm-1": result.isotropic,
            "depolarised_A4/amu_per_cm-1": result.depolarised,
            "polarised_A4/amu_per_cm-1": result.polarised,
            "stokes_intensity": result.intensity,
        },
    )
    wavenumber, isotropic, depolarised, *_ = columns.values()
    lines = {"isotropic": isotropic, "depolarised": depolarised}
    _draw(base, wavenumber, lines, "activity / (Å⁴/amu per cm⁻¹)")
    activity = isotropic + 7.0 / 3.0 * depolarised
    _report(args, series, temperature, base, wavenumber, activity)


def _dielectric(args: argparse.Namespace, series: Series, temperature: float, base: Path) -> None:
    if series.volume is None:
        raise InputError(
            f"{args.trajectory}: a dielectric constant needs a structure that is periodic in three "
            "directions"
        )
    if series.current is not None:
        moment = dielectric.polarization_change(series.current, series.timestep)
    else:
        assert series.dipole is not None
        moment = series.dipole
    electronic = args.epsilon_infinity
    if electronic is None:
        electronic = _estimate_epsilon_infinity(series)
    result = dielectric.static_permittivity(moment, series.volume, temperature, electronic)
    times = np.arange(len(result.running)) * series.timestep
    header = ["time_fs", "static_permittivity", "M_x_eA", "M_y_eA", "M_z_eA"]
    rows = np.column_stack([times, result.running, moment - moment[0]])
    plots.write_csv(base.with_suffix(".csv"), header, rows.tolist())
    plots.draw_lines(
        base.with_suffix(".png"),
        times / 1000.0,
        {"": result.running},
        ("time / ps", "static dielectric constant of the run so far"),
    )
    print(
        f"electronic permittivity {electronic:.3f}, static dielectric constant "
        f"{result.value:.2f} ± {result.error:.2f} ({len(times)} frames, {times[-1] / 1000:g} ps, "
        f"{temperature:.0f} K)\n{base.with_suffix('.csv')}, {base.with_suffix('.png')}"
    )


def _estimate_epsilon_infinity(series: Series) -> float:
    """Mean of 1 + tr α/(3 eps0 V) over the run; 1 without polarizabilities."""
    from mace_polmp.units import EPS0

    if series.polarizability is None or series.volume is None:
        return 1.0
    trace = float(np.einsum("tii->t", series.polarizability).mean())
    return 1.0 + trace / (3.0 * EPS0 * series.volume)


def _write(
    args: argparse.Namespace, series: Series, base: Path, columns: dict[str, Array]
) -> dict[str, Array]:
    """Write the CSV up to the largest wavenumber; returns what was written.

    Where the trajectory says the time step of its integrator, its shift is taken off.
    """
    wavenumber, *values = columns.values()
    if series.integrator_step is not None:
        wavenumber, values = without_verlet_shift(wavenumber, values, series.integrator_step)
    kept = wavenumber <= args.max_wavenumber
    written = dict(zip(columns, [v[kept] for v in (wavenumber, *values)], strict=True))
    rows = np.column_stack(list(written.values())).tolist()
    plots.write_csv(base.with_suffix(".csv"), list(columns), rows)
    return written


def _draw(base: Path, wavenumber: Array, lines: dict[str, Array], label: str) -> None:
    labels = ("wavenumber / cm⁻¹", label)
    limits = (0.0, float(wavenumber[-1]))
    plots.draw_lines(base.with_suffix(".png"), wavenumber, lines, labels, limits=limits)


def _report(
    args: argparse.Namespace,
    series: Series,
    temperature: float,
    base: Path,
    wavenumber: Array,
    values: Array,
) -> None:
    from scipy.signal import find_peaks

    peaks, _ = find_peaks(values, height=0.05 * values.max())
    largest = sorted(peaks[np.argsort(values[peaks])[::-1][:8]])
    lines = ", ".join(f"{wavenumber[i]:.0f}" for i in largest)
    limit = math.pi / (WAVENUMBER * series.timestep)
    if limit < args.max_wavenumber:
        print(f"frames are {series.timestep:g} fs apart: the spectrum ends at {limit:.0f} cm^-1")
    print(
        f"{args.kind} at {temperature:.0f} K, resolution {args.resolution:g} cm^-1; strongest "
        f"lines at {lines} cm^-1\n{base.with_suffix('.csv')}, {base.with_suffix('.png')}"
    )


def read_series(args: argparse.Namespace) -> Series:
    """What a kind of spectrum needs of a trajectory, computed with the model where not written.

    Raises:
        InputError: uneven time steps, missing velocities or observables, or a model that lacks
            what the spectrum needs.
    """
    from mace_polmp.structures import read_structures

    frames = read_structures(args.trajectory)
    where = str(args.trajectory)
    times = _times(frames, args.timestep, where)
    step = timestep_of(times, where)
    frames = frames[int(np.searchsorted(times - times[0], args.skip - 1e-6)) :]
    if len(frames) < 2:
        raise InputError(f"--skip {args.skip:g} leaves out the whole run of {times[-1]:g} fs")
    periodic = bool(frames[0].pbc.all())
    moving = all(atoms.has("momenta") and atoms.get_momenta().any() for atoms in frames)
    if not moving and args.temperature is None:
        raise InputError(
            f"{where}: has no velocities to take the temperature from; give --temperature or a "
            "trajectory with velocities"
        )
    found = {name: _column(frames, name) for name in ("dipole", "current", "polarizability")}
    needed = {"raman": "polarizability"}.get(args.kind, "current" if periodic else "dipole")
    if found[needed] is None:
        found[needed] = _evaluate(args, frames, needed, moving)
    return Series(
        timestep=step,
        integrator_step=frames[0].info.get("timestep_fs"),
        temperature=float(np.mean([a.get_temperature() for a in frames])) if moving else np.nan,
        volume=float(np.mean([a.get_volume() for a in frames])) if periodic else None,
        dipole=found["dipole"],
        current=found["current"],
        polarizability=found["polarizability"],
    )


def _times(frames: list[Any], timestep: float | None, where: str) -> Array:
    if timestep is not None:
        if not timestep > 0:
            raise InputError(f"--timestep must be a positive number of fs, got {timestep}")
        return np.arange(len(frames)) * timestep
    missing = [n for n, atoms in enumerate(frames) if "time_fs" not in atoms.info]
    if missing:
        raise InputError(
            f"{where}: frame {missing[0]} does not say its time (time_fs); give --timestep, the fs "
            "between frames"
        )
    return np.array([float(atoms.info["time_fs"]) for atoms in frames])


def _column(frames: list[Any], name: str) -> Array | None:
    from mace_polmp.structures import find_label

    values = [find_label(atoms, name) for atoms in frames]
    if any(value is None for value in values):
        return None
    shape = (3, 3) if name == "polarizability" else (3,)
    return np.array([np.reshape(value, shape) for value in values], dtype=float)


def _evaluate(args: argparse.Namespace, frames: list[Any], name: str, moving: bool) -> Array:
    """A series from the model, frame by frame."""
    from ase import units
    from tqdm import tqdm

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
            if not model.long_range_options.induces_dipoles:
                raise InputError(
                    "raman: the model has no induced dipoles, hence no polarizability; train one "
                    "with --induced dipole or both"
                )
    key = {"dipole": "dipole", "current": "born_charges"}.get(name, "electronic_polarizability")
    values = []
    for atoms in tqdm(frames, desc=name, unit="frame", disable=None):
        value = calculator.get_property(key, atoms)
        if name == "current":
            value = np.einsum("nab,nb->a", value, atoms.get_velocities() * units.fs)
        values.append(value)
    return np.array(values)
