"""Atomic energies: what was asked for, complete, and averages over the energies that count."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from mace.tools.scripts_utils import get_atomic_energies

from mace_polmp.errors import InputError
from mace_polmp.training.atomic_energies import (
    atomic_energies,
    check_complete,
    check_isolated,
    counted,
    parse,
)

TRUE = {1: -13.6, 8: -432.1, 11: -160.0}


def config(numbers, weight=1.0, energy_weight=1.0, wrong=0.0):
    """A configuration whose energy is that of its atoms, or a wrong one."""
    energy = None if wrong is None else sum(TRUE[z] for z in numbers) + wrong
    return SimpleNamespace(
        atomic_numbers=np.array(numbers),
        properties={"energy": energy},
        weight=weight,
        property_weights={"energy": energy_weight},
    )


@pytest.mark.parametrize(
    "asked",
    [
        {1: -13.6, 8: -432.1},
        "{1: -13.6, 8: -432.1}",
        "{'H': -13.6, 'O': -432.1}",
        "{'1': '-13.6', 'O': -432.1}",
    ],
)
def test_energies_by_element(asked):
    assert parse(asked) == {1: -13.6, 8: -432.1}


def test_energies_in_a_file(tmp_path):
    path = tmp_path / "e0s.json"
    path.write_text(json.dumps({"H": -13.6, "8": -432.1}))
    assert parse(str(path)) == {1: -13.6, 8: -432.1}
    path.write_text("{")
    with pytest.raises(InputError, match=r"e0s\.json: not a JSON file"):
        parse(str(path))
    with pytest.raises(InputError, match="none.json: no such file"):
        parse("none.json")


@pytest.mark.parametrize("word", ["average", " Average ", "foundation", "estimated"])
def test_words(word):
    assert parse(word) == word.strip().lower()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("averages", "must be average, foundation, estimated, the name of"),
        ("{}", "must be average"),
        ("[1, 2]", "must be average"),
        ("{1: -13.6", "must be average"),
        ("{'Xx': 1.0}", "'Xx' is no element"),
        ("{0: 1.0}", "0 is no element"),
        ("{'D': 1.0}", "'D' is no element"),
        ("{'H': 'low'}", "the energy of H must be a number in eV, got 'low'"),
        ("{'H': None}", "the energy of H must be a number in eV, got None"),
        ({"H": float("nan")}, "the energy of H must be a number in eV, got nan"),
        ({"H": True}, "the energy of H must be a number in eV, got True"),
        ("{'H': -13.6, 1: -13.7}", "H is there twice"),
    ],
)
def test_nonsense_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        parse(asked)


def test_missing_elements_are_refused_and_others_are_said(caplog):
    with pytest.raises(InputError, match="has no energy of O, which the structures hold"):
        check_complete({1: -13.6}, [1, 8], "--E0s")
    with pytest.raises(InputError, match="--E0s: has no energy of O"):
        atomic_energies(get_atomic_energies, {1: -13.6}, None, [1, 8])
    with caplog.at_level(logging.INFO):
        found = atomic_energies(get_atomic_energies, dict(TRUE), None, [1, 8])
    assert found == {1: -13.6, 8: -432.1}
    assert "energies of Na are not used" in caplog.text


def test_averages_are_over_what_counts():
    """Without an energy, or with a weight of zero in either place, a structure has no vote."""
    configs = [
        config([1, 1, 8]),
        config([1, 8]),
        config([8, 8]),
        config([1], energy_weight=0.0, wrong=500.0),
        config([8], weight=0.0, wrong=-300.0),
        config([1, 8, 8], wrong=None),
    ]
    assert counted(configs) == configs[:3]
    found = atomic_energies(get_atomic_energies, "average", configs, [1, 8])
    assert found == pytest.approx({1: -13.6, 8: -432.1})
    with pytest.raises(InputError, match="no training structure has an energy with a weight"):
        atomic_energies(get_atomic_energies, "average", configs[3:], [1, 8])
    with pytest.raises(InputError, match="needs structures that ASE reads"):
        atomic_energies(get_atomic_energies, "average", None, [1, 8])


def test_isolated_atoms_stay_and_the_others_are_averaged():
    configs = [config([1, 1, 8, 11]), config([1, 8]), config([8, 11, 11]), config([11])]
    known = {1: -13.0}
    found = atomic_energies(get_atomic_energies, "average", configs, [1, 8, 11], known)
    assert found[1] == -13.0
    # The least squares of what hydrogen at -13.0 leaves.
    left = [c.properties["energy"] + 13.0 * (c.atomic_numbers == 1).sum() for c in configs]
    counts = np.array([[(c.atomic_numbers == z).sum() for z in (8, 11)] for c in configs])
    expected = np.linalg.lstsq(counts.astype(float), np.array(left), rcond=None)[0]
    np.testing.assert_allclose([found[8], found[11]], expected)


def test_isolated_atoms_that_contradict_each_other_are_refused():
    assert check_isolated([("a", {1: -13.6}), ("b", {8: -432.0}), ("c", {1: -13.6})]) == {
        1: -13.6,
        8: -432.0,
    }
    with pytest.raises(InputError, match="c: is an IsolatedAtom of H with -13 eV, but a has -13.6"):
        check_isolated([("a", {1: -13.6}), ("c", {1: -13.0})])


def test_compositions_that_do_not_tell_elements_apart_are_said(caplog):
    atomic_energies(get_atomic_energies, "average", [config([1, 8]), config([1, 1, 8, 8])], [1, 8])
    assert "do not tell the energies of H, O apart" in caplog.text
    caplog.clear()
    atomic_energies(get_atomic_energies, "average", [config([1, 8]), config([1, 1, 8])], [1, 8])
    assert "apart" not in caplog.text
