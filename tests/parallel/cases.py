"""Structures and models that processes share in the tests."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mace_polmp.head import LongRangeOptions
from tests.helpers import random_model, rock_salt, salty_water, wet_slab


@dataclass(frozen=True)
class Case:
    """make() gives atoms, model and settings of SharedModel; empty: processes without atoms."""

    make: Callable
    empty: int = 0


def _shuffled(atoms):
    atoms.rattle(0.05, seed=3)
    return atoms


def _small_cell():
    """Smaller than the cutoff, with two periodic images of a neighbour."""
    atoms = rock_salt("triclinic")
    atoms.set_cell(atoms.cell * 0.75, scale_atoms=True)
    return _shuffled(atoms)


def _tall(atoms):
    atoms.cell[2] *= 3.0
    return _shuffled(atoms)


def model(solver="auto", dtype=None, **options):
    found = random_model(LongRangeOptions(**options))
    found.electrostatics.solver = solver
    return found if dtype is None else found.to(dtype)


def bonds(solver="auto", **options):
    found = model(solver, **{"charge_readout": "bond", "induced": "dipole", **options})
    found.multipole_readouts.transfer.rescale(20.0)
    return found


def soft_bonds(solver="auto", **options):
    """With charges that are induced along bonds, across the borders of processes."""
    found = bonds(solver, **{"induced": "bond_dipole", **options})
    with torch.no_grad():
        found.multipole_readouts.bond_softness.radial[2] += 4.0
    return found


ITERATED = dict(response="self_consistent", polarizability="anisotropic")

CASES = {
    "direct": Case(lambda: (_shuffled(rock_salt()), model("ewald"), {})),
    "mesh": Case(
        lambda: (_shuffled(rock_salt() * (2, 2, 2)), model("mesh", charge_readout="transfer"), {})
    ),
    "triclinic": Case(
        lambda: (
            _shuffled(rock_salt("triclinic")),
            model("ewald", constrain_charge="softness", conserve_charge=True),
            {},
        )
    ),
    "small": Case(lambda: (_small_cell(), model("ewald"), {})),
    "empty": Case(
        lambda: (
            _tall(salty_water(periodic=True)),
            model("ewald", constrain_charge="uniform"),
            {"total_charge": 1.0},
        ),
        empty=1,
    ),
    "slab": Case(lambda: (wet_slab(), model("ewald"), {"external_field": [0.0, 0.0, 0.02]})),
    "open": Case(
        lambda: (
            _shuffled(salty_water()),
            model(constrain_charge="softness"),
            {"total_charge": -1.0, "external_field": [0.01, 0.0, -0.02]},
        )
    ),
    "layers": Case(
        lambda: (
            _shuffled(rock_salt()),
            model("ewald", charge_readout="layers", self_interaction=True),
            {},
        )
    ),
    "open layers": Case(
        lambda: (
            _shuffled(salty_water()),
            model(charge_readout="layers", self_interaction=True),
            {},
        )
    ),
    "bonds": Case(
        lambda: (
            _shuffled(rock_salt("triclinic")),
            bonds("ewald", epsilon_infinity=2.0),
            {"external_field": [0.05, -0.03, 0.08]},
        )
    ),
    "slab of bonds": Case(
        lambda: (wet_slab(), bonds("ewald"), {"external_field": [0.05, -0.03, 0.02]}), empty=1
    ),
    "open bonds": Case(
        lambda: (_shuffled(salty_water()), bonds(), {"external_field": [0.05, -0.03, 0.02]})
    ),
    "induced bonds": Case(
        lambda: (
            _shuffled(rock_salt("triclinic")),
            soft_bonds("ewald", epsilon_infinity=2.0),
            {"external_field": [0.05, -0.03, 0.08]},
        )
    ),
    "induced bonds of a slab": Case(
        lambda: (wet_slab(), soft_bonds("ewald", induced="bond"), {}), empty=1
    ),
    "induced bonds, open": Case(
        lambda: (_shuffled(salty_water()), soft_bonds(), {"external_field": [0.05, -0.03, 0.02]})
    ),
    "induced bonds, open and empty": Case(
        lambda: (_shuffled(salty_water()), soft_bonds(), {}), empty=1
    ),
    "self-consistent bonds": Case(
        lambda: (
            _shuffled(rock_salt("triclinic")),
            soft_bonds("ewald", response="self_consistent", polarizability="anisotropic"),
            {"external_field": [0.05, -0.03, 0.08]},
        ),
        empty=1,
    ),
    "self-consistent bonds, open": Case(
        lambda: (
            _shuffled(salty_water()),
            soft_bonds(response="self_consistent"),
            {"external_field": [0.05, -0.03, 0.02]},
        )
    ),
    "open empty": Case(lambda: (_shuffled(salty_water()), model(), {}), empty=1),
    "self-consistent": Case(
        lambda: (_shuffled(rock_salt("triclinic")), model("ewald", **ITERATED), {}), empty=1
    ),
    "self-consistent mesh": Case(
        lambda: (
            _shuffled(rock_salt() * (2, 2, 2)),
            model("mesh", conserve_charge=True, **ITERATED),
            {},
        )
    ),
    "self-consistent slab": Case(
        lambda: (wet_slab(), model("ewald", **ITERATED), {"external_field": [0.0, 0.0, 0.02]})
    ),
    "self-consistent open": Case(
        lambda: (
            _shuffled(salty_water()),
            model(constrain_charge="softness", **ITERATED),
            {"external_field": [0.01, 0.0, -0.02]},
        )
    ),
}


def charge_of(settings):
    return float(settings.get("total_charge", 0.0))


def field_of(settings):
    return np.asarray(settings.get("external_field", [0.0, 0.0, 0.0]))
