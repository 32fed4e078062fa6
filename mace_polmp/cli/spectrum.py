"""`mace_polmp spectrum`: spectra, constants, g(r), conductivities and loops of trajectories."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis import dielectric, plots, spectra
from mace_polmp.analysis.correlation import Array, without_verlet_shift
from mace_polmp.analysis.sampling import check_sampling, nyquist
from mace_polmp.analysis.tables import with_error
from mace_polmp.cli.common import HelpWithDefaults, add_model_options, named
from mace_polmp.cli.conductivity import write_conductivity
from mace_polmp.cli.hysteresis import write_hysteresis
from mace_polmp.cli.rdf import write_rdf
from mace_polmp.cli.trajectory import Series, details, read_series
from mace_polmp.errors import InputError
from mace_polmp.reading import existing_file
from mace_polmp.unit_names import INFRARED, INVERSE_CM, RAMAN, per_wavenumber, with_unit

KINDS = ("ir", "raman", "dielectric", "conductivity", "rdf", "hysteresis")


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "spectrum",
        help="infrared and Raman spectra, dielectric constants, conductivities, g(r) and "
        "hysteresis of a trajectory",
        description="Spectra of a trajectory written by `mace_polmp md`, or of any trajectory with "
        "velocities and even time steps when --model is given.",
        formatter_class=HelpWithDefaults,
    )
    parser.add_argument(
        "kind",
        help="ir, raman, dielectric, conductivity (of ions), rdf (radial distribution) or "
        "hysteresis (of a run with --field_ramp)",
    )
    parser.add_argument("trajectory", type=Path, help="file that ASE reads; all its frames")
    parser.add_argument(
        "--output",
        type=Path,
        help="name of the files without ending; by default that of the trajectory and _KIND",
    )
    parser.add_argument(
        "--timestep",
        type=float,
        help="time between frames, fs, where frames do not say theirs",
    )
    parser.add_argument(
        "--skip", type=float, default=0.0, help="time to leave out at the start, fs"
    )
    parser.add_argument(
        "--resolution", type=float, default=10.0, help="width of a sharp line at half height, cm⁻¹"
    )
    parser.add_argument(
        "--max_wavenumber", type=float, default=4500.0, help="end of plot and table"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="temperature, K; by default the mean kinetic one of the frames",
    )
    parser.add_argument(
        "--quantum_correction", default="harmonic", help=" or ".join(spectra.QUANTUM_CORRECTIONS)
    )
    parser.add_argument(
        "--laser",
        type=float,
        default=532.0,
        help="wavelength of the laser of Raman intensities, nm",
    )
    rdf = parser.add_argument_group("radial distribution functions")
    rdf.add_argument("--elements", nargs="+", metavar="X", help="of the pairs; all if not given")
    rdf.add_argument("--r_max", type=float, help="Å; half the cell if not given")
    rdf.add_argument("--bins", type=int, default=200, help="of the distance")
    ions = parser.add_argument_group("conductivity")
    ions.add_argument(
        "--lag",
        type=float,
        help="the longest time of correlation functions, fs; by default a twentieth of the run",
    )
    loop = parser.add_argument_group("hysteresis")
    loop.add_argument(
        "--period", type=float, help="period of the field, ps, where frames do not say it"
    )
    loop.add_argument(
        "--centre",
        action="store_true",
        help="take the middle of the loop off the polarization: with formal charges it has a "
        "constant that depends on the periodic images of the ions",
    )
    add_model_options(parser, required=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compute one kind of spectrum and write it."""
    if args.kind == "heat":
        raise InputError(
            "heat: a heat flux needs stresses of atoms, and there are none: the parts of the "
            "long-range energy do not belong to pairs of atoms. For thermal conductivities use "
            "non-equilibrium runs (temperature gradients) with `mace_polmp lammps`"
        )
    if args.kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {args.kind!r}")
    if args.temperature is not None and not (
        math.isfinite(args.temperature) and args.temperature > 0
    ):
        raise InputError(f"--temperature must be a positive number of K, got {args.temperature}")
    for name, unit in (("max_wavenumber", "cm⁻¹"), ("resolution", "cm⁻¹"), ("laser", "nm")):
        value = getattr(args, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"--{name} must be a positive number of {unit}, got {value}")
    if args.quantum_correction not in spectra.QUANTUM_CORRECTIONS:
        raise InputError(
            f"--quantum_correction must be one of {', '.join(spectra.QUANTUM_CORRECTIONS)}, got "
            f"{args.quantum_correction!r}"
        )
    if not (math.isfinite(args.skip) and args.skip >= 0):
        raise InputError(f"--skip must be a number of fs, 0 or more, got {args.skip}")
    base = args.output or args.trajectory.with_name(f"{args.trajectory.stem}_{args.kind}")
    if args.kind in ("rdf", "hysteresis"):
        existing_file(args.trajectory)
        base.parent.mkdir(parents=True, exist_ok=True)
        {"rdf": write_rdf, "hysteresis": write_hysteresis}[args.kind](args, base)
        return
    series = read_series(args)
    if series.current is not None or args.kind != "conductivity":
        integrated = args.kind in ("dielectric", "conductivity")
        least = dielectric.LEAST_WAVENUMBER if integrated else 0.0
        check_sampling(series.masses, series.timestep, args.kind, least)
    temperature = series.temperature if args.temperature is None else args.temperature
    base.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"ir": _infrared, "raman": _raman, "dielectric": _dielectric}
    kinds["conductivity"] = write_conductivity
    kinds[args.kind](args, series, temperature, base)


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
        shown, label = columns["n_alpha_cm-1"], with_unit("n α", INVERSE_CM)
    else:
        shown = columns["cross_section_km/mol_per_cm-1"]
        label = with_unit("absorption", per_wavenumber(INFRARED))
    title = _title("Infrared spectrum", args, series, temperature)
    _draw(base, columns["wavenumber_cm-1"], {"infrared": shown}, label, title)
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
    title = _title("Raman spectrum", args, series, temperature)
    _draw(base, wavenumber, lines, with_unit("activity", per_wavenumber(RAMAN)), title)
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
    electronic, source = _electronic_permittivity(args, series)
    result = dielectric.static_permittivity(
        moment, series.volume, temperature, electronic, series.timestep
    )
    times = np.arange(len(result.running)) * series.timestep
    errors = result.running_error
    header = ["time_fs", "static_permittivity", "M_x_eA", "M_y_eA", "M_z_eA", "standard_error"]
    rows = np.column_stack([times, result.running, moment - moment[0], errors])
    plots.write_csv(named(base, ".csv"), header, rows.tolist())
    title = plots.heading(
        f"Static dielectric constant: {with_error(result.value, result.error)}",
        *details(args, series, temperature),
    )
    plots.draw_lines(
        named(base, ".png"),
        times / 1000.0,
        {"of the run so far": result.running},
        ("time / ps", "static dielectric constant"),
        title,
        band=plots.Band(errors, "± standard error"),
    )
    print(
        f"electronic permittivity {electronic:.3f} ({source}), static dielectric constant "
        f"{with_error(result.value, result.error)} ({len(times)} frames, {times[-1] / 1000:g} ps, "
        f"{temperature:.0f} K; the polarization remembers for {result.memory / 1000:.2g} ps)\n"
        f"{named(base, '.csv')}, {plots.said(named(base, '.png'))}"
    )


