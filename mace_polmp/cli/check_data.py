"""`mace_polmp check-data`: what a training file holds, what is wrong with it, which flags fit.

What cannot be trained on is found by the code that a training checks its files with.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.branches import are_far, lattice_of, nearest
from mace_polmp.cli.common import HelpWithDefaults
from mace_polmp.cli.suggestions import Ions, ions_of, is_screened, training_flags
from mace_polmp.errors import InputError
from mace_polmp.quantities import LABELS, boundary

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.labels import LabelRules

_CLOSE = 0.5  # Å; closer atoms are hardly meant
_NET_FORCE = 0.1  # eV/Å
# Force components beyond these are rarely in eV/Å.
_SMALL_FORCE, _LARGE_FORCE = 0.05, 20.0
_HARTREE, _HARTREE_PER_BOHR, _KCAL_PER_MOL = 27.2114, 51.422, 23.061
_VACUUM = 6.0  # Å; a wider gap in a periodic structure is hardly meant to be filled
_LARGE_ENERGY = 1e5  # eV; single precision has steps of 0.01 eV there


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "check-data",
        help="what a training file holds, what is wrong with it, which flags fit it",
        description="Counts, labels, units, boundary conditions, overlapping atoms and charges of "
        "a structure file, and the training flags that fit it. Exit status 1 if frames cannot be "
        "trained on.",
        formatter_class=HelpWithDefaults,
    )
    parser.add_argument("file", type=Path, help="structure file that ASE reads")
    for name, quantity in LABELS.items():
        words = name.replace("_", " ")
        parser.add_argument(
            f"--{name}_key", default=quantity.key, help=f"key of the label: {words}"
        )
    parser.set_defaults(run=run)


@dataclass
class Report:
    """What was found.

    Attributes:
        rows: name and value of facts.
        notes: what looks odd.
        problems: what cannot be trained on, by frame; None for the file as a whole.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[int | None, str]] = field(default_factory=list)

    def grouped(self) -> list[str]:
        """The problems, those that are alike in many frames once."""
        groups: dict[str, list[tuple[int | None, str]]] = {}
        for number, message in dict.fromkeys(self.problems):
            text = message.removeprefix(f"frame {number}: ")
            alike = re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "#", text)
            groups.setdefault(alike, []).append((number, message))
        lines = []
        for found in groups.values():
            others = [number for number, _ in found[1:] if number is not None]
            more = f" (likewise frames {_some(others)})" if others else ""
            lines.append(found[0][1] + more)
        return lines


def run(args: argparse.Namespace) -> None:
    """Print the report; exit with 1 where there are problems."""
    from mace_polmp.labels import LabelRules
    from mace_polmp.structures import read_structures

    frames = read_structures(args.file)
    keys = {name: getattr(args, f"{name}_key") for name in LABELS}
    rules = LabelRules(keys=keys, polarized=True)  # a model with bond charges is
    report = Report()
    _composition(frames, report)
    usable, values = _labels(frames, rules, report)
    _geometry(frames, report)
    _vacuum(frames, report)
    isolated = _isolated(frames, rules, report)
    _forces(frames, values["forces"], report)
    _energies(frames, values["energy"], report)
    _polarizations(frames, values["polarization"], report)
    charges = _charges(frames, rules.keys["total_charge"], report)
    ions = ions_of(frames, rules.keys) if charges <= {0.0} else None
    if ions is not None:
        _ions(ions, usable["polarization"] > 0, is_screened(frames, usable), report)
    width = max(len(name) for name, _ in report.rows)
    print(args.file)
    for name, value in report.rows:
        print(f"  {name:{width}s}  {value}")
    for title, lines in (("notes", report.notes), ("problems", report.grouped())):
        if lines:
            print(f"{title}:")
            print("\n".join(f"  - {line}" for line in lines))
    print("flags, once that is mended:" if report.problems else "flags:")
    flags = training_flags(args.file, frames, rules.keys, usable, charges, isolated, ions)
    print(f"  {' '.join(flags)}")
    if report.problems:
        sys.exit(1)


def _labels(
    frames: list[Atoms], rules: LabelRules, report: Report
) -> tuple[dict[str, int], dict[str, dict[int, Any]]]:
    """Look at each label; wrong ones are problems.

    Returns:
        How many frames have one that a training could use, and those that count, by frame.
    """
    from mace_polmp.labels import check_frame, names_in

    usable: dict[str, int] = {}
    values: dict[str, dict[int, Any]] = {}
    for name, key in rules.keys.items():
        if name == "total_charge":
            continue
        good, refused, lacking = values.setdefault(name, {}), [], []
        asked = replace(rules, keys={name: key}, used=frozenset())
        for number, atoms in enumerate(frames):
            where = f"frame {number}"
            try:
                found = check_frame(atoms, asked, where)
            except InputError as error:
                report.problems.append((number, str(error)))
                continue
            if name in found.values:
                good[number] = found.values[name]
            if found.missing:
                lacking.append(number)
            try:
                check_frame(atoms, replace(asked, used=frozenset({name})), where)
            except InputError as error:
                refused.append(str(error))
        if good or name not in ("virials", "polarization", "charges"):
            report.rows.append((f"{name} ({key})", f"{len(good)} of {len(frames)} frames"))
        if lacking:
            report.problems.append(
                (
                    None,
                    f"{len(lacking)} frames lack {key} (first: {lacking[0]}, which has "
                    f"{names_in(frames[lacking[0]])}): name it with --{name}_key, or give such "
                    f"frames config_{name}_weight=0",
                )
            )
        if refused:
            more = f"; so do {len(refused) - 1} more" if len(refused) > 1 else ""
            flag = f"--loss {name}" if name in ("stress", "virials") else f"--{name}_weight"
            report.notes.append(f"not for {flag}: {refused[0]}{more}")
        usable[name] = 0 if refused else len(good)
    return usable, values


