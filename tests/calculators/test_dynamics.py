"""MD: interrupted and uninterrupted runs are the same run; energy; files; refusals."""

import numpy as np
import pytest
from ase.io import read
from ase.io.trajectory import Trajectory

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.calculators.dynamics import ENSEMBLES, MDSettings, run_md
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from tests.helpers import random_model, rock_salt, salty_water, wet_slab


def calculator(**options):
    model = random_model(LongRangeOptions(**options))
    return MultipoleMACECalculator(models=model, default_dtype="float64")


def settings(**changes):
    return MDSettings(**{"every": 4, "temperature": 100.0, **changes})


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, ensemble):
    atoms = rock_salt() if ensemble == "npt" else salty_water()
    how = settings(ensemble=ensemble, observables=("dipole", "current"))
    calc = calculator(induced="dipole")
    whole = run_md(atoms, calc, how, 24, tmp_path / "whole")
    run_md(atoms, calc, how, 12, tmp_path / "parts")
    # What a kill leaves: half a frame, half a line, a trajectory with more than the restart knows.
    run_md(atoms, calc, how, 14, tmp_path / "parts")
    for name in ("trajectory.xyz", "md.csv"):
        with open(tmp_path / "parts" / name, "a") as file:
            file.write("8\nhalf a fra")
    with Trajectory(tmp_path / "parts" / "trajectory.traj", "a") as file:
        file.write(whole)
    parts = run_md(atoms, calc, how, 24, tmp_path / "parts")
    np.testing.assert_array_equal(parts.positions, whole.positions)
    for name in ("trajectory.xyz", "md.csv"):
        same = (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
        assert same, name
    for folder in ("whole", "parts"):
        frames = read(tmp_path / folder / "trajectory.traj", ":")
        assert len(frames) == 7
        np.testing.assert_allclose(frames[-1].positions, whole.positions, atol=1e-8)


def test_frames_hold_what_was_asked_for(tmp_path):
    atoms, calc = rock_salt("triclinic"), calculator()
    how = settings(observables=("dipole", "current", "polarizability"), timestep=0.25)
    run_md(atoms, calc, how, 8, tmp_path)
    frames = read(tmp_path / "trajectory.xyz", ":")
    assert [f.info["time_fs"] for f in frames] == [0, 1, 2]
    last = frames[-1]
    again = atoms.copy()
    again.positions = last.positions
    born = calc.get_property("born_charges", again)
    current = np.einsum("nab,nb->a", born, last.get_velocities()) / 10.1805  # Å/fs
    np.testing.assert_allclose(last.info["current"], current, rtol=1e-4, atol=1e-6)
    alpha = calc.get_property("electronic_polarizability", again)
    np.testing.assert_allclose(last.info["polarizability"], alpha, atol=1e-5)
    np.testing.assert_allclose(last.get_forces(), calc.get_property("forces", again), atol=1e-5)
    header = (tmp_path / "md.csv").read_text().splitlines()[0]
    assert "volume_A3,dipole_x" in header and "current_z" in header
    assert "polarizability_yz" in header


def test_energy_is_conserved_in_a_constant_field(tmp_path):
    """Fluctuations of the total energy fall with the square of the time step, as without it."""
    for field in (None, [0.0, 0.1, 0.1]):
        calc = calculator()
        calc.external_field = field
        ranges = []
        for step in (0.5, 0.25):
            how = settings(timestep=step, every=round(1 / step), temperature=50.0)
            folder = tmp_path / f"{field}{step}"
            run_md(salty_water(), calc, how, round(20 / step), folder)
            table = np.genfromtxt(folder / "md.csv", delimiter=",", names=True)
            ranges.append(np.ptp(table["total_eV"]))
        assert ranges[1] < 0.35 * ranges[0]


def test_a_field_accelerates_the_charges_of_a_crystal(tmp_path):
    calc = calculator(induced="dipole")
    calc.external_field = [0.0, 0.0, 0.1]
    atoms = rock_salt()
    atoms.set_momenta(np.zeros((8, 3)))
    run_md(atoms, calc, settings(every=1), 1, tmp_path)
    first = read(tmp_path / "trajectory.xyz", 0)
    np.testing.assert_allclose(first.info["external_field"], [0, 0, 0.1])
    pushed = first.get_forces()
    calc.external_field = None
    born = calc.get_property("born_charges", atoms)
    change = pushed - calc.get_property("forces", atoms)
    np.testing.assert_allclose(change, 0.1 * born[:, 2], atol=2e-3)  # and −½ F·α·F


def test_other_settings_are_not_continued(tmp_path):
    atoms, calc = salty_water(), calculator()
    run_md(atoms, calc, settings(), 4, tmp_path)
    with pytest.raises(InputError, match="belongs to a run with timestep 0.5, now it is 1.0"):
        run_md(atoms, calc, settings(timestep=1.0), 8, tmp_path)
    with pytest.raises(InputError, match="has 8 atoms or elements other than"):
        run_md(atoms[:5], calc, settings(), 8, tmp_path)
    (tmp_path / "md.csv").write_text("")
    with pytest.raises(InputError, match="md.csv is shorter than when restart.npz was written"):
        run_md(atoms, calc, settings(), 8, tmp_path)
    (tmp_path / "restart.npz").write_text("nothing")
    with pytest.raises(InputError, match="restart.npz: not a restart file"):
        run_md(atoms, calc, settings(), 8, tmp_path)
    (tmp_path / "restart.npz").unlink()
    with pytest.raises(InputError, match="trajectory.xyz is there already"):
        run_md(atoms, calc, settings(), 8, tmp_path)


def test_a_burst_structure_is_noticed(tmp_path):
    """The last frame is that before; nothing after it is written."""
    atoms = salty_water()
    atoms.positions[1] = atoms.positions[0] + [0.1, 0.0, 0.0]
    atoms.set_momenta(200.0 * np.ones((len(atoms), 3)))
    with pytest.raises(
        InputError, match="step 4: the temperature is .* K, the structure has burst"
    ):
        run_md(atoms, calculator(), settings(), 8, tmp_path)
    assert len(read(tmp_path / "trajectory.xyz", ":")) == 1


def test_refusals(tmp_path):
    def refused(message, atoms=None, field=None, options=None, **changes):
        calc = calculator(**(options or {}))
        calc.external_field = field
        with pytest.raises(InputError, match=message):
            run_md(atoms or salty_water(), calc, settings(**changes), 4, tmp_path / "run")

    refused("ensemble must be one of nve, langevin, bussi, npt, got 'nvt'", ensemble="nvt")
    refused("timestep must be a positive number, got -1", timestep=-1)
    refused("observables must be of dipole, current", observables=("charge",))
    refused("npt needs a structure that is periodic", ensemble="npt")
    refused("npt with an external field", rock_salt(), field=[0, 0, 0.1], ensemble="npt")
    refused(
        "the model has no induced dipoles",
        options={"induced": "charge"},
        observables=("polarizability",),
    )
    refused("Born charges of a slab are not available", wet_slab(), observables=("current",))
    assert not (tmp_path / "run").exists()
