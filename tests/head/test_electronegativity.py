"""The table of electronegativities is aligned with the atomic numbers."""

import pytest
from ase.data import atomic_numbers

from mace_polmp.head.electronegativity import PAULING, electropositivity


@pytest.mark.parametrize(
    ("symbol", "value"),
    [("H", 2.20), ("O", 3.44), ("Cl", 3.16), ("K", 0.82), ("Zn", 1.65), ("Br", 2.96), ("Ag", 1.93)]
    + [("I", 2.66), ("Cs", 0.79), ("La", 1.10), ("Hf", 1.30), ("Au", 2.40), ("Pb", 1.80)]
    + [("U", 1.70)],
)
def test_known_values(symbol, value):
    assert PAULING[atomic_numbers[symbol] - 1] == value


def test_electronegative_elements_come_out_negative():
    sodium, chlorine, neon = electropositivity([11, 17, 10])
    assert sodium > 0 > chlorine
    assert sodium == pytest.approx(-chlorine)
    assert neon == 0  # no value, no guess
    assert electropositivity([6]) == [0.0]