def _isolated(frames: list[Atoms], rules: LabelRules, report: Report) -> set[int]:
    """Look at isolated atoms; returns the elements whose energies a training takes from them."""
    from mace_polmp.structures import is_isolated_atom
    from mace_polmp.training.atomic_energies import check_isolated
    from mace_polmp.upstream.data import isolated_energy

    found = []
    for number, atoms in enumerate(frames):
        if is_isolated_atom(atoms):
            where = f"frame {number}"
            try:
                found.append((where, isolated_energy(atoms, rules.keys["energy"], where)))
            except InputError as error:
                report.problems.append((number, str(error)))
    try:
        return set(check_isolated(found))
    except InputError as error:
        report.problems.append((None, str(error)))
        return set()


def _composition(frames: list[Atoms], report: Report) -> None:
    from ase.data import chemical_symbols

    sizes = np.array([len(atoms) for atoms in frames])
    elements = Counter(int(z) for atoms in frames for z in atoms.numbers)
    kinds = Counter(boundary(atoms.pbc) for atoms in frames)
    report.rows += [
        ("frames", str(len(frames))),
        ("atoms per frame", f"{sizes.min()} to {sizes.max()}, median {np.median(sizes):g}"),
        ("elements", ", ".join(f"{chemical_symbols[z]} {n}" for z, n in sorted(elements.items()))),
        ("boundary conditions", ", ".join(f"{kind} {n}" for kind, n in kinds.items())),
    ]


def _geometry(frames: list[Atoms], report: Report) -> None:
    """Frames that training would refuse, and atoms that are too close."""
    from mace_polmp.structures import check_structure, closest_distance

    shortest = []
    for number, atoms in enumerate(frames):
        try:
            check_structure(atoms, f"frame {number}")
        except InputError as error:
            report.problems.append((number, str(error)))
            continue
        distance = closest_distance(atoms)
        if distance is not None:
            shortest.append((distance, number))
    if not shortest:
        return
    report.rows.append(("closest atoms", f"{min(shortest)[0]:.3f} Å in frame {min(shortest)[1]}"))
    close = [number for distance, number in shortest if distance < _CLOSE]
    if close:
        report.notes.append(f"atoms closer than {_CLOSE} Å in frames {_some(close)}")


def _vacuum(frames: list[Atoms], report: Report) -> None:
    """Fully periodic structures that look like slabs."""
    import torch

    from mace_polmp.electrostatics.slab import longest_period, required_vacuum
    from mace_polmp.structures import as_slab, widest_gap

    found = []
    for number, atoms in enumerate(frames):
        cell = atoms.cell.array
        if not atoms.pbc.all() or not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < 1e-3:
            continue
        gaps = [widest_gap(atoms, axis) for axis in range(3)]
        wide = [axis for axis in range(3) if gaps[axis] > _VACUUM]
        if len(wide) == 1:
            found.append((number, wide[0], gaps[wide[0]]))
    if not found:
        return
    number, axis, gap = found[0]
    slab = as_slab(frames[number], axis)
    period = longest_period(torch.from_numpy(slab.cell.array)[None], torch.tensor(slab.pbc)[None])
    least = required_vacuum(float(period), 1.0)
    report.notes.append(
        f"vacuum in fully periodic cells: {gap:.1f} Å along axis {axis} of frame {number} (in "
        f"{len(found)} frames). Periodic images interact through it; a slab has pbc F there and at "
        f"least {least:.0f} Å of vacuum: mace_polmp.structures.as_slab(atoms, axis={axis}, "
        f"vacuum={least:.0f}). A model knows only the kind that it was trained on"
    )


