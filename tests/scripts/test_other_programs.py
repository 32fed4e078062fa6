"""The examples for i-PI and OpenMM run, and find what the calculator does."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from tests.helpers import make_calculator, random_model, rock_salt, salty_water

EXAMPLES = Path(__file__).parents[2] / "examples"


def _i_pi():
    """The command, of an installation or of a folder on the path."""
    if importlib.util.find_spec("ipi") is None:
        pytest.skip("needs i-PI")
    found = shutil.which("i-pi", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found:
        return [found]
    script = Path(importlib.util.find_spec("ipi").origin).parents[1] / "bin" / "i-pi"
    return [sys.executable, str(script)]


def test_path_integrals_of_eight_beads(tmp_path):
    command = _i_pi()
    model = random_model()
    torch.save(model, tmp_path / "m.model")
    atoms = salty_water()[:3]
    atoms.cell = [30.0] * 3  # i-PI wants one
    ase.io.write(tmp_path / "init.xyz", atoms)
    name = f"mace_polmp_{os.getpid()}"
    text = (EXAMPLES / "ipi" / "input.xml").read_text().replace("> water <", f"> {name} <")
    (tmp_path / "input.xml").write_text(text)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([*command, "input.xml"], cwd=tmp_path, env=env)
    try:
        for _ in range(3000):
            if Path(f"/tmp/ipi_{name}").exists():
                break
            time.sleep(0.1)
        arguments = ["--model", "m.model", "--structure", "init.xyz", "--socket", name]
        client = subprocess.run(
            [sys.executable, str(EXAMPLES / "ipi" / "client.py"), *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert server.wait(600) == 0, client.stderr
    finally:
        server.kill()
    rows = np.loadtxt(tmp_path / "pimd.out")
    assert len(rows) == 5
    assert np.ptp(rows[:, 2]) < 0.02  # the conserved energy, eV
    atoms.calc = make_calculator(models=model, default_dtype="float64")
    # At the start all beads are in one place.
    assert rows[0, 3] == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


@pytest.mark.parametrize("make", [rock_salt, salty_water])
def test_openmm(make):
    openmm = pytest.importorskip("openmm")
    spec = importlib.util.spec_from_file_location("run", EXAMPLES / "openmm" / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    atoms = make()
    atoms.calc = make_calculator(models=random_model(), default_dtype="float64")
    energy, forces = atoms.get_potential_energy(), atoms.get_forces().copy()
    start = atoms.positions.copy()
    context = openmm.Context(
        run.system_of(atoms),
        openmm.VerletIntegrator(0.0002),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(start / 10)
    state = context.getState(getEnergy=True, getForces=True)
    ev = run._kj_per_mol()
    assert state.getPotentialEnergy()._value / ev == pytest.approx(energy, abs=1e-7)
    found = state.getForces(asNumpy=True)._value / (10 * ev)
    np.testing.assert_allclose(found, forces, atol=1e-7)
    context.getIntegrator().step(2)
    assert not np.array_equal(atoms.positions, start)
