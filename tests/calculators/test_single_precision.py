"""Single precision loses what its 24 bits cannot hold, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from ase.build import make_supercell

from mace_polmp.modules.io import write_model
from tests.helpers import make_calculator, random_model, rock_salt, salty_water, wet_slab

pytestmark = pytest.mark.usefixtures("device")


def calculators(model):
    """In double and in single precision."""
    return (
        make_calculator(models=copy.deepcopy(model), default_dtype="float64"),
        make_calculator(models=copy.deepcopy(model), default_dtype="float32"),
    )


@pytest.mark.parametrize("structure", [salty_water, rock_salt, wet_slab])
@pytest.mark.usefixtures("double")
def test_torchs_default_dtype_does_not_matter(structure):
    double, single = calculators(random_model())
    for name, digits in (("energy", 1e-4), ("forces", 1e-4), ("dipole", 1e-4)):
        torch.set_default_dtype(torch.float64)
        expected = double.get_property(name, structure())
        torch.set_default_dtype(torch.float64)
        found = single.get_property(name, structure())
        np.testing.assert_allclose(found, expected, atol=digits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("structure", [salty_water, rock_salt, wet_slab])
def test_where_a_structure_is_does_not_matter(structure, dtype):
    """10⁴ Å from the origin a coordinate in single precision has steps of 0.001 Å."""
    calculator = calculators(random_model())[dtype == "float32"]
    atoms = structure()
    far = structure()
    shift = np.array([1e4, -2e4, 3e4])
    far.positions += shift
    for name in ("energy", "forces", "charges", "atomic_dipoles"):
        found, expected = (calculator.get_property(name, a) for a in (far, atoms))
        np.testing.assert_allclose(found, expected, atol=2e-5 if dtype == "float32" else 1e-7)
    if structure is salty_water:  # its dipole is that about the origin
        moved = calculator.get_property("dipole", atoms)
        charges = calculator.get_property("charges", atoms)
        moved = moved + charges.astype(float).sum() * shift
        found = calculator.get_property("dipole", far)
        np.testing.assert_allclose(found, moved, atol=2e-2 if dtype == "float32" else 1e-6)


def test_large_total_energies_keep_their_digits():
    """Of −1.6 million eV single precision holds steps of 0.125 eV."""
    model = random_model()
    energies = model.atomic_energies_fn.atomic_energies
    energies -= 20000.0
    double, single = calculators(model)
    atoms = make_supercell(rock_salt(), np.diag([2, 2, 1]))
    expected = double.get_property("energy", atoms)
    assert expected < -6e5
    assert single.get_property("energy", atoms) == pytest.approx(expected, abs=1e-3)


def test_files_in_single_precision_keep_the_digits_of_atomic_energies(tmp_path):
    model = random_model()
    energies = model.atomic_energies_fn.atomic_energies
    energies -= 20000.123456
    expected = make_calculator(models=model).get_property("energy", salty_water())
    for name in ("m.model", "m.safetensors"):
        write_model(copy.deepcopy(model).float(), tmp_path / name)
        again = make_calculator(tmp_path / name)
        assert again.get_property("energy", salty_water()) == pytest.approx(expected, abs=1e-4)
    energies += 1.0  # atomic energies that were changed are those that count
    changed = make_calculator(models=model.float()).get_property("energy", salty_water())
    assert changed == pytest.approx(expected + 8.0, abs=1e-2)
