"""The common sign of all multipoles: free in energies, physical in trained models."""

import numpy as np
import pytest
import torch

from mace_polmp.cli.run_train import main
from mace_polmp.head.electronegativity import electropositivity
from mace_polmp.modules import LongRangeOptions
from mace_polmp.modules.born_charges import born_charges
from mace_polmp.modules.io import load_model
from mace_polmp.training.orientation import Orientation, is_free
from tests.cli.runs import flags, open_frames, write_data
from tests.helpers import evaluate, make_batch, make_graphs, random_model, salty_water

EVERYTHING = LongRangeOptions(polarizability="anisotropic")


def test_energies_and_forces_do_not_know_the_sign():
    model = random_model(EVERYTHING)
    before = evaluate(model, salty_water())
    model.multipole_readouts.turn()
    after = evaluate(model, salty_water())
    for name in ("energy", "forces", "atomic_polarizabilities"):
        assert torch.allclose(before[name], after[name], rtol=0, atol=1e-12)
    for name in ("charges", "atomic_dipoles", "atomic_quadrupoles", "dipole"):
        assert before[name].abs().max() > 1e-4
        assert torch.allclose(before[name], -after[name], rtol=0, atol=1e-12)


def test_electronegative_elements_end_up_negative():
    model = random_model()
    orientation = Orientation(model, [make_batch([salty_water()], model)], "cpu")
    for sign in (1.0, -1.0):
        model.multipole_readouts.orientation.fill_(sign)
        orientation()
        assert model.multipole_readouts.orientation == 1.0


def agreement(charges, data, model):
    """How far electronegative elements are the negative ones."""
    scale = torch.tensor(electropositivity(model.atomic_numbers.tolist()))
    expected = scale.to(charges)[data["node_attrs"].argmax(-1)]
    return float((charges.detach() * (expected - expected.mean())).sum())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_born_charges_decide_where_dipoles_outweigh_charges(sign):
    model = random_model(seed=3)
    readouts = model.multipole_readouts
    with torch.no_grad():
        readouts.element_bias[:, 0] = 0.0
    readouts.orientation.fill_(sign)
    data = make_batch([salty_water()], model)
    Orientation(model, [data], "cpu")()
    assert agreement(born_charges(model, data).diagonal(dim1=-2, dim2=-1).sum(-1), data, model) > 0
    assert agreement(evaluate(model, salty_water())["charges"], data, model) < 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slabs_are_judged_by_their_latent_charges(sign):
    model = random_model()
    model.multipole_readouts.orientation.fill_(sign)
    slab = salty_water(periodic=True)
    slab.set_cell([9.0, 9.0, 30.0])
    slab.pbc = (True, True, False)
    data = make_batch([slab], model)
    Orientation(model, [data], "cpu")()
    assert agreement(evaluate(model, slab)["charges"], data, model) > 0


def test_charged_structures_fix_the_sign():
    neutral, charged = salty_water(), salty_water()
    charged.info["total_charge"] = 1.0
    free, bound = random_model(), random_model(LongRangeOptions(constrain_charge="uniform"))
    graphs = make_graphs([neutral, neutral], free)
    for graph, charge in zip(graphs, (0.0, 1.0), strict=True):
        graph.total_charge = torch.tensor(charge)
    assert is_free(free, [graphs]) and is_free(bound, [graphs[:1]])
    assert not is_free(bound, [graphs]) and not is_free(bound, [graphs[:1], graphs[1:]])


@pytest.mark.parametrize(
    ("labels", "charges", "free"),
    [
        ([], (0.0, 1.0), True),
        (["polarizability"], (0.0, 1.0), True),  # even in the multipoles, as energies are
        (["total_charge"], (0.0, 0.0), True),
        (["total_charge"], (0.0, 1.0), False),
        (["polarizability", "born_charges"], (0.0, 0.0), False),
        (["polarization"], (0.0, 0.0), False),
    ],
)
def test_labels_fix_the_sign_if_they_know_it(labels, charges, free):
    model = random_model()
    graphs = make_graphs([salty_water(), salty_water()], model)
    for graph, charge in zip(graphs, charges, strict=True):
        graph.total_charge = torch.tensor(charge)
    assert is_free(model, [graphs], labels) is free


@pytest.mark.usefixtures("clean_state")
@pytest.mark.parametrize("labels", [{}, {"dipole_weight": 1.0}])
def test_trained_models_have_the_physical_sign_unless_labels_say_otherwise(tmp_path, labels):
    frames = [atoms for atoms in open_frames(1400) if set(atoms.numbers) == {1, 8}][:12]
    assert len(frames) >= 8
    data = write_data(tmp_path, frames)

    def hydrogen_minus_oxygen(model):
        charges = evaluate(model, frames[0])["charges"].detach().numpy()
        return charges[frames[0].numbers == 1].mean() - charges[frames[0].numbers == 8].mean()

    main(flags(tmp_path, model="MultipoleMACE", train_file=data, max_num_epochs=1))
    model = load_model(tmp_path / "m.model")
    assert hydrogen_minus_oxygen(model) > 0
    model.multipole_readouts.turn()
    assert hydrogen_minus_oxygen(model) < 0
    torch.save(model, tmp_path / "turned.model")
    go_on = dict(foundation_model=tmp_path / "turned.model", multiheads_finetuning=False)
    go_on.update(E0s="foundation", lr=1e-6, max_num_epochs=1, **labels)
    main(flags(tmp_path, name="again", model="MultipoleMACE", train_file=data, **go_on))
    again = hydrogen_minus_oxygen(load_model(tmp_path / "again.model"))
    assert np.sign(again) == (-1 if labels else 1)
