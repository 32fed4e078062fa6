"""What the calculator refuses: heads, committees, fields, model files that are not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mace_polmp.electrostatics.external_field import is_along_periodic
from mace_polmp.errors import InputError
from mace_polmp.head.formal_charges import formal_charges
from mace_polmp.head.observables import screening_factor
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.backbone import double_e0s
from mace_polmp.reading import DEMO_MODEL, model_file
from mace_polmp.structures import Moved, near_origin

Array = NDArray[np.float64]

UNDEFINED_IN_FIELD = ("energy", "free_energy", "stress")
"""Results that a field along a periodic direction leaves without a meaning."""

_LARGEST_SINGLE = 1000.0  # Å; the largest coordinate in single precision
_REFUSED = ("enable_oeq", "pad_num_atoms", "pad_num_edges")
_MISPLACED = 0.1  # e Å; a dipole of latent charges that has no meaning
_SAME_ZERO = 5.0  # eV; averages over parts of the data differ, by less


def check_options(options: dict[str, Any], default_dtype: str) -> None:
    """Refuse options of upstream's calculator that do not work with a MultipoleMACE.

    Raises:
        InputError: one of them is set, or default_dtype is no precision.
    """
    for name in _REFUSED:
        if options.get(name):
            raise InputError(f"{name} does not work with a MultipoleMACE; leave it out")
    if options.get("compute_atomic_stresses"):
        raise InputError("compute_atomic_stresses: there are none; leave it out")
    if default_dtype not in ("", "float32", "float64"):
        raise InputError(f"default_dtype must be float32 or float64, got {default_dtype!r}")


def check_committee(models: Sequence[MultipoleMACE]) -> None:
    """Refuse models whose results cannot be averaged.

    Raises:
        InputError: other elements, cutoffs, heads, atomic energies or charges than the first.
    """
    facts: dict[str, Callable[[Any], Any]] = {
        "elements": lambda m: " ".join(chemical_symbols[z] for z in m.atomic_numbers.tolist()),
        "a cutoff": lambda m: f"{float(m.r_max):g} Å",
        "heads": lambda m: ", ".join(m.heads),
        "charges that are constrained to the total charge:": lambda m: (
            "no" if m.long_range_options.constrain_charge == "none" else "yes"
        ),
        "a polarization of periodic structures:": lambda m: (
            "yes" if m.long_range_options.defines_polarization else "no"
        ),
        "formal charges": lambda m: m.long_range_options.formal_charges or "of zero",
        "a self-consistent response:": lambda m: (  # polarizabilities with local fields
            "yes" if m.long_range_options.is_self_consistent else "no"
        ),
    }
    for name, fact in facts.items():
        found = [fact(model) for model in models]
        for number, value in enumerate(found):
            if value != found[0]:
                raise InputError(
                    f"a committee needs models of the same kind: model {number} has {name} "
                    f"{value}, the first has {found[0]}"
                )

    first = double_e0s(models[0])  # with another zero the mean is the energy of none
    for number, model in enumerate(models):
        difference = float((double_e0s(model).to(first) - first).abs().max())
        if difference > _SAME_ZERO:
            raise InputError(
                f"a committee needs models of the same kind: atomic energies (E0s) of model "
                f"{number} differ by {difference:.3g} eV from those of the first; train them with "
                "the same --E0s"
            )


def field_vector(value: Any) -> Array:
    """A uniform field, [3], V/Å.

    Raises:
        InputError: it is not three numbers.
    """
    field = np.array(value, dtype=float)
    if field.shape != (3,) or not np.isfinite(field).all():
        raise InputError(f"external_field must be three finite numbers in V/Å, got {value}")
    return field


def check_field(
    atoms: Atoms,
    field: np.ndarray,
    asked: set[str],
    has_polarization: bool = False,
    has_formal: bool = False,
) -> tuple[str, ...]:
    """Refuse what is not defined in a field along periodic directions.

    Formal charges have an energy there, whose derivative by the strain of the cell depends on the
    periodic images of ions that are written down.

    Args:
        atoms: the structure.
        field: [3], V/Å.
        asked: names of results.
        has_polarization: whether that of periodic structures is defined, and all with it.
        has_formal: whether there are formal charges.

    Returns:
        Names of results that have no meaning.

    Raises:
        InputError: names the result, or the direction.
    """
    along = is_along_periodic(
        torch.as_tensor(field), torch.as_tensor(atoms.cell.array), list(atoms.pbc)
    )
    if has_polarization:
        undefined: tuple[str, ...] = ("stress",) if has_formal and along else ()
        if asked & set(undefined):
            raise InputError(
                "stress in an external_field along a periodic direction: with formal charges it "
                "depends on the periodic images of the ions; train without --formal_charges, or "
                "leave the field out"
            )
        return undefined
    refused = [name for name in UNDEFINED_IN_FIELD if name in asked]
    if atoms.pbc.all() and refused:
        raise InputError(
            f"{refused[0]} in an external_field along a periodic direction: the energy of a charge "
            "is not defined there. Ask for the forces, or for zero_field_energy, set pbc to "
            "F F F, or train with --charge_readout bond"
        )
    if atoms.pbc.sum() == 2 and along:
        normal = _normal(atoms)
        raise InputError(
            "external_field of a slab must be along its normal, "
            f"[{normal[0]:.3f}, {normal[1]:.3f}, {normal[2]:.3f}], got {field.tolist()}: the "
            "Born charges that a field in the plane needs are not available for slabs, but of "
            "a model with --charge_readout bond"
        )
    return UNDEFINED_IN_FIELD if atoms.pbc.all() else ()


def _normal(atoms: Atoms) -> Array:
    """Of a slab, [3], of length 1."""
    axis = int(np.flatnonzero(~atoms.pbc)[0])
    normal: Array = np.cross(atoms.cell[(axis + 1) % 3], atoms.cell[(axis + 2) % 3])
    return normal / np.linalg.norm(normal)


def check_screening(atoms: Atoms, divide_by_chi: bool) -> None:
    """Refuse a field on charges whose size would change along a trajectory.

    Raises:
        InputError: says what to give.
    """
    if atoms.pbc.all() and divide_by_chi:
        raise InputError(
            "divide_by_chi with an external_field on a periodic structure: √(1 + χ) changes along "
            "a trajectory, and with it the charges that the field acts on; leave divide_by_chi "
            "out, and give epsilon_infinity divided by a fixed 1 + χ"
        )


def place_in_field(atoms: Atoms, excess: float) -> str | None:
    """A sentence where the place of a structure in a field matters, which it should not.

    Args:
        atoms: the structure.
        excess: e, of its charges over its total charge.
    """
    distance = float(np.linalg.norm(atoms.positions.mean(0)))
    if atoms.pbc.any() or abs(excess) * distance <= _MISPLACED:
        return None
    return (
        f"external_field: the latent charges sum to {excess:.2g} e more than the total charge, "
        f"{distance:.0f} Å from the origin; energy and forces in the field depend on this place: "
        "put the structure at the origin, or train with --constrain_charge (bond charges: with "
        "--formal_charges)"
    )


def expand(model_paths: Any) -> list[Path]:
    """Files of a path, a pattern or a list of both, in order."""
    given = [model_paths] if isinstance(model_paths, str | Path) else list(model_paths)
    paths: list[Path] = []
    for item in given:
        found = sorted(glob(str(item))) if any(c in str(item) for c in "*?[") else [str(item)]
        if not found:
            raise InputError(f"model_paths: no file matches {item}")
        paths += [model_file(name) if name == DEMO_MODEL else Path(name) for name in found]
    if not paths:
        raise InputError("model_paths: give at least one .model file")
    return paths


def has_formal_charges(models: Sequence[MultipoleMACE]) -> bool:
    """Whether energies in a field depend on the periodic images of ions that are written down."""
    return any(formal_charges(model.long_range_options.formal_charges) for model in models)


def check_permittivity(
    models: Sequence[MultipoleMACE], epsilon_infinity: float | None, divide_by_chi: bool = False
) -> None:
    """Refuse a permittivity that is none, or what makes other charges of formal ones.

    Args:
        models: of the calculator.
        epsilon_infinity: what was asked for, or None for that of the models.
        divide_by_chi: whether screening changes with the structure.

    Raises:
        InputError: says what was expected.
    """
    screening_factor(None, torch.ones(1, 3, dtype=torch.bool), epsilon_infinity)
    for model in models:
        own, given = model.permittivity(), model.long_range_options.formal_charges
        if given and epsilon_infinity not in (None, own):
            raise InputError(
                f"epsilon_infinity {epsilon_infinity:g}: the model was trained with formal charges "
                f"({given}) and a permittivity of {own:g}, with another one the polarization would "
                "not change by them where an ion moves by a lattice vector; leave it out, or train "
                "a model with it"
            )
        if given and divide_by_chi:
            raise InputError(
                f"divide_by_chi: the model was trained with formal charges ({given}), which would "
                "be other ones in each structure, and the polarization would not change by them "
                "where an ion moves by a lattice vector; leave it out, or train a model with an "
                "epsilon_infinity that is divided by a fixed 1 + χ"
            )


def check_neutral(models: Sequence[MultipoleMACE], atoms: Atoms, where: str) -> None:
    """Refuse slabs whose formal charges do not sum to zero: a charged slab has no energy.

    Raises:
        InputError: names their sum.
    """
    if atoms.pbc.sum() != 2:
        return
    for model in models:
        charges = formal_charges(model.long_range_options.formal_charges)
        total = sum(q * int((atoms.numbers == z).sum()) for z, q in charges.items())
        if abs(total) > 1e-6:
            raise InputError(
                f"{where}: the formal charges of the slab sum to {total:g} e "
                f"({model.long_range_options.formal_charges}), and the energy of a charged slab is "
                "not defined; give a neutral one"
            )


def in_single_precision(atoms: Atoms, in_field: bool, has_formal: bool = False) -> Moved:
    """The structure where single precision keeps its digits.

    Args:
        atoms: the structure.
        in_field: whether there is an external field.
        has_formal: whether there are formal charges.

    Raises:
        InputError: there is no such place.
    """
    near = near_origin(atoms)
    largest = float(np.abs(near.atoms.positions).max())
    if largest > _LARGEST_SINGLE:
        raise InputError(
            f"atoms: coordinates of {largest:.0f} Å, which single precision holds to "
            f"{largest * 6e-8:.0e} Å only; use default_dtype float64"
        )
    if near.by is not None and in_field and (has_formal or not atoms.pbc.all()):
        raise InputError(
            "atoms: lie too far from the origin for an external_field in single precision; "
            "centre them, or use default_dtype float64"
        )
    return near