def _forces(frames: list[Atoms], labels: dict[int, Any], report: Report) -> None:
    """What is odd about the forces that count, by frame."""
    good = {n: f for n, f in labels.items() if len(frames[n]) > 1}
    if not good:
        return
    components = np.concatenate([f.ravel() for f in good.values()])
    rms = float(np.sqrt((components**2).mean()))
    largest = float(np.abs(components).max())
    report.rows.append(("forces, RMS and largest", f"{rms:.3f} and {largest:.2f} eV/Å"))
    if rms < _SMALL_FORCE:
        report.notes.append(
            "forces are small for eV/Å: in Hartree/bohr they would be "
            f"{rms * _HARTREE_PER_BOHR:.2f} eV/Å (RMS); multiply by {_HARTREE_PER_BOHR} then, and "
            f"energies by {_HARTREE}. Relaxed structures look so too"
        )
    if rms > _LARGE_FORCE:
        report.notes.append(
            f"forces are large for eV/Å: in kcal/mol/Å they would be {rms / _KCAL_PER_MOL:.2f} "
            f"eV/Å (RMS); multiply forces and energies by {1 / _KCAL_PER_MOL:.5f} then"
        )
    net = [n for n, f in good.items() if np.abs(f.sum(0)).max() > _NET_FORCE]
    if net:
        report.notes.append(
            f"forces do not sum to zero within {_NET_FORCE} eV/Å in frames {_some(net)}: no model "
            "without external fields can learn that"
        )


def _energies(frames: list[Atoms], labels: dict[int, Any], report: Report) -> None:
    """Energy per atom and what is left of it when each element has its own."""
    from mace_polmp.training.atomic_energies import composition_counts, undetermined

    pairs = [(frames[number], float(energy)) for number, energy in labels.items()]
    if not pairs:
        return
    sizes = np.array([len(atoms) for atoms, _ in pairs])
    energies = np.array([energy for _, energy in pairs])
    report.rows.append(("energy per atom", f"{(energies / sizes).mean():.3f} eV, mean"))
    elements = sorted({int(z) for atoms, _ in pairs for z in atoms.numbers})
    counts = composition_counts((atoms.numbers for atoms, _ in pairs), elements)
    fitted = counts @ np.linalg.lstsq(counts, energies, rcond=None)[0]
    left = float(np.sqrt((((energies - fitted) / sizes) ** 2).mean()))
    report.rows.append(("energy beyond composition", f"{1000 * left:.1f} meV/atom, RMS"))
    largest = float(np.abs(energies).max())
    if largest > _LARGE_ENERGY:
        report.notes.append(
            f"total energies reach {largest:.3g} eV, where single precision has steps of "
            f"{largest * 6e-8:.2g} eV: atomic energies are summed in double precision, and what "
            "the network adds to them is small; other programs may not do so"
        )
    if sentence := undetermined(counts, elements):
        report.notes.append(sentence)
    if left > 2.0:
        report.notes.append(
            f"energies differ by {left:.1f} eV/atom beyond composition: different methods or units "
            "in one file, or highly strained structures"
        )


def _polarizations(frames: list[Atoms], labels: dict[int, Any], report: Report) -> None:
    """How far polarizations are from zero, where an untrained model has them."""
    if not labels:
        return
    values = np.array(list(labels.values()))
    lattices = np.array([lattice_of(frames[n].cell, frames[n].pbc) for n in labels])
    values = values - nearest(values, lattices)
    rms = float(np.sqrt((values**2).mean()))
    report.rows.append(("polarization on the branch next to zero", f"RMS {rms:.3f} e Å"))
    far = [n for n, is_far in zip(labels, are_far(values, lattices), strict=True) if is_far]
    if far:
        report.notes.append(
            "polarizations above a quarter of the shortest lattice vector times e, in frames "
            f"{_some(far)}: a model that knows nothing yet may follow them to a wrong branch. "
            "Labels of Born charges, or --formal_charges of the ions, lead to the right one"
        )


def _ions(ions: Ions, has_polarization: bool, is_learned: bool, report: Report) -> None:
    """Advise formal charges where the suggested command does not have them.

    Args:
        ions: of the crystals.
        has_polarization: whether there are labels that ask for bond charges.
        is_learned: whether the suggested command learns a permittivity.
        report: gets the note.
    """
    measured = ", the measured one" if ions.permittivity is None else ""
    if not has_polarization:
        report.notes.append(
            "these are crystals of ions. Formal charges improved forces, stress and Born charges "
            f"of BaTiO3. Add --charge_readout bond {ions.flags}{measured}"
            f"{', in place of --epsilon_infinity learn' if is_learned else ''}"
        )
    elif measured:
        report.notes.append(
            f"these are crystals of ions: give --formal_charges {ions.charges} with a number for "
            f"--epsilon_infinity{measured}, instead of learn"
        )


def _charges(frames: list[Atoms], key: str, report: Report) -> set[float]:
    from mace_polmp.labels import read_label

    found: Counter[float] = Counter()
    silent = 0
    for number, atoms in enumerate(frames):
        try:
            label = read_label(atoms, "total_charge", key, f"frame {number}")
        except InputError as error:
            report.problems.append((number, str(error)))
            continue
        silent += label is None
        found[0.0 if label is None else float(label)] += 1
    counts = ", ".join(f"{q:g} e: {n}" for q, n in sorted(found.items()))
    said = "" if silent in (0, len(frames)) else f" ({silent} frames say nothing: 0 e)"
    report.rows.append((f"total charge ({key})", counts + said))
    return set(found)


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
