"""Every label and output once: its name, key, shape, unit, where it is defined, how it is checked.

Training, evaluation, calculators and checks of data all ask here, so that what one of them reads
is what the others read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from mace_polmp.errors import InputError
from mace_polmp.unit_names import CHARGE, DIPOLE, ENERGY, FORCE, POLARIZABILITY, STRESS

OPEN, WIRE, SLAB, PERIODIC = "open", "wire", "slab", "periodic"
_BOUNDARIES = (OPEN, WIRE, SLAB, PERIODIC)
_EVERYWHERE = (OPEN, SLAB, PERIODIC)
# A stress or polarizability may be this much of its size from symmetric: rounding of a calculation.
_ASYMMETRY = 0.02
_LARGEST = 1e12  # of any label; the largest energies of all electrons are some 1e8 eV


@dataclass(frozen=True)
class Quantity:
    """Something that labels and models both have.

    Attributes:
        key: default name of its label.
        result: its name among a calculator's results; empty where it has none.
        shape: of one label, without atoms.
        per_atom: whether each atom has one.
        unit: of errors in tables.
        factor: from eV, Å, e to the unit.
        defined: boundary conditions in which a prediction and a label mean the same.
        trained: boundary conditions in which a model can be trained on it.
        bonds: both, of models with bond charges besides: their polarization is defined.
    """

    key: str
    result: str
    shape: tuple[int, ...]
    per_atom: bool
    unit: str
    factor: float = 1.0
    defined: tuple[str, ...] = _EVERYWHERE
    trained: tuple[str, ...] = _EVERYWHERE
    bonds: tuple[str, ...] = ()

    def is_defined(self, kind: str, polarized: bool) -> bool:
        """Whether a prediction and a label mean the same.

        Args:
            kind: boundary conditions.
            polarized: whether the model defines the polarization of periodic structures.
        """
        return kind in self.defined or (polarized and kind in self.bonds)

    def is_trained(self, kind: str, polarized: bool) -> bool:
        """Whether a model can be trained on it; arguments as of is_defined."""
        return kind in self.trained or (polarized and kind in self.bonds)

    @property
    def label_unit(self) -> str:
        """The unit of labels in files and of results; `unit` is that of tables of errors."""
        return self.unit if self.factor == 1.0 else self.unit.removeprefix("m")

    def full_shape(self, n_atoms: int) -> tuple[int, ...]:
        """Of the label of a structure."""
        return ((n_atoms,) if self.per_atom else ()) + self.shape


LABELS = {
    "energy": Quantity("REF_energy", "energy", (), False, ENERGY, 1e3),
    "forces": Quantity("REF_forces", "forces", (3,), True, FORCE, 1e3),
    "stress": Quantity(
        "REF_stress",
        "stress",
        (3, 3),
        False,
        STRESS,
        1e3,
        defined=(SLAB, PERIODIC),
        trained=(SLAB, PERIODIC),
    ),
    "virials": Quantity(
        "REF_virials",
        "",
        (3, 3),
        False,
        ENERGY,
        1e3,
        defined=(SLAB, PERIODIC),
        trained=(SLAB, PERIODIC),
    ),
    "dipole": Quantity(
        "REF_dipole", "dipole", (3,), False, DIPOLE, defined=(OPEN,), trained=(OPEN,)
    ),
    # Of the whole cell. Of models with bond charges the dipole of a periodic structure is this.
    "polarization": Quantity(
        "REF_polarization",
        "dipole",
        (3,),
        False,
        DIPOLE,
        defined=(),
        trained=(),
        bonds=(SLAB, PERIODIC),
    ),
    "polarizability": Quantity(
        "REF_polarizability",
        "electronic_polarizability",
        (3, 3),
        False,
        POLARIZABILITY,
        trained=(OPEN, PERIODIC),
    ),
    "born_charges": Quantity(
        "REF_born_charges",
        "born_charges",
        (3, 3),
        True,
        CHARGE,
        defined=(OPEN, PERIODIC),
        trained=(OPEN, PERIODIC),
        bonds=(SLAB,),
    ),
    "charges": Quantity("REF_charges", "charges", (), True, CHARGE),
    "total_charge": Quantity("total_charge", "", (), False, CHARGE),
}
"""All labels of structures by name."""

EPSILON_KEY = "REF_epsilon_infinity"
"""ε∞ of a periodic structure, a number or [3, 3]: another way to give its polarizability."""

SUGGESTED_WEIGHTS = {
    "energy": 40.0,
    "forces": 1.0,
    "total_charge": 100.0,
    "dipole": 100.0,
    "polarization": 100.0,
    "polarizability": 100.0,
    "born_charges": 10.0,
    "charges": 10.0,
}
"""In the loss, weights that go together; with upstream's 1 and 100 energies keep an offset."""

