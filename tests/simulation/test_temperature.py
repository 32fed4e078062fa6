"""One count of what moves, for thermostats, tables and spectra."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
    Hookean,
)
from ase.io import read, write

from mace_polmp.errors import InputError
from mace_polmp.simulation.temperature import (
    ALL,
    INFO,
    RESTS,
    ThermalMotion,
    draw_momenta,
    take_off_drift,
)
from mace_polmp.units import BOLTZMANN

WATER = molecule("H2O")
CRYSTAL = bulk("NaCl", "rocksalt", a=5.6, cubic=True)


def moving(atoms, constraint=None, seed=0, temperature=300.0, **how):
    atoms = atoms.copy()
    atoms.set_constraint(constraint)
    draw_momenta(atoms, temperature, np.random.default_rng(seed), **how)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "count"),
    [
        (moving(WATER), 6),  # at rest as a whole, turning
        (moving(WATER, rotation=False), 3),
        (moving(molecule("CO2"), rotation=False), 4),  # linear
        (moving(molecule("N2"), rotation=False), 1),
        (moving(CRYSTAL), 21),
        (moving(CRYSTAL, FixAtoms([0, 3])), 18),  # held in space: nothing else is conserved
        (moving(WATER, FixAtoms([0])), 6),
        (moving(WATER, FixBondLengths([(0, 1)])), 5),
        (moving(WATER, FixCom()), 6),
        # Along what all constraints leave free, the momentum is conserved.
        (moving(WATER, FixedPlane([0, 1, 2], (0, 0, 1))), 4),
        (moving(WATER, FixedPlane([0], (1, 1, 0))), 6),
        (moving(WATER, FixedLine([0, 1, 2], (1, 2, 0))), 2),
        (moving(WATER, FixCartesian([1], (True, False, False))), 6),
        (moving(WATER, [FixedPlane([0], (1, 0, 0)), FixedPlane([1], (0, 1, 0))]), 6),
        (moving(WATER, [FixedLine([0], (1, 0, 0)), FixedLine([1], (0, 1, 0))]), 5),
        (moving(CRYSTAL, FixScaled([2], (True, True, False))), 21),
        (moving(Atoms("Ar")), 3),
    ],
)
def test_what_counts_at_the_start_of_a_run(atoms, count):
    assert ThermalMotion.of(atoms).count == count


def test_a_thermostat_that_pushes_atoms_moves_everything():
    motion = ThermalMotion.of(moving(WATER, drift=True), pushes_atoms=True)
    assert motion == ThermalMotion(9)
    assert ThermalMotion.of(moving(WATER, rotation=False), turned=True).count == 6


@pytest.mark.parametrize(
    ("atoms", "how"),
    [
        (WATER, {}),
        (WATER, {"rotation": False}),
        (WATER, {"drift": True}),
        (molecule("CO2"), {"rotation": False}),
        (CRYSTAL, {}),
        (CRYSTAL, {"constraint": FixAtoms([0, 1, 2])}),
        (WATER, {"constraint": FixedPlane([0, 1, 2], (0, 1, 1))}),
        (WATER, {"constraint": FixCartesian([0], (True, False, True))}),
        (WATER, {"constraint": FixedLine([0, 1], (1, 0, 1)), "drift": True}),
    ],
)
def test_momenta_have_the_temperature_they_are_drawn_at(atoms, how):
    found = []
    for seed in range(1500):
        drawn = moving(atoms, seed=seed, temperature=250.0, **how)
        motion = ThermalMotion.of(drawn, pushes_atoms=how.get("drift", False))
        found.append(motion.temperature(drawn))
    error = 250.0 * np.sqrt(2.0 / (motion.count * len(found)))
    assert np.mean(found) == pytest.approx(250.0, abs=4 * error)


def test_a_drift_has_no_temperature():
    atoms = moving(CRYSTAL)
    cold = ThermalMotion.of(atoms).temperature(atoms)
    atoms.set_momenta(atoms.get_momenta() + 0.1 * atoms.get_masses()[:, None])
    assert ThermalMotion.of(atoms).temperature(atoms) == pytest.approx(cold)
    assert atoms.get_temperature() > 2 * cold
    speed = take_off_drift(atoms)
    assert speed == pytest.approx(0.1 * np.sqrt(3.0) * units.fs)
    assert ThermalMotion.of(atoms).temperature(atoms) == pytest.approx(cold)


def oscillator(n_frames=400):
    """HCl that vibrates with the energy kT of 300 K, exactly, and neither turns nor moves."""
    masses = np.array([1.008, 35.45])
    reduced = masses.prod() / masses.sum()
    omega = 2.0 * np.pi / 11.56  # 1/fs, 2886 cm⁻¹
    amplitude = np.sqrt(2.0 * BOLTZMANN * 300.0 / (reduced * 103.642697)) / omega
    frames = []
    for time in np.arange(n_frames) * 1.0:
        stretch = 1.275 + amplitude * np.cos(omega * time)
        speed = -amplitude * omega * np.sin(omega * time)
        shares = np.array([masses[1], -masses[0]])[:, None] / masses.sum() * [[1.0, 0.0, 0.0]]
        atoms = Atoms("HCl", positions=stretch * shares)
        atoms.set_masses(masses)
        atoms.set_velocities(speed * shares / units.fs)
        frames.append(atoms)
    return frames


def test_frames_show_what_moves():
    """A vibration has one degree of freedom; a trajectory of another program says nothing more."""
    frames = oscillator()
    motion = ThermalMotion.of_frames(frames)
    assert motion == ThermalMotion(1, ALL)
    assert np.mean([motion.temperature(a) for a in frames]) == pytest.approx(300.0, rel=0.01)


def test_frames_with_a_changing_momentum_are_thermal_as_a_whole():
    """As under a thermostat that pushes every atom; a steady drift is not."""
    pushed = [moving(WATER, seed=seed, drift=True) for seed in range(300)]
    motion = ThermalMotion.of_frames(pushed)
    assert motion == ThermalMotion(9)
    mean = np.mean([motion.temperature(a) for a in pushed])
    assert mean == pytest.approx(300.0, abs=4 * 300 * np.sqrt(2 / 2700))
    drifting = [moving(WATER, seed=seed) for seed in range(300)]
    for atoms in drifting:
        atoms.set_momenta(atoms.get_momenta() + 0.2 * atoms.get_masses()[:, None])
    motion = ThermalMotion.of_frames(drifting)
    assert motion == ThermalMotion(6, ALL)
    mean = np.mean([motion.temperature(a) for a in drifting])
    assert mean == pytest.approx(300.0, abs=4 * 300 * np.sqrt(2 / 1800))


def test_atoms_that_never_move_are_fixed():
    frames = [moving(CRYSTAL, FixAtoms([0, 1]), seed=seed) for seed in range(10)]
    assert ThermalMotion.of_frames(frames).count == 18
    for atoms in frames:
        atoms.set_constraint()  # as a file of another program has it
    assert ThermalMotion.of_frames(frames).count == 18


def test_frames_say_what_moves():
    frames = oscillator(10)
    for atoms in frames:
        atoms.info[INFO] = 3
    assert ThermalMotion.of_frames(frames) == ThermalMotion(3, ALL)


def test_frames_say_along_which_axes_the_centre_of_mass_rests(tmp_path):
    """The constraint itself does not survive the file."""
    frames = [moving(WATER, FixedPlane([0, 1], (1, 1, 0)), seed=seed) for seed in range(3)]
    motion = ThermalMotion.of(frames[0])
    for atoms in frames:
        atoms.info.update({INFO: motion.count, RESTS: motion.said()})
        atoms.set_constraint()
        atoms.set_momenta(atoms.get_momenta() + 0.3)
    write(tmp_path / "frames.xyz", frames)
    read_back = ThermalMotion.of_frames(read(tmp_path / "frames.xyz", ":"))
    assert read_back.count == motion.count == 5 and len(read_back.axes) == 2
    for atoms in frames:
        assert read_back.temperature(atoms) == pytest.approx(motion.temperature(atoms))


def test_frames_say_whether_the_centre_of_mass_rests():
    """Under Langevin dynamics it does not, with constraints that a file may lose."""
    frames = [moving(WATER, FixBondLengths([(0, 1)]), seed=seed, drift=True) for seed in range(9)]
    motion = ThermalMotion.of(frames[0], pushes_atoms=True)
    for atoms in frames:
        atoms.info.update({INFO: motion.count, RESTS: motion.said()})
        atoms.set_constraint()
    assert ThermalMotion.of_frames(frames) == motion == ThermalMotion(8)


@pytest.mark.parametrize("value", ["x", -1, 2.5, np.nan])
def test_a_count_that_is_none_is_refused(value):
    frames = oscillator(4)
    for atoms in frames:
        atoms.info[INFO] = value
    with pytest.raises(InputError, match="degrees_of_freedom must be a whole number"):
        ThermalMotion.of_frames(frames)


@pytest.mark.parametrize(("how", "count"), [({"a2": 1}, 6), ({"a2": (0.0, 0.0, 0.0)}, 9)])
def test_a_spring_to_a_point_holds_the_structure(how, count):
    atoms = moving(WATER, Hookean(a1=0, k=1.0, rt=2.0, **how))
    assert ThermalMotion.of(atoms) == ThermalMotion(count, ALL if count == 6 else ())


def test_a_spring_to_a_plane_lets_the_structure_move_along_it():
    motion = ThermalMotion.of(moving(WATER, Hookean(a1=0, a2=(0.0, 0.0, 1.0, -2.0), k=1.0)))
    assert motion.count == 7 and len(motion.axes) == 2
