"""Thermostats hold the temperature that was asked for, also of a few atoms."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms, FixedPlane
from ase.neighborlist import neighbor_list

from mace_polmp.simulation.ensembles import Ensemble
from mace_polmp.simulation.temperature import ThermalMotion, draw_momenta, take_off_drift


class Springs(Calculator):
    """Pairs on springs, each with its periodic image."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, atoms, cutoff, strength=10.0):
        super().__init__()
        self.i, self.j, self.rest, self.images = neighbor_list("ijdS", atoms, cutoff)
        self.strength = 0.5 * strength  # every pair is there twice

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        vectors = atoms.positions[self.j] - atoms.positions[self.i] + self.images @ atoms.cell.array
        lengths = np.linalg.norm(vectors, axis=1)
        stretch = lengths - self.rest
        pull = (self.strength * stretch / lengths)[:, None] * vectors
        forces = np.zeros_like(atoms.positions)
        np.add.at(forces, self.i, pull)
        np.add.at(forces, self.j, -pull)
        self.results = {"energy": 0.5 * self.strength * (stretch**2).sum(), "forces": forces}
        if atoms.pbc.all():
            virial = pull.T @ vectors / atoms.get_volume()
            self.results["stress"] = virial.ravel()[[0, 4, 8, 5, 2, 1]]


def mean_temperature(atoms, calculator, steps=12000, **how):
    """Of the motion inside, after a tenth of the run, and its statistical error."""
    settings = dict(timestep=0.5, temperature=300.0, friction=0.02, time_constant=10.0)
    settings.update(pressure=1.0, pressure_time=200.0, name="bussi")
    ensemble = Ensemble(**{**settings, **how})
    atoms = atoms.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(3)
    draw_momenta(atoms, 300.0, rng, drift=ensemble.name == "langevin")
    motion = ThermalMotion.of(atoms, pushes_atoms=ensemble.name == "langevin")
    take_off_drift(atoms) if motion.drifts else None
    dynamics = ensemble.dynamics(atoms, motion, rng)
    found = []
    inside = _inside if motion.drifts else (lambda a: (a.get_kinetic_energy(), motion.count))
    for _ in range(steps):
        dynamics.run(1)
        energy, count = inside(atoms)
        found.append(2.0 * energy / (count * units.kB))
    found = np.array(found[steps // 10 :])
    blocks = found[: len(found) // 20 * 20].reshape(20, -1).mean(1)
    return found.mean(), blocks.std() / np.sqrt(len(blocks))


def _inside(atoms):
    """Kinetic energy without that of the centre of mass, and 3N − 3; counted here anew."""
    masses = atoms.get_masses()[:, None]
    momenta = atoms.get_momenta()
    momenta = momenta - masses * momenta.sum(0) / masses.sum()
    return 0.5 * (momenta**2 / masses).sum(), 3 * len(atoms) - 3


@pytest.mark.parametrize("name", ["bussi", "langevin"])
def test_three_atoms_have_the_temperature_asked_for(name):
    """Counting 3N degrees of freedom where 3N − 3 move would make it 450 K."""
    water = molecule("H2O")
    mean, error = mean_temperature(water, Springs(water, 1.8), name=name)
    assert mean == pytest.approx(300.0, abs=5 * error) and error < 15.0


def test_four_atoms_under_pressure_have_it_too():
    """Of 12 degrees of freedom 9 move: 400 K where that is not counted."""
    argon = bulk("Ar", "fcc", a=5.3, cubic=True)
    argon.positions += 0.02 * np.random.default_rng(0).normal(size=(4, 3))
    mean, error = mean_temperature(
        argon, Springs(argon, 4.0, 1.0), name="npt", timestep=4.0, time_constant=30.0, steps=6000
    )
    assert mean == pytest.approx(300.0, abs=5 * error) and error < 15.0


def test_atoms_on_a_fixed_one_have_it_too():
    """Nothing is at rest but the fixed atom: all of the others' 6 degrees count."""
    water = molecule("H2O")
    water.set_constraint(FixAtoms([0]))
    mean, error = mean_temperature(water, Springs(water, 1.8))
    assert mean == pytest.approx(300.0, abs=5 * error) and error < 15.0


@pytest.mark.parametrize("indices", [[0], [0, 1, 2]])
def test_atoms_in_a_plane_have_it_too(indices):
    """The momentum within the plane is conserved: 8 − 2 or 6 − 2 degrees move."""
    water = molecule("H2O")
    water.set_constraint(FixedPlane(indices, (1, 0, 0)))
    settings = dict(timestep=0.5, temperature=300.0, friction=0.02, time_constant=10.0)
    ensemble = Ensemble("bussi", **settings, pressure=1.0, pressure_time=200.0)
    rng = np.random.default_rng(3)
    draw_momenta(water, 300.0, rng)
    water.calc = Springs(water, 1.8)
    dynamics = ensemble.dynamics(water, ThermalMotion.of(water), rng)
    found = []
    for _ in range(12000):
        dynamics.run(1)
        np.testing.assert_allclose(water.get_momenta().sum(0)[1:], 0.0, atol=1e-9)
        found.append(water.get_kinetic_energy())
    count = 9 - len(indices) - 2
    found = 2.0 * np.array(found[1200:]) / (count * units.kB)
    error = found.reshape(20, -1).mean(1).std() / np.sqrt(20)
    assert found.mean() == pytest.approx(300.0, abs=5 * error) and error < 15.0


def test_a_drift_stays_what_it_is():
    """A thermostat does not take the heat of the vibrations from the centre of mass."""
    atoms = Atoms("Ar4", positions=[[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0], [0, 0, 3.8]])
    atoms.calc = Springs(atoms, 4.0)
    rng = np.random.default_rng(0)
    draw_momenta(atoms, 300.0, rng)
    atoms.set_momenta(atoms.get_momenta() + 0.1 * atoms.get_masses()[:, None])
    motion = ThermalMotion.of(atoms)
    before = atoms.get_momenta().sum(0)
    how = Ensemble("bussi", 1.0, 100.0, 0.01, 10.0, 1.0, 100.0)
    how.dynamics(atoms, motion, rng).run(200)
    np.testing.assert_allclose(atoms.get_momenta().sum(0), before, rtol=1e-10)
    assert motion.temperature(atoms) < 250.0
