"""`mace_polmp phonons` as a user types it."""

import csv
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import write

from mace_polmp.cli.main import main
from mace_polmp.modules import LongRangeOptions
from tests.helpers import random_model, rock_salt

KINDS = {
    "bond": LongRangeOptions(
        charge_readout="bond", formal_charges="Na:1,Cl:-1", induced="none", epsilon_infinity=2.3
    ),
    "self-consistent": LongRangeOptions(
        induced="dipole", response="self_consistent", epsilon_infinity=1.5
    ),
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, options in KINDS.items():
        torch.save(random_model(options, num_interactions=1), f"{name}.model")
    write("crystal.xyz", rock_salt("triclinic"))
    write("nacl.xyz", bulk("NaCl", "rocksalt", a=5.63))
    return tmp_path


def phonons(model, structure, *more):
    main(["phonons", "--model", f"{model}.model", "--structure", structure, *more])


def rows_of(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


CASES = {
    "bond": ("bond", []),
    "chi": ("self-consistent", ["--divide_by_chi"]),
    "permittivity": ("self-consistent", ["--epsilon_infinity", "3"]),
}


@pytest.mark.parametrize("case", CASES)
def test_gamma_is_that_of_modes(files, capsys, case):
    """Of a crystal without symmetry: exact second derivatives, and the same longitudinal ones.

    Whatever the Born charges are multiplied with, the forces are the same, and so are the bands.
    """
    pytest.importorskip("phonopy")
    kind, options = CASES[case]
    along = ["--direction", "1", "0.5", "0"]
    more = ["--supercell", "1", "1", "1", "--path", "GX", "--distance", "0.005"]
    phonons(kind, "crystal.xyz", *along, *more, *options)
    said = capsys.readouterr().out
    assert "48 displacements in a supercell of 1 × 1 × 1, 8 atoms" in said
    gamma = rows_of("phonons_gamma.csv")
    main(["modes", "--model", f"{kind}.model", "--structure", "crystal.xyz", *along, *options])
    exact = rows_of("modes.csv")
    for name in ("frequency_cm-1", "frequency_along_1 0.5 0_cm-1"):
        # modes leaves translations out, which have no force but for the error of the differences
        found = np.delete(gamma[name], np.argsort(np.abs(gamma[name]))[:3])
        np.testing.assert_allclose(found, exact[name], atol=0.3)
    change = gamma["frequency_along_1 0.5 0_cm-1"] - gamma["frequency_cm-1"]
    assert change.max() > 5.0


def test_a_crystal_of_two_atoms(files, capsys):
    """Files, table and pictures, with a density of states that counts all six branches."""
    pytest.importorskip("phonopy")
    more = ["--supercell", "2", "2", "2", "--path", "GXW,GL", "--mesh", "4", "4", "4"]
    phonons("bond", "nacl.xyz", *more, "--output", "out/nacl")
    said = capsys.readouterr().out
    assert "2 displacements in a supercell of 2 × 2 × 2, 16 atoms" in said
    assert "permittivity that screens longitudinal vibrations: 2.300 2.300 2.300" in said
    assert "along 1,0,0" in said and "along 0,1,0" not in said  # a cubic crystal has one
    bands = rows_of("out/nacl.csv")
    assert {*bands["segment"]} == {0, 1, 2}
    gamma = rows_of("out/nacl_gamma.csv")
    longitudinal = gamma["frequency_along_1 0 0_cm-1"]
    start = [bands[f"frequency_{n}_cm-1"][0] for n in range(6)]  # at Γ along the first segment
    np.testing.assert_allclose(start, longitudinal, atol=0.01)
    states = rows_of("out/nacl_dos.csv")
    total = np.trapezoid(states["density_per_cm-1"], states["frequency_cm-1"])
    assert total == pytest.approx(6.0, rel=0.05)
    for ending in (".png", ".svg", "_band.yaml", "_phonopy.yaml"):
        assert (files / "out" / f"nacl{ending}").stat().st_size > 1000
    import phonopy

    again = phonopy.load("out/nacl_phonopy.yaml", log_level=0)
    found = again.run_qpoints([[0, 0, 0]], nac_q_direction=[0.0, 0.5, 0.5]).frequencies[0]
    np.testing.assert_allclose(33.35641 * found, longitudinal, atol=0.1)


def test_a_smaller_supercell_is_chosen_where_none_is_given(files, capsys):
    pytest.importorskip("phonopy")
    write("cell.xyz", bulk("NaCl", "rocksalt", a=12.0, cubic=True))
    phonons("bond", "cell.xyz", "--path", "GX", "--nac", "none")
    said = capsys.readouterr().out
    assert "in a supercell of 1 × 1 × 1, 8 atoms" in said and "along" not in said


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        phonons(*arguments)
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 1 and len(error) == 1
    return error[0]


def test_refusals(files, capsys):
    pytest.importorskip("phonopy")
    assert "--supercell must be three" in refused(
        capsys, "bond", "nacl.xyz", "--supercell", "0", "1", "1"
    )
    assert "--distance must be" in refused(capsys, "bond", "nacl.xyz", "--distance", "0")
    assert "--nac must be one of" in refused(capsys, "bond", "nacl.xyz", "--nac", "born")
    assert "there is no point Q" in refused(capsys, "bond", "nacl.xyz", "--path", "GQ")
    assert "--direction must be" in refused(
        capsys, "bond", "nacl.xyz", "--direction", "0", "0", "0"
    )
    assert "--relax must be" in refused(capsys, "bond", "nacl.xyz", "--relax", "-1")
    write("water.xyz", molecule("H2O"))
    assert "phonons need a crystal" in refused(capsys, "bond", "water.xyz")
    fixed = bulk("NaCl", "rocksalt", a=5.63)
    fixed.set_constraint(FixAtoms([0]))
    write("fixed.xyz", fixed)
    assert "phonons need atoms that are free" in refused(capsys, "bond", "fixed.xyz")
    assert not (files / "phonons.csv").exists()


def test_the_extra_is_named_where_phonopy_is_not_installed(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "phonopy", None)
    assert "pip install 'mace-polmp[phonons]'" in refused(capsys, "bond", "nacl.xyz")
