"""Units have one spelling wherever a user reads them."""

import ast
import re
from pathlib import Path

import pytest

from mace_polmp import unit_names
from mace_polmp.unit_names import per_wavenumber, with_unit

ROOT = Path(__file__).parents[1]
# Other spellings of the same units, as words of a text.
OTHERS = re.compile(
    r"cm\^-1|cm\^\{-1\}|\bAng\b|\bAngstrom\b|[(/ ](?:m?eV)/A\b|\be A\b|\beÅ\b|\be\*Å|Å\^[23]|"
    r"\be\^2|\bR2 |R\^2"
)


def texts(path):
    """String constants of a file that are read by a user, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("folder", ["mace_polmp", "scripts", "examples"])
def test_texts_spell_units_as_the_list_does(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text[:80]!r}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in texts(path)
        if OTHERS.search(text) and " " in text  # without spaces: a name of a column or a file
    ]
    assert not found


def test_the_search_finds_other_spellings():
    for text in ("forces, eV/A", "width, cm^-1", "length in Ang", "a dipole of 1 e A"):
        assert OTHERS.search(text)
    for name in dir(unit_names):
        if name.isupper():
            assert not OTHERS.search(f"x / {getattr(unit_names, name)}")


def test_quotients_have_parentheses():
    assert with_unit("time", "ps") == "time / ps"
    assert with_unit("forces", unit_names.FORCE) == "forces / (meV/Å)"
    assert with_unit("activity", per_wavenumber("km/mol")) == "activity / (km/mol per cm⁻¹)"
    assert with_unit("g(r)", "") == "g(r)"
