"""Predictions of a calculator next to the labels of structures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.stress import voigt_6_to_full_3x3_stress
from tqdm import tqdm

from mace_polmp.analysis.errors import Comparison
from mace_polmp.branches import are_far, lattice_of, nearest
from mace_polmp.calculators.ase_calculator import MultipoleMACECalculator
from mace_polmp.labels import read_label, weight_of
from mace_polmp.quantities import QUANTITIES, boundary, check_prediction


def compare(
    calculator: Calculator,
    frames: Sequence[Atoms],
    keys: dict[str, str] | None = None,
    where: str = "structures",
    description: str = "evaluating",
) -> dict[str, Comparison]:
    """Predictions for all labels that the frames have and the calculator knows.

    Charges of atoms are multiplied by √ε∞ in periodic structures, as dipoles are: labels are
    physical charges. Dipoles of structures that are periodic are left out: they are defined up to
    a constant only. Of models with bond charges they are compared with the polarization, on the
    branch that is nearest to the prediction. Born charges of slabs are left out for other models,
    and a label whose weight is 0 for all.

    Args:
        calculator: MultipoleMACECalculator, or any other ASE calculator.
        frames: the structures with labels.
        keys: names of the labels by quantity, defaults of QUANTITIES where not given.
        where: what to call the frames in messages.
        description: of the progress bar.

    Returns:
        The quantities with at least one label.

    Raises:
        InputError: a label of the wrong shape, or a label or prediction that is NaN.
    """
    keys = {name: quantity.key for name, quantity in QUANTITIES.items()} | (keys or {})
    known = {n: q for n, q in QUANTITIES.items() if q.result in calculator.implemented_properties}
    polarized = bool(getattr(calculator, "defines_polarization", False))
    out: dict[str, Comparison] = {}
    for number, labelled in enumerate(tqdm(frames, desc=description, leave=False, disable=None)):
        atoms = labelled.copy()  # whole: what a model reads of info, such as a charge, is there
        atoms.set_constraint()  # which would set forces to zero
        kind = boundary(atoms.pbc)
        labels = {
            name: read_label(labelled, name, keys[name], f"{where}: frame {number}")
            for name, quantity in known.items()
            if quantity.is_defined(kind, polarized)
            and weight_of(labelled, name, f"{where}: frame {number}") > 0
        }
        # The forces first: they bring everything that is cheap.
        for name, label in labels.items():
            if label is None:
                continue
            value = calculator.get_property(known[name].result, atoms)
            check_prediction(value, name, f"{where}: frame {number}")
            if name == "stress":
                value = voigt_6_to_full_3x3_stress(value)
            entry = out.setdefault(name, Comparison())
            predicted = np.asarray(value, dtype=float).reshape(label.shape)
            if name == "charges" and isinstance(calculator, MultipoleMACECalculator):
                predicted = float(calculator.screening().mean()) * predicted
            if name == "polarization":
                lattice = lattice_of(atoms.cell, atoms.pbc)[None]
                label = label + nearest((predicted - label)[None], lattice)[0]
                entry.far += int(are_far((predicted - label)[None], lattice)[0])
            entry.reference.append(label)
            entry.predicted.append(predicted)
            entry.numbers.append(atoms.numbers)
    return out
