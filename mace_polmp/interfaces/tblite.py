"""Labels of semiempirical methods (GFN1-xTB and GFN2-xTB), computed by tblite.

GFN2-xTB: Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
10.1021/acs.jctc.8b01176.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mace_polmp.errors import InputError
from mace_polmp.interfaces import LABEL_METHODS
from mace_polmp.quantities import OPEN, PERIODIC, boundary, is_finite_number
from mace_polmp.units import BOHR, HARTREE

_FIELD = 1e-3  # Hartree/(e bohr), 0.05 V/Å; dipoles change linearly to seven digits
_IN_FIELDS = ("born_charges", "polarizability")  # Z* = ∂F/∂E, α = ∂μ/∂E
_MULTIPLICITY = ("multiplicity", "total_spin", "spin")  # all mean 2S + 1, as in mace-torch
_HEAVIEST = 86
_LOST = 1e-3  # e

Labels = dict[str, Any]


@dataclass(frozen=True)
class Calculation:
    """One structure to be computed, in plain numbers, so that another process can do it.

    Attributes:
        numbers: atomic numbers.
        positions: Å.
        cell: Å, of a periodic structure; None for an open one.
        charge: e.
        unpaired: number of unpaired electrons.
        method: a name of LABEL_METHODS.
        quantities: of LABEL_QUANTITIES.
    """

    numbers: tuple[int, ...]
    positions: tuple[tuple[float, ...], ...]
    cell: tuple[tuple[float, ...], ...] | None
    charge: float
    unpaired: int
    method: str
    quantities: tuple[str, ...]

    def key(self) -> str:
        """A digest that no other calculation has."""
        text = json.dumps([asdict(self), version()])
        return hashlib.sha256(text.encode()).hexdigest()


def version() -> str:
    """The installed version of tblite.

    Raises:
        InputError: there is none.
    """
    if importlib.util.find_spec("tblite") is None or importlib.util.find_spec("cffi") is None:
        raise InputError(
            "label: needs the package tblite; install it with pip install 'mace-polmp[label]' "
            "(or pip install tblite)"
        )
    return importlib.metadata.version("tblite")


def calculation(
    atoms: Atoms, charge: float, method: str, quantities: Sequence[str], where: str
) -> Calculation:
    """What is to be computed for a structure.

    Args:
        atoms: the structure; info["multiplicity"] is 2S + 1, by default 1 or, for an odd number of
            electrons, 2.
        charge: e.
        method: a name of LABEL_METHODS.
        quantities: of LABEL_QUANTITIES.
        where: what to call the structure in messages.

    Raises:
        InputError: a charge that is no whole number, a multiplicity that does not fit the number
            of electrons, elements or boundary conditions that the method does not know.
    """
    kind = boundary(atoms.pbc)
    lacking = set(quantities) - ({"charges"} if kind == PERIODIC else set())
    if kind != OPEN and lacking:
        words = " and ".join(sorted(lacking))
        raise InputError(
            f"{where}: is {kind}, and {words} are labels of open structures"
            + ("; --quantities charges works" if kind == PERIODIC else "")
        )
    heavy = sorted({int(z) for z in atoms.numbers if z > _HEAVIEST})
    if heavy:
        raise InputError(
            f"{where}: {LABEL_METHODS[method]} knows elements up to Rn, not number {heavy[0]}"
        )
    if charge != round(charge):
        raise InputError(f"{where}: has a total charge of {charge:g} e; it must be a whole number")
    return Calculation(
        numbers=tuple(int(z) for z in atoms.numbers),
        positions=tuple(tuple(float(x) for x in row) for row in atoms.positions),
        cell=tuple(tuple(float(x) for x in row) for row in atoms.cell.array)
        if kind == PERIODIC
        else None,
        charge=float(charge),
        unpaired=_unpaired(atoms, charge, where),
        method=method,
        quantities=tuple(quantities),
    )


def _unpaired(atoms: Atoms, charge: float, where: str) -> int:
    """Unpaired electrons: what the structure says, else as few as there can be."""
    electrons = _electrons(atoms.numbers, charge)
    said = [(name, atoms.info[name]) for name in _MULTIPLICITY if name in atoms.info]
    if not said:
        return electrons % 2
    name, value = said[0]
    if not is_finite_number(value) or float(value) != round(float(value)) or float(value) < 1:
        raise InputError(
            f"{where}: {name} must be the multiplicity 2S + 1, a whole number of 1 or more, got "
            f"{value}"
        )
    unpaired = round(float(value)) - 1
    if (electrons - unpaired) % 2:
        raise InputError(
            f"{where}: {name} {value} (2S + 1) does not fit a total charge of {charge:g} e, which "
            f"leaves an {'odd' if electrons % 2 else 'even'} number of electrons; correct one of "
            "them"
        )
    return unpaired


def compute(task: Calculation) -> Labels | str:
    """The labels of a structure, or why there are none."""
    from tblite.exceptions import TBLiteRuntimeError, TBLiteValueError

    try:
        try:
            return _labels(task, careful=False)
        except TBLiteRuntimeError:
            return _labels(task, careful=True)
    except (TBLiteRuntimeError, TBLiteValueError) as error:
        reason = " ".join(str(error).split())
        return f"{LABEL_METHODS[task.method]} has no result ({reason or type(error).__name__})"


def _labels(task: Calculation, careful: bool) -> Labels | str:
    import tblite.interface

    copy_of: Any = tblite.interface.Result
    calculator = _calculator(task, careful)
    if reason := _impossible(task, len(calculator.get("orbital-map"))):
        return f"{LABEL_METHODS[task.method]} has no such state: {reason}"
    result = calculator.singlepoint()
    total = float(np.sum(result["charges"]))
    if not abs(total - task.charge) < _LOST:  # more electrons than orbitals, or less than none
        return (
            f"{LABEL_METHODS[task.method]} has no such state: charges sum to {total:.3g} e instead "
            f"of {task.charge:g} e"
        )
    out: Labels = {}
    if "dipole" in task.quantities:
        out["dipole"] = (np.asarray(result["dipole"]) * BOHR).tolist()
    if "charges" in task.quantities:
        out["charges"] = np.asarray(result["charges"]).tolist()
    if set(_IN_FIELDS) & set(task.quantities):
        alpha, born = np.zeros((3, 3)), np.zeros((len(task.numbers), 3, 3))
        for axis in range(3):
            for sign in (1.0, -1.0):
                field = [0.0, 0.0, 0.0]
                field[axis] = sign * _FIELD
                moved = _calculator(task, careful, field).singlepoint(copy_of(result))
                part = sign / (2.0 * _FIELD)
                alpha[:, axis] += part * np.asarray(moved["dipole"])
                born[:, axis] -= part * np.asarray(moved["gradient"])  # change of the forces
        alpha *= BOHR**2 / HARTREE
        found = {"polarizability": 0.5 * (alpha + alpha.T), "born_charges": born}
        out |= {name: found[name].tolist() for name in _IN_FIELDS if name in task.quantities}
    if not all(np.isfinite(values).all() for values in out.values()):
        return f"{LABEL_METHODS[task.method]} gives NaN"
    return out


def _impossible(task: Calculation, n_orbitals: int) -> str | None:
    """Why there is no such state; tblite would write where it must not, and end the process."""
    electrons = _electrons(task.numbers, task.charge)
    said = f"a total charge of {task.charge:g} e leaves {electrons} valence electrons"
    if electrons < 0:
        return said
    if task.unpaired > electrons:
        return f"{said}, and {task.unpaired} are to be unpaired"
    if electrons + task.unpaired > 2 * n_orbitals:
        return f"{said}, {task.unpaired} of them unpaired, for {n_orbitals} orbitals"
    return None


def _electrons(numbers: Iterable[int], charge: float) -> int:
    """Electrons of a structure beside the cores of its atoms."""
    return sum(_valence(int(z)) for z in numbers) - round(charge)


def _valence(z: int) -> int:
    """Electrons of an atom beside its core, in GFN1-xTB and GFN2-xTB alike.

    4f electrons of lanthanides and full d shells from Zn, Cd and Hg on are in the core.
    """
    if 57 <= z <= 71:
        return 3
    outer = z - max(core for core in (0, 2, 10, 18, 36, 54) if core < z)
    if z > 71:
        outer -= 14
    return outer - 10 if outer >= 12 else outer


def _calculator(task: Calculation, careful: bool, field: list[float] | None = None) -> Any:
    """tblite's calculator.

    Args:
        task: what to compute.
        careful: whether to mix slowly, for what does not converge otherwise.
        field: Hartree/(e bohr), or None.
    """
    from tblite.interface import Calculator

    periodic = task.cell is not None
    calculator = Calculator(
        LABEL_METHODS[task.method],
        np.array(task.numbers),
        np.array(task.positions) / BOHR,
        charge=task.charge,
        uhf=task.unpaired,
        lattice=np.array(task.cell) / BOHR if periodic else None,
        periodic=np.array([True] * 3) if periodic else None,
    )
    calculator.set("verbosity", 0)
    if careful:
        calculator.set("max-iter", 1000)
        calculator.set("mixer-damping", 0.1)
    if field is not None:
        calculator.add("electric-field", field)
    if set(_IN_FIELDS) & set(task.quantities):
        calculator.set("accuracy", 0.01)  # differences need digits
    return calculator


def compute_all(
    tasks: Sequence[Calculation], jobs: int, journal: Path
) -> Iterator[tuple[int, Labels | str]]:
    """Compute many structures; what an interrupted run has computed is taken from its journal.

    Args:
        tasks: what to compute.
        jobs: processes.
        journal: a file that grows with each result. Who has used all results removes it.

    Yields:
        The number of a task and what compute makes of it, in no particular order.
    """
    known = _read_journal(journal)
    left = []
    for number, task in enumerate(tasks):
        if task.key() in known:
            yield number, known[task.key()]
        else:
            left.append((number, task))
    with open(journal, "a", encoding="utf-8") as file:
        for number, found in _computed(left, min(jobs, len(left))):
            if not isinstance(found, str):
                file.write(json.dumps({"key": tasks[number].key(), "labels": found}) + "\n")
                file.flush()
            yield number, found


def _computed(
    numbered: list[tuple[int, Calculation]], jobs: int
) -> Iterator[tuple[int, Labels | str]]:
    if jobs < 2:
        yield from map(_numbered, numbered)
        return
    # New processes, so that each can be told to use one thread before tblite is loaded.
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=_one_thread) as pool:
        yield from pool.imap_unordered(_numbered, numbered)


def _numbered(item: tuple[int, Calculation]) -> tuple[int, Labels | str]:
    return item[0], compute(item[1])


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


def _read_journal(path: Path) -> dict[str, Labels]:
    """What a journal holds, without a last line that was cut off."""
    known: dict[str, Labels] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["labels"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return known
