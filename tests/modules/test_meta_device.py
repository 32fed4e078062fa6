"""On torch's `meta` device: tensors of two devices do not meet, which no CPU would notice.

Tensors there have a shape, a type and a device, and no numbers. An operation on one of them and one
on the CPU is an error, as it is between a GPU and the CPU. What is decided by numbers, such as the
solver and the number of wave vectors, is decided on the CPU here.
"""

import pytest
import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, Plan
from mace_polmp.modules import LongRangeOptions
from mace_polmp.training.loss import squared_errors
from tests.helpers import make_batch, random_model, rock_salt, salty_water, wet_slab
from tests.training.test_labels import WEIGHTS, graph, labelled

CASES = {
    "open": ([salty_water()] * 2, dict(polarizability="anisotropic"), {}),
    "periodic": ([rock_salt(), rock_salt()], dict(constrain_charge="softness"), {}),
    "mesh": ([rock_salt().repeat(2)], dict(long_range_solver="mesh"), {}),
    "slab": ([wet_slab()], dict(conserve_charge=True), {}),
    "mixed": ([salty_water(), wet_slab(), rock_salt()], dict(epsilon_infinity="learn"), {}),
    "scalars": (
        [rock_salt()],
        dict(constrain_charge="uniform"),
        dict(num_interactions=1, hidden_irreps="8x0e"),
    ),
}


def on_meta(data):
    return {k: v.to("meta") if torch.is_tensor(v) else v for k, v in data.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_nothing_stays_on_the_cpu(name, dtype):
    structures, options, backbone = CASES[name]
    model = random_model(LongRangeOptions(**options), **backbone).to(dtype)
    data = make_batch(structures, model)
    shape = model.electrostatics.plan_of(
        data["cell"].view(-1, 3, 3), data["pbc"].view(-1, 3), data["batch"]
    ).shape
    plan = Plan.of(shape, data["batch"].to("meta"))
    model, data = model.to("meta"), on_meta(data) | {"plan": plan}
    out = model(data, compute_stress=True, training=True)
    places = {key: value.device.type for key, value in out.items() if torch.is_tensor(value)}
    assert set(places.values()) == {"meta"}, places
    assert {"energy", "forces", "stress", "charges", "dipole"} <= set(places)
    (out["forces"].square().sum() + out["energy"].sum()).backward()
    gradients = [p.grad for p in model.multipole_readouts.parameters() if p.grad is not None]
    assert gradients and {g.device.type for g in gradients} == {"meta"}


def test_errors_of_labels_stay_there():
    """What the loss adds to upstream's, with weights of structures and labels."""
    from mace.tools import torch_geometric

    model = random_model()
    graphs = [graph(labelled(salty_water(), seed), model) for seed in (1, 2)]
    batch = torch_geometric.Batch.from_data_list(graphs).to("meta")
    shapes = dict(dipole=(2, 3), polarizability=(2, 3, 3), charges=(16,), born_charges=(16, 3, 3))
    output = {
        key: torch.zeros(shape, dtype=torch.float64, device="meta") for key, shape in shapes.items()
    }
    for name in WEIGHTS:
        found = squared_errors(batch, output, name)
        assert found.device.type == "meta" and found.dim() == 1, name


def test_mixed_devices_are_an_error():
    """Which is what makes the tests above mean something."""
    positions = torch.zeros(2, 3, device="meta")
    with pytest.raises(ValueError, match="cell is on cpu, positions on meta"):
        Electrostatics()(
            positions,
            torch.zeros(1, 3, 3),
            torch.zeros(1, 3, dtype=torch.bool),
            torch.zeros(2, dtype=torch.int64),
            Multipoles(torch.zeros(2)),
        )
