"""Semiempirical labels: units, signs, charges, spins."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mace_polmp.errors import InputError
from mace_polmp.interfaces import tblite
from mace_polmp.interfaces.tblite import Calculation, calculation, compute, compute_all
from mace_polmp.units import BOHR, DEBYE, HARTREE

pytest.importorskip("cffi")
pytest.importorskip("tblite.interface")


def labels(atoms, *quantities, charge=0, method="gfn2"):
    return compute(calculation(atoms, charge, method, quantities or ("dipole",), "frame 0"))


def energy(atoms, field, method="GFN2-xTB"):
    """eV, in a field in V/Å."""
    from tblite.interface import Calculator

    calculator = Calculator(method, atoms.numbers, atoms.positions / BOHR)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 1e-3)
    calculator.add("electric-field", (np.asarray(field) * BOHR / HARTREE).tolist())
    return calculator.singlepoint()["energy"] * HARTREE


def tilted(name):
    atoms = molecule(name)
    atoms.rotate(40.0, (1.0, 2.0, 3.0))
    return atoms


def test_the_dipole_of_water_points_to_its_hydrogens():
    """2.29 D in GFN2-xTB, 1.85 D measured; from the negative oxygen to the positive hydrogens."""
    atoms = molecule("H2O")
    dipole = np.array(labels(atoms)["dipole"])
    assert np.linalg.norm(dipole) / DEBYE == pytest.approx(2.29, abs=0.02)
    assert dipole @ (atoms.positions[1:].mean(0) - atoms.positions[0]) > 0.2
    charges = labels(atoms, "charges")["charges"]
    assert charges[0] < -0.4 and sum(charges) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("method", ["gfn2", "gfn1"])
def test_energies_in_a_field_are_those_of_dipole_and_polarizability(method):
    """E(F) = E(0) - D·F - ½ F·α·F, with the labels' units and signs."""
    atoms = tilted("H2O")
    found = labels(atoms, "dipole", "polarizability", method=method)
    dipole, alpha = np.array(found["dipole"]), np.array(found["polarizability"])
    name = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}[method]
    field = 0.1 * np.array([1.0, -0.5, 2.0])
    plus, zero, minus = (energy(atoms, sign * field, name) for sign in (1, 0, -1))
    assert 0.5 * (minus - plus) == pytest.approx(dipole @ field, rel=2e-3)
    assert zero - 0.5 * (plus + minus) == pytest.approx(0.5 * field @ alpha @ field, rel=1e-2)


def test_the_polarizability_of_benzene_is_that_of_a_disc():
    """8.7 Å³ along the ring and 1.6 Å³ across in GFN2-xTB; 11.7 and 6.5 measured."""
    alpha = np.array(labels(molecule("C6H6"), "polarizability")["polarizability"])
    volume = alpha * 14.3996  # e² Å²/eV to Å³
    np.testing.assert_allclose(alpha, alpha.T)
    np.testing.assert_allclose(np.diag(volume), [8.67, 8.67, 1.58], atol=0.02)


def test_it_turns_with_the_molecule():
    atoms, turned = molecule("CH3OH"), tilted("CH3OH")
    one, two = (labels(a, "dipole", "polarizability") for a in (atoms, turned))
    rotation = np.linalg.lstsq(
        atoms.positions - atoms.positions.mean(0),
        turned.positions - turned.positions.mean(0),
        rcond=None,
    )[0]
    np.testing.assert_allclose(np.array(one["dipole"]) @ rotation, two["dipole"], atol=1e-4)
    alpha = rotation.T @ np.array(one["polarizability"]) @ rotation
    np.testing.assert_allclose(alpha, two["polarizability"], atol=1e-4)


def test_the_dipole_of_an_ion_is_about_the_origin():
    """As a training has it: it moves with the ion by its charge."""
    ion = Atoms("OH", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]])
    first = np.array(labels(ion, charge=-1)["dipole"])
    ion.positions += [1.0, 2.0, -3.0]
    second = np.array(labels(ion, charge=-1)["dipole"])
    np.testing.assert_allclose(second - first, [-1.0, -2.0, 3.0], atol=1e-4)
    assert sum(labels(ion, "charges", charge=-1)["charges"]) == pytest.approx(-1.0, abs=1e-6)


def test_electrons_that_are_not_paired():
    radical = molecule("OH")
    assert calculation(radical, 0, "gfn2", ["dipole"], "frame 0").unpaired == 1
    assert calculation(radical, -1, "gfn2", ["dipole"], "frame 0").unpaired == 0
    oxygen = molecule("O2")
    oxygen.info["multiplicity"] = 3
    assert calculation(oxygen, 0, "gfn2", ["dipole"], "frame 0").unpaired == 2
    oxygen.info["multiplicity"] = 2
    with pytest.raises(InputError, match="frame 0: multiplicity 2 .* even number of electrons"):
        calculation(oxygen, 0, "gfn2", ["dipole"], "frame 0")
    oxygen.info["multiplicity"] = 1.5
    with pytest.raises(InputError, match="must be the multiplicity 2S"):
        calculation(oxygen, 0, "gfn2", ["dipole"], "frame 0")


