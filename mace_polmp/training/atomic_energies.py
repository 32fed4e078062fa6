"""Atomic energies (E0s) of a training: what was asked for, checked; averages over what counts."""

from __future__ import annotations

import ast
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from mace_polmp.errors import InputError
from mace_polmp.reading import existing_file

Array = NDArray[np.float64]

AVERAGE, FOUNDATION, ESTIMATED = "average", "foundation", "estimated"
_WORDS = (AVERAGE, FOUNDATION, ESTIMATED)


def parse(asked: Any, where: str = "--E0s") -> str | dict[int, float]:
    """A word that upstream knows, or energies by atomic number, eV.

    Args:
        asked: "average", "foundation", "estimated", a dictionary (as text, too) of atomic numbers
            or symbols and energies, or the name of a .json file that holds one.
        where: what to call it in messages.

    Raises:
        InputError: anything else.
    """
    if isinstance(asked, str) and asked.strip().lower() in _WORDS:
        return asked.strip().lower()
    found = asked
    if isinstance(asked, str):
        found = _read(asked, where)
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{where} must be {', '.join(_WORDS)}, the name of a .json file, or energies by "
            f"element such as '{{1: -13.6, 8: -432.1}}', got {asked!r}"
        )
    energies: dict[int, float] = {}
    for element, energy in found.items():
        number = _number(element)
        if number is None:
            raise InputError(f"{where}: {element!r} is no element; give symbols or atomic numbers")
        try:
            value = float(energy)
        except (TypeError, ValueError):
            value = math.nan
        if isinstance(energy, bool) or not math.isfinite(value):
            raise InputError(
                f"{where}: the energy of {chemical_symbols[number]} must be a number in eV, got "
                f"{energy!r}"
            )
        if energies.get(number, value) != value:
            raise InputError(f"{where}: {chemical_symbols[number]} is there twice; remove one")
        energies[number] = value
    return energies


def _read(asked: str, where: str) -> Any:
    if asked.strip().endswith(".json"):
        path = existing_file(asked.strip(), where)
        try:
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{where} {path}: not a JSON file ({error})") from error
    try:
        return ast.literal_eval(asked.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _number(element: Any) -> int | None:
    text = str(element).strip()
    if isinstance(element, bool):
        return None
    number = atomic_numbers.get(text) if not text.isdigit() else int(text)
    return number if number and 0 < number < len(chemical_symbols) else None


def check_complete(energies: Collection[int], elements: Iterable[int], where: str) -> None:
    """Refuse atomic energies that lack an element of the structures.

    Raises:
        InputError: names the elements.
    """
    lacking = sorted(set(elements) - set(energies))
    if lacking:
        names = ", ".join(chemical_symbols[z] for z in lacking)
        raise InputError(
            f"{where}: has no energy of {names}, which the structures hold; add it, or give --E0s "
            "average"
        )


def check_isolated(found: list[tuple[str, dict[int, float]]]) -> dict[int, float]:
    """The energies of isolated atoms of all files of a head by element.

    Args:
        found: what to call each frame, and its element and energy.

    Raises:
        InputError: two frames of an element with different energies.
    """
    energies: dict[int, tuple[float, str]] = {}
    for where, atom in found:
        for number, energy in atom.items():
            before = energies.setdefault(number, (energy, where))
            if abs(before[0] - energy) > 1e-6:
                raise InputError(
                    f"{where}: is an IsolatedAtom of {chemical_symbols[number]} with {energy:g} "
                    f"eV, but {before[1]} has {before[0]:g} eV; keep one of them"
                )
    return {number: energy for number, (energy, _) in energies.items()}


def counted(configs: Iterable[Any]) -> list[Any]:
    """The configurations whose energy counts: that have one, with a weight."""
    return [
        config
        for config in configs
        if config.properties.get("energy") is not None
        and config.weight > 0
        and config.property_weights.get("energy", 1.0) > 0
    ]


def atomic_energies(
    upstream: Callable[..., dict[int, float]],
    asked: Any,
    configs: Any,
    elements: list[int],
    known: dict[int, float] | None = None,
) -> dict[int, float]:
    """The energies of some elements as they were asked for, eV.

    Averages are over the configurations whose energy counts. Elements that no structure has are
    left out.

    Args:
        upstream: its function for what is a word.
        asked: as of parse.
        configs: upstream's configurations to average over, or None.
        elements: atomic numbers.
        known: of some elements, from isolated atoms; they stay what they are.

    Raises:
        InputError: nothing to average over, or an element without an energy.
    """
    found = parse(asked)
    if isinstance(found, str):
        if configs is None:
            raise InputError(
                f"--E0s {found} needs structures that ASE reads; give energies by element, such as "
                "--E0s '{1: -13.6, 8: -432.1}'"
            )
        chosen = counted(configs)
        if not chosen:
            raise InputError(
                f"--E0s {found}: no training structure has an energy with a weight; give energies "
                "by element, such as --E0s '{1: -13.6, 8: -432.1}'"
            )
        if found == AVERAGE:
            others = [z for z in elements if z not in (known or {})]
            counts = composition_counts((c.atomic_numbers for c in chosen), others)
            if sentence := undetermined(counts, others):
                logging.warning(sentence)
        if known:
            return _averages_of_the_rest(chosen, elements, known)
        return upstream(found, chosen, _Table(elements))
    found = found | (known or {})
    check_complete(found, elements, "--E0s")
    more = sorted(set(found) - set(elements))
    if more:
        names = ", ".join(chemical_symbols[z] for z in more)
        logging.info(f"--E0s: energies of {names} are not used: no structure has these elements")
    return {number: found[number] for number in elements}


def composition_counts(structures: Iterable[NDArray[Any]], elements: list[int]) -> Array:
    """How many atoms of each element structures have, [n_structures, n_elements].

    Args:
        structures: the atomic numbers of each.
        elements: atomic numbers.
    """
    counts = [[np.count_nonzero(numbers == z) for z in elements] for numbers in structures]
    return np.array(counts, dtype=float)


def undetermined(counts: Array, elements: list[int]) -> str | None:
    """A sentence on compositions that do not tell the energies of elements apart, or None.

    Args:
        counts: of composition_counts.
        elements: atomic numbers.
    """
    if not elements or np.linalg.matrix_rank(counts) == len(elements):
        return None
    return (
        f"the compositions do not tell the energies of "
        f"{', '.join(chemical_symbols[z] for z in elements)} apart: --E0s average fits these "
        "structures, and says nothing about others; give --E0s by element where you have them"
    )


def _averages_of_the_rest(
    configs: list[Any], elements: list[int], known: dict[int, float]
) -> dict[int, float]:
    """Energies of the other elements that fit the configurations best, eV."""
    counts = composition_counts((c.atomic_numbers for c in configs), elements)
    given = np.array([known.get(z, 0.0) for z in elements])
    others = [index for index, z in enumerate(elements) if z not in known]
    left = np.array([float(c.properties["energy"]) for c in configs]) - counts @ given
    given[others] = np.linalg.lstsq(counts[:, others], left, rcond=None)[0]
    return dict(zip(elements, given.tolist(), strict=True))


class _Table:
    """What upstream's functions take for a table of elements."""

    def __init__(self, zs: list[int]) -> None:
        self.zs = zs

    def __len__(self) -> int:
        return len(self.zs)
