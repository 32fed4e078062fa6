"""`mace_polmp label`: labels of a semiempirical method, for structures that have none."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.cli.common import HelpWithDefaults
from mace_polmp.cli.label_files import ORIGIN, WEIGHED, claimed, journal_of, write_labels
from mace_polmp.errors import InputError
from mace_polmp.extended_xyz import ENDINGS
from mace_polmp.interfaces import LABEL_METHODS, LABEL_QUANTITIES
from mace_polmp.quantities import LABELS, SUGGESTED_WEIGHTS, find, is_finite_number

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.extended_xyz import FrameText
    from mace_polmp.interfaces.tblite import Calculation

_GIVEN = "input file"
_KEYS = {name: LABELS[name].key for name in WEIGHED}
_SCALED = ("dipole", "born_charges")
_OF_ATOMS = ("born_charges", "charges")
_SHOWN = 5  # structures of a kind that are named
_SMALL_BASIS = (
    "polarizabilities of these methods are much too small for small molecules (their orbitals lack "
    "the functions for it): water has 0.26, methane 0.40, benzene 0.63 of the measured mean"
)


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "label",
        help="dipoles, charges and polarizabilities of a semiempirical method as labels",
        description="Computes labels for the structures of a file that have none, and writes the "
        "file again with them. All else in the file stays as it is. Needs tblite (pip install "
        "'mace-polmp[label]'). Exit status 1 if no structure could be labelled.",
        formatter_class=HelpWithDefaults,
    )
    parser.add_argument("file", type=Path, help="structure file that ASE reads")
    parser.add_argument("--output", type=Path, required=True, help="extended XYZ file to write")
    parser.add_argument(
        "--method", default="gfn2", choices=tuple(LABEL_METHODS), help="GFN2-xTB or GFN1-xTB"
    )
    parser.add_argument(
        "--quantities",
        nargs="+",
        default=["dipole"],
        choices=LABEL_QUANTITIES,
        help="what to compute; a training uses them where they have a weight",
    )
    for name in LABEL_QUANTITIES:
        parser.add_argument(
            f"--{name}_key", default=_KEYS[name], help=f"key to write: {name.replace('_', ' ')}"
        )
    parser.add_argument(
        "--weight",
        type=float,
        help="config_dipole_weight (and so on) of the structures that get such a label, next to 1 "
        "of the others; by default nothing is written",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="factor of dipoles and Born charges: GFN2-xTB's are some 10 %% too large; the net "
        "charge of an ion is not scaled",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace labels that are there")
    parser.add_argument(
        "--total_charge", type=float, help="total charge (e) of structures that do not say theirs"
    )
    parser.add_argument(
        "--total_charge_key", default="total_charge", help="key of the total charge in the file"
    )
    parser.add_argument(
        "--compare",
        type=int,
        default=20,
        help="structures with a dipole in the file that are computed as well, to compare; 0: none",
    )
    parser.add_argument("--jobs", type=int, help="processes; by default one for each core")
    parser.set_defaults(run=run)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


@dataclass
class _Work:
    """What is to be computed.

    Attributes:
        tasks: by number of the frame, with what is compared only.
        wanted: labels that a frame is to get, by its number.
        left_out: frames that get none, and why.
        silent: frames that say no total charge.
    """

    tasks: dict[int, Calculation] = field(default_factory=dict)
    wanted: dict[int, list[str]] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    silent: int = 0


def run(args: argparse.Namespace) -> None:
    """Compute, write the file, say what was done."""
    from mace_polmp.extended_xyz import read_text
    from mace_polmp.files import make_folder
    from mace_polmp.interfaces.tblite import version
    from mace_polmp.structures import read_structures

    args.jobs = _cores() if args.jobs is None else args.jobs
    _check(args)
    method = f"{LABEL_METHODS[args.method]} (tblite {version()})"
    frames = read_structures(args.file)
    texts = read_text(args.file, frames)
    if len(texts) != len(frames):
        raise InputError(f"{args.file}: cannot be read as text; write it again with ASE first")
    make_folder(args.output.parent)
    work = _plan(args, frames)
    with claimed(args.output):
        found = _compute(args, work)
        new = {
            number: {n: _scaled(n, found[number][n], args.scale, work.tasks[number]) for n in names}
            for number, names in work.wanted.items()
            if number in found
        }
        print(f"{args.file}: {len(frames)} structures")
        _print_charges(work, args)
        _print_left_out(work)
        _compare(args, frames, found, LABEL_METHODS[args.method])
        if (work.wanted or work.left_out) and not new:
            raise InputError(f"{args.file}: no structure could be labelled; nothing is written")
        for number, text in enumerate(texts):
            _add(args, frames[number], text, new.get(number, {}), method)
        write_labels(args, frames, texts, new)
    _print_done(args, frames, new, method)


def _check(args: argparse.Namespace) -> None:
    """Refuse options that make no sense."""
    if args.output.suffix.lower() not in ENDINGS:
        raise InputError(f"--output {args.output}: must end in .xyz or .extxyz")
    if args.output.exists() and not args.output.samefile(args.file):
        raise InputError(
            f"--output {args.output}: is there already; remove it or give another name"
        )
    if args.jobs < 1 or args.compare < 0:
        name, least = ("jobs", 1) if args.jobs < 1 else ("compare", 0)
        raise InputError(f"--{name} must be {least} or more, got {getattr(args, name)}")
    if args.weight is not None and not (is_finite_number(args.weight) and args.weight >= 0):
        raise InputError(f"--weight must be a number of 0 or more, got {args.weight}")
    if not (is_finite_number(args.scale) and args.scale > 0):
        raise InputError(f"--scale must be a number above 0, got {args.scale}")
    args.quantities = list(dict.fromkeys(args.quantities))


def _plan(args: argparse.Namespace, frames: Sequence[Atoms]) -> _Work:
    """Find what is to be computed for each frame.

    Raises:
        InputError: --total_charge contradicts a frame.
    """
    from mace_polmp.interfaces.tblite import calculation
    from mace_polmp.structures import (
        check_structure,
        is_isolated_atom,
        total_charge,
        with_total_charge,
    )

    work = _Work()
    true_dipoles = []
    for number, atoms in enumerate(frames):
        where = f"frame {number}"
        lacking = [
            name for name in args.quantities if args.overwrite or not _has(atoms, name, args)
        ]
        if not lacking and not (_has(atoms, "dipole", args) and not atoms.pbc.any()):
            continue
        if is_isolated_atom(atoms):
            continue
        charged = with_total_charge(atoms, args.total_charge, where, args.total_charge_key)
        try:
            check_structure(atoms, where, with_boundary=False)
            charge = total_charge(charged, where, args.total_charge_key)
            quantities = lacking or ["dipole"]
            task = calculation(charged, charge or 0.0, args.method, quantities, where)
        except InputError as error:
            if lacking:
                work.left_out[number] = str(error).removeprefix(f"{where}: ")
            continue
        if _has(atoms, "dipole", args) and not _is_borrowed(atoms, "dipole"):
            true_dipoles.append(number)
        work.tasks[number] = task
        if lacking:
            work.wanted[number] = lacking
            work.silent += charge is None
    step = max(1, len(true_dipoles) // max(args.compare, 1))
    compared = set(true_dipoles[::step][: args.compare])
    work.tasks = {n: t for n, t in work.tasks.items() if n in work.wanted or n in compared}
    return work


def _scaled(name: str, values: Any, scale: float, task: Calculation) -> Any:
    """Labels times a factor, but for the net charge, which stays.

    The dipole is scaled about the centre of the atoms, d' = s d + (1 - s) Q c. Its derivatives are
    Z' = s Z + (1 - s) Q/n: Born charges of an ion still sum to its charge.
    """
    if name not in _SCALED:
        return values
    out = scale * np.asarray(values)
    kept = (1.0 - scale) * task.charge
    if name == "dipole":
        out += kept * np.mean(task.positions, axis=0)
    else:
        out += kept / len(task.numbers) * np.eye(3)
    return out.tolist()


def _has(atoms: Atoms, name: str, args: argparse.Namespace) -> bool:
    return find(atoms, getattr(args, f"{name}_key")) is not None


def _is_borrowed(atoms: Atoms, name: str) -> bool:
    """Whether an earlier run of this command wrote the label."""
    origin = _origins(atoms).get(name)
    return origin is not None and origin != _GIVEN


def _origins(atoms: Atoms) -> dict[str, str]:
    """What a frame says of the origin of its labels, by their names."""
    parts = str(atoms.info.get(ORIGIN, "")).split("; ")
    return dict(part.split(": ", 1) for part in parts if ": " in part)


def _compute(args: argparse.Namespace, work: _Work) -> dict[int, dict[str, Any]]:
    """Labels by number of the frame; what fails is left out."""
    from tqdm import tqdm

    from mace_polmp.interfaces.tblite import compute_all

    numbers = list(work.tasks)
    found: dict[int, dict[str, Any]] = {}
    results = compute_all([work.tasks[n] for n in numbers], args.jobs, journal_of(args.output))
    for at, labels in tqdm(results, total=len(numbers), desc="labels", leave=False, disable=None):
        if not isinstance(labels, str):
            found[numbers[at]] = labels
        elif numbers[at] in work.wanted:
            work.left_out[numbers[at]] = labels
    return found


def _add(
    args: argparse.Namespace, atoms: Atoms, text: FrameText, new: dict[str, Any], method: str
) -> None:
    """Write a frame's new labels into its text, and where all its labels are from."""
    origins = _origins(atoms)
    for name in LABEL_QUANTITIES:
        if name in new:
            times = f" x {args.scale:g}" if name in _SCALED and args.scale != 1.0 else ""
            origins[name] = method + times
        elif _has(atoms, name, args):
            origins.setdefault(name, _GIVEN)
    try:
        for name, values in new.items():
            key = getattr(args, f"{name}_key")
            if name in _OF_ATOMS:
                text.set_columns(key, np.reshape(values, (len(atoms), -1)))
            else:
                text.set_info(key, np.ravel(values).tolist())
            if name in WEIGHED and args.weight is not None:
                text.set_info(f"config_{name}_weight", args.weight)
    except InputError as error:
        raise InputError(f"{args.file}: {error}; correct the frame") from error
    if new and args.total_charge is not None:
        text.set_info(args.total_charge_key, args.total_charge)
    if origins:
        text.set_info(ORIGIN, "; ".join(f"{name}: {origin}" for name, origin in origins.items()))