QUANTITIES = {name: quantity for name, quantity in LABELS.items() if quantity.result}
"""Those that a model predicts and an evaluation compares."""


def boundary(pbc: Sequence[bool] | NDArray[np.bool_]) -> str:
    """The name of boundary conditions: open, wire, slab or periodic."""
    return _BOUNDARIES[int(np.sum(pbc))]


def find(atoms: Atoms, key: str) -> Any:
    """What a structure has under a name, of the whole or of its atoms; None if nothing.

    ASE moves labels with the names of its own results, such as energy, into a calculator; they are
    taken from there as they are, without the zeros that ASE puts where atoms are fixed.
    """
    if key in atoms.info:
        return atoms.info[key]
    if key in atoms.arrays:
        return atoms.arrays[key]
    return None if atoms.calc is None else atoms.calc.results.get(key)


def is_finite_number(value: Any) -> bool:
    """Whether something from a file is one finite number, or a text that says one."""
    if isinstance(value, bool | np.bool_) or "_" in str(value):
        return False  # a key without a value reads as True; float("1_0") is 10
    try:
        return np.shape(value) == () and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def check(
    value: Any, name: str, atoms: Atoms, where: str, key: str = ""
) -> NDArray[np.float64] | None:
    """A label as an array of the shape its quantity has, or None for None.

    Accepted are that shape, the same numbers in one row (of the structure or of each atom), and the
    six numbers of a symmetric tensor in ASE's order (xx, yy, zz, yz, xz, xy).

    Args:
        value: as found in a file.
        name: of the quantity.
        atoms: the structure.
        where: what to call the structure in messages.
        key: the name that it was found under.

    Raises:
        InputError: not numbers, another shape, NaN, or a tensor that should be symmetric and is
            not.
    """
    if value is None:
        return None
    quantity = LABELS[name]
    shape = quantity.full_shape(len(atoms))
    if shape == ():
        return np.asarray(_one_number(value, name, where, key))
    said, at = f"{where}: the label of {name}", f" ('{key}')" if key else ""
    size = math.prod(shape)
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{said} is not numbers{at} ({error}){_exponent(value)}") from error
    if name in ("stress", "virials") and array.shape in ((6,), (1, 6), (6, 1)):
        array = voigt_6_to_full_3x3_stress(array.ravel())
    per_atom = {shape, (size,), (len(atoms), size // max(len(atoms), 1))}
    if array.shape not in (per_atom if quantity.per_atom else {shape, (size,), (1, *shape)}):
        raise InputError(f"{said} must be {list(shape)} numbers, got {list(array.shape)}{at}")
    array = array.reshape(shape)
    if not np.isfinite(array).all():
        raise InputError(f"{said} holds NaN or infinite numbers{at}")
    if array.size and np.abs(array).max() > _LARGEST:
        raise InputError(f"{said} holds {np.abs(array).max():.1e}{at}, which no structure has")
    symmetric = quantity.shape == (3, 3) and not quantity.per_atom  # forces of three atoms are not
    if symmetric and np.abs(array - array.T).max() > _ASYMMETRY * np.abs(array).max():
        raise InputError(f"{said} is not symmetric{at}; correct it, or remove it from the frame")
    return array


def check_prediction(values: Any, name: str, where: str) -> None:
    """Refuse what a model predicts if it is no number.

    Raises:
        InputError: NaN or an infinite number.
    """
    if not np.isfinite(values).all():
        raise InputError(
            f"{where}: the model's {name.replace('_', ' ')} is NaN or infinite; the structure is "
            "far from all that it was trained on, or the training went wrong"
        )


def _one_number(value: Any, name: str, where: str, key: str) -> float:
    said = f"{where}: the {name.replace('_', ' ')}" + (f" '{key}'" if key else "")
    if not is_finite_number(value):
        hint = "; the key has no value" if isinstance(value, bool | np.bool_) else _exponent(value)
        raise InputError(f"{said} must be one finite number, got {value}{hint}")
    if abs(float(value)) > _LARGEST:
        raise InputError(f"{said} is {float(value):.1e}, which no structure has")
    return float(value)


def _exponent(value: Any) -> str:
    """A hint for numbers as Fortran writes them."""
    text = str(value).upper().split()
    fortran = any("D" in word and is_finite_number(word.replace("D", "E")) for word in text)
    return "; write exponents with E instead of D" if fortran else ""
