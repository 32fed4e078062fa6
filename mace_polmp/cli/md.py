"""`mace_polmp md`: molecular dynamics with electrical observables, restarted after a kill."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis.plots import names
from mace_polmp.cli.common import (
    HelpWithDefaults,
    add_model_options,
    add_structure_options,
    checked,
    make_calculator,
    read_structure,
)
from mace_polmp.errors import InputError
from mace_polmp.simulation.fields import PeriodicField
from mace_polmp.units import WAVENUMBER


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "md",
        help="molecular dynamics: NVE, NVT, NPT, external fields, dipoles, currents",
        description="Molecular dynamics. The same command goes on with a run that was interrupted; "
        "a higher --steps prolongs one.",
        formatter_class=HelpWithDefaults,
    )
    add_model_options(parser)
    run_group = parser.add_argument_group("run")
    add_structure_options(run_group)
    run_group.add_argument("--output", type=Path, default=Path("md"), help="folder to write to")
    run_group.add_argument("--steps", type=int, required=True, help="length of the run in steps")
    run_group.add_argument("--timestep", type=float, default=0.5, help="time step, fs")
    run_group.add_argument(
        "--ensemble",
        default="nve",
        help="nve; langevin or bussi (both NVT); npt (Martyna-Tobias-Klein, isotropic)",
    )
    run_group.add_argument("--temperature", type=float, default=300.0, help="temperature, K")
    run_group.add_argument(
        "--friction", type=float, default=0.01, help="friction of langevin, 1/fs"
    )
    run_group.add_argument(
        "--time_constant",
        type=float,
        default=100.0,
        help="time constant of the thermostat (bussi, npt), fs",
    )
    run_group.add_argument("--pressure", type=float, default=1.0, help="pressure of npt, bar")
    run_group.add_argument(
        "--pressure_time",
        type=float,
        default=1000.0,
        help="time constant of the barostat (npt), fs",
    )
    run_group.add_argument(
        "--no_rotation",
        action="store_true",
        help="initial velocities do not turn a molecule as a whole",
    )
    run_group.add_argument(
        "--compile_mode",
        nargs="?",
        const="default",
        help="compile the model (torch.compile) in one of the modes default, reduce-overhead and "
        "max-autotune: minutes at the start, then two thirds of the time of a step",
    )
    run_group.add_argument(
        "--seed", type=int, default=1, help="random seed of velocities and thermostat"
    )
    output = parser.add_argument_group("observables")
    output.add_argument("--every", type=int, default=10, help="steps between frames")
    output.add_argument(
        "--observables",
        nargs="*",
        default=["dipole"],
        help="dipole (e Å), current (sum of Born charges times velocities, e Å/fs: for "
        "infrared spectra of periodic structures), polarizability (for Raman spectra), charges (e) "
        "and atomic_dipoles (e Å) of the atoms, permanent plus induced",
    )
    field = parser.add_argument_group("external field")
    field.add_argument(
        "--field", type=float, nargs=3, metavar=("X", "Y", "Z"), help="uniform field, V/Å"
    )
    field.add_argument(
        "--field_wavenumber", type=float, help="let the field oscillate as a cosine, cm⁻¹"
    )
    field.add_argument(
        "--field_pulse",
        type=float,
        nargs=2,
        metavar=("CENTRE", "WIDTH"),
        help="multiply the field by a Gaussian in time: centre and standard deviation, fs",
    )
    field.add_argument(
        "--field_ramp",
        nargs=2,
        metavar=("SHAPE", "PERIOD"),
        help="let the field go from 0 to +F, back through 0 to -F and to 0 again, in each period "
        "(ps): triangle or sine; for hysteresis loops",
    )
    field.add_argument(
        "--displacement_field",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="keep the displacement field of a periodic structure in place of a field, e/Å² "
        "(1 C/m² is 0.0624 e/Å²); 0 0 0 is that of a longitudinal wave",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the dynamics and say where the files are."""
    from mace_polmp.calculators.checks import expand
    from mace_polmp.files import digest
    from mace_polmp.simulation.dynamics import MDSettings, run_md

    if args.steps < 1:
        raise InputError(f"--steps must be at least 1, got {args.steps}")
    settings = MDSettings(
        ensemble=args.ensemble,
        timestep=args.timestep,
        temperature=args.temperature,
        friction=args.friction,
        time_constant=args.time_constant,
        pressure=args.pressure,
        pressure_time=args.pressure_time,
        every=args.every,
        observables=tuple(args.observables),
        seed=args.seed,
        rotation=not args.no_rotation,
    )
    external = make_field(args)
    if external is not None and args.displacement_field is not None:
        raise InputError("--field and --displacement_field: only one of them can be kept")
    calculator = make_calculator(
        args,
        external_field=external,
        displacement_field=args.displacement_field,
        compile_mode=args.compile_mode,
    )
    where = f"{args.structure}: frame {args.frame}"
    atoms = checked(args, read_structure(args.structure, args.frame), where, calculator)
    atoms.info["model"] = names(args.model)  # frames say what made them
    same = ["head", "default_dtype", "epsilon_infinity", "divide_by_chi", "sum_rule"]
    same += ["field", "field_wavenumber", "field_pulse", "field_ramp", "displacement_field"]
    # Models and structures are compared by what they are, not by where they are.
    contents = {"model (its content)": [digest(path)[:12] for path in expand(args.model)]}
    last = run_md(
        atoms,
        calculator,
        settings,
        args.steps,
        args.output,
        same={name: getattr(args, name) for name in same} | contents,
    )
    if isinstance(external, PeriodicField):
        periods = args.steps * args.timestep / external.period
        strength = float(np.linalg.norm(external.amplitude))
        print(
            f"field: {external.shape} of {strength:g} V/Å, {periods:g} periods of "
            f"{external.period / 1000:g} ps"
        )
    print(
        f"{args.steps} steps, {args.steps * args.timestep / 1000:g} ps of "
        f"{last.get_chemical_formula()}: {args.output}/trajectory.xyz, trajectory.traj, md.csv"
    )


