"""Radial distribution functions count neighbours."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mace_polmp.cli.main import main


@pytest.fixture
def salt(tmp_path):
    frames = []
    for number in range(3):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
        atoms.rattle(0.02, seed=number)
        atoms.info["time_fs"] = 10.0 * number
        frames.append(atoms)
    write(tmp_path / "run.xyz", frames)
    return tmp_path / "run.xyz"


def test_it_counts_neighbours(salt, capsys):
    main(["spectrum", "rdf", str(salt), "--r_max", "5", "--bins", "100"])
    table = np.genfromtxt(salt.with_name("run_rdf.csv"), delimiter=",", names=True)
    assert salt.with_name("run_rdf.png").exists()
    r, step = table["r_A"], 5.0 / 100
    density = 4 / 5.64**3  # of one element
    shells = 4 / 3 * np.pi * ((r + step / 2) ** 3 - (r - step / 2) ** 3)
    for name, cutoff, expected in (("NaCl", 3.5, 6), ("NaNa", 4.5, 12), ("ClCl", 4.5, 12)):
        counted = (density * shells * table[name])[r < cutoff].sum()
        assert counted == pytest.approx(expected, rel=1e-9)
    assert "g(Na-Cl): highest at 2.8" in capsys.readouterr().out


def test_frames_of_other_structures_are_refused(tmp_path, capsys):
    """Elements that a frame lacks would make its g(r) zero over zero."""
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    write(tmp_path / "run.xyz", [salt, bulk("Na", "bcc", a=5.64, cubic=True)])
    with pytest.raises(SystemExit):
        main(["spectrum", "rdf", str(tmp_path / "run.xyz")])
    assert "frame 1 has other atoms" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--r_max", "6"], "--r_max must be at most half the cell, 5.64"),
        (["--elements", "O"], "--elements: O is not in"),
        (["--skip", "50"], "leaves out the whole run"),
        (["--bins", "0"], "--bins must be 1 or more"),
    ],
)
def test_what_is_refused(salt, options, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["spectrum", "rdf", str(salt), *options])
    assert end.value.code != 0
    assert message in capsys.readouterr().err
    assert not salt.with_name("run_rdf.csv").exists()
