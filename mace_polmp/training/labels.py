"""Whether training files have the labels that a loss asks for, and the model something for them."""

from __future__ import annotations

from collections.abc import Iterator

from ase import Atoms

from mace_polmp.errors import InputError
from mace_polmp.head.formal_charges import formal_charges
from mace_polmp.head.options import LEARN
from mace_polmp.labels import names_in, read_label, weight_of
from mace_polmp.modules import LongRangeOptions
from mace_polmp.structures import is_isolated_atom, total_charge
from mace_polmp.training.options import TrainingOptions


def check_presence(
    found: dict[str, int], options: TrainingOptions, frames: int, where: str, example: Atoms
) -> None:
    """Refuse a training whose files have none of the labels that its loss asks for.

    Args:
        found: number of frames by label.
        options: weights and keys.
        frames: number of training frames.
        where: names of the files.
        example: a frame, whose names are shown.

    Raises:
        InputError: a label with a weight that no frame has.
    """
    for name in options.used:
        if found.get(name, 0) == 0:
            raise InputError(
                f"{where}: none of {frames} frames has the label '{options.key(name)}' that "
                f"--{name}_weight asks for; name it with --{name}_key (the first frame has "
                f"{names_in(example)})"
            )


def check_no_labels(path: str, options: TrainingOptions) -> None:
    """Refuse electrical labels of a file that is not read here: none of them would be checked.

    mace_prepare_data writes neither ε∞, polarizations nor Born charges into HDF5, and LMDB gives
    energies, forces and stress.

    Args:
        path: of a file in HDF5 or LMDB.
        options: weights of electrical labels.

    Raises:
        InputError: one of them has a weight.
    """
    if options.used:
        raise InputError(
            f"{path}: HDF5 and LMDB files have no labels for --{options.used[0]}_weight; train on "
            "a file that ASE reads, for instance extended XYZ"
        )


def check_model(options: LongRangeOptions, training: TrainingOptions) -> None:
    """Refuse labels that a model has nothing for.

    Args:
        options: settings of the head.
        training: weights and keys of electrical labels.

    Raises:
        InputError: polarizations without charges that move along bonds, or with formal charges that
            are no whole numbers; polarizabilities without anything that is induced or learned.
    """
    if "polarizability" in training.used:
        _check_response(options)
    if "polarization" not in training.used:
        return
    if not options.defines_polarization:
        raise InputError(
            "--polarization_weight needs --charge_readout bond, got --charge_readout "
            f"{options.charge_readout}: other models have no polarization of periodic structures"
        )
    if any(charge != round(charge) for charge in formal_charges(options.formal_charges).values()):
        raise InputError(
            f"--polarization_weight needs --formal_charges that are whole numbers, got "
            f"{options.formal_charges}: a polarization is known up to e times lattice vectors, and "
            "an ion that is moved by one must change it by a whole number of them"
        )


def each_frame(frames: dict[str, list[Atoms]]) -> Iterator[tuple[str, Atoms]]:
    """What to call a structure in messages, and the structure.

    Args:
        frames: structures by file.
    """
    for path, structures in frames.items():
        for number, atoms in enumerate(structures):
            yield f"{path}: frame {number}", atoms


def check_constraint(
    options: LongRangeOptions, training: TrainingOptions, frames: dict[str, list[Atoms]]
) -> None:
    """Refuse charged cells whose screened charges would sum to the total charge.

    constrain_charge is for the charges in the energy. Physical ones are √ε∞ larger in a cell.

    Args:
        options: settings of the head.
        training: weights and keys of electrical labels.
        frames: structures by file.

    Raises:
        InputError: names the first.
    """
    if options.constrain_charge == "none" or options.epsilon_infinity == 1.0:
        return
    key = training.key("total_charge")
    for where, atoms in each_frame(frames):
        is_cell = bool(atoms.pbc.all()) and not is_isolated_atom(atoms)
        charge = total_charge(atoms, where, key) if is_cell else None
        if charge:
            raise InputError(
                f"{where}: is periodic and has a total charge of {charge:g} e. With "
                f"--constrain_charge {options.constrain_charge} and --epsilon_infinity "
                f"{options.epsilon_infinity} the screened charges in the energy would sum to "
                "it, and physical ones to √ε∞ times as much. Give --total_charge_weight in "
                "place of --constrain_charge, or --epsilon_infinity 1, or remove the frame"
            )


def check_polarizabilities(
    options: LongRangeOptions, training: TrainingOptions, frames: dict[str, list[Atoms]]
) -> None:
    """Refuse polarizabilities of structures in which a model has none that a training changes.

    Args:
        options: settings of the head.
        training: weights and keys of electrical labels.
        frames: structures by file.

    Raises:
        InputError: names the first.
    """
    if "polarizability" not in training.used or options.is_polarizable:
        return
    for where, atoms in each_frame(frames):
        counts = weight_of(atoms, "polarizability", where) > 0
        if not counts or _responds(options, is_open=not atoms.pbc.any()):
            continue
        key = training.key("polarizability")
        if read_label(atoms, "polarizability", key, where) is not None:
            kind = "periodic" if atoms.pbc.any() else "an open structure"
            raise InputError(
                f"{where}: has a label of polarizability and is {kind}, where the model with "
                f"--induced {options.induced} has none: give --induced dipole, or the frame "
                "config_polarizability_weight=0"
            )


def _responds(options: LongRangeOptions, is_open: bool) -> bool:
    """Whether a structure has a polarizability that a training changes."""
    others = options.is_self_consistent if is_open else options.epsilon_infinity == LEARN
    return options.is_polarizable or others


def _check_response(options: LongRangeOptions) -> None:
    """Refuse polarizabilities where a model has none, or one that no training changes."""
    if not any(_responds(options, is_open) for is_open in (True, False)):
        raise InputError(
            f"--polarizability_weight needs something that a field induces, got --induced "
            f"{options.induced}: give --induced dipole (or both, bond, bond_dipole), or for "
            f"crystals alone --epsilon_infinity {LEARN}"
        )
