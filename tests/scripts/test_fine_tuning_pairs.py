"""The benchmark of fine-tuning on periodic data and ions: parts, energies, clusters, labels."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

import fine_tuning_pairs as script


def box_of_water(side=3):
    """Water molecules on a grid of 3.1 Å; the first one has given a proton to the second."""
    atoms = Atoms(cell=[3.1 * side] * 3, pbc=True)
    for place in np.ndindex(side, side, side):
        one = molecule("H2O")
        one.positions += 3.1 * np.array(place)
        atoms += one
    atoms.positions[1] = atoms.positions[3] + [0.0, 0.0, -1.0]
    atoms.wrap()
    return atoms


@pytest.mark.parametrize("centre", [0, 3, 78])
def test_a_cluster_is_neutral_and_whole(centre):
    """Every hydrogen atom is next to its oxygen, across the faces of the cell as well."""
    found = script.cluster(box_of_water(), centre, least=4)
    oxygen = found.numbers == 8
    assert oxygen.sum() >= 4 and (~oxygen).sum() == 2 * oxygen.sum()
    assert not found.pbc.any()
    nearest = found.get_all_distances()[~oxygen][:, oxygen].min(1)
    assert nearest.max() < 1.1  # Å; by 3 Å and more where an image is the wrong one


def test_no_cluster_where_the_cell_is_too_small():
    with pytest.raises(ValueError, match="no neutral cluster around atom 0"):
        script.cluster(box_of_water(2), 0, least=8)


def test_no_frame_is_in_two_parts_and_the_foundation_sees_no_ion(tmp_path):
    frames = [Atoms("CO", info={"total_charge": n % 2, "number": n}) for n in range(20)]
    write(tmp_path / "carbon_chains.xyz", frames, format="extxyz")
    pair = replace(script.PAIRS["carbon_chains"], counts=(4, 2, 8, 2, 4))
    parts = script.split(pair, tmp_path, 1)
    assert [len(part) for part in parts.values()] == [4, 2, 8, 2, 4]
    numbers = [atoms.info["number"] for part in parts.values() for atoms in part]
    assert sorted(numbers) == list(range(20))
    for part in ("foundation_train", "foundation_valid"):
        assert all(atoms.info["total_charge"] == 0 for atoms in parts[part])


def test_energies_start_from_zero():
    frames = [Atoms(name) for name in ("CO", "CO2", "CO", "C2O")]
    for atoms, more in zip(frames, (0.1, 0.0, -0.1, 0.3), strict=True):
        carbon, oxygen = (int((atoms.numbers == z).sum()) for z in (6, 8))
        atoms.info["REF_energy"] = -10.0 * carbon - 20.0 * oxygen + more
    script.from_zero(frames, frames[:3])
    left = [atoms.info["REF_energy"] for atoms in frames]
    np.testing.assert_allclose(left, [0.1, 0.0, -0.1, 0.3], atol=1e-9)


def test_a_variant_has_its_labels_and_no_others(tmp_path):
    args = argparse.Namespace(folder=tmp_path)
    frames = [Atoms("OH2", np.eye(3), cell=[9.0] * 3, pbc=True) for _ in range(6)]
    for atoms in frames:
        atoms.arrays["REF_born_charges"] = np.ones((len(atoms), 9))
    labelled = {
        name: [
            "REF_born_charges" in a.arrays for a in script.frames_of(name, "train", frames, args)
        ]
        for name in ("plain", "few")
    }
    assert labelled["plain"] == [False] * 6
    assert labelled["few"] == [True] * 4 + [False] * 2
    assert all("REF_born_charges" in atoms.arrays for atoms in frames)
