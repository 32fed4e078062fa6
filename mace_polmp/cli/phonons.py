"""`mace_polmp phonons`: the phonons of a crystal, with the splitting of longitudinal ones."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.analysis import plots
from mace_polmp.analysis.correlation import Array
from mace_polmp.analysis.tables import text_table
from mace_polmp.cli.common import (
    HelpWithDefaults,
    add_model_options,
    add_structure_options,
    checked,
    make_calculator,
    named,
    read_structure,
)
from mace_polmp.cli.modes import add_relaxation, check_relaxation, relax
from mace_polmp.errors import InputError
from mace_polmp.files import replacing
from mace_polmp.quantities import check_prediction
from mace_polmp.reading import shown
from mace_polmp.unit_names import INVERSE_CM, with_unit
from mace_polmp.units import SPEED_OF_LIGHT

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.calculators import MultipoleMACECalculator

_THZ = 1e5 / SPEED_OF_LIGHT  # 1 THz in cm⁻¹
_EDGE = 10.0  # Å, of a supercell that nobody gave
_NOISE = 0.1  # cm⁻¹; directions that differ by less are one
_IMAGINARY = 1.0  # cm⁻¹; acoustic vibrations at Γ are not quite zero


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "phonons",
        help="phonon bands of a crystal with the LO-TO splitting of the same model (phonopy)",
        description="Phonons of a crystal: force constants from displaced atoms in a supercell "
        "(phonopy, extra phonons), and the field of longitudinal vibrations from the model's own "
        "Born charges and permittivity.",
        formatter_class=HelpWithDefaults,
    )
    add_model_options(parser)
    group = parser.add_argument_group("phonons")
    add_structure_options(group)
    group.add_argument(
        "--output",
        type=Path,
        default=Path("phonons"),
        help="name without ending of what is written",
    )
    group.add_argument(
        "--supercell",
        type=int,
        nargs=3,
        metavar=("A", "B", "C"),
        help="repeats of the cell; by default until each edge has 10 Å",
    )
    group.add_argument(
        "--path",
        help="special points, with commas where it is broken, such as GXW,GL; by default the usual "
        "path of the lattice",
    )
    group.add_argument(
        "--mesh",
        type=int,
        nargs=3,
        metavar=("A", "B", "C"),
        help="wave vectors for a density of states; without it there is none",
    )
    group.add_argument(
        "--direction",
        type=float,
        nargs=3,
        action="append",
        metavar=("X", "Y", "Z"),
        help="Cartesian direction from which Γ is approached in the table; may be given several "
        "times; by default x, y and z",
    )
    group.add_argument(
        "--nac",
        default="gonze",
        help="the field of longitudinal vibrations (non-analytical correction): gonze "
        "(dipole-dipole), wang or none",
    )
    group.add_argument("--distance", type=float, default=0.01, help="of displacements, Å")
    add_relaxation(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compute phonons, print those at Γ and write bands, table, pictures and phonopy's files."""
    from mace_polmp.interfaces import phonopy

    _check_numbers(args, phonopy.METHODS)
    phonopy.phonopy_class()
    calculator = make_calculator(args)
    where = f"{args.structure}: frame {args.frame}"
    atoms = checked(args, read_structure(args.structure, args.frame), where, calculator)
    _check_structure(atoms, calculator, where)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    atoms.calc = calculator
    relax(atoms, args)
    repeats = tuple(args.supercell) if args.supercell else _repeats(atoms)
    phonons = phonopy.displaced(atoms, repeats, args.distance)
    path = phonopy.band_path(phonons, args.path)
    born = np.asarray(calculator.get_property("born_charges", atoms))
    permittivity = np.asarray(calculator.get_property("electronic_permittivity", atoms))
    cells = phonopy.supercells(phonons)
    print(
        f"{len(cells) - 1} displacements in a supercell of {' × '.join(map(str, repeats))}, "
        f"{len(cells[0])} atoms"
    )
    forces = []
    for cell in shown(cells, "displaced"):
        found = np.asarray(calculator.get_property("forces", cell))
        check_prediction(found, "forces", where)
        forces.append(found)
    phonopy.set_forces(phonons, forces)
    phonopy.set_charges(phonons, born, permittivity, args.nac)
    sums = float(np.abs(born.sum(0)).max())
    print(f"acoustic sum rule: largest |sum of Born charges| {sums:.2e} e")
    diagonal = " ".join(f"{value:.3f}" for value in np.diag(permittivity))
    print(f"permittivity that screens longitudinal vibrations: {diagonal} (xx, yy, zz)")
    gamma = _at_gamma(args, phonons)
    print(_table(gamma))
    bands = phonopy.run_bands(phonons, path)
    lowest = _lowest(bands)
    if lowest < -_IMAGINARY:
        print(f"note: imaginary vibrations, down to {lowest:.0f} {INVERSE_CM}: not a minimum")
    _write(args, phonons, atoms, gamma, path, bands)


