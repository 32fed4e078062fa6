"""Processes that share a structure find what one process finds, to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import make_calculator
from tests.parallel.cases import CASES, charge_of, field_of

pytestmark = pytest.mark.slow  # all cases run in one call of several processes
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[4])
def parts(request, tmp_path_factory):
    """Of each case what the processes wrote, by rank."""
    n_ranks, folder = request.param, tmp_path_factory.mktemp("parts")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.parallel.worker", str(n_ranks), str(folder)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return {
        name: [np.load(folder / f"{name}_{n_ranks}_{rank}.npz") for rank in range(n_ranks)]
        for name in CASES
    }


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_one_process_finds(parts, name):
    atoms, model, settings = CASES[name].make()
    atoms.info["total_charge"] = charge_of(settings)
    calculator = make_calculator(models=model)
    if field_of(settings).any():
        calculator.external_field = field_of(settings)
    atoms.calc = calculator
    forces = atoms.get_forces()
    results = calculator.results
    assert sorted(np.concatenate([part["own"] for part in parts[name]])) == list(range(len(atoms)))
    for part in parts[name]:
        assert float(part["energy"]) == pytest.approx(results["energy"], abs=1e-9, rel=1e-12)
        assert float(part["long_range_energy"]) == pytest.approx(
            results["long_range_energy"], abs=1e-10, rel=1e-10
        )
        own, scale = part["own"], np.abs(forces).max()
        np.testing.assert_allclose(part["forces"], forces[own], atol=1e-10 * scale)
        np.testing.assert_allclose(part["charges"], results["charges"][own], atol=1e-11)
        np.testing.assert_allclose(
            part["atomic_dipoles"], results["atomic_dipoles"][own], atol=1e-11
        )
        if not field_of(settings).any():
            energies = atoms.get_potential_energies()[own]
            np.testing.assert_allclose(part["energies"], energies, atol=1e-9, rtol=1e-12)
        np.testing.assert_allclose(part["dipole"], results["dipole"], atol=1e-9)
        if atoms.pbc.any():
            virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
            np.testing.assert_allclose(part["virial"], virial, atol=1e-10 * np.abs(virial).max())
