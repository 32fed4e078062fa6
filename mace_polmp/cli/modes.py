"""`mace_polmp modes`: normal modes with infrared and Raman intensities, and LO-TO splitting."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.analysis import modes as analysis
from mace_polmp.analysis import plots
from mace_polmp.analysis.correlation import Array
from mace_polmp.cli.common import (
    add_model_options,
    add_structure_options,
    make_calculator,
    read_structure,
)
from mace_polmp.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.calculators import MultipoleMACECalculator

_LARGE_FORCE = 0.01  # eV/Å


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "modes",
        help="normal modes of a molecule or at Gamma: frequencies, infrared and Raman intensities",
        description="Normal modes of a molecule or at the Gamma point of a crystal, from the "
        "model's exact second derivatives, Born charges and derivatives of the polarizability.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_model_options(parser)
    group = parser.add_argument_group("modes")
    add_structure_options(group)
    group.add_argument(
        "--output", type=Path, default=Path("modes"), help="name without ending of what is written"
    )
    group.add_argument(
        "--relax", type=float, metavar="FMAX", help="first move atoms to forces below this, eV/Ang"
    )
    group.add_argument("--relax_steps", type=int, default=500, help="at most so many steps")
    group.add_argument(
        "--direction",
        type=float,
        nargs=3,
        action="append",
        metavar=("X", "Y", "Z"),
        help="of a crystal: frequencies with the field of longitudinal modes along this Cartesian "
        "direction; may be given several times",
    )
    group.add_argument("--width", type=float, default=10.0, help="of the plotted lines, cm^-1")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compute the modes, print the table and write CSV, plots and ASE's vibrations file."""
    calculator = make_calculator(args)
    atoms = read_structure(args.structure, args.frame)
    if atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(f"{args.structure}: modes of a slab need its Born charges, which this "
                         "version does not have")  # fmt: skip
    if args.direction and not atoms.pbc.all():
        raise InputError("--direction needs a crystal, periodic in three directions")
    if not args.width > 0:
        raise InputError(f"--width must be a positive number of cm^-1, got {args.width}")
    atoms.calc = calculator
    args.output.parent.mkdir(parents=True, exist_ok=True)
    _relax(atoms, args)
    hessian = calculator.get_hessian(atoms).reshape(3 * len(atoms), -1)
    masses = atoms.get_masses()
    kept = analysis.without_rigid_motion(
        0.5 * (hessian + hessian.T), atoms.positions, masses, rotations=not atoms.pbc.any()
    )
    modes = analysis.normal_modes(kept, masses)
    born = calculator.get_property("born_charges", atoms)
    columns = {
        "frequency_cm-1": modes.frequency,
        "infrared_km/mol": analysis.infrared_intensities(modes, born),
    }
    derivatives = _polarizability_derivatives(atoms, calculator)
    if derivatives is not None:
        activity, ratio = analysis.raman_activities(modes, derivatives)
        columns["raman_activity_A4/amu"] = activity
        columns["depolarisation_ratio"] = ratio
    for direction in args.direction or []:
        name = " ".join(f"{x:g}" for x in direction)
        columns[f"frequency_along_{name}_cm-1"] = _longitudinal(
            args, atoms, kept, masses, born, np.array(direction)
        )
    _write(args, atoms, hessian, modes, born, columns)


def _relax(atoms: Atoms, args: argparse.Namespace) -> None:
    from ase.optimize import BFGS
    from tqdm import tqdm

    if args.relax is not None:
        if not args.relax > 0:
            raise InputError(f"--relax must be a positive force in eV/Ang, got {args.relax}")
        with tqdm(desc="relaxing", unit="step", disable=None) as bar:
            optimizer = BFGS(atoms, logfile=None)
            optimizer.attach(lambda: bar.update(1))
            if not optimizer.run(fmax=args.relax, steps=args.relax_steps):
                raise InputError(
                    f"--relax: forces are not below {args.relax:g} eV/Ang after {args.relax_steps} "
                    "steps; give more --relax_steps or a larger force"
                )
    largest = float(np.abs(atoms.get_forces()).max())
    if largest > _LARGE_FORCE:
        print(
            f"note: the largest force is {largest:.3f} eV/Å; modes are those of a minimum only: "
            "give --relax 0.001"
        )


