"""`mace_polmp check-data`: what a training file holds, what is wrong with it, which flags fit."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.analysis.errors import QUANTITIES
from mace_polmp.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

_CLOSE = 0.5  # Å; closer atoms are hardly meant
_NET_FORCE = 0.1  # eV/Å
# Force components beyond these are rarely in eV/Å.
_SMALL_FORCE, _LARGE_FORCE = 0.01, 20.0
# Of electrical labels, next to the default weights of energies and forces.
_WEIGHTS = {"dipole": 100.0, "polarizability": 100.0, "born_charges": 10.0}
_HARTREE_PER_BOHR, _KCAL_PER_MOL = 51.422, 23.061


def add_parser(commands: Any) -> None:
    """Add the subcommand to those of `mace_polmp`."""
    parser = commands.add_parser(
        "check-data",
        help="what a training file holds, what is wrong with it, which flags fit it",
        description="Counts, labels, units, boundary conditions, overlapping atoms and charges of "
        "a structure file, and the training flags that fit it. Exit status 1 if frames cannot be "
        "trained on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="structure file that ASE reads")
    for name, quantity in QUANTITIES.items():
        parser.add_argument(f"--{name}_key", default=quantity.key, help=f"label of {name}")
    parser.add_argument("--total_charge_key", default="total_charge", help="label of the charge")
    parser.set_defaults(run=run)


@dataclass
class Report:
    """What was found.

    Attributes:
        rows: name and value of facts.
        notes: what looks odd.
        problems: what cannot be trained on.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(args: argparse.Namespace) -> None:
    """Print the report; exit with 1 where there are problems."""
    from mace_polmp.structures import read_structures

    frames = read_structures(args.file)
    keys = {name: getattr(args, f"{name}_key") for name in QUANTITIES}
    report = Report()
    _composition(frames, report)
    counts = _labels(frames, keys, report)
    _geometry(frames, report)
    _forces(frames, keys["forces"], report)
    _energies(frames, keys["energy"], report)
    charges = _charges(frames, args.total_charge_key, report)
    width = max(len(name) for name, _ in report.rows)
    print(args.file)
    for name, value in report.rows:
        print(f"  {name:{width}s}  {value}")
    for title, lines in (("notes", report.notes), ("problems", report.problems)):
        if lines:
            print(f"{title}:")
            print("\n".join(f"  - {line}" for line in lines))
    print("flags:")
    print(f"  {' '.join(_flags(args.file, frames, keys, counts, charges))}")
    if report.problems:
        sys.exit(1)


def _labels(frames: list[Atoms], keys: dict[str, str], report: Report) -> dict[str, int]:
    """How many frames have each label that a training could use; wrong ones are problems."""
    from mace_polmp.calculators.comparison import check_label
    from mace_polmp.structures import find_label
    from mace_polmp.training.labels import electrical_label

    counts = {}
    for name, key in keys.items():
        there, refused, lacking = 0, [], 0
        for number, atoms in enumerate(frames):
            try:
                label = check_label(find_label(atoms, key), name, atoms, f"frame {number}")
            except InputError as error:
                report.problems.append(str(error))
                continue
            there += label is not None
            lacking += label is None and _is_needed(atoms, name)
            if name in _WEIGHTS:
                try:
                    electrical_label(atoms, name, key, f"frame {number}")
                except InputError as error:
                    refused.append(str(error))
        report.rows.append((f"{name} ({key})", f"{there} of {len(frames)} frames"))
        if lacking:
            report.problems.append(
                f"{lacking} frames lack {key}: name it with --{name}_key, or give such frames "
                f"config_{name}_weight=0"
            )
        if refused:
            more = f"; so do {len(refused) - 1} more" if len(refused) > 1 else ""
            report.notes.append(f"not for --{name}_weight: {refused[0]}{more}")
        counts[name] = 0 if refused else there
    return counts


def _is_needed(atoms: Atoms, name: str) -> bool:
    """Whether a training with the default weights refuses a frame without this label."""
    from mace_polmp.structures import is_isolated_atom

    if name == "forces" and is_isolated_atom(atoms):
        return False
    wanted = name in ("energy", "forces")
    return wanted and float(atoms.info.get(f"config_{name}_weight", 1.0)) > 0


def _composition(frames: list[Atoms], report: Report) -> None:
    from ase.data import chemical_symbols

    sizes = np.array([len(atoms) for atoms in frames])
    elements = Counter(int(z) for atoms in frames for z in atoms.numbers)
    words = {0: "open", 1: "wire", 2: "slab", 3: "periodic"}
    kinds = Counter(words[int(atoms.pbc.sum())] for atoms in frames)
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
            report.problems.append(str(error))
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


