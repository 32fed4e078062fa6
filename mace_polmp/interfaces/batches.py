"""Total charges of batches that other programs put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase import Atoms

from mace_polmp.errors import InputError
from mace_polmp.quantities import is_finite_number


def composition(atoms: Atoms) -> tuple[int, ...]:
    return tuple(sorted(atoms.numbers.tolist()))


def charges_by_composition(value: Any) -> float | dict[tuple[int, ...], float]:
    """Total charges in e by atomic numbers, or one for all systems.

    Raises:
        InputError: not numbers, or not by formula.
    """
    if value is None:
        return 0.0
    if is_finite_number(value):
        return float(value)
    if not isinstance(value, Mapping):
        raise InputError(
            "total_charge must be a number in e, or numbers by formula such as "
            f"{{'H3O': 1, 'H2O': 0}}, got {value!r}. One for each system in their order would go "
            "to other systems where torch-sim sorts them into batches"
        )
    charges: dict[tuple[int, ...], float] = {}
    for formula, charge in value.items():
        if not is_finite_number(charge):
            raise InputError(f"total_charge of {formula} must be a number in e, got {charge!r}")
        try:
            elements = composition(Atoms(formula))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"total_charge: {formula!r} is not a chemical formula; write it as 'H3O'"
            ) from error
        if charges.setdefault(elements, float(charge)) != float(charge):
            raise InputError(
                f"total_charge has two numbers for {formula}, as the order of elements does not "
                "matter; evaluate systems of one formula and different charges separately"
            )
    return charges
