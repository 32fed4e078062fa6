"""Fields that go back and forth: their shape, the work they do, and runs in two parts."""

import numpy as np
import pytest
from ase.io import read

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.errors import InputError
from mace_polmp.modules import LongRangeOptions
from mace_polmp.simulation.dynamics import MDSettings, run_md
from mace_polmp.simulation.fields import PeriodicField
from tests.helpers import random_model, rock_salt, salty_water, wet_slab

BOND = LongRangeOptions(
    charge_readout="bond", formal_charges="Na:1,Cl:-1", induced="dipole", epsilon_infinity=2.3
)


def calculator(options=BOND, **more):
    model = random_model(options)
    return MultipoleMACECalculator(models=model, default_dtype="float64", **more)


def settings(**changes):
    return MDSettings(**{"every": 4, "temperature": 100.0, **changes})


def table_of(folder):
    return np.genfromtxt(folder / "md.csv", delimiter=",", names=True)


@pytest.mark.parametrize("shape", ["triangle", "sine"])
def test_a_field_goes_up_down_and_back(shape):
    field = PeriodicField((0.0, 0.02, -0.04), shape, 80.0)
    ends = [field(t) for t in (0.0, 20.0, 40.0, 60.0, 80.0, 100.0)]
    expected = np.outer([0, 1, 0, -1, 0, 1], [0.0, 0.02, -0.04])
    np.testing.assert_allclose(ends, expected, atol=1e-15)
    eighth = 0.5 if shape == "triangle" else np.sqrt(0.5)
    np.testing.assert_allclose(field(50.0), [0.0, -0.02 * eighth, 0.04 * eighth], atol=1e-15)


@pytest.mark.parametrize("periodic", [True, False])
def test_energy_less_the_work_of_the_field_is_conserved(tmp_path, periodic):
    """At constant energy: what is left is the error of the integrator, of second order."""
    left = []
    for step in (0.5, 0.25):
        calc = calculator()
        calc.external_field = PeriodicField((0.0, 0.1, 0.2), "sine", 12.0)
        atoms = rock_salt() if periodic else salty_water()
        how = settings(timestep=step, every=round(1 / step), temperature=50.0)
        folder = tmp_path / f"{step}"
        run_md(atoms, calc, how, round(20 / step), folder)
        table = table_of(folder)
        left.append(np.ptp(table["total_eV"] - table["work_eV"]))
    assert left[1] < 0.35 * left[0]
    assert left[1] < 0.02 * np.ptp(table["total_eV"])


@pytest.mark.parametrize("ensemble", ["nve", "bussi"])
def test_a_run_in_two_parts_has_the_same_field_and_work(tmp_path, ensemble):
    atoms, calc = rock_salt(), calculator()
    calc.external_field = PeriodicField((0.0, 0.0, 0.1), "triangle", 10.0)
    how = settings(ensemble=ensemble)
    run_md(atoms, calc, how, 24, tmp_path / "whole")
    run_md(atoms, calc, how, 14, tmp_path / "parts")
    run_md(atoms, calc, how, 24, tmp_path / "parts")
    for name in ("trajectory.xyz", "md.csv"):
        same = (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
        assert same, name
    frames = read(tmp_path / "whole" / "trajectory.xyz", ":")
    found = [frame.info["external_field"][2] for frame in frames]
    np.testing.assert_allclose(found, [0, 0.08, 0.04, -0.04, -0.08, 0, 0.08], atol=1e-12)
    assert frames[0].info["field_period_fs"] == 10.0 and frames[0].info["defines_polarization"]
    assert len({*table_of(tmp_path / "whole")["work_eV"]}) == 7


def test_a_field_that_pulls_ions_along_is_no_burst(tmp_path):
    """Their energy in it falls without end, and that without the field does not."""
    atoms, calc = rock_salt(), calculator()
    atoms.positions[atoms.numbers == 11] += 8000.0 * atoms.cell[2]  # images far along the field
    calc.external_field = PeriodicField((0.0, 0.0, 0.005), "triangle", 100.0)
    run_md(atoms, calc, settings(every=5, temperature=1.0), 10, tmp_path)
    potential = table_of(tmp_path)["potential_eV"]
    assert abs(potential[-1] - potential[0]) > 8 * 10.0


def test_where_no_field_is_possible_nothing_is_written(tmp_path):
    """Also though the field is zero at first."""
    calc = calculator(LongRangeOptions())
    calc.external_field = PeriodicField((0.1, 0.0, 0.0), "sine", 100.0)
    with pytest.raises(InputError, match="external_field of a slab must be along its normal"):
        run_md(wet_slab(), calc, settings(), 4, tmp_path / "out")
    neutral = LongRangeOptions(charge_readout="bond", induced="dipole", epsilon_infinity=2.3)
    calc = calculator(neutral, divide_by_chi=True)
    calc.external_field = PeriodicField((0.1, 0.0, 0.0), "sine", 100.0)
    with pytest.raises(InputError, match="divide_by_chi with an external_field"):
        run_md(rock_salt(), calc, settings(), 4, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_an_energy_there_is_no_work(tmp_path):
    calc = calculator(LongRangeOptions())
    calc.external_field = PeriodicField((0.1, 0.0, 0.0), "sine", 100.0)
    run_md(rock_salt(), calc, settings(), 4, tmp_path)
    assert "work_eV" not in table_of(tmp_path).dtype.names
    assert not read(tmp_path / "trajectory.xyz").info["defines_polarization"]
