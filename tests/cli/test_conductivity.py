"""`mace_polmp spectrum conductivity` as a user types it."""

import re

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from scipy.signal import lfilter

from mace_polmp.analysis.conductivity import at_mean_cell
from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.cli.main import main
from mace_polmp.modules import LongRangeOptions
from mace_polmp.simulation.dynamics import MDSettings, run_md
from mace_polmp.units import BOLTZMANN, SIEMENS_PER_METRE
from tests.helpers import random_model, rock_salt

EDGE, TEMPERATURE, STEP = 12.0, 1200.0, 4.0


def frames_of(n_times, what, seed=0, **info):
    """Ions whose current forgets in 50 fs: σ = ⟨J²⟩ τ/(3 V kT)."""
    rng = np.random.default_rng(seed)
    keep = np.exp(-STEP / 50.0)
    current = lfilter([1.0], [1.0, -keep], 0.1 * rng.normal(size=(n_times, 3)), axis=0)
    values = current if what == "current" else np.cumsum(current, axis=0) * STEP
    out = []
    for number in range(n_times):
        atoms = Atoms("Na", cell=EDGE * np.eye(3), pbc=True, positions=[[0.0, 0, 0]])
        atoms.info.update(time_fs=number * STEP, **{what: values[number]}, **info)
        out.append(atoms)
    return out


def expected():
    """The integral of the correlation of what the frames have, S/cm."""
    keep = np.exp(-STEP / 50.0)
    variance = 3 * 0.01 / (1 - keep**2)
    integral = variance * STEP * (0.5 + keep / (1 - keep))
    scale = SIEMENS_PER_METRE / 100 / (3 * EDGE**3 * BOLTZMANN * TEMPERATURE)
    return scale * integral


def run(path, capsys, *more):
    main(["spectrum", "conductivity", str(path), "--temperature", str(TEMPERATURE), *more])
    return capsys.readouterr().out


def values_of(out):
    """Value and error of both ways, S/cm."""
    return [
        tuple(map(float, re.search(rf"{way} \| +([\d.]+) ± ([\d.]+)", out).groups()))
        for way in ("Green-Kubo", "Einstein")
    ]


@pytest.mark.parametrize("what", ["current", "dipole"])
def test_ions_with_a_known_conductivity(tmp_path, capsys, what):
    """From written currents, or from the dipole of a model with bond charges."""
    frames = frames_of(6000, what, defines_polarization=True)
    write(tmp_path / "run.xyz", frames)
    out = run(tmp_path / "run.xyz", capsys, "--lag", "400")
    for value, error in values_of(out):
        assert value == pytest.approx(expected(), abs=3.5 * error)
        assert error < 0.25 * value
    assert "conductivity at 1200 K from 6000 frames, 24 ps; lags of 0.2 to 0.4 ps" in out
    assert "no plateau" not in out
    table = np.genfromtxt(tmp_path / "run_conductivity.csv", delimiter=",", names=True)
    assert len(table) == 101 and table["green_kubo_Scm"][0] == 0.0
    mean = table["green_kubo_Scm"][50:].mean()
    assert mean == pytest.approx(values_of(out)[0][0], rel=0.01)
    for ending in ("png", "svg"):
        assert (tmp_path / f"run_conductivity.{ending}").stat().st_size > 10000


def test_short_runs_say_so(tmp_path, capsys):
    """Lags below the memory of the current have no plateau yet; few lags have a large error."""
    write(tmp_path / "run.xyz", frames_of(6000, "current"))
    assert "note: there is no plateau" in run(tmp_path / "run.xyz", capsys, "--lag", "40")
    out = run(tmp_path / "run.xyz", capsys, "--lag", "2500")
    assert "note: the error is large" in out or "not different from zero" in out


def test_what_has_no_conductivity_is_refused(tmp_path, capsys):
    def refused(frames, *more):
        write(tmp_path / "run.xyz", frames)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "run.xyz", capsys, *more)
        error = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 1 and len(error) == 1
        return error[0]

    few = frames_of(100, "current")
    assert "too short for a conductivity: 100 frames" in refused(few)
    for frame in few:
        frame.pbc = False
    assert "needs a structure that is periodic in three" in refused(few)
    field = frames_of(300, "current", external_field=[0.0, 0.0, 0.1])
    assert "ran in an external field" in refused(field)
    # The dipole of another model is not that of the polarization.
    dipole = frames_of(300, "dipole", defines_polarization=False)
    assert "frames have no 'current', which conductivity needs" in refused(dipole)
    # Where the dipole will do, currents need not be close enough to be integrated.
    coarse = frames_of(3000, "dipole", defines_polarization=True)[::10]
    for frame in coarse:
        frame.info["current"] = np.zeros(3)
    write(tmp_path / "coarse.xyz", coarse)
    assert "from 300 frames, 12 ps" in run(tmp_path / "coarse.xyz", capsys)
    assert "--lag must be a positive number of fs, got 0" in refused(
        frames_of(300, "current"), "--lag", "0"
    )