def _compare(
    args: argparse.Namespace, frames: Sequence[Atoms], found: dict[int, Any], method: str
) -> None:
    """Print how the method's dipoles agree with those of the file."""
    from mace_polmp.analysis.errors import ErrorMeasures
    from mace_polmp.analysis.tables import r_squared, significant
    from mace_polmp.analysis.verdict import slope_of
    from mace_polmp.unit_names import DIPOLE

    pairs = [
        (np.ravel(find(frames[n], args.dipole_key)), np.ravel(labels["dipole"]))
        for n, labels in found.items()
        if "dipole" in labels
        and _has(frames[n], "dipole", args)
        and not _is_borrowed(frames[n], "dipole")
    ]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape and a.dtype.kind in "fi"]
    if not pairs or args.compare == 0:
        return
    true, computed = (np.concatenate(x).astype(float) for x in zip(*pairs, strict=True))
    measures = ErrorMeasures.of(true, computed)
    print(
        f"  against the dipoles of {len(pairs)} structures in the file: {method} R² "
        f"{r_squared(measures.r2)}, slope {slope_of(true, computed):.2f}, RMSE "
        f"{significant(measures.rmse)} {DIPOLE}"
    )


def _print_charges(work: _Work, args: argparse.Namespace) -> None:
    if work.silent:
        print(
            f"  {work.silent} structures say no total charge ('{args.total_charge_key}'): 0 e is "
            "assumed (--total_charge Q says another)"
        )
    odd = [n for n, task in work.tasks.items() if task.unpaired and n in work.wanted]
    if odd:
        print(
            f"  {len(odd)} structures have unpaired electrons ({_some(odd)}): as few as there can "
            "be, or as their multiplicity says"
        )