def _check_numbers(args: argparse.Namespace, methods: tuple[str, ...]) -> None:
    """Refuse numbers without sense before anything is computed."""
    check_relaxation(args)
    if not (math.isfinite(args.distance) and args.distance > 0):
        raise InputError(f"--distance must be a positive number of Å, got {args.distance}")
    for name in ("supercell", "mesh"):
        given = getattr(args, name)
        if given is not None and min(given) < 1:
            raise InputError(f"--{name} must be three numbers of 1 or more, got {given}")
    if args.nac not in methods:
        raise InputError(f"--nac must be one of {', '.join(methods)}, got {args.nac!r}")
    for direction in args.direction or []:
        if not (np.isfinite(direction).all() and np.any(direction)):
            raise InputError(f"--direction must be a vector that is not zero, got {direction}")


def _check_structure(atoms: Atoms, calculator: MultipoleMACECalculator, where: str) -> None:
    """Refuse what has no phonons, and say where longitudinal ones are not those of the model."""
    if not atoms.pbc.all():
        raise InputError(
            f"{where}: phonons need a crystal, periodic in three directions; for molecules and "
            "slabs take mace_polmp modes"
        )
    if atoms.constraints:
        raise InputError(f"{where}: phonons need atoms that are free; remove the constraints")
    if calculator.total_charge(atoms):
        raise InputError(f"{where}: phonons need a cell without a total charge")
    if any(model.long_range_options.induces_charges for model in calculator.models):
        print(
            "note: the model's induced charges screen long waves as a metal does: its splitting of "
            "longitudinal and transverse vibrations has no limit; train with --induced dipole or "
            "none"
        )