OPTIONS = LongRangeOptions(
    charge_readout="bond", formal_charges="Na:1,Cl:-1", induced="dipole", epsilon_infinity=2.0
)


def ran(folder, start=None, **changes):
    """Current and dipole of a run of 3 fs, the integral of the current, and the cells."""
    calculator = MultipoleMACECalculator(models=random_model(OPTIONS))
    how = MDSettings(every=1, timestep=0.25, observables=("dipole", "current"), **changes)
    run_md(rock_salt() if start is None else start, calculator, how, 12, folder)
    frames = read(folder / "trajectory.xyz", ":")
    assert all(frame.info["formal_charges"] for frame in frames)
    current = np.array([frame.info["current"] for frame in frames])
    moment = np.array([frame.get_dipole_moment() for frame in frames])
    change = 0.25 * np.cumsum(0.5 * (current[1:] + current[:-1]), axis=0)
    return moment, change, np.array([frame.cell.array for frame in frames])


def test_currents_of_a_run_are_the_changes_of_its_dipole(tmp_path):
    """Of a model with bond charges, ∫ J dt = ΔM, with the error of the trapezoidal rule."""
    moment, change, _ = ran(tmp_path)
    largest = np.abs(moment - moment[0]).max()
    np.testing.assert_allclose(change, moment[1:] - moment[0], atol=2e-3 * largest)


def test_currents_of_a_run_with_a_barostat_leave_its_motion_out(tmp_path):
    """An image of an ion far away makes the dipole follow the cell, and no current.

    In 3 fs the edge shrinks by 0.4 %. Changes of the dipole in the coordinates of the cell are the
    integral of the current but for what the strain does to charges and induced dipoles.
    """
    start = rock_salt()
    start.positions[0] += 5 * start.cell[0]
    moment, change, cells = ran(tmp_path, start, ensemble="npt", pressure=2e4, pressure_time=200.0)
    assert np.ptp(cells[:, 0, 0]) > 0.01
    largest = np.abs(change).max()
    assert np.abs(moment[1:] - moment[0] - change).max() > 5 * largest
    reduced = at_mean_cell(moment, cells)
    np.testing.assert_allclose(reduced[1:] - reduced[0], change, atol=1e-2 * largest)


def test_a_cell_that_breathes_changes_nothing(tmp_path, capsys):
    """Whichever image of an ion is written: 40 cells away it would be all there is to see."""
    rng = np.random.default_rng(5)
    edges = 1.0 + 0.01 * lfilter([0.3], [1.0, -0.95], rng.normal(size=6000))
    for image in (0, 40):
        frames = frames_of(6000, "dipole", defines_polarization=True)
        for atoms, edge in zip(frames, edges, strict=True):
            atoms.set_cell(edge * atoms.cell)
            atoms.info["dipole"] = edge * (atoms.info["dipole"] + [image * EDGE, 0, 0])
        write(tmp_path / "run.xyz", frames)
        out = run(tmp_path / "run.xyz", capsys, "--lag", "400")
        for value, error in values_of(out):
            assert value == pytest.approx(expected(), abs=3.5 * error)
            assert error < 0.25 * value


@pytest.mark.parametrize("formal", [True, False, None])
def test_another_permittivity_leaves_formal_charges_whole(tmp_path, capsys, formal):
    """Learned charges are multiplied by its root. Formal ones are not: refused."""
    info = {} if formal is None else {"formal_charges": formal}
    frames = frames_of(2000, "dipole", defines_polarization=True, epsilon_infinity=2.0, **info)
    if formal is False:  # the run was begun with an earlier version
        del frames[0].info["formal_charges"]
    write(tmp_path / "run.xyz", frames)
    before = values_of(run(tmp_path / "run.xyz", capsys, "--epsilon_infinity", "2"))
    if formal is False:
        after = values_of(run(tmp_path / "run.xyz", capsys, "--epsilon_infinity", "8"))
        assert after[1][0] == pytest.approx(4.0 * before[1][0], rel=2e-2)  # of what is printed
        return
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run.xyz", capsys, "--epsilon_infinity", "8")
    error = capsys.readouterr().err
    assert stop.value.code == 1 and "formal charges, which stay whole with every" in error
    assert ("do not say (formal_charges)" in error) == (formal is None)
