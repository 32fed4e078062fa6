"""Starting from a trained model: nothing is lost and nothing jumps."""

import copy

import numpy as np
import pytest
import torch

from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions, MultipoleMACE
from mace_polmp.training.fine_tuning import (
    Growth,
    check_carried_over,
    check_cutoff,
    inherit,
    start_from,
    start_small,
)
from tests.helpers import make_batch, random_model, rattled, rock_salt, salty_water, wet_slab

STRUCTURES = [salty_water(), rock_salt(), wet_slab(), rattled(salty_water(), 3, 0.05)]


def batches(model):
    return [make_batch([atoms], model) for atoms in STRUCTURES]


def on_backbone_of(model, options, seed=1):
    """Another head on the same backbone."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        return MultipoleMACE.from_mace(model.short_range(), options)
    finally:
        torch.set_default_dtype(previous)


def differences(first, second):
    """Largest differences of energies per atom and forces."""
    energy = force = 0.0
    for data in batches(first):
        a, b = first(dict(data)), second(dict(data))
        n_atoms = len(data["positions"])
        energy = max(energy, float((a["energy"] - b["energy"]).abs().max().detach()) / n_atoms)
        force = max(force, float((a["forces"] - b["forces"]).abs().max()))
    return energy, force


@pytest.mark.parametrize("irreps", ["8x0e", "8x0e+8x1o"])
@pytest.mark.parametrize("charges", ["none", "softness"])
def test_a_new_head_starts_small_but_not_dead(irreps, charges):
    base = random_model(hidden_irreps=irreps)
    model = on_backbone_of(base, LongRangeOptions(constrain_charge=charges))
    start_small(model, batches(model))
    worst = 0.0
    for data in batches(model):
        long_range = model(data)["long_range_energy"].abs().max().item()
        worst = max(worst, long_range / len(data["positions"]))
    assert 1e-6 < worst < 1e-3
    energy, force = differences(model, base.short_range())
    assert energy < 1e-3 and force < 5e-3
    out = model(make_batch([salty_water()], model), training=True)
    slopes = torch.autograd.grad((out["forces"] ** 2).sum(), model.head_parameters())
    assert all(float(slope.abs().max()) > 0 for slope in slopes)


def test_a_new_head_starts_small_where_every_structure_is_charged():
    """What the total charges need is there from the start; the readouts add little to it."""
    model = on_backbone_of(random_model(), LongRangeOptions(constrain_charge="softness"))
    data = make_batch([salty_water()], model)
    charged = data | {"total_charge": torch.ones_like(data["total_charge"])}
    assert model(dict(data))["long_range_energy"].abs().item() > 1e-2
    start_small(model, [charged])
    assert model(dict(data))["long_range_energy"].abs().item() < 1e-3 * len(salty_water())
    assert model(dict(charged))["charges"].sum().item() == pytest.approx(1.0)


def test_a_head_that_started_small_grows_back():
    """Also where a training was interrupted on the way."""
    model = random_model(hidden_irreps="8x0e")
    data = make_batch([salty_water()], model)
    natural = model(dict(data))
    model.multipole_readouts.rescale(0.02)
    assert model(dict(data))["long_range_energy"].abs() < 1e-2
    first, second = Growth(model, 0.02, 10, 10), Growth(model, 0.02, 10, 6)
    for _ in range(4):
        first()
    for _ in range(20):
        second()
    grown = model(dict(data))
    for name in ("charges", "atomic_dipoles", "long_range_energy", "atomic_polarizabilities"):
        torch.testing.assert_close(grown[name], natural[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dict(multipole_lmax=0, induced="none"), dict(multipole_lmax=2, induced="both")),
        (dict(multipole_lmax=1, induced="dipole"), dict(polarizability="anisotropic")),
        (dict(multipole_lmax=1, induced="charge"), dict(multipole_lmax=2)),
        (
            dict(multipole_lmax=2, induced="none"),
            dict(induced="both", polarizability="anisotropic"),
        ),
        (dict(constrain_charge="softness", induced="none"), dict(induced="dipole")),
    ],
)
@pytest.mark.parametrize("irreps", ["8x0e", "8x0e+8x1o"])
def test_terms_are_added_without_a_jump(old, new, irreps):
    former = random_model(LongRangeOptions(**old), hidden_irreps=irreps)
    options = LongRangeOptions(**{**old, **new})
    model = on_backbone_of(former, options)
    assert differences(model, former)[1] > 0.1
    start_from(model, former, batches(model))
    energy, force = differences(model, former)
    assert energy < 1e-3 and force < 5e-3
    out = model(make_batch([salty_water()], model), training=True)
    slopes = torch.autograd.grad((out["forces"] ** 2).sum(), model.head_parameters())
    gates = model.multipole_readouts.network[-1].weight
    slope = dict(zip(map(id, model.head_parameters()), slopes, strict=True))[id(gates)]
    assert (slope.abs().amax(1) > 0).all()  # every output learns


def test_the_same_terms_give_the_same_model():
    former = random_model(LongRangeOptions(polarizability="anisotropic"))
    model = on_backbone_of(former, former.long_range_options)
    start_from(model, former, batches(model))
    energy, force = differences(model, former)
    assert energy < 1e-12 and force < 1e-12


def test_elements_are_filtered():
    """A head of fewer elements takes the right rows of the other."""
    former = random_model(elements=[1, 8, 11, 17])
    model = random_model(elements=[8, 17, 1][::-1])
    assert model.atomic_numbers.tolist() == [1, 17, 8]
    model.multipole_readouts.take_over(former.multipole_readouts, [1, 8, 11, 17])
    np.testing.assert_array_equal(
        model.multipole_readouts.element_bias.detach(),
        former.multipole_readouts.element_bias.detach()[[0, 3, 1]],
    )


def test_what_is_asked_for_is_inherited_or_refused():
    former = random_model(LongRangeOptions(multipole_lmax=1, induced="dipole", smearing=1.2))
    assert inherit({}, former) == former.long_range_options
    wider = inherit({"multipole_lmax": 2, "induced": "both"}, former)
    assert (wider.multipole_lmax, wider.induced, wider.smearing) == (2, "both", 1.2)
    assert inherit({"multipole_lmax": 0}, None).multipole_lmax == 0
    for asked, message in (
        ({"multipole_lmax": 0}, "--multipole_lmax 0: the foundation model has 1"),
        ({"induced": "charge"}, "--induced charge: the foundation model has dipole"),
        ({"smearing": 1.0}, "--smearing 1.0: the foundation model has 1.2"),
        ({"constrain_charge": "softness"}, "--constrain_charge softness: the foundation model"),
    ):
        with pytest.raises(InputError, match=message):
            inherit(asked, former)
    spread = random_model(LongRangeOptions(constrain_charge="softness", induced="none"))
    with pytest.raises(InputError, match="--induced both: the softness of the foundation model"):
        inherit({"induced": "both"}, spread)
    charges = random_model(LongRangeOptions(induced="charge"))
    with pytest.raises(InputError, match="--conserve_charge: .* without it"):
        inherit({"conserve_charge": True}, charges)
    options = LongRangeOptions(charge_readout="bond", induced="none", formal_charges="Na:1,Cl:-1")
    ions = random_model(options)
    with pytest.raises(InputError, match="--epsilon_infinity 4.0: the foundation model has 1.0"):
        inherit({"epsilon_infinity": 4.0}, ions)  # formal charges in the energy would be halved


def test_a_backbone_that_was_not_carried_over_is_refused():
    former = random_model().short_range()
    broken = copy.deepcopy(former)
    data = batches(former)
    check_carried_over(broken, former, data)
    with torch.no_grad():
        broken.products[0].linear.weight *= 3.0
    with pytest.raises(InputError, match="energies that differ by .* meV/atom"):
        check_carried_over(broken, former, data)


def test_the_cutoff_is_the_foundation_models():
    check_cutoff(4.0, random_model())
    with pytest.raises(InputError, match="--r_max 5: the foundation model has a cutoff of 4 Å"):
        check_cutoff(5.0, random_model())