def _repeats(atoms: Atoms) -> tuple[int, ...]:
    """So many that opposite faces of the supercell are at least 10 Å apart."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    return tuple(max(1, math.ceil(_EDGE / height - 1e-6)) for height in heights)


def _lowest(bands: list[tuple[Array, Array]]) -> float:
    """The lowest frequency, cm⁻¹; below zero if imaginary."""
    return _THZ * min(float(frequencies.min()) for _, frequencies in bands)


def _at_gamma(args: argparse.Namespace, phonons: Any) -> dict[str, Array]:
    """Frequencies at Γ, cm⁻¹, without the field and with that of each direction."""
    from mace_polmp.interfaces import phonopy

    found = {"": _THZ * phonopy.at_gamma(phonons)}
    if args.nac == "none":
        return found
    for direction in args.direction or np.eye(3).tolist():
        values = _THZ * phonopy.at_gamma(phonons, np.array(direction))
        is_new = all(np.abs(values - other).max() > _NOISE for other in found.values())
        if is_new or args.direction:
            found[" ".join(f"{x:g}" for x in direction)] = values
    return found


def _table(gamma: dict[str, Array]) -> str:
    """Frequencies at Γ as text, in both units."""
    heads, columns = ["mode"], [[str(n) for n in range(len(gamma[""]))]]
    for name, values in gamma.items():
        what = f"q → 0 along {name.replace(' ', ',')}" if name else "no field"
        heads += [with_unit(what, INVERSE_CM), with_unit(what, "THz")]
        columns += [_rounded(values, 1), _rounded(values / _THZ, 3)]
    return text_table(heads, list(zip(*columns, strict=True)))


def _rounded(values: Array, digits: int) -> list[str]:
    """With so many decimals, and no −0.0."""
    return [f"{value:.{digits}f}" for value in np.round(values, digits) + 0.0]


def _write(
    args: argparse.Namespace,
    phonons: Any,
    atoms: Atoms,
    gamma: dict[str, Array],
    path: Any,
    bands: list[tuple[Array, Array]],
) -> None:
    """Write all files and say their names."""
    base = args.output
    rows = [
        [number, *q, distance, *(_THZ * frequency)]
        for number, (segment, (distances, frequencies)) in enumerate(
            zip(path.segments, bands, strict=True)
        )
        for q, distance, frequency in zip(segment, distances, frequencies, strict=True)
    ]
    n_bands = bands[0][1].shape[1]
    header = ["segment", "q_a", "q_b", "q_c", "distance_1/A"]
    header += [f"frequency_{n}_cm-1" for n in range(n_bands)]
    plots.write_csv(named(base, ".csv"), header, rows)
    header = [f"frequency_along_{name}_cm-1" if name else "frequency_cm-1" for name in gamma]
    rows = [[n, *values] for n, values in enumerate(zip(*gamma.values(), strict=True))]
    plots.write_csv(named(base, "_gamma.csv"), ["mode", *header], rows)
    with replacing(named(base, "_band.yaml")) as temporary:
        phonons.write_yaml_band_structure(filename=temporary)
    with replacing(named(base, "_phonopy.yaml")) as temporary:
        phonons.save(temporary, settings={"force_constants": True})
    dos = _density(args, phonons)
    _draw(args, atoms, path, bands, dos)
    endings = [".csv", "_gamma.csv", "_band.yaml", "_phonopy.yaml"]
    endings += [] if dos is None else ["_dos.csv"]
    written = [str(named(base, ending)) for ending in endings]
    print(", ".join([*written, plots.said(named(base, ".png"))]))


def _density(args: argparse.Namespace, phonons: Any) -> tuple[Array, Array] | None:
    """Wavenumbers and the density of states of --mesh, per cm⁻¹ and cell, also as CSV."""
    if args.mesh is None:
        return None
    from mace_polmp.interfaces import phonopy

    frequencies, density = phonopy.density_of_states(phonons, args.mesh)
    wavenumbers, density = _THZ * frequencies, density / _THZ
    rows = np.column_stack([wavenumbers, density]).tolist()
    header = ["frequency_cm-1", "density_per_cm-1"]
    plots.write_csv(named(args.output, "_dos.csv"), header, rows)
    return wavenumbers, density


def _draw(
    args: argparse.Namespace,
    atoms: Atoms,
    path: Any,
    bands: list[tuple[Array, Array]],
    dos: tuple[Array, Array] | None,
) -> None:
    """The bands, with the density of states beside them."""
    if dos is None:
        made, axes = plots.figure(size=(7.0, 4.5))
    else:
        made, axes = plots.figure(2, size=(9.0, 4.5), widths=(3.0, 1.0))
    axis = axes[0]
    places: dict[float, list[str]] = {}
    for (distances, frequencies), (first, last) in zip(bands, path.ends, strict=True):
        axis.plot(distances, _THZ * frequencies, color="C0", lw=1.1)
        for place, name in ((distances[0], first), (distances[-1], last)):
            names = places.setdefault(round(float(place), 8), [])
            if name not in names:
                names.append(name)
    for place in places:
        axis.axvline(place, color="black", lw=0.6)
    axis.axhline(0.0, color="black", lw=0.6)
    axis.set_xticks([*places], ["|".join(names) for names in places.values()])
    axis.set_xlim(min(places), max(places))
    imaginary = _lowest(bands) < -_IMAGINARY
    what = "wavenumber (imaginary: below 0)" if imaginary else "wavenumber"
    axis.set_ylabel(with_unit(what, INVERSE_CM))
    low, high = axis.get_ylim()
    axis.set_ylim(low if imaginary else 0.0, high)
    last = axis
    if dos is not None:
        last = axes[1]
        last.plot(dos[1], dos[0], color="C0", lw=1.1)
        last.fill_betweenx(dos[0], 0.0, dos[1], color="C0", alpha=0.2, lw=0)
        last.set(ylim=axis.get_ylim(), yticklabels=[], xlabel=f"states per {INVERSE_CM}\nand cell")
        last.set_xlim(left=0.0)
        last.grid(True, axis="y", alpha=0.25)
    second = last.secondary_yaxis("right", functions=(lambda v: v / _THZ, lambda v: v * _THZ))
    second.set_ylabel(with_unit("frequency", "THz"))
    axis.grid(True, axis="y", alpha=0.25)
    title = plots.heading(
        f"Phonons of {plots.typeset(atoms.get_chemical_formula())}",
        f"model {plots.names(args.model)}",
        f"structure {plots.names(args.structure)}",
    )
    made.suptitle(title, fontsize=10)
    plots.save(made, named(args.output, ".png"))
