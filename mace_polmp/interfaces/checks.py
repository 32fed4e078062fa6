"""What is refused before LAMMPS or another program runs with a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_masses, atomic_numbers

from mace_polmp.calculators.checks import check_committee, expand
from mace_polmp.errors import InputError
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.io import load_model

MASS_TOLERANCE = 0.02
"""Relative; by how much a mass may differ from its element's."""

ISOTOPES = {1: (2.014, 3.016)}


def loaded_models(model: Any) -> list[MultipoleMACE]:
    """Models of files, patterns, or models, one or a list; a committee if there are several.

    Raises:
        InputError: what is no MultipoleMACE, or models that do not fit together.
    """
    given = list(model) if isinstance(model, list | tuple) else [model]
    models: list[Any] = []
    for item in given:
        if isinstance(item, str | Path):
            models += [load_model(path) for path in expand(item)]
        else:
            models.append(item)
    for item in models:
        if not isinstance(item, MultipoleMACE):
            raise InputError(f"model must be a MultipoleMACE, got {type(item).__name__}")
    check_committee(models)
    return models


def atomic_numbers_of(model: MultipoleMACE) -> list[int]:
    """The elements of a model, in its order."""
    table: Any = model.atomic_numbers
    return [int(z) for z in table.tolist()]


def dtype_of(name: str) -> torch.dtype:
    """float32 or float64 by name.

    Raises:
        InputError: another name.
    """
    if name not in ("float32", "float64"):
        raise InputError(f"default_dtype must be float32 or float64, got {name!r}")
    return torch.float32 if name == "float32" else torch.float64


def checked_elements(elements: Sequence[str], model: MultipoleMACE) -> np.ndarray:
    """Atomic numbers of symbols that a model knows.

    Raises:
        InputError: a name that is no element, or one that the model does not know.
    """
    unknown = [e for e in elements if e not in atomic_numbers or atomic_numbers[e] < 1]
    if unknown:
        raise InputError(f"elements: {unknown[0]!r} is no element; give symbols such as O")
    numbers = np.array([atomic_numbers[e] for e in elements])
    known = set(atomic_numbers_of(model))
    foreign = [e for e, z in zip(elements, numbers, strict=True) if int(z) not in known]
    if foreign:
        raise InputError(f"elements: the model does not know {', '.join(foreign)}")
    return numbers


def check_masses(masses: np.ndarray, numbers: np.ndarray) -> None:
    """Refuse types whose mass is another element's.

    Raises:
        InputError: names the type.
    """
    for number, (mass, z) in enumerate(zip(masses, numbers, strict=True), start=1):
        expected = (float(atomic_masses[z]), *ISOTOPES.get(int(z), ()))
        if not any(abs(mass - m) <= MASS_TOLERANCE * m for m in expected):
            raise InputError(
                f"type {number} has a mass of {mass:g}, and its element's is {expected[0]:g}: are "
                "elements in the order of LAMMPS' types?"
            )