def make_field(args: argparse.Namespace) -> Sequence[float] | Callable[[float], Any] | None:
    """The external field of the options: None, constant, or a function of the time in fs.

    Raises:
        InputError: options that have no field to act on, or an impossible pulse or ramp.
    """
    if args.field is None:
        for name in ("field_wavenumber", "field_pulse", "field_ramp"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name} needs --field X Y Z")
        return None
    if args.field_ramp is not None:
        return _ramp(args)
    if args.field_wavenumber is None and args.field_pulse is None:
        return list(args.field)
    frequency = WAVENUMBER * (args.field_wavenumber or 0.0)
    centre, width = args.field_pulse or (0.0, math.inf)
    if not width > 0:
        raise InputError(f"--field_pulse needs a positive width in fs, got {width}")

    def field(time: float) -> list[float]:
        factor = math.exp(-0.5 * ((time - centre) / width) ** 2)
        factor *= math.cos(frequency * (time - centre))
        return [factor * component for component in args.field]

    return field


def _ramp(args: argparse.Namespace) -> PeriodicField:
    """The field of --field_ramp.

    Raises:
        InputError: with another field of time, or no shape or period.
    """
    for name in ("field_wavenumber", "field_pulse"):
        if getattr(args, name) is not None:
            raise InputError(f"--field_ramp does not go together with --{name}; leave one out")
    shape, text = args.field_ramp
    try:
        period = float(text)
    except ValueError:
        period = math.nan
    if not (math.isfinite(period) and period > 0):
        raise InputError(f"--field_ramp: the period must be a positive number of ps, got {text}")
    try:
        return PeriodicField(tuple(args.field), shape, 1000.0 * period)
    except InputError as error:
        raise InputError(f"--field_ramp: {error}") from None
