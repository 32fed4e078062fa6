"""The benchmark of charges after fine-tuning: who is held out, and which labels a training sees."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

import fine_tuning_charges as script


def labelled(formula, number):
    atoms = Atoms(formula, positions=np.eye(len(Atoms(formula)), 3) + number)
    atoms.info.update(REF_dipole=np.full(3, 1.0), GFN2_dipole=np.full(3, 2.0))
    atoms.arrays["REF_born_charges"] = np.full((len(atoms), 9), 1.0)
    atoms.arrays["GFN2_born_charges"] = np.full((len(atoms), 9), 2.0)
    return atoms


def test_a_molecule_is_in_one_part_only():
    formulas = ("H2O", "CO", "CO2", "NH3", "N2", "CH4") * 3
    frames = [labelled(formula, number) for number, formula in enumerate(formulas)]
    script._split(frames, 4, 1)
    parts = {}
    for atoms in frames:
        parts.setdefault(atoms.get_chemical_formula(), set()).add(atoms.info["part"])
    assert all(len(found) == 1 for found in parts.values())
    counts = [sum(a.info["part"] == name for a in frames) for name in ("test", "valid", "train")]
    assert counts == [3, 3, 12]


def test_a_training_sees_the_labels_of_its_variant_and_no_others():
    frames = [labelled("CO", number) for number in range(script.N_FEW + 1)]

    def dipoles(name):
        found = script.with_labels(frames, script.VARIANTS[name], 0.8)
        return [atoms.info.get("REF_dipole", [None])[0] for atoms in found]

    assert set(dipoles("plain")) == set(dipoles("released")) == {None}
    assert dipoles("born") == pytest.approx([1.6] * len(frames))
    assert dipoles("few") == pytest.approx([1.0] * script.N_FEW + [1.6])
    few = script.with_labels(frames, script.VARIANTS["few"], 0.8)
    assert [a.info.get("config_dipole_weight", 1.0) for a in few] == [1.0] * script.N_FEW + [0.1]
    only = script.with_labels(frames, script.VARIANTS["dipole"], 0.8)
    assert not any("REF_born_charges" in atoms.arrays for atoms in only)
    assert script.fitted_scale(frames) == pytest.approx(0.5)


def test_borrowed_born_charges_are_derivatives_of_the_dipole():
    """Forces in a field against dipoles of a moved atom; all atoms together move no charge."""
    pytest.importorskip("tblite")
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    born = script.borrowed_labels(atoms)["born_charges"]
    ends = []
    for step in (0.01, -0.01):
        moved = atoms.copy()
        moved.positions[1, 2] += step
        ends.append(script.borrowed_labels(moved)["dipole"])
    # 1e-3 e: squares of steps and fields that are left out.
    np.testing.assert_allclose(born[1, :, 2], (ends[0] - ends[1]) / 0.02, atol=1e-3)
    np.testing.assert_allclose(born.sum(0), 0.0, atol=1e-6)
