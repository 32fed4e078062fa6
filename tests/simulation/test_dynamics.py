"""MD: interrupted and uninterrupted runs are the same run; energy; files; refusals."""

import os

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import all_changes
from ase.constraints import FixAtoms
from ase.io import read
from ase.io.trajectory import Trajectory

from mace_polmp.calculators import MultipoleMACECalculator
from mace_polmp.cli.main import main
from mace_polmp.errors import InputError
from mace_polmp.files import locked
from mace_polmp.modules import LongRangeOptions
from mace_polmp.simulation.dynamics import ENSEMBLES, MDSettings, run_md
from mace_polmp.simulation.temperature import ThermalMotion, fixed_atoms
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


def test_frames_of_a_committee_say_the_permittivity_of_each_model(tmp_path, caplog, capsys):
    """What is written is the mean of physical dipoles, each with the root of its own ε∞."""
    models = [random_model(LongRangeOptions(epsilon_infinity=e), seed=int(e)) for e in (2.0, 3.0)]
    how = settings(observables=("dipole", "current"), every=1)
    moments = []
    for model, epsilon in zip(models, (2.0, 3.0), strict=True):
        atoms = rock_salt("triclinic")
        atoms.calc = MultipoleMACECalculator(models=model, epsilon_infinity=1.0)
        moments.append(np.sqrt(epsilon) * atoms.get_dipole_moment())
    both = MultipoleMACECalculator(models=models)
    run_md(rock_salt("triclinic"), both, how, 1, tmp_path / "both")
    path = tmp_path / "both" / "trajectory.xyz"
    first = read(path, 0)
    np.testing.assert_allclose(first.get_dipole_moment(), np.mean(moments, axis=0), atol=1e-6)
    assert first.info["epsilon_infinity"] == 2.5 and not first.info["formal_charges"]
    np.testing.assert_array_equal(first.info["epsilon_infinity_of_models"], [2.0, 3.0])
    assert "the models have epsilon_infinity 2 and 3: dipoles and currents are means" in caplog.text
    with pytest.raises(SystemExit):
        main(["spectrum", "ir", str(path), "--epsilon_infinity", "2.5"])
    error = capsys.readouterr().err
    assert "is the mean of models whose epsilon_infinity is 2 and 3" in error
    same = MultipoleMACECalculator(models=models, epsilon_infinity=2.5)
    run_md(rock_salt("triclinic"), same, how, 1, tmp_path / "same")
    assert "epsilon_infinity_of_models" not in read(tmp_path / "same" / "trajectory.xyz", 0).info


def test_frames_hold_what_was_asked_for(tmp_path):
    atoms, calc = rock_salt("triclinic"), calculator()
    observables = ("dipole", "current", "polarizability", "charges", "atomic_dipoles")
    how = settings(observables=observables, timestep=0.25)
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
    assert "_JSON" not in (tmp_path / "trajectory.xyz").read_text()
    np.testing.assert_allclose(last.info["polarizability"].reshape(3, 3), alpha, atol=1e-5)
    charges = calc.get_property("charges", again)
    np.testing.assert_allclose(last.get_charges(), charges, atol=1e-6)
    dipoles = calc.get_property("atomic_dipoles", again)
    np.testing.assert_allclose(last.arrays["atomic_dipoles"], dipoles, atol=1e-6)
    table = np.genfromtxt(tmp_path / "md.csv", delimiter=",", names=True)
    assert table["charge_Na"][-1] == pytest.approx(charges[again.numbers == 11].mean(), abs=1e-6)
    np.testing.assert_allclose(last.get_forces(), calc.get_property("forces", again), atol=1e-5)
    header = (tmp_path / "md.csv").read_text().splitlines()[0]
    assert "volume_A3,dipole_x" in header and "current_z" in header
    assert "polarizability_yz" in header


