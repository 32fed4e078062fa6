"""With bond charges a structure has the charge of its atoms: what does not fit is refused."""

import numpy as np
import pytest
from ase import Atoms

from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.training.bonds import check_bonds
from mace_polmp.training.options import TrainingOptions
from tests.helpers import rock_salt, salty_water, wet_slab

IONS = "Na:1,Cl:-1"
WATER = "H:1,O:-2,Na:1,Cl:-1"


def check(formal, *frames, foundation=(False, False), epsilon=1.0, **training):
    options = LongRangeOptions(
        charge_readout="bond", induced="none", formal_charges=formal, epsilon_infinity=epsilon
    )
    elements = {int(z) for atoms in frames for z in atoms.numbers}
    data = {"train.xyz": list(frames)}
    check_bonds(options, TrainingOptions(**training), *foundation, data, elements)


def charged(atoms, charge):
    atoms.info["total_charge"] = charge
    return atoms


def polarized(atoms, **more):
    atoms.info.update(REF_polarization=[0.1, 0.2, 0.3], **more)
    return atoms


def with_label(name):
    """H3O+ with a label."""
    atoms = charged(Atoms("H3O", [[0, 0, k] for k in range(4)]), 1.0)
    values = {"dipole": np.zeros(3), "born_charges": np.zeros((4, 9)), "charges": np.zeros(4)}
    place = atoms.info if name == "dipole" else atoms.arrays
    place[f"REF_{name}"] = values[name]
    return atoms


def slab_of_an_ion():
    slab = wet_slab()
    del slab[[number == 17 for number in slab.numbers]]
    return slab


def test_what_fits_passes():
    neutral = [rock_salt(), salty_water(), wet_slab(), Atoms("Na", info={"charge": 1.0})]
    for formal in ("", IONS):
        check(formal, *neutral[:3])
    check(WATER, *neutral)
    hydronium, hydroxide = Atoms("H3O", [[0, 0, k] for k in range(4)]), Atoms("HO")
    check(WATER, charged(hydronium, 1.0), charged(hydroxide, -1.0), *neutral)
    # An open structure that says nothing has the charge of its atoms.
    check("H:1,O:-2", Atoms("H3O", hydronium.positions))
    check(IONS, rock_salt(), foundation=(True, True))
    check("", rock_salt(), foundation=(True, False))
    used = dict(epsilon=2.0, polarization_weight=1.0)
    check(IONS, polarized(rock_salt()), polarized(wet_slab(), config_polarization_weight=0), **used)
    check(IONS, polarized(wet_slab()), polarization_weight=1.0)
    check("", polarized(wet_slab()), **used)
    check("H:1,O:-2", with_label("charges"), charges_weight=1.0)
    atom = Atoms("H", info={"config_type": "IsolatedAtom", "REF_dipole": [0.0, 0.0, 0.0]})
    check("H:1,O:-2", with_label("charges"), atom, epsilon=2.0, dipole_weight=1.0)
    check("H:1,O:-2", with_label("charges"), epsilon=2.0, dipole_weight=1.0)


@pytest.mark.parametrize(
    ("formal", "frames", "more", "message"),
    [
        ("", [rock_salt], dict(total_charge_weight=1.0), "--total_charge_weight does not go with"),
        (IONS, [rock_salt], dict(foundation=(True, False)), "a new head has to start small"),
        (IONS + ",K:1", [rock_salt], {}, "no structure has K"),
        ("Na:1,Cl:-2", [rock_salt], {}, "formal charges sum to -4 e, and it is a periodic one"),
        (IONS, [rock_salt, slab_of_an_ion], {}, "frame 1: formal charges sum to 1 e, and it is a"),
        (
            IONS,
            [lambda: polarized(wet_slab())],
            dict(epsilon=2.0, polarization_weight=1.0),
            "frame 0: has a label of polarization and is a slab, .* --epsilon_infinity 1, got 2",
        ),
        *(
            (
                "H:1,O:-2",
                [lambda n=name: with_label(n)],
                {"epsilon": 2.0, f"{name}_weight": 1.0},
                said,
            )
            for name in ("dipole", "born_charges", "charges")
            for said in [f"label of {name.replace('_', ' ')} and is an open structure of 1 e"]
        ),
        ("", [lambda: charged(salty_water(), -1.0)], {}, "sum to 0 e, and the total charge 'total"),
    ],
)
def test_refusals(formal, frames, more, message):
    with pytest.raises(InputError, match=message):
        check(formal, *(make() for make in frames), **more)
