"""What a training with bond charges refuses: charges that no data or no label can change."""

from __future__ import annotations

from ase import Atoms
from ase.data import chemical_symbols

from mace_polmp.errors import InputError
from mace_polmp.head.formal_charges import formal_charges
from mace_polmp.labels import weight_of
from mace_polmp.modules import LongRangeOptions
from mace_polmp.quantities import OPEN, PERIODIC, SLAB, boundary, find
from mace_polmp.structures import is_isolated_atom, total_charge
from mace_polmp.training.labels import each_frame
from mace_polmp.training.options import TrainingOptions

_SAME = 1e-6  # e


def check_bonds(
    options: LongRangeOptions,
    training: TrainingOptions,
    is_tuned: bool,
    is_former: bool,
    frames: dict[str, list[Atoms]],
    elements: set[int],
) -> None:
    """Refuse what has no meaning with bond charges, which sum to the formal charges of the atoms.

    Args:
        options: settings of the head.
        training: weights and keys of electrical labels.
        is_tuned: whether there is a foundation model.
        is_former: whether it has a long-range head.
        frames: structures by file.
        elements: atomic numbers of the data.

    Raises:
        InputError: a weight of total charges, formal charges that a foundation model without a
            head would meet at their full size, those of elements that no structure has, structures
            with another charge than the sum of their formal charges, and labels that need whole
            formal charges where these are screened: polarizations of slabs, dipoles and charges of
            ions.
    """
    if not options.defines_polarization:
        return
    if "total_charge" in training.used:
        raise InputError(
            "--total_charge_weight does not go with --charge_readout bond, whose charges sum to "
            "the formal charges whatever the training does; leave it out"
        )
    charges = formal_charges(options.formal_charges)
    if charges and is_tuned and not is_former:
        raise InputError(
            f"--formal_charges {options.formal_charges} does not go with a --foundation_model that "
            "has no long-range head: a new head has to start small, and these charges are there at "
            "once. Leave them out, or train without a foundation model"
        )
    unknown = sorted(set(charges) - elements)
    if unknown and any(frames.values()) and not is_former:
        names = ", ".join(chemical_symbols[z] for z in unknown)
        raise InputError(
            f"--formal_charges {options.formal_charges}: no structure has {names}; name "
            "elements of the data"
        )
    for where, atoms in each_frame(frames):
        _check_sum(charges, atoms, training.key("total_charge"), where)
        if charges and options.epsilon_infinity != 1.0:
            _check_unscreened(options, training, atoms, where)


def _sum_of(charges: dict[int, float], atoms: Atoms) -> float:
    """What charges of elements sum to, e."""
    return sum(q * int((atoms.numbers == z).sum()) for z, q in charges.items())


def _check_sum(charges: dict[int, float], atoms: Atoms, key: str, where: str) -> None:
    """Refuse a structure whose charge is not that of its atoms."""
    if is_isolated_atom(atoms):
        return
    found = _sum_of(charges, atoms)
    kind = boundary(atoms.pbc)
    said = total_charge(atoms, where, key)
    what = f"the total charge '{key}' is {said:g} e" if said is not None else f"it is a {kind} one"
    if said is None and kind == OPEN:
        return
    wanted = 0.0 if said is None or kind == SLAB else said
    if abs(found - wanted) > _SAME:
        raise InputError(
            f"{where}: formal charges sum to {found:g} e, and {what}: with --charge_readout bond "
            "charges sum to the formal charges. Give --formal_charges of all ions, such as "
            "'H:1,O:-2' for water and its ions, or remove the structure"
        )


def _check_unscreened(
    options: LongRangeOptions, training: TrainingOptions, atoms: Atoms, where: str
) -> None:
    """Refuse labels of a slab or an open structure whose formal charges would be no whole numbers.

    They are divided by √ε∞ in every structure, and multiplied by it in periodic ones alone.
    """
    kind = boundary(atoms.pbc)
    if kind == PERIODIC or is_isolated_atom(atoms):
        return
    total = _sum_of(formal_charges(options.formal_charges), atoms)
    names = ["polarization"] if kind == SLAB else []
    if abs(total) > _SAME:  # of neutral ones, what moves along bonds makes up for it
        names += ["dipole", "born_charges", "charges"]
    for name in names:
        has_label = find(atoms, training.key(name)) is not None
        if name in training.used and has_label and weight_of(atoms, name, where) > 0:
            what = "a slab" if kind == SLAB else f"an open structure of {total:g} e"
            raise InputError(
                f"{where}: has a label of {name.replace('_', ' ')} and is {what}, where formal "
                f"charges are not screened: this needs --epsilon_infinity 1, got "
                f"{options.epsilon_infinity}. Give the frame config_{name}_weight=0, or leave "
                "--formal_charges out"
            )
