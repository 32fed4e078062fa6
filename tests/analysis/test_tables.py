"""Numbers have the digits that mean something, tables fit a terminal."""

import math

import pytest

from mace_polmp.analysis.tables import (
    WIDTH,
    aligned,
    r_squared,
    significant,
    text_table,
    with_error,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (9.996, "10.0"),  # rounding moves the first digit
        (-51.28, "-51.3"),
        (12345.6, "12346"),  # digits before the point are not cut
        (1.2345e-6, "1.23e-06"),
        (0.0, "0"),
        (math.nan, "-"),
        (math.inf, "inf"),
    ],
)
def test_three_digits_mean_something(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-1298.7828, "-1300"),
        (-1.85, "-1.9"),
        (0.651, "0.65"),
        (0.9436571, "0.944"),
        (0.999634, "0.99963"),
        (1.0, "1.0000"),
        (1.0 - 1e-9, "1.0000"),
        (math.nan, "-"),
    ],
)
def test_r_squared_shows_two_digits_of_what_is_not_explained(value, text):
    assert r_squared(value) == text


def test_an_error_has_two_digits_and_its_number_as_many_decimals():
    assert with_error(12.9412, 1.724) == "12.9 ± 1.7"
    assert with_error(78.43, 12.3) == "78 ± 12"
    assert with_error(1.78, 0.0) == "1.78"


def test_what_is_small_in_a_column_has_no_digits_of_its_own():
    """An intensity of 1e-7 km/mol beside one of 221 is zero, not noise with four digits."""
    assert aligned([221.24, 0.9459, 1e-7], 4) == ["221.2", "0.9", "0.0"]
    assert aligned([0.0, 0.0]) == ["0", "0"]
    assert aligned([math.nan, 2.0]) == ["-", "2.00"]


def columns_of(text):
    """Heads of all columns, their lines joined, in the order of the text."""
    found, block = [], []
    for line in text.splitlines():
        if line.startswith("|"):
            block.append([cell.strip() for cell in line.strip("|").split("|")])
    heads = [line for line in block if not line[-1].replace(".", "").isdigit()]
    for line in zip(*heads, strict=True):
        found.append(" ".join(word for word in line if word))
    return found


def test_heads_are_broken_before_units_first():
    heads = [
        "mode",
        "frequency / cm⁻¹",
        "infrared / (km/mol)",
        "Raman activity / (Å⁴/amu)",
        "x / e",
    ]
    narrow = text_table(heads, [["0", "1552.00", "221.2", "15.95", "1.0"]], width=66)
    assert max(map(len, narrow.splitlines())) <= 66
    assert "infrared" in narrow and "/ (km/mol)" in narrow
    assert "infrared / (km/mol)" not in narrow
    assert columns_of(narrow) == heads


def test_a_wide_table_becomes_several_with_the_same_first_column():
    """Nothing is lost and nothing is wider than a terminal."""
    heads = ["mode", *(f"frequency along 1,{n},0 / cm⁻¹" for n in range(9))]
    rows = [[str(mode), *(f"{1000 * mode + n}.25" for n in range(9))] for mode in range(3)]
    text = text_table(heads, rows)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(cell in text for row in rows for cell in row)
    parts = text.count("mode")
    assert parts > 1
    lines = [line.strip("|").split("|")[0].strip() for line in text.splitlines()]
    assert lines.count("2") == parts