def _forces(frames: list[Atoms], key: str, report: Report) -> None:
    from mace_polmp.structures import find_label

    found = {n: find_label(atoms, key) for n, atoms in enumerate(frames)}
    good = {
        n: np.asarray(f, dtype=float)
        for n, f in found.items()
        if np.shape(f) == (len(frames[n]), 3) and np.isfinite(f).all()
    }
    good = {n: f for n, f in good.items() if len(frames[n]) > 1}
    if not good:
        return
    components = np.concatenate([f.ravel() for f in good.values()])
    rms = float(np.sqrt((components**2).mean()))
    largest = float(np.abs(components).max())
    report.rows.append(("forces, RMS and largest", f"{rms:.3f} and {largest:.2f} eV/Å"))
    if rms < _SMALL_FORCE:
        report.notes.append(
            "forces are small for eV/Å: in Hartree/bohr they would be "
            f"{rms * _HARTREE_PER_BOHR:.2f} eV/Å (RMS). Relaxed structures look so too"
        )
    if rms > _LARGE_FORCE:
        report.notes.append(
            f"forces are large for eV/Å: in kcal/mol/Å they would be {rms / _KCAL_PER_MOL:.2f} "
            "eV/Å (RMS)"
        )
    net = [n for n, f in good.items() if np.abs(f.sum(0)).max() > _NET_FORCE]
    if net:
        report.notes.append(
            f"forces do not sum to zero within {_NET_FORCE} eV/Å in frames {_some(net)}: no model "
            "without external fields can learn that"
        )


def _energies(frames: list[Atoms], key: str, report: Report) -> None:
    """Energy per atom and what is left of it when each element has its own."""
    from mace_polmp.structures import find_label

    labels = [(atoms, find_label(atoms, key)) for atoms in frames]
    pairs = [(a, float(e)) for a, e in labels if np.shape(e) == () and e is not None]
    pairs = [(a, e) for a, e in pairs if np.isfinite(e)]
    if not pairs:
        return
    sizes = np.array([len(atoms) for atoms, _ in pairs])
    energies = np.array([energy for _, energy in pairs])
    report.rows.append(("energy per atom", f"{(energies / sizes).mean():.3f} eV, mean"))
    elements = sorted({int(z) for atoms, _ in pairs for z in atoms.numbers})
    counts = np.array([[np.sum(a.numbers == z) for z in elements] for a, _ in pairs], dtype=float)
    fitted = counts @ np.linalg.lstsq(counts, energies, rcond=None)[0]
    left = float(np.sqrt((((energies - fitted) / sizes) ** 2).mean()))
    report.rows.append(("energy beyond composition", f"{1000 * left:.1f} meV/atom, RMS"))
    if left > 2.0:
        report.notes.append(
            f"energies differ by {left:.1f} eV/atom beyond composition: different methods or units "
            "in one file, or highly strained structures"
        )


def _charges(frames: list[Atoms], key: str, report: Report) -> set[float]:
    from mace_polmp.training.labels import electrical_label

    found: Counter[float] = Counter()
    for number, atoms in enumerate(frames):
        try:
            label = electrical_label(atoms, "total_charge", key, f"frame {number}")
        except InputError as error:
            report.problems.append(str(error))
            continue
        found[0.0 if label is None else float(label)] += 1
    report.rows.append(
        (f"total charge ({key})", ", ".join(f"{q:g} e: {n}" for q, n in sorted(found.items())))
    )
    return set(found)


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"


def _flags(
    path: Path,
    frames: list[Atoms],
    keys: dict[str, str],
    counts: dict[str, int],
    charges: set[float],
) -> list[str]:
    """A training command for the file."""
    flags = ["mace_run_train --name NAME --model MultipoleMACE", f"--train_file {path}"]
    flags.append("--valid_fraction 0.1 --r_max 4.5 --num_channels 64 --max_L 1 --ema")
    if not any(a.info.get("config_type") == "IsolatedAtom" for a in frames):
        flags.append("--E0s average")
    for name in ("energy", "forces", "stress"):
        if counts[name] and keys[name] != QUANTITIES[name].key:
            flags.append(f"--{name}_key {keys[name]}")
    if counts["stress"]:
        flags.append("--loss stress")
    by_size = int(400 / np.median([len(atoms) for atoms in frames]))
    flags.append(f"--batch_size {max(1, min(16, by_size, len(frames) // 10))}")
    if len(charges) > 1:
        flags.append("--constrain_charge softness")
    elif all(not atoms.pbc.any() for atoms in frames):
        flags.append("--conserve_charge")
    for name, weight in _WEIGHTS.items():
        if counts[name]:
            flags.append(f"--{name}_weight {weight:g}")
            if keys[name] != QUANTITIES[name].key:
                flags.append(f"--{name}_key {keys[name]}")
    return flags
