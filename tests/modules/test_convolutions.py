"""Charges that move along edges: neutral molecules, smooth cutoffs, the same on any road."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from tests.helpers import backbone_settings, evaluate, random_model, rattled, salty_water

pytestmark = pytest.mark.usefixtures("device")


def only_transfer(**options) -> MultipoleMACE:
    """A random model whose charges are those that move along edges."""
    model = random_model(LongRangeOptions(multipole_lmax=0, induced="none", **options))
    readouts = model.multipole_readouts
    with torch.no_grad():
        for parameter in (readouts.network[-1].weight, readouts.network[-1].bias):
            parameter[0] = 0.0
        readouts.linear.weight[0] = 0.0
        readouts.element_bias[:, 0] = 0.0
    readouts.transfer.rescale(10.0)
    return model


def charges(model, atoms):
    return evaluate(model, atoms)["charges"].detach().numpy()


@pytest.mark.parametrize("distance", [30.0, 5.0])
def test_every_molecule_is_neutral_out_of_reach_of_others(distance):
    """Two waters; 30 Å apart each one's charges sum to zero, nearer only those of both."""
    first, second = rattled(molecule("H2O"), seed=1), rattled(molecule("H2O"), seed=2)
    second.translate([distance, 0, 0])
    found = charges(only_transfer(), first + second)
    assert np.abs(found).max() > 0.05
    assert abs(found.sum()) < 1e-12
    if distance == 30.0:
        assert np.abs(found[:3].sum()) < 1e-12


def test_periodic_cells_are_neutral():
    atoms = salty_water()
    atoms.pbc = True
    found = charges(only_transfer(), atoms)
    assert np.abs(found).max() > 0.05 and abs(found.sum()) < 1e-12


def test_charge_goes_to_the_more_electronegative_atom(device):
    torch.manual_seed(0)
    options = LongRangeOptions(multipole_lmax=0, induced="none")
    model = MultipoleMACE(long_range=options, **backbone_settings()).double().to(device)
    water = charges(model, molecule("H2O"))
    assert water[0] < -0.1 and (water[1:] > 0.05).all()


def test_nothing_jumps_at_the_cutoff():
    """Charges and their slope vanish where atoms come into reach."""
    model = only_transfer()
    r_max = float(model.r_max)

    def charge(distance):
        return charges(model, Atoms("OH", [[0, 0, 0], [distance, 0, 0]]))[0]

    assert abs(charge(1.0)) > 0.05
    assert charge(r_max + 1e-3) == 0.0
    near = [abs(charge(r_max - gap)) for gap in (0.02, 0.01)]
    assert near[1] < near[0] < 1e-4  # a third power of the gap
    assert near[0] > 6.0 * near[1]


def test_one_readout_takes_over_the_charges_of_another():
    model, other = random_model(seed=7), random_model(seed=5)
    other.multipole_readouts.turn()
    expected = evaluate(other, salty_water())
    model.load_state_dict(other.state_dict())  # the same backbone
    with torch.no_grad():
        for parameter in model.head_parameters():
            parameter.normal_()
    model.multipole_readouts.orientation.fill_(1.0)
    model.multipole_readouts.take_over(other.multipole_readouts, other.atomic_numbers.tolist())
    found = evaluate(model, salty_water())
    for name in ("energy", "charges", "atomic_dipoles", "atomic_polarizabilities"):
        assert torch.allclose(found[name], expected[name], rtol=0, atol=1e-12), name
