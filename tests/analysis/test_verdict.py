"""The verdict on charges: each word appears where a chemist would say it."""

import numpy as np
import pytest

from mace_polmp.analysis.verdict import (
    LARGE,
    PHYSICAL,
    REVERSED,
    SMALL,
    UNCLEAR,
    UNKNOWN,
    Observed,
    find,
    judge,
    slope_of,
)
from mace_polmp.calculators.verdict import ELECTROPOSITIVITY

WATER = np.array([8, 1, 1])
CHARGES = np.array([-0.66, 0.33, 0.33])
DIPOLE = np.array([0.0, 0.0, 0.4])


def waters(
    charges=CHARGES,
    dipole=None,
    born=None,
    count=4,
    periodic=False,
    noise=0.0,
    total=0.0,
    moving=None,
):
    """Water molecules whose true dipole is DIPOLE and whose true Born charges are CHARGES."""
    rng = np.random.default_rng(2)
    out = Observed()
    for _ in range(count):
        out.numbers.append(WATER)
        out.charges.append(np.asarray(charges))
        out.moving.append(moving)
        out.molecules.append(np.zeros(3, dtype=int))
        out.total_charges.append(total)
        out.periodic.append(periodic)
        if dipole is not None:
            out.dipoles.append((DIPOLE, dipole * DIPOLE + noise * rng.normal(size=3)))
        if born is not None:
            label = CHARGES[:, None, None] * np.eye(3)
            out.born_charges.append((label, born * label))
            out.born_periodic.append(periodic)
    return out


def word(observed):
    return judge(find(observed, ELECTROPOSITIVITY)).word


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.0, PHYSICAL), (0.6, PHYSICAL), (0.1, SMALL), (0.0, SMALL), (-1.0, REVERSED), (9.0, LARGE)],
)
def test_without_labels_electronegativities_decide(factor, expected):
    assert word(waters(factor * CHARGES)) == expected


def test_what_moves_with_the_atoms_counts_before_latent_charges():
    """Atomic dipoles may carry what latent charges lack."""
    assert word(waters(0.1 * CHARGES, moving=CHARGES)) == PHYSICAL
    assert word(waters(CHARGES, moving=-CHARGES)) == REVERSED
    text = judge(find(waters(0.1 * CHARGES, moving=CHARGES), ELECTROPOSITIVITY)).text()
    assert "charges that move with the atoms (Born) vary by 0.47 e" in text


def test_next_to_nothing_has_no_sign():
    assert word(waters(-0.02 * CHARGES)) == SMALL
    assert word(waters(CHARGES, dipole=-0.02)) == SMALL


@pytest.mark.parametrize(
    ("slope", "expected"),
    [(1.0, PHYSICAL), (0.7, PHYSICAL), (0.4, SMALL), (-0.8, REVERSED), (2.0, LARGE)],
)
def test_labels_decide_where_there_are_any(slope, expected):
    """The charges themselves follow electronegativities in all of these."""
    assert word(waters(dipole=slope)) == expected
    assert word(waters(born=slope)) == expected


def test_too_few_dipoles_decide_nothing():
    assert word(waters(-CHARGES, dipole=1.0, count=2)) == REVERSED
    assert word(waters(-CHARGES, dipole=1.0, count=3)) == PHYSICAL


def test_dipoles_that_do_not_follow_labels_are_unclear():
    assert word(waters(dipole=0.9, noise=2.0, count=9)) == UNCLEAR


@pytest.mark.parametrize(("size", "expected"), [(0.3, SMALL), (1.5, UNCLEAR)])
def test_what_is_as_large_as_the_labels_and_does_not_follow_them_is_not_small(size, expected):
    """The slope is small in both cases: some 0.14 times the size of the predictions."""
    out = waters(born=1.0, count=20)
    rng = np.random.default_rng(5)
    for n, (label, _) in enumerate(out.born_charges):
        # Predictions have the size of the labels, times `size`, and follow them by 0.14.
        other = rng.normal(size=3)
        other *= np.linalg.norm(CHARGES) / np.linalg.norm(other)
        mixed = 0.14 * CHARGES + 0.99 * other
        out.born_charges[n] = (label, size * mixed[:, None, None] * np.eye(3))
    assert word(out) == expected


def test_labels_that_contradict_each_other_are_unclear():
    assert word(waters(dipole=1.0, born=-0.5)) == UNCLEAR


def test_molecules_that_are_not_neutral_are_unclear():
    charged = CHARGES + 0.1
    assert word(waters(charged)) == UNCLEAR
    assert "--constrain_charge" in judge(find(waters(charged), ELECTROPOSITIVITY)).advice
    assert word(waters(charged, total=0.3)) == PHYSICAL  # of an ion nothing else is expected


def test_the_medium_may_screen_born_charges():
    assert word(waters(born=0.45, periodic=True)) == PHYSICAL
    assert word(waters(born=0.45, periodic=False)) == SMALL
    text = judge(find(waters(born=0.45, periodic=True), ELECTROPOSITIVITY)).text()
    assert "root of the electronic permittivity" in text


def test_one_element_cannot_be_judged_without_labels():
    crystal = Observed([np.array([6, 6])], [np.zeros(2)], [None], [np.zeros(2, int)], [0.0], [True])
    assert word(crystal) == UNKNOWN


def test_elements_without_an_electronegativity_do_not_count_as_others():
    """Helium has none in Pauling's scale; it must not look like the most electropositive."""
    mixed = waters()
    mixed.numbers = [np.append(numbers, 2) for numbers in mixed.numbers]
    mixed.charges = [np.append(charges, 0.0) for charges in mixed.charges]
    mixed.molecules = [np.append(labels, 1) for labels in mixed.molecules]
    one, two = (find(x, ELECTROPOSITIVITY) for x in (mixed, waters()))
    assert (one.order, one.spread, one.expected) == (two.order, two.spread, two.expected)
    atoms = Observed(
        [np.array([2, 2, 2])], [np.zeros(3)], [None], [np.zeros(3, int)], [0.0], [False]
    )
    assert word(atoms) == UNKNOWN


def test_the_text_says_what_was_seen_and_what_to_do():
    text = judge(find(waters(0.1 * CHARGES, dipole=0.1), ELECTROPOSITIVITY)).text("4 structures")
    assert text.startswith("Verdict: charges look small (4 structures)\n")
    assert "dipoles are 0.10 times the labels of 4 structures" in text
    assert "mace_polmp label" in text and "--head_warmup_epochs" in text
    good = judge(find(waters(dipole=1.0), ELECTROPOSITIVITY)).text()
    assert "what to do" not in good


def test_a_slope_is_the_factor_between_labels_and_predictions():
    labels = np.random.default_rng(0).normal(size=(5, 3))
    assert slope_of(labels, 1.12 * labels) == pytest.approx(1.12)
    assert np.isnan(slope_of(np.zeros(3), np.ones(3)))
