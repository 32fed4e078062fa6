"""The training command that `mace_polmp check-data` suggests for a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from mace_polmp.errors import InputError
from mace_polmp.labels import mean_permittivity, read_label
from mace_polmp.quantities import LABELS, PERIODIC, SLAB, SUGGESTED_WEIGHTS, boundary, find
from mace_polmp.structures import is_isolated_atom

if TYPE_CHECKING:
    from ase import Atoms

_LOOKED_AT = 50  # structures, for their molecules
# Elements that have one charge in nearly all ionic crystals.
_IONS = {
    1: "Li Na K Rb Cs Ag",
    2: "Be Mg Ca Sr Ba Zn Cd Pb",
    3: "Al Ga In Sc Y La",
    4: "Si Ge Ti Zr Hf",
    5: "Nb Ta",
    -1: "F Cl Br I",
    -2: "O S Se Te",
}
_CHARGES = {atomic_numbers[s]: charge for charge, names in _IONS.items() for s in names.split()}


def _for_charges(frames: list[Atoms], key: str, screens: bool) -> str:
    """Flags for structures with charges: of one molecule each, or of ions among molecules.

    The constraint spreads what is lacking over a whole structure, over far molecules as well. In a
    charged cell it does not go with a permittivity (training/labels.py).
    """
    if _are_single(frames) and not (screens and _has_charged_cell(frames, key)):
        return "--constrain_charge softness"
    return f"--total_charge_weight {SUGGESTED_WEIGHTS['total_charge']:g} --induced dipole"


def _has_charged_cell(frames: list[Atoms], key: str) -> bool:
    """Whether a structure that is periodic in three directions has a total charge."""
    return any(float(label) != 0.0 for _, label in _of_cells(frames, "total_charge", key))


def _of_cells(frames: list[Atoms], name: str, key: str) -> Iterator[tuple[Atoms, Any]]:
    """Structures that are periodic in three directions and have a label, and it."""
    for number, atoms in enumerate(frames):
        if boundary(atoms.pbc) != PERIODIC:
            continue
        try:
            label = read_label(atoms, name, key, f"frame {number}")
        except InputError:  # which is a problem of the report
            continue
        if label is not None:
            yield atoms, label


def _are_single(frames: list[Atoms]) -> bool:
    """Whether each structure is one molecule."""
    from mace_polmp.structures import molecules

    some = frames[:: max(1, len(frames) // _LOOKED_AT)]
    return all(molecules(atoms).max() == 0 for atoms in some)


def training_flags(
    path: Path,
    frames: list[Atoms],
    keys: dict[str, str],
    counts: dict[str, int],
    charges: set[float],
    isolated: set[int],
    ions: Ions | None,
) -> list[str]:
    """A training command for a file.

    Args:
        path: of the file.
        frames: of it.
        keys: of labels.
        counts: by label, frames that have one that a training could use.
        charges: total charges of the structures, e.
        isolated: elements whose energies are there.
        ions: of crystals of ions.
    """
    flags = ["mace_run_train --name NAME --model MultipoleMACE", f"--train_file {path}"]
    flags.append("--valid_fraction 0.1 --r_max 4.5 --num_channels 64 --max_L 1 --ema")
    flags.append("--max_num_epochs 200")
    if {int(z) for atoms in frames for z in atoms.numbers} - isolated:
        flags.append("--E0s average")
    for name in ("energy", "forces", "stress"):
        if counts[name] and keys[name] != LABELS[name].key:
            flags.append(f"--{name}_key {keys[name]}")
    if charges - {0.0} and keys["total_charge"] != LABELS["total_charge"].key:
        flags.append(f"--total_charge_key {keys['total_charge']}")
    if counts["stress"]:
        flags.append("--loss stress")
    by_size = int(400 / np.median([len(atoms) for atoms in frames]))
    flags.append(f"--batch_size {max(1, min(16, by_size, len(frames) // 10))}")
    bonds = _needs_bonds(frames, keys, counts) and charges <= {0.0}
    if charges - {0.0}:
        screens = is_screened(frames, counts)
        flags.append(_for_charges(frames, keys["total_charge"], screens))
    elif bonds:
        flags.append("--charge_readout bond --induced dipole")
    elif all(not atoms.pbc.any() for atoms in frames) and _are_single(frames):
        flags.append("--constrain_charge softness")
    if bonds and ions is not None and ions.permittivity is not None:
        flags.append(ions.flags)
    elif is_screened(frames, counts):
        flags.append("--epsilon_infinity learn")
    for name in ("energy", "forces", "dipole", "polarization", "polarizability", "born_charges"):
        if counts[name] and (bonds or name not in _of_bonds(frames, keys)):
            flags.append(f"--{name}_weight {SUGGESTED_WEIGHTS[name]:g}")
            if name not in ("energy", "forces") and keys[name] != LABELS[name].key:
                flags.append(f"--{name}_key {keys[name]}")
    return flags


@dataclass(frozen=True)
class Ions:
    """What crystals of ions are made of.

    Attributes:
        charges: of the elements, as --formal_charges takes them.
        permittivity: the mean ε∞ of the labels, None without any that a material can have.
    """

    charges: str
    permittivity: float | None

    @property
    def flags(self) -> str:
        """Flags of a training; VALUE stands for a permittivity that is not known."""
        value = "VALUE" if self.permittivity is None else f"{self.permittivity:.3g}"
        return f"--formal_charges {self.charges} --epsilon_infinity {value}"


def ions_of(frames: list[Atoms], keys: dict[str, str]) -> Ions | None:
    """The ions that structures consist of.

    None where an element has no usual charge, where a structure is not periodic in three
    directions, or where its charges do not add up to zero. Isolated atoms are left out.

    Args:
        frames: structures.
        keys: of labels.
    """
    frames = [atoms for atoms in frames if not is_isolated_atom(atoms)]
    elements = sorted({int(z) for atoms in frames for z in atoms.numbers})
    if not frames or not all(z in _CHARGES for z in elements):
        return None
    for atoms in frames:
        if boundary(atoms.pbc) != PERIODIC or sum(_CHARGES[int(z)] for z in atoms.numbers):
            return None
    labels = _of_cells(frames, "polarizability", keys["polarizability"])
    found = [mean_permittivity(label, atoms.get_volume()) for atoms, label in labels]
    mean = float(np.mean(found)) if found else 0.0
    charges = ",".join(f"{chemical_symbols[z]}:{_CHARGES[z]:d}" for z in elements)
    return Ions(charges, mean if mean >= 1.0 else None)


def _of_bonds(frames: list[Atoms], keys: dict[str, str]) -> set[str]:
    """Labels that only a model with bond charges has something for."""
    born = keys["born_charges"]
    slabs = any(boundary(a.pbc) == SLAB and find(a, born) is not None for a in frames)
    return {"polarization"} | ({"born_charges"} if slabs else set())


def _needs_bonds(frames: list[Atoms], keys: dict[str, str], counts: dict[str, int]) -> bool:
    """Whether a file has such labels."""
    return any(counts[name] for name in _of_bonds(frames, keys))


def is_screened(frames: list[Atoms], counts: dict[str, int]) -> bool:
    """Whether labels of periodic structures know what energies do not: what screens charges."""
    labels = any(counts[name] for name in ("polarization", "polarizability", "born_charges"))
    return labels and any(boundary(atoms.pbc) == PERIODIC for atoms in frames)
