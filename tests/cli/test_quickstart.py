"""The quickstart, end to end with one epoch, and its data."""

import csv

import numpy as np
import pytest
from ase.io import read, write

from mace_polmp.cli import quickstart
from mace_polmp.cli.main import main
from mace_polmp.cli.quickstart import data_file

pytestmark = pytest.mark.usefixtures("clean_state")


def gap(atoms, n_first):
    a, b = atoms.positions[:n_first], atoms.positions[n_first:]
    return np.linalg.norm(a[:, None] - b[None], axis=-1).min()


@pytest.mark.parametrize("family", ["chloride", "water_ions"])
def test_held_out_dimers_lie_beyond_training_and_the_networks_reach(family):
    train = [a.info["gap"] for a in read(data_file("train", family), ":") if "gap" in a.info]
    far = [a.info["gap"] for a in read(data_file("far", family), ":")]
    assert len(train) > 100 and len(far) >= 40
    assert max(train) <= 6.0 and min(far) > 8.0  # 2 layers of 4 Å
    for atoms in read(data_file("curves", family), ":"):
        assert gap(atoms, atoms.info["n_first"]) == pytest.approx(
            atoms.info["gap"], abs=2e-4
        )  # positions have four decimals


def test_reference_curves_end_as_point_charges():
    """Two ions of charge +1: the interaction falls as 14.4 eV Å/r."""
    curve = [a for a in read(data_file("curves"), ":") if "Na(H2O)2+" in a.info["curve"]]
    for atoms in curve[-3:]:
        ions = atoms.positions[atoms.numbers == 11]
        coulomb = 14.3996 / np.linalg.norm(ions[0] - ions[1])
        assert atoms.info["REF_interaction"] == pytest.approx(coulomb, abs=0.06)


def test_curves_of_the_quickstart_begin_at_contact():
    first: dict[str, float] = {}
    for atoms in read(data_file("curves", "chloride"), ":"):
        first.setdefault(atoms.info["curve"], atoms.info["gap"])
    assert len(first) == 3 and max(first.values()) < 3.0  # Å


def test_an_ion_and_a_molecule_end_as_charge_and_dipole():
    """Water turned round has the energy of the other sign, −q μ/(4π eps0 r²) far away."""
    ends = {}
    for name in ("Cl- ... HOH", "Cl- ... OH2"):
        curve = [a for a in read(data_file("curves", "chloride"), ":") if a.info["curve"] == name]
        dipole = curve[-1].info["REF_dipole"] + curve[-1].positions[0]  # less that of Cl−
        distance = curve[-1].positions[1:].mean(0)[2] - curve[-1].positions[0, 2]
        ends[name] = curve[-1].info["REF_interaction"]
        coulomb = 14.3996 * dipole[2] / distance**2
        assert ends[name] == pytest.approx(coulomb, rel=0.1)
    assert ends["Cl- ... HOH"] < -0.02 and ends["Cl- ... OH2"] > 0.02


def test_quickstart_end_to_end(tmp_path, capsys, monkeypatch):
    """On a part of the data."""
    for name, every in (("train", 10), ("valid", 8), ("far", 8), ("curves", 3)):
        write(tmp_path / f"{name}.xyz", read(data_file(name, "chloride"), f"::{every}"))
    monkeypatch.setattr(quickstart, "data_file", lambda name, _: tmp_path / f"{name}.xyz")
    arguments = ["quickstart", f"--output={tmp_path}", "--epochs=1", "--md_steps=10"]
    main(arguments)
    printed = capsys.readouterr().out
    assert "held out, gaps 8.5-14 Å" in printed and "drift" in printed
    rows = list(csv.DictReader((tmp_path / "errors.csv").open()))
    assert len(rows) == 6 and all(float(row["multipole"]) > 0 for row in rows)
    curves = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert len(curves) == len(read(tmp_path / "curves.xyz", ":"))
    # Beyond the cutoff a short-range model sees two separate fragments.
    flat = [float(row["short_range"]) for row in curves if float(row["gap_A"]) > 4.0]
    assert np.abs(flat).max() < 1e-3
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    written = (tmp_path / "multipole.model").stat().st_mtime
    main(arguments)  # finished trainings are kept
    assert (tmp_path / "multipole.model").stat().st_mtime == written


def test_bad_arguments(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", "--epochs=0"])
    assert stopped.value.code == 1
    assert "--epochs and --md_steps must be at least 1" in capsys.readouterr().err
