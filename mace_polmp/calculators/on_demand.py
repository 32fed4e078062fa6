"""Results of the calculator that cost more than they are usually worth."""

from __future__ import annotations

from typing import Any

import torch

from mace_polmp.errors import InputError
from mace_polmp.head.observables import electronic_permittivity, physical_polarizability
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.atom_energies import atom_energies
from mace_polmp.modules.born_charges import born_charges


def _born_charges(calc: Any, model: MultipoleMACE, batch: Any) -> torch.Tensor:
    data = calc._clone_batch(batch).to_dict()
    return born_charges(model, data, calc.epsilon_infinity, calc.divide_by_chi, calc.sum_rule)


def _polarizability(calc: Any, model: MultipoleMACE, batch: Any) -> torch.Tensor:
    """With local fields; of periodic structures physical, as dipoles and Born charges are."""
    with torch.no_grad():
        own = model.electronic_polarizability(batch.to_dict())
    cell, pbc = batch["cell"].reshape(1, 3, 3), batch["pbc"].reshape(1, 3)
    number = next(n for n, known in enumerate(calc.models) if known is model)
    return physical_polarizability(own, cell, pbc, calc.screening()[number] ** 2)[0]


def _permittivity(calc: Any, model: MultipoleMACE, batch: Any) -> torch.Tensor:
    if not bool(batch["pbc"].all()):
        raise InputError(
            "electronic_permittivity needs a structure that is periodic in three directions; ask "
            "for electronic_polarizability"
        )
    polarizability = _polarizability(calc, model, batch)[None]
    return electronic_permittivity(polarizability, batch["cell"].reshape(1, 3, 3))[0]


def _energies(calc: Any, model: MultipoleMACE, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return atom_energies(model, batch.to_dict())


# Results that cost more than they are usually worth: computed where asked for by name.
ON_DEMAND = {
    "energies": _energies,
    "born_charges": _born_charges,
    "electronic_polarizability": _polarizability,
    "electronic_permittivity": _permittivity,
}
