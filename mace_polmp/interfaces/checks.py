"""What is refused before LAMMPS or another program runs with a model."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ase.data import atomic_masses, atomic_numbers

from mace_polmp.calculators.checks import check_committee, expand
from mace_polmp.errors import InputError
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.io import check_device, load_model
from mace_polmp.parallel import MPIProcesses, Processes

MASS_TOLERANCE = 0.02
"""Relative; by how much a mass may differ from its element's."""

logger = logging.getLogger(__name__)

T = TypeVar("T")

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
        if not mass > 0:
            raise InputError(
                f"type {number} has no mass yet: mass lines come before pair_coeff or attach"
            )
        expected = (float(atomic_masses[z]), *ISOTOPES.get(int(z), ()))
        if not any(abs(mass - m) <= MASS_TOLERANCE * m for m in expected):
            raise InputError(
                f"type {number} has a mass of {mass:g}, and its element's is {expected[0]:g}: are "
                "elements in the order of LAMMPS' types?"
            )


# Terms that LAMMPS would add to the energy, and what they have to be.
_OTHER_TERMS = ("kspace_style", "bond_style", "angle_style", "dihedral_style", "improper_style")
# Fixes that do nothing to forces; others, defined before the model, would act before its forces.
_HARMLESS = ("property/atom", "store/state", "ave/", "print", "vector", "momentum", "balance")


def check_other_terms(lmp: Any, pair_style: str | None) -> None:
    """Refuse terms of LAMMPS' own beside the model.

    Args:
        lmp: LAMMPS.
        pair_style: what it has to be; None before the model is attached.

    Raises:
        InputError: names the style.
    """
    for name in _OTHER_TERMS:
        style = lmp.extract_global(name)
        if style not in (None, "none"):
            raise InputError(
                f"{name} {style}: its energy would be added to the model's; leave it out, or say "
                f"{name} none"
            )
    found = lmp.extract_global("pair_style")
    if pair_style is not None and found not in (None, pair_style):
        raise InputError(
            f"pair_style {found} has replaced that of the model; leave it out: energies are the "
            "model's alone"
        )


def check_attached(lmp: Any, fix_id: str) -> None:
    """Refuse results of a LAMMPS that has lost the model.

    Raises:
        InputError: the fix is gone.
    """
    if not lmp.has_id("fix", fix_id):
        raise InputError(
            f"fix {fix_id} was removed (unfix, clear): what ran after that was without the model"
        )


def check_fixes(lmp: Any, processes: Processes) -> None:
    """Refuse fixes that were defined before the model: they would act before its forces.

    Raises:
        InputError: names them.
    """
    if not lmp.available_ids("fix"):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fixes"
        lmp.command(f"info fixes out overwrite {path}")
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.findall(r"Fix\[\s*\d+\]:\s*(\S+?),\s*style = (\S+?),", text)
    early = [f"{name} ({style})" for name, style in found if not style.startswith(_HARMLESS)]
    # LAMMPS writes the file on the first process only; all have to know.
    if int(processes.sum(torch.tensor([len(early)]))[0]) > 0:
        raise InputError(
            f"fix {', '.join(early)}: defined before the model, and would act before its forces; "
            "define fixes after pair_coeff or attach"
        )


def everywhere(processes: Processes, check: Callable[[], T]) -> T:
    """The result of a check that each process does alone; an error on one is an error on all.

    Args:
        processes: that do it.
        check: talks to no other process.

    Raises:
        Exception: that of the check; InputError where another process has one.
    """
    found: list[T] = []
    error: Exception | None = None
    try:
        found.append(check())
    except Exception as own:  # the others wait for an answer
        error = own
    if int(processes.sum(torch.tensor([int(error is not None)]))[0]) > 0:
        raise error or InputError("refused on another process, which says why")
    return found[0]


def say_charge(models: Sequence[MultipoleMACE], total_charge: float) -> None:
    """Refuse a total charge that has no effect, and say what is assumed.

    Raises:
        InputError: a charge of models without constrained charges.
    """
    constrained = any(m.long_range_options.constrain_charge != "none" for m in models)
    if total_charge != 0 and not constrained:
        raise InputError(
            f"total_charge {total_charge:g}: the model was trained without --constrain_charge, and "
            "its results do not depend on it; leave it out"
        )
    if constrained:
        logger.warning("the charges of the structure sum to %g e (total_charge)", total_charge)


def decoded(images: np.ndarray) -> np.ndarray:
    """How many lattice vectors atoms were wrapped by, [n, 3], of LAMMPS' image flags."""
    bits = 10 if images.dtype.itemsize == 4 else 21
    mask, half = (1 << bits) - 1, 1 << (bits - 1)
    flags = images.astype(np.int64)
    return np.stack([((flags >> (bits * axis)) & mask) - half for axis in range(3)], axis=1)


def own_device(device: str, processes: Processes) -> str:
    """Of several GPUs in a machine, one for each of its processes."""
    everywhere(processes, lambda: check_device(device, "device"))
    if device != "cuda":
        return device
    rank = processes.rank
    if isinstance(processes, MPIProcesses):
        rank = processes.in_machine()[0]
    return f"cuda:{rank % torch.cuda.device_count()}"
