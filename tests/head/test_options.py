"""Options refuse what is not valid and name the nearest valid value."""

import pytest

from mace_polmp.errors import InputError
from mace_polmp.head import LongRangeOptions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(multipole_lmax=3), "multipole_lmax must be one of 0, 1, 2, got 3"),
        (dict(multipole_lmax=True), "multipole_lmax must be one of 0, 1, 2, got True"),
        (dict(induced="dipol"), "got 'dipol'; did you mean dipole?"),
        (dict(polarizability="tensor"), "must be one of isotropic, anisotropic"),
        (dict(smearing=0.0), "smearing must be a positive length in Å, got 0.0"),
        (dict(kspace_spacing=float("nan")), "kspace_spacing must be a positive length"),
        (dict(conserve_charge="yes"), "conserve_charge must be true or false"),
        (dict(self_interaction=1), "self_interaction must be true or false, got 1"),
        (dict(layer_hidden=-1), "layer_hidden must be a whole number up to 4096, got -1"),
        (dict(charge_readout="layer"), "got 'layer'; did you mean layers?"),
        (dict(mesh_accuracy=0.0), "mesh_accuracy must be a positive number"),
        (dict(mesh_accuracy=1e-12), "mesh_accuracy must be at least"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        LongRangeOptions(**settings)


def test_what_is_induced():
    induced = {
        name: (o.induces_charges, o.induces_dipoles)
        for name in ("none", "charge", "dipole", "both")
        for o in [LongRangeOptions(induced=name)]
    }
    assert induced == {
        "none": (False, False),
        "charge": (True, False),
        "dipole": (False, True),
        "both": (True, True),
    }
    along_edges = {
        name: (o.induces_charges, o.induces_bonds, o.induces_dipoles, o.is_polarizable)
        for name in ("dipole", "bond", "bond_dipole", "none")
        for o in [LongRangeOptions(induced=name, charge_readout="bond")]
    }
    assert along_edges == {
        "dipole": (False, False, True, True),
        "bond": (False, True, False, True),
        "bond_dipole": (False, True, True, True),
        "none": (False, False, False, False),
    }
