"""The benchmark of crystals: both trainings on labels that whole ionic charges have."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

import crystals as script

from mace_polmp.units import EPS0
from tests.cli.runs import periodic_frames

pytestmark = pytest.mark.slow
SMALL = ("--num_channels=4", "--max_L=0", "--max_ell=1", "--correlation=1", "--r_max=3.5")
ALONE = ("--formal_charges=Na:1,Cl:-1", "--epsilon_infinity=2", "--max_num_epochs=1")


def labelled(n_frames):
    """Rattled NaCl of ions of one charge each in a medium with ε∞ = 2."""
    frames = periodic_frames(n_frames)
    random = np.random.default_rng(1)
    for atoms in frames:
        charges = np.select([atoms.numbers == 11, atoms.numbers == 17], [1.0, -1.0])
        atoms.info["REF_polarization"] = charges @ atoms.positions
        atoms.info["REF_polarizability"] = EPS0 * atoms.get_volume() * np.eye(3).reshape(-1)
        born = charges[:, None, None] * np.eye(3) + 0.01 * random.normal(size=(len(atoms), 3, 3))
        atoms.arrays["REF_born_charges"] = (born - born.mean(0)).reshape(-1, 9)
    return frames


@pytest.mark.usefixtures("clean_state")
def test_both_trainings(tmp_path, monkeypatch, capsys):
    write(tmp_path / "sio2.xyz", labelled(10), format="extxyz")
    crystal = script.Crystal(2, 1, (*SMALL, *ALONE), ("--lr=1e-4", "--max_num_epochs=1"))
    monkeypatch.setattr(script, "CRYSTALS", {"sio2": crystal})
    output = tmp_path / "out"
    arguments = [f"--data_dir={tmp_path}", "--crystals", "sio2", f"--output={output}", "--test"]
    monkeypatch.setattr(sys, "argv", ["crystals.py", *arguments])
    script.main()
    counts = {name: len(read(output / "sio2" / f"{name}.xyz", ":")) for name in ("train", "test")}
    assert counts == {"train": 6, "test": 2}
    tenth = read(output / "sio2" / "tenth.xyz", ":")
    assert sum("REF_born_charges" in atoms.arrays for atoms in tenth) == 1
    rows = {row["training"]: row for row in csv.DictReader((output / "errors.csv").open())}
    assert set(rows) == {"alone", "tenth"}
    for row in rows.values():
        # Charges of the ions are there before the first epoch; a few steps hardly change them.
        assert float(row["Born charges R2"]) > 0.9
        assert float(row["slope"]) == pytest.approx(1.0, abs=0.1)
        assert float(row["permittivity, mean error / %"]) < 0.1
    written = (output / "sio2" / "tenth" / "m.model").stat().st_mtime
    script.main()  # what is done is not repeated
    assert (output / "sio2" / "tenth" / "m.model").stat().st_mtime == written
    assert "training, its output is in" in capsys.readouterr().out
