"""What a model gives besides energies and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_polmp.head import Edges, HeadOutput

# What calculators and files show of the model's electrical outputs: per atom or per structure,
# and the shape of one.
ELECTRICAL_OUTPUTS: dict[str, tuple[bool, tuple[int, ...]]] = {
    "charges": (True, ()),
    "atomic_dipoles": (True, (3,)),
    "atomic_quadrupoles": (True, (3, 3)),
    "atomic_polarizabilities": (True, (3, 3)),
    "dipole": (False, (3,)),
    "polarizability": (False, (3, 3)),
    "long_range_energy": (False, ()),
}


@dataclass(frozen=True, eq=False)
class BackboneOutput:
    """What the backbone gives of a batch.

    Attributes:
        energy, interaction_energy: [n_structures], eV, with and without atomic energies.
        node_feats: [n_atoms, n_features].
        edges: of the pass; None where there was none.
        outputs: upstream's dictionary.
    """

    energy: Tensor
    interaction_energy: Tensor
    node_feats: Tensor
    edges: Edges | None
    outputs: dict[str, Tensor | None]


def electrical_outputs(
    out: HeadOutput, with_polarizability: bool = True
) -> dict[str, Tensor | None]:
    """The outputs of forward that are not energies or their derivatives.

    Args:
        out: of the head.
        with_polarizability: False for None where it takes solving for a response.
    """
    spared = out.in_field is not None and not with_polarizability
    return {
        "charges": out.charges,
        "atomic_dipoles": out.atomic_dipoles,
        "atomic_quadrupoles": out.atomic_quadrupoles,
        "induced_charges": out.result.induced_charge,
        "induced_dipoles": out.result.induced_dipole,
        "softness": out.softness,
        "atomic_polarizabilities": out.atomic_polarizabilities,
        "dipole": out.dipole,
        "polarizability": None if spared else out.polarizability,
    }


def charges_of_place(model: Any, charges: Tensor, numbers: Any) -> Tensor:
    """By how much the dipole changes where atoms are put elsewhere, per Å of each, [n_atoms], e.

    Their charges, if moves are by lattice vectors or of the structure as a whole. What moves along
    edges has a dipole that knows no place: there formal charges.

    Args:
        model: a MultipoleMACE.
        charges: [n_atoms], e, of its outputs.
        numbers: [n_atoms], atomic numbers.
    """
    readouts = model.multipole_readouts
    if not readouts.has_bonds:
        return charges
    known = readouts.atomic_numbers
    species = [known.index(int(z)) for z in numbers]
    formal: Tensor = readouts.formal[torch.tensor(species, dtype=torch.int64).to(charges.device)]
    return formal.to(charges)