def _electronic_permittivity(args: argparse.Namespace, series: Series) -> tuple[float, str]:
    """ε∞ and where it is from: polarizabilities, which have all of it, or what screens the current.

    That of polarizabilities is the mean of 1 + tr α/(3 eps0 V) over the run.
    """
    from mace_polmp.units import EPS0

    if series.polarizability is not None and series.volume is not None:
        trace = float(np.einsum("tii->t", series.polarizability).mean())
        return 1.0 + trace / (3.0 * EPS0 * series.volume), "from polarizabilities"
    if args.epsilon_infinity is not None:
        return args.epsilon_infinity, "given"
    if series.epsilon_infinity > 1.0:
        said = "of the model; for that of induced dipoles write --observables polarizability"
        return series.epsilon_infinity, said
    return 1.0, "not known: give --epsilon_infinity"


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
    plots.write_csv(named(base, ".csv"), list(columns), rows)
    return written


def _title(what: str, args: argparse.Namespace, series: Series, temperature: float) -> str:
    resolution = f"resolution {args.resolution:g} {INVERSE_CM}"
    return plots.heading(what, *details(args, series, temperature), resolution)


def _draw(base: Path, wavenumber: Array, lines: dict[str, Array], label: str, title: str) -> None:
    labels = (with_unit("wavenumber", INVERSE_CM), label)
    limits = (0.0, float(wavenumber[-1]))
    plots.draw_lines(named(base, ".png"), wavenumber, lines, labels, title, limits=limits)


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
    limit = nyquist(series.timestep)
    if limit < args.max_wavenumber:
        print(f"frames are {series.timestep:g} fs apart: the spectrum ends at {limit:.0f} cm⁻¹")
    print(
        f"{args.kind} at {temperature:.0f} K, resolution {args.resolution:g} cm⁻¹; strongest "
        f"lines at {lines} cm⁻¹\n{named(base, '.csv')}, {plots.said(named(base, '.png'))}"
    )
