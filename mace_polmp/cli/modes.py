"""`mace_polmp modes`: normal modes with infrared and Raman intensities, and LO-TO splitting."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.analysis import modes as analysis
from mace_polmp.analysis import plots
from mace_polmp.analysis.correlation import Array
from mace_polmp.analysis.rigid import rigid_motions, rotations_about
from mace_polmp.analysis.tables import aligned, text_table
from mace_polmp.cli.common import (
    HelpWithDefaults,
    add_model_options,
    add_structure_options,
    checked,
    make_calculator,
    named,
    read_structure,
)
from mace_polmp.errors import InputError
from mace_polmp.files import replacing
from mace_polmp.quantities import check_prediction
from mace_polmp.unit_names import INFRARED, INVERSE_CM, RAMAN, per_wavenumber, with_unit

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.calculators import MultipoleMACECalculator

_LARGE_FORCE = 0.01  # eV/Å


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "modes",
        help="normal modes of a molecule or at Γ: frequencies, infrared and Raman intensities",
        description="Normal modes of a molecule or at the Γ point of a crystal, from the "
        "model's exact second derivatives, Born charges and derivatives of the polarizability.",
        formatter_class=HelpWithDefaults,
    )
    add_model_options(parser)
    group = parser.add_argument_group("modes")
    add_structure_options(group)
    group.add_argument(
        "--output", type=Path, default=Path("modes"), help="name without ending of what is written"
    )
    add_relaxation(group)
    group.add_argument(
        "--direction",
        type=float,
        nargs=3,
        action="append",
        metavar=("X", "Y", "Z"),
        help="of a crystal: frequencies with the field of longitudinal modes along this Cartesian "
        "direction; may be given several times",
    )
    group.add_argument("--width", type=float, default=10.0, help="of the plotted lines, cm⁻¹")
    parser.set_defaults(run=run)


def add_relaxation(group: Any) -> None:
    """--relax and --relax_steps."""
    group.add_argument(
        "--relax", type=float, metavar="FMAX", help="first move atoms to forces below this, eV/Å"
    )
    group.add_argument("--relax_steps", type=int, default=500, help="most steps of the relaxation")


def run(args: argparse.Namespace) -> None:
    """Compute the modes, print the table and write CSV, plots and ASE's vibrations file."""
    _check_numbers(args)
    calculator = make_calculator(args)
    where = f"{args.structure}: frame {args.frame}"
    atoms = checked(args, read_structure(args.structure, args.frame), where, calculator)
    is_slab = atoms.pbc.any() and not atoms.pbc.all()
    if is_slab and not calculator.defines_polarization:
        raise InputError(
            f"{args.structure}: modes of a slab need its Born charges, which models with "
            "--charge_readout bond have"
        )
    if args.direction and not atoms.pbc.all():
        raise InputError("--direction needs a crystal, periodic in three directions")
    atoms.calc = calculator
    args.output.parent.mkdir(parents=True, exist_ok=True)
    relax(atoms, args)
    free = _free_atoms(atoms)
    hessian = _hessian(atoms, calculator, free)
    check_prediction(hessian, "second derivative", where)
    masses = atoms.get_masses()[free]
    rigid = _rigid(atoms, free, masses)
    modes = analysis.normal_modes(hessian, masses, rigid)
    if len(modes.frequency) == 0:
        raise InputError(f"{args.structure}: has no vibrations: nothing but rigid motion is left")
    placed = atoms.copy()  # of an open structure the place matters where charges do not sum to 0
    placed.set_constraint()
    if not atoms.pbc.any():
        placed.positions -= placed.get_center_of_mass()
    born = calculator.get_property("born_charges", placed)
    sums = np.abs(born.sum(0)).max()
    if args.direction:  # a translation must not make a field
        along = born - born.mean(0)
    born = born[free]
    columns = {
        "frequency_cm-1": modes.frequency,
        "infrared_km/mol": analysis.infrared_intensities(modes, born),
    }
    derivatives = _polarizability_derivatives(placed, calculator)
    if derivatives is not None:
        activity, ratio = analysis.raman_activities(modes, derivatives[free])
        columns["raman_activity_A4/amu"] = activity
        columns["depolarisation_ratio"] = ratio
    for direction in args.direction or []:
        name = " ".join(f"{x:g}" for x in direction)
        with_field = analysis.longitudinal_hessian(
            hessian,
            along[free],
            np.asarray(calculator.get_property("electronic_permittivity", atoms)),
            atoms.get_volume(),
            np.array(direction),
        )
        found = analysis.normal_modes(with_field, masses, rigid)
        columns[f"frequency_along_{name}_cm-1"] = found.frequency
    print(f"acoustic sum rule: largest |sum of Born charges| {sums:.2e} e")
    left_out = 0 if rigid is None else len(rigid)
    print(
        f"{len(modes.frequency)} vibrations of {len(free)} free atoms; "
        f"{left_out} translations and rotations are left out"
    )
    _write(args, atoms, free, hessian, modes, columns)


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers without sense before anything is computed."""
    check_relaxation(args)
    if not (math.isfinite(args.width) and args.width > 0):
        raise InputError(f"--width must be positive, in cm⁻¹, got {args.width}")
    for direction in args.direction or []:
        if not (np.isfinite(direction).all() and np.any(direction)):
            raise InputError(f"--direction must be a vector that is not zero, got {direction}")


def check_relaxation(args: argparse.Namespace) -> None:
    """Refuse a force or a number of steps without sense.

    Raises:
        InputError: names the option.
    """
    if args.relax is not None and not (math.isfinite(args.relax) and args.relax > 0):
        raise InputError(f"--relax must be a positive force in eV/Å, got {args.relax}")
    if args.relax_steps < 1:
        raise InputError(f"--relax_steps must be 1 or more, got {args.relax_steps}")


def _rigid(atoms: Atoms, free: np.ndarray, masses: Array) -> Array | None:
    """Motions of the free atoms that change no distance, also not to fixed ones; None for none."""
    if len(free) == len(atoms):
        return rigid_motions(atoms.positions, masses, rotations=not atoms.pbc.any())
    if atoms.pbc.any():
        return None
    fixed = np.setdiff1d(np.arange(len(atoms)), free)
    found = rotations_about(atoms.positions[fixed], atoms.positions[free], masses)
    return found if len(found) > 0 else None


def _free_atoms(atoms: Atoms) -> np.ndarray:
    """Indices of the atoms that vibrate: those that are not fixed.

    Raises:
        InputError: constraints that hold something else than whole atoms, or all atoms.
    """
    from ase.constraints import FixAtoms, FixCartesian

    fixed: set[int] = set()
    for constraint in atoms.constraints:
        whole = isinstance(constraint, FixAtoms) or (
            isinstance(constraint, FixCartesian) and bool(np.all(constraint.mask))
        )
        if not whole and not (isinstance(constraint, FixCartesian) and not constraint.mask.any()):
            raise InputError(
                f"modes with a {type(constraint).__name__} constraint are not available; fix whole "
                "atoms, or free them"
            )
        if whole:
            fixed.update(int(index) for index in constraint.index)
    free = np.array([index for index in range(len(atoms)) if index not in fixed], dtype=int)
    if len(free) == 0:
        raise InputError("all atoms are fixed; free those that are to vibrate")
    return free


def _hessian(atoms: Atoms, calculator: MultipoleMACECalculator, free: np.ndarray) -> Array:
    """Second derivatives by the coordinates of free atoms, mean over the models, eV/Å²."""
    found = calculator.get_hessian(atoms)
    parts = [found] if isinstance(found, np.ndarray) else found
    size = 3 * len(atoms)
    hessian = np.mean([np.asarray(part).reshape(size, size) for part in parts], axis=0)
    chosen = (3 * free[:, None] + np.arange(3)).ravel()
    hessian = hessian[np.ix_(chosen, chosen)]
    result: Array = 0.5 * (hessian + hessian.T)
    return result


def relax(atoms: Atoms, args: argparse.Namespace) -> None:
    """Move the atoms to small forces where --relax asks for it; say where forces are large.

    Raises:
        InputError: the forces do not get there.
    """
    from ase.optimize import BFGS
    from tqdm import tqdm

    if args.relax is not None:
        with tqdm(desc="relaxing", unit="step", disable=None) as bar:
            optimizer = BFGS(atoms, logfile=None)
            optimizer.attach(lambda: bar.update(1))
            if not optimizer.run(fmax=args.relax, steps=args.relax_steps):
                raise InputError(
                    f"--relax: forces are not below {args.relax:g} eV/Å after {args.relax_steps} "
                    "steps; give more --relax_steps or a larger force"
                )
    largest = float(np.abs(atoms.get_forces()).max())
    if largest > _LARGE_FORCE:
        print(
            f"note: the largest force is {largest:.3f} eV/Å; modes are those of a minimum only: "
            "give --relax 0.001"
        )


def _polarizability_derivatives(atoms: Atoms, calculator: MultipoleMACECalculator) -> Array | None:
    """∂α/∂r at the ε_e of the structure, mean over the models, or None without induced dipoles."""
    from mace_polmp.modules.born_charges import polarizability_derivatives

    if not all(model.long_range_options.is_polarizable for model in calculator.models):
        print("note: the model has no induced dipoles: no Raman activities")
        return None
    batch = calculator._atoms_to_batch(atoms)
    tensors = [
        polarizability_derivatives(model, calculator._clone_batch(batch).to_dict())
        for model in calculator.models
    ]
    calculator.get_property("polarizability", atoms)  # χ, where it is asked for
    screening = calculator.screening().tolist()
    physical = [s**2 * t.cpu().numpy() for s, t in zip(screening, tensors, strict=True)]
    derivatives: Array = np.mean(physical, axis=0)
    return derivatives


def _write(
    args: argparse.Namespace,
    atoms: Atoms,
    free: np.ndarray,
    hessian: Array,
    modes: analysis.NormalModes,
    columns: dict[str, Array],
) -> None:
    from ase.vibrations import VibrationsData

    print(_table(columns))
    imaginary = int((modes.frequency < -1.0).sum())
    if imaginary > 0:
        print(f"note: {imaginary} imaginary modes (negative): not a minimum of the model")
    base = args.output
    rows = [[i, *values] for i, values in enumerate(zip(*columns.values(), strict=True))]
    plots.write_csv(named(base, ".csv"), ["mode", *columns], rows)
    bare = atoms.copy()
    bare.set_constraint()
    data = VibrationsData.from_2d(bare, hessian, indices=free)
    with replacing(named(base, ".json")) as temporary:
        data.write(temporary)
    written = [str(named(base, ".csv")), str(named(base, ".json"))]
    print(", ".join([*written, *_draw(args, atoms, modes, columns)]))


def _table(columns: dict[str, Array]) -> str:
    """The modes as text."""
    heads = {
        "frequency_cm-1": with_unit("frequency", INVERSE_CM),
        "infrared_km/mol": with_unit("infrared", INFRARED),
        "raman_activity_A4/amu": with_unit("Raman activity", RAMAN),
        "depolarisation_ratio": "depolarisation ratio",
    }
    texts = [[str(number) for number in range(len(columns["frequency_cm-1"]))]]
    for name, values in columns.items():
        if name.startswith("frequency"):
            texts.append([f"{value:.2f}" for value in values])
        elif name == "depolarisation_ratio":
            texts.append([f"{value:.3f}" for value in values])
        else:
            texts.append(aligned(values.tolist(), 4))
    for name in columns:
        if name not in heads:
            direction = name.removeprefix("frequency_along_").removesuffix("_cm-1")
            along = f"frequency along {direction.replace(' ', ',')}"
            heads[name] = with_unit(along, INVERSE_CM)
    return text_table(["mode", *(heads[name] for name in columns)], list(zip(*texts, strict=True)))


def _draw(
    args: argparse.Namespace, atoms: Atoms, modes: analysis.NormalModes, columns: dict[str, Array]
) -> list[str]:
    """Spectra of broadened lines with the modes as sticks; how messages name them."""
    end = 1.1 * float(modes.frequency.max()) + 10.0 * args.width
    grid = np.linspace(0.0, end, 2000)
    kinds = {
        "infrared_km/mol": ("ir", "Infrared spectrum", "intensity", INFRARED),
        "raman_activity_A4/amu": ("raman", "Raman spectrum", "activity", RAMAN),
    }
    written = []
    for column, (name, what, strength, unit) in kinds.items():
        if column not in columns:
            continue
        # A charged molecule's rigid motion absorbs at zero: not a line.
        kept = modes.frequency > 1.0
        centres, heights = modes.frequency[kept], columns[column][kept]
        path = args.output.with_name(f"{args.output.name}_{name}.png")
        plots.draw_lines(
            path,
            grid,
            {name: analysis.broadened(centres, heights, args.width, grid)},
            (
                with_unit("wavenumber", INVERSE_CM),
                with_unit(f"{strength} as lines", per_wavenumber(unit)),
            ),
            plots.heading(
                f"{what} of the normal modes of {plots.typeset(atoms.get_chemical_formula())}",
                f"model {plots.names(args.model)}",
                f"structure {plots.names(args.structure)}",
                f"lines {args.width:g} {INVERSE_CM} wide",
            ),
            limits=(0.0, end),
            sticks=plots.Sticks(centres, heights, with_unit(f"{strength} as sticks", unit)),
        )
        written.append(plots.said(path))
    return written