def _print_left_out(work: _Work) -> None:
    """Print which structures get no label, those with the same reason together."""
    reasons: dict[str, list[int]] = {}
    for number, reason in sorted(work.left_out.items()):
        reasons.setdefault(reason, []).append(number)
    for reason, numbers in reasons.items():
        print(f"  not labelled ({_some(numbers)}): {reason}")


def _print_done(
    args: argparse.Namespace,
    frames: Sequence[Atoms],
    new: dict[int, dict[str, Any]],
    method: str,
) -> None:
    for name in args.quantities:
        mine = [number for number, labels in new.items() if name in labels]
        there = {number for number, atoms in enumerate(frames) if _has(atoms, name, args)}
        replaced = len(there & set(mine))
        key = getattr(args, f"{name}_key")
        more = f", {replaced} of them in place of others" if replaced else ""
        print(f"  {name} ('{key}'): {len(mine)} from {method}{more}; {len(there) - replaced} kept")
    if "polarizability" in args.quantities:
        print(f"  note: {_SMALL_BASIS}")
    print(f"{args.output}: written")
    if new and set(args.quantities) & set(WEIGHED):
        asked = ["energy", "forces", *(name for name in WEIGHED if name in args.quantities)]
        flags = [f"--{name}_weight {SUGGESTED_WEIGHTS[name]:g}" for name in asked]
        keys = [
            f"--{name}_key {getattr(args, f'{name}_key')}"
            for name in WEIGHED
            if name in args.quantities and getattr(args, f"{name}_key") != _KEYS[name]
        ]
        print(
            f"to train on them: mace_run_train --train_file {args.output} "
            + " ".join(flags + keys)
            + " …"
        )


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"frame{'s' if len(numbers) > 1 else ''} {shown}{more}"
