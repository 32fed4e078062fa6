"""Golden numbers: made in float64 by nested automatic differentiation of the scalar kernel."""

import json
from pathlib import Path

import pytest
import torch

from tests.electrostatics.common import golden

pytestmark = pytest.mark.usefixtures("device")

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def evaluate(case, dtype):
    seen = golden(case, dtype)
    out, where = seen.out, [seen.positions, seen.strain]
    results = {
        "energy": out.energy[0],
        "energy_permanent": out.energy_permanent[0],
        "energy_induced_charge": out.energy_induced_charge[0],
        "energy_induced_dipole": out.energy_induced_dipole[0],
        "potential": out.potential,
        "field": out.field,
        "delta_q": out.induced_charge,
        "delta_mu": out.induced_dipole,
    }
    for suffix, energy in (("", out.energy), ("_permanent", out.energy_permanent)):
        gradient, virial = torch.autograd.grad(energy.sum(), where, retain_graph=True)
        results["forces" + suffix] = -gradient
        if seen.volume is not None:
            results["stress" + suffix] = seen.stress(virial)
    return {key: value.detach() for key, value in results.items()}


def test_constants_are_those_of_the_golden_numbers():
    from mace_polmp import units

    assert GOLDEN["eps0"] == units.EPS0
    assert pytest.approx(GOLDEN["coulomb_constant"], rel=1e-14) == units.COULOMB_CONSTANT


@pytest.mark.parametrize("name", CASES)
def test_float64_reproduces_the_golden_numbers(name):
    results = evaluate(CASES[name], torch.float64)
    expected = CASES[name]["expected"]
    assert set(expected) == set(results)
    for key, value in expected.items():
        reference = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(results[key], reference, atol=1e-9, rtol=0, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_float64(name):
    single, double = (evaluate(CASES[name], t) for t in (torch.float32, torch.float64))
    for key in ("energy", "forces"):
        error = (single[key].double() - double[key]).abs().max()
        assert error < 1e-5 * double[key].abs().max(), key