def _polarizability_derivatives(atoms: Atoms, calculator: MultipoleMACECalculator) -> Array | None:
    """∂α/∂r, mean over the models, or None for a model without induced dipoles."""
    from mace_polmp.modules.observables import polarizability_derivatives

    if not all(model.long_range_options.induces_dipoles for model in calculator.models):
        print("note: the model has no induced dipoles: no Raman activities")
        return None
    batch = calculator._atoms_to_batch(atoms)
    tensors = [
        polarizability_derivatives(model, calculator._clone_batch(batch).to_dict())
        for model in calculator.models
    ]
    derivatives: Array = np.mean([t.cpu().numpy() for t in tensors], axis=0)
    return derivatives


def _longitudinal(
    args: argparse.Namespace,
    atoms: Atoms,
    hessian: Array,
    masses: Array,
    born: Array,
    direction: Array,
) -> Array:
    """Frequencies with the field of longitudinal modes along a direction.

    The sum rule is enforced: else a translation would make a field.
    """
    own = atoms.calc.models[0].permittivity()
    if args.epsilon_infinity is not None:
        permittivity = args.epsilon_infinity * np.eye(3)
    elif own > 1.0:
        permittivity = own * np.eye(3)
    else:
        permittivity = atoms.calc.get_property("electronic_permittivity", atoms)
    with_field = analysis.longitudinal_hessian(
        hessian, born - born.mean(0), permittivity, atoms.get_volume(), direction
    )
    frequency: Array = analysis.normal_modes(with_field, masses).frequency
    return frequency


def _write(
    args: argparse.Namespace,
    atoms: Atoms,
    hessian: Array,
    modes: analysis.NormalModes,
    born: Array,
    columns: dict[str, Array],
) -> None:
    from ase.vibrations import VibrationsData
    from prettytable import PrettyTable

    table = PrettyTable(["mode", *columns])
    table.align = "r"
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(
            [number, *(f"{value:.4g}" if i else f"{value:.2f}" for i, value in enumerate(values))]
        )
    print(table)
    print(f"acoustic sum rule: largest |sum of Born charges| {np.abs(born.sum(0)).max():.2e} e")
    imaginary = int((modes.frequency < -1.0).sum())
    if imaginary > 0:
        print(f"note: {imaginary} imaginary modes (negative): not a minimum of the model")
    base = args.output
    rows = [[i, *values] for i, values in enumerate(zip(*columns.values(), strict=True))]
    plots.write_csv(base.with_suffix(".csv"), ["mode", *columns], rows)
    data = VibrationsData.from_2d(atoms, 0.5 * (hessian + hessian.T))
    temporary = base.with_name(f".{base.name}.json.tmp")
    data.write(temporary)
    os.replace(temporary, base.with_suffix(".json"))
    written = [base.with_suffix(".csv"), base.with_suffix(".json")]
    end = 1.1 * float(modes.frequency.max()) + 10.0 * args.width
    grid = np.linspace(0.0, end, 2000)
    labels = {
        "infrared_km/mol": ("ir", "absorption / (km/mol per cm⁻¹)"),
        "raman_activity_A4/amu": ("raman", "activity / (Å⁴/amu per cm⁻¹)"),
    }
    for column, (name, label) in labels.items():
        if column not in columns:
            continue
        # A charged molecule's rigid motion absorbs at zero: not a line.
        vibrations = modes.frequency > 1.0
        lines = analysis.broadened(
            modes.frequency[vibrations], columns[column][vibrations], args.width, grid
        )
        path = base.with_name(f"{base.name}_{name}.png")
        plots.draw_lines(path, grid, {name: lines}, ("wavenumber / cm⁻¹", label), limits=(0.0, end))
        written.append(path)
    print(", ".join(map(str, written)))
