"""Imports go one way, the rooms with fewer needs import without the others, files are short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "mace_polmp"
# From the ground up: a room may import those before it, and those of its own floor that are named.
FLOORS = (
    ("units", "unit_names", "errors", "repeatable", "quiet"),
    ("files", "reading", "quantities", "extended_xyz", "branches"),
    ("electrostatics",),
    ("head",),
    ("structures", "labels"),
    ("modules",),
    ("upstream", "analysis", "parallel"),
    ("training", "calculators"),
    ("simulation", "interfaces"),
    ("cli", "data"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# By room, packages that it must work without.
WITHOUT = {
    "electrostatics": ("mace", "e3nn", "ase", "matplotlib"),
    "head": ("mace", "ase", "matplotlib", "matscipy"),
    "analysis.correlation": ("torch", "mace", "e3nn"),
}


def imports_of(path):
    """Modules of the package that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
            if node.module == "mace_polmp":
                names = [f"mace_polmp.{a.name}" for a in node.names if a.name[0] != "_"]
        yield from (name.split(".")[1:] for name in names if name.startswith("mace_polmp."))


def room_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in ROOT.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR), sorted(rooms - set(FLOOR))


@pytest.mark.parametrize("room", FLOOR)
def test_imports_go_down(room):
    upwards = [
        f"{path.relative_to(ROOT)} imports {'.'.join(parts)}"
        for path in ROOT.rglob("*.py")
        if room_of(path) == room
        for parts in imports_of(path)
        if FLOOR[parts[0]] > FLOOR[room]
    ]
    assert not upwards


@pytest.mark.parametrize("room", WITHOUT)
def test_a_room_needs_no_more_than_it_says(room):
    code = (
        f"import sys, mace_polmp.{room}\n"
        f"found = [name for name in {WITHOUT[room]!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_head_works_without_mace():
    """From features of any network: energies and forces."""
    code = """
import sys
for name in ("mace", "ase"): sys.modules[name] = None
import torch
from mace_polmp.head import Edges, HeadInput, LongRangeHead
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
head = LongRangeHead(None, ["6x0e"], [1, 8], n_radial=4, avg_num_neighbors=3.0, cutoff=5.0)
x = torch.randn(3, 3, requires_grad=True)
index = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
vectors = x[index[1]] - x[index[0]]
radial = torch.exp(-vectors.norm(dim=1, keepdim=True) * torch.arange(1, 5))
batch = torch.zeros(3, dtype=torch.int64)
features = torch.zeros(3, 6).index_add(0, index[1], radial.repeat(1, 2)[:, :6])
out = head(HeadInput(x, torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.bool), batch,
                     features, torch.eye(2)[[1, 0, 0]], Edges(index, vectors, radial)))
(gradient,) = torch.autograd.grad(out.energy.sum(), x)
assert gradient.sum(0).abs().max() < 1e-10 < gradient.abs().max()
assert out.charges.shape == (3,) and out.polarizability.shape == (1, 3, 3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_file_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert not {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 400}
