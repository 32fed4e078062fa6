"""`mace_polmp demo`, and the packaged model under its name."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

import mace_polmp
from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.cli.demo import ion_cluster
from mace_polmp.cli.main import main
from mace_polmp.errors import InputError
from mace_polmp.simulation.temperature import draw_momenta


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_demo_end_to_end(tmp_path, capsys):
    main(["demo", f"--output={tmp_path / 'out'}", "--md_steps=40"])
    printed = capsys.readouterr().out
    assert "Born charges of H2O" in printed and "fluctuation of the total energy" in printed
    out = tmp_path / "out"
    for name in ("spectrum.png", "md.png"):
        assert (out / name).stat().st_size > 20_000
    # Vibrations are those of the method it learned from (the measured bend lies 56 cm⁻¹ away and
    # the antisymmetric stretch 105).
    water = [row for row in rows_of(out / "vibrations.csv") if row["molecule"] == "H2O"]
    difference = [float(row["model_cm-1"]) - float(row["gfn2_cm-1"]) for row in water]
    assert abs(difference[0]) < 15.0 and np.abs(difference).max() < 40.0
    bond = {row["quantity"]: row for row in rows_of(out / "hydrogen_bond.csv")}
    binding = bond["(H2O)2: binding energy / eV"]
    assert float(binding["model"]) == pytest.approx(float(binding["gfn2"]), abs=0.02)
    born = np.array([float(row["mean"]) for row in rows_of(out / "born_charges.csv")])
    assert born[0] < -0.3 and born[1] == pytest.approx(born[2], abs=1e-3)
    assert born.sum() == pytest.approx(0.0, abs=0.03)  # neutral, as learned from total charges
    total = np.array([float(row["total_eV"]) for row in rows_of(out / "md.csv")])
    assert len(total) == 20 and np.ptp(total) < 0.02  # eV of 10 atoms, with steps of 0.5 fs
    assert len(read(out / "md.traj", ":")) == 20


def test_the_name_demo_stands_for_the_packaged_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()  # the folder that `mace_polmp demo` writes
    model = mace_polmp.load_model("demo")
    assert model.long_range_options.constrain_charge == "none"
    atoms = molecule("H2O")
    atoms.calc = MultipoleMACECalculator("demo", default_dtype="float64")
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=0.02)  # as it has learned
    write("water.xyz", atoms, columns=["symbols", "positions"], write_results=False)
    main(["modes", "--model", "demo", "--structure", "water.xyz", "--relax", "0.001"])
    main(["info", "demo"])
    assert "H O Na Cl" in capsys.readouterr().out
    os.rmdir("demo")
    Path("demo").write_text("a file of that name comes first")
    with pytest.raises(InputError, match="demo: not a model file"):
        mace_polmp.load_model("demo")


def test_the_model_is_small_and_has_a_card():
    folder = Path(mace_polmp.__file__).parent / "data"
    assert (folder / "demo.safetensors").stat().st_size < 1.5e6
    card = (folder / "DEMO.md").read_text()
    assert "GFN2-xTB" in card and "Not for" in card and "MIT" in card


def test_ions_start_apart():
    atoms = ion_cluster()
    distances = atoms.get_all_distances() + 10.0 * np.eye(len(atoms))
    assert len(atoms) == 10 and distances.min() > 0.9


def test_liquid_water_stays_whole():
    """60 fs of 300 K dynamics of eight waters in a periodic cell, from a lattice."""
    length = (8 * 29.9) ** (1 / 3)  # Å, at 997 kg/m³
    rng = np.random.default_rng(2)
    atoms = Atoms(cell=[length] * 3, pbc=True)
    for place in np.ndindex(2, 2, 2):
        water = molecule("H2O")
        water.euler_rotate(*rng.uniform(0.0, 360.0, 3))
        water.positions += (np.array(place) + 0.5) * length / 2 - water.positions[0]
        atoms += water
    atoms.calc = MultipoleMACECalculator("demo", default_dtype="float32")
    FIRE(atoms, logfile=None).run(fmax=1.0, steps=50)
    draw_momenta(atoms, 300.0, rng)
    total = []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    for _ in range(6):
        dynamics.run(20)
        total.append(atoms.get_total_energy())
    distances = atoms.get_all_distances(mic=True)
    bonds = [distances[i, i + k] for i in range(0, 24, 3) for k in (1, 2)]
    assert min(bonds) > 0.85 and max(bonds) < 1.15  # about 0.96, vibrating
    oxygens = distances[::3, ::3] + 9.0 * np.eye(8)
    assert oxygens.min() > 2.3  # hydrogen bonds are 2.8 long
    assert np.ptp(total) / len(atoms) < 0.002  # eV


def test_bad_steps(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--md_steps=0"])
    assert "--md_steps must be at least 1, got 0" in capsys.readouterr().err