def test_a_frame_is_the_structure_whole(tmp_path):
    """Masses, fixed atoms and total charge are those of the run: the same temperature, energy."""
    atoms, calc = salty_water(), calculator(constrain_charge="softness")
    masses = atoms.get_masses()
    masses[atoms.numbers == 1] = 2.014
    atoms.set_masses(masses)
    atoms.set_constraint(FixAtoms([0]))
    atoms.info.update(total_charge=1.0, config_type="hot", REF_energy=-3.0)
    atoms.arrays["REF_forces"] = np.ones((8, 3))
    run_md(atoms, calc, settings(temperature=300.0, ensemble="bussi"), 8, tmp_path)
    table = np.genfromtxt(tmp_path / "md.csv", delimiter=",", names=True)
    for name in ("trajectory.xyz", "trajectory.traj"):
        frames = read(tmp_path / name, ":")
        for frame, row in zip(frames, table, strict=True):
            np.testing.assert_allclose(frame.get_masses(), masses)
            np.testing.assert_array_equal(fixed_atoms(frame), [0])
            assert frame.info["total_charge"] == 1.0 and frame.info["config_type"] == "hot"
            assert "REF_energy" not in frame.info and "REF_forces" not in frame.arrays
            motion = ThermalMotion.of_frames(frames)
            assert motion.count == 21
            found = motion.temperature(frame)
            assert found == pytest.approx(row["temperature_K"], rel=1e-4)
            again = frame.copy()
            energy = calc.get_property("energy", again)
            assert energy == pytest.approx(row["potential_eV"], abs=1e-5)
            assert calc.results["charges"].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_is_resumed_before_its_second_frame(tmp_path, monkeypatch, at):
    """What was killed before frame 1 goes on from frame 0 and does not write it again."""
    atoms, calc = salty_water(), calculator()
    run_md(atoms, calc, settings(), 8, tmp_path / "whole")
    run_md(atoms, calc, settings(), at, tmp_path / "parts")
    run_md(atoms, calc, settings(), 8, tmp_path / "parts")
    for name in ("trajectory.xyz", "md.csv"):
        same = (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
        assert same, name
    assert len(read(tmp_path / "parts" / "trajectory.traj", ":")) == 3


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    run_md(salty_water(), calculator(), settings(), 4, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        locked(tmp_path / ".lock", "test"),
        pytest.raises(InputError, match=f"is in use by another process .number {os.getpid()}"),
    ):
        run_md(salty_water(), calculator(), settings(), 8, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


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


CHANGES = {
    "masses": lambda atoms: atoms.set_masses([2.0 * m for m in atoms.get_masses()]),
    "constraints": lambda atoms: atoms.set_constraint(FixAtoms([1])),
    "total charge": lambda atoms: atoms.info.update(total_charge=1.0),
    "boundary conditions": lambda atoms: setattr(atoms, "pbc", False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_structure_is_not_continued(tmp_path, name):
    """The same elements are not enough."""
    run_md(rock_salt(), calculator(), settings(), 4, tmp_path)
    other = rock_salt()
    CHANGES[name](other)
    with pytest.raises(InputError, match=f"a run of a structure with other {name}"):
        run_md(other, calculator(), settings(), 8, tmp_path)


@pytest.mark.parametrize("mass", [0.0, -1.0, np.nan])
def test_masses_and_velocities_without_sense_are_refused(tmp_path, mass):
    atoms = salty_water()
    atoms.set_masses([mass, *atoms.get_masses()[1:]])
    with pytest.raises(InputError, match="atom 0 has a mass of"):
        run_md(atoms, calculator(), settings(), 4, tmp_path / "run")
    atoms = salty_water()
    atoms.set_momenta(np.full((8, 3), np.nan))
    with pytest.raises(InputError, match="velocities hold NaN"):
        run_md(atoms, calculator(), settings(), 4, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ensemble", ["bussi", "npt"])
def test_a_structure_that_only_drifts_is_set_in_motion(tmp_path, ensemble):
    """What scales momenta would make nothing of none. Under npt the drift is taken off."""
    atoms = rock_salt()
    atoms.set_momenta(0.01 * atoms.get_masses()[:, None] * np.ones((8, 3)))
    run_md(atoms, calculator(), settings(ensemble=ensemble, every=1), 2, tmp_path)
    table = np.genfromtxt(tmp_path / "md.csv", delimiter=",", names=True)
    assert 20.0 < table["temperature_K"][0] < 300.0
    first = read(tmp_path / "trajectory.xyz", 0)
    drift = first.get_momenta().sum(0) / first.get_masses().sum()
    np.testing.assert_allclose(drift, 0.01 if ensemble == "bussi" else 0.0, atol=1e-6)


def test_dipoles_of_open_structures_are_about_their_centre_of_mass(tmp_path):
    """Latent charges of this model do not sum to zero; where it is does not matter."""
    dipoles = []
    for shift in (0.0, 40.0):
        atoms = salty_water()
        atoms.positions += shift
        atoms.set_momenta(np.zeros((8, 3)))
        folder = tmp_path / f"{shift:g}"
        run_md(atoms, calculator(), settings(every=1), 3, folder)
        frames = read(folder / "trajectory.xyz", ":")
        dipoles.append([frame.get_dipole_moment() for frame in frames])
    np.testing.assert_allclose(*dipoles, atol=1e-6)


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


@pytest.mark.parametrize("temperature", [1.0, 300.0, 20000.0])
@pytest.mark.parametrize("ensemble", ["nve", "langevin", "bussi"])
def test_a_burst_structure_is_noticed_at_any_temperature(tmp_path, ensemble, temperature):
    """Also where a thermostat takes the heat of it away."""
    atoms = salty_water()
    atoms.positions[1] = atoms.positions[0] + [0.05, 0.0, 0.0]
    calc = calculator()
    how = settings(ensemble=ensemble, temperature=temperature, time_constant=1.0, friction=0.9)
    calc.calculate_before = calc.calculate
    pushed = 1e3 * np.eye(3)[0]

    def burst(atoms=None, properties=None, system_changes=all_changes):
        calc.calculate_before(atoms, properties, system_changes)
        calc.results["forces"][1] += pushed
        calc.results["forces"][0] -= pushed

    calc.calculate = burst
    with pytest.raises(InputError, match="the structure has burst"):
        run_md(atoms, calc, how, 40, tmp_path)


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


def test_another_start_is_not_continued(tmp_path):
    """Another conformer in the same folder is another run."""
    run_md(salty_water(), calculator(), settings(), 4, tmp_path)
    other = salty_water()
    other.positions[3] += 0.1
    with pytest.raises(InputError, match="a run that began with other positions"):
        run_md(other, calculator(), settings(), 8, tmp_path)


def test_fewer_steps_than_there_are_change_nothing(tmp_path, caplog):
    run_md(salty_water(), calculator(), settings(), 8, tmp_path)
    before = (tmp_path / "md.csv").read_text()
    run_md(salty_water(), calculator(), settings(), 4, tmp_path)
    assert (tmp_path / "md.csv").read_text() == before
    assert "has 8 steps already, 4 were asked for: nothing to do" in caplog.text


def test_molecules_of_a_slab_are_put_together_for_its_dipole(tmp_path):
    """The dipole of a molecule that the cell cuts has a charge times a lattice vector too much."""
    atoms = molecule("H2O", cell=[[6.0, 0.0, 0.0], [1.0, 7.0, 0.0], [0.0, 0.0, 25.0]])
    atoms.pbc = (True, True, False)
    atoms.positions += [0.0, 0.1, 12.0]
    cut = atoms.copy()
    cut.positions[2] += cut.cell[1] - cut.cell[0]
    how, dipoles = settings(), []
    for name, start in (("whole", atoms), ("cut", cut)):
        for steps in (4, 8):  # goes on from the structure as it was given
            run_md(start, calculator(), how, steps, tmp_path / name)
        frames = read(tmp_path / name / "trajectory.xyz", ":")
        dipoles.append([frame.get_dipole_moment() for frame in frames])
    assert len(dipoles[1]) == 3
    np.testing.assert_allclose(dipoles[1], dipoles[0], atol=1e-6)