def test_what_cannot_be_computed_is_named():
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    with pytest.raises(InputError, match="frame 0: is periodic, and dipole are labels of open"):
        calculation(crystal, 0, "gfn2", ["dipole", "charges"], "frame 0")
    with pytest.raises(InputError, match="a total charge of 0.5 e; it must be a whole number"):
        calculation(molecule("H2O"), 0.5, "gfn2", ["dipole"], "frame 0")
    with pytest.raises(InputError, match="up to Rn, not number 92"):
        calculation(Atoms("U"), 0, "gfn2", ["dipole"], "frame 0")


def test_charges_of_a_periodic_structure():
    charges = labels(bulk("NaCl", "rocksalt", a=5.64, cubic=True), "charges")["charges"]
    assert min(charges[0::2]) > 0.2 and max(charges[1::2]) < -0.2


def test_a_state_that_does_not_exist_has_no_labels():
    failed = labels(molecule("H2O"), charge=200)
    assert isinstance(failed, str) and "has no such state" in failed


def test_what_does_not_converge_has_no_labels(monkeypatch):
    """Not even where it is mixed slowly."""
    original, tried = tblite._calculator, []

    def impatient(task, careful, field=None):
        tried.append(careful)
        calculator = original(task, careful, field)
        calculator.set("max-iter", 1)
        return calculator

    monkeypatch.setattr(tblite, "_calculator", impatient)
    failed = labels(molecule("H2O"))
    assert isinstance(failed, str) and "GFN2-xTB has no result (" in failed
    assert tried == [False, True]


def test_what_was_computed_before_an_interruption_is_not_computed_again(tmp_path, monkeypatch):
    tasks = [calculation(molecule(n), 0, "gfn2", ["dipole"], n) for n in ("H2O", "CH4", "NH3")]
    journal = tmp_path / "out.part"
    results = compute_all(tasks, 1, journal)
    first = [next(results), next(results)]
    results.close()
    with open(journal, "a") as file:
        file.write('{"key": "cut o')
    asked: list[Calculation] = []

    def counting(task):
        asked.append(task)
        return compute(task)

    monkeypatch.setattr("mace_polmp.interfaces.tblite.compute", counting)
    again = dict(compute_all(tasks, 1, journal))
    assert asked == [tasks[2]]
    assert [again[0], again[1]] == [labels for _, labels in first]


def test_several_processes_find_what_one_finds(tmp_path):
    tasks = [calculation(molecule(n), 0, "gfn2", ["dipole"], n) for n in ("H2O", "CH4", "NH3")]
    one = dict(compute_all(tasks, 1, tmp_path / "a"))
    two = dict(compute_all(tasks, 2, tmp_path / "b"))
    for number in range(3):
        np.testing.assert_allclose(one[number]["dipole"], two[number]["dipole"], atol=1e-6)


def test_born_charges_are_derivatives_of_the_dipole():
    """[polarization, displacement]; those of a neutral molecule sum to zero."""
    atoms = tilted("H2O")
    born = np.array(labels(atoms, "born_charges")["born_charges"])
    assert born.shape == (3, 3, 3)
    np.testing.assert_allclose(born.sum(0), 0.0, atol=2e-4)
    step = 1e-3
    for axis in range(3):
        moved = []
        for sign in (1, -1):
            other = atoms.copy()
            other.positions[0, axis] += sign * step
            moved.append(np.array(labels(other, "dipole", "polarizability")["dipole"]))
        slope = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(born[0, :, axis], slope, atol=2e-3)
    assert np.trace(born[atoms.numbers == 8][0]) < -0.5


@pytest.mark.parametrize(
    ("charge", "multiplicity", "reason"),
    [
        (90, None, "leaves -82 valence electrons"),
        (9, None, "leaves -1 valence electrons"),
        (7, 4, "leaves 1 valence electrons, and 3 are to be unpaired"),
        (-6, None, "leaves 14 valence electrons, 0 of them unpaired, for 6 orbitals"),
        (-90, None, "for 6 orbitals"),
    ],
)
def test_states_that_cannot_be_are_not_asked_for(charge, multiplicity, reason):
    """tblite ended the process with some of them, at once or later."""
    water = molecule("H2O")
    if multiplicity is not None:
        water.info["multiplicity"] = multiplicity
    found = labels(water, charge=charge)
    assert isinstance(found, str) and "GFN2-xTB has no such state" in found and reason in found


def test_bare_ions_have_a_state():
    for symbol, charge in (("Na", 1), ("Cl", -1), ("Zn", 2)):
        found = labels(Atoms(symbol, [[0.0, 0.0, 0.0]]), "charges", charge=charge)
        assert found["charges"] == pytest.approx([charge], abs=1e-6)


@pytest.mark.parametrize("z", [1, 2, 3, 10, 11, 22, 29, 30, 35, 48, 54, 56, 58, 71, 72, 80, 86])
def test_valence_electrons_are_those_of_the_method(z):
    from tblite.interface import Calculator

    valence = tblite._valence(z)
    calculator = Calculator("GFN2-xTB", np.array([z]), np.zeros((1, 3)), uhf=valence % 2)
    calculator.set("verbosity", 0)
    occupied = calculator.singlepoint()["orbital-occupations"].sum()
    assert occupied == pytest.approx(valence, abs=1e-6)
