"""What the build of the documentation adds to Sphinx: equations, pages from the code, checks."""

import importlib
import re
import sys
from xml.etree import ElementTree

import pytest

from tests.docs.pages import ROOT, written

pytest.importorskip("sphinx")
pytest.importorskip("latex2mathml")
XML = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture(scope="module", autouse=True)
def extensions():
    """docs/_ext among the places of modules, as docs/conf.py has it."""
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    yield
    sys.path.remove(str(ROOT / "docs" / "_ext"))


def equation(latex: str, display: bool = True) -> ElementTree.Element:
    return ElementTree.fromstring(importlib.import_module("mathml").mathml(latex, display))


@pytest.mark.parametrize(
    ("latex", "reason"),
    [
        (r"\laplacian \phi", r"\\laplacian is not known"),
        (r"\frac{q_i q_j}", "a part of mfrac is missing"),
        (r"\frac{a}{b", "braces do not match"),
        (r"\left( a", "latex2mathml"),
        (r"a & b", "no valid MathML"),
    ],
)
def test_an_equation_that_cannot_be_translated_is_an_error(latex, reason):
    mathml = importlib.import_module("mathml")
    with pytest.raises(mathml.EquationError, match=reason):
        equation(latex)


@pytest.mark.parametrize(
    "latex",
    [
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\begin{split} a &= b \\ c &= d \end{split}",
        r"a &= b \\ c &= d",
    ],
)
def test_equations_of_several_lines_are_tables(latex):
    assert len(equation(latex).findall(f".//{XML}mtr")) == 2


def test_bold_greek_letters_are_characters_and_functions_have_names():
    assert equation(r"\boldsymbol\mu").find(f".//{XML}mi").text == "\U0001d741"
    assert equation(r"\operatorname{erf}(r)").find(f".//{XML}mi").text == "erf"


def test_docstrings_are_plain_text_with_indented_code():
    """Signs that mean something to docutils are escaped; Args has no blank line before it."""
    made = importlib.import_module("docstrings").with_code(
        ["Sum over |k| of q*, see `md`.", "", "    a = b * c", "", "Args:", "    a_: of all."]
    )
    assert made == [
        r"Sum over \|k\| of q\*, see ``md``.",
        *("", "::", "", "    a = b * c", ""),
        *("Args:", r"    a\_: of all."),
    ]


def test_broken_links_and_addresses_of_the_network_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="https://example.org">4</a><a href="#">5</a>'
        '<script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="there"><img src="picture.png"></p>')
    assert importlib.import_module("links").broken(tmp_path) == [
        "a.html: loads https://example.org/x.js, which needs a network",
        "a.html: b.html#gone: no such anchor",
        "a.html: c.html: no such file",
        "b.html: picture.png: no such file",
    ]


def test_the_reference_has_every_flag_and_command(tmp_path):
    from dataclasses import fields

    from mace_polmp.head.options import LongRangeOptions
    from mace_polmp.quantities import LABELS
    from mace_polmp.training.options import TrainingOptions
    from tests.docs.test_commands import ours

    importlib.import_module("reference").write_pages(tmp_path)
    flags = (tmp_path / "flags.md").read_text(encoding="utf-8")
    for field in (*fields(LongRangeOptions), *fields(TrainingOptions)):
        if "help" in field.metadata:
            assert f"`--{field.name}" in flags
    commands = (tmp_path / "commands.md").read_text(encoding="utf-8")
    for name, parser in ours().items():
        assert f"\n## mace_polmp {name}\n" in commands
        for action in parser._actions:
            if action.dest != "help":
                assert (action.option_strings or [action.dest])[-1] in commands
    labels = (tmp_path / "labels.md").read_text(encoding="utf-8")
    for name, quantity in LABELS.items():
        assert f"| `{name}` | `{quantity.key}` |" in labels


def test_the_reference_has_every_result_of_the_calculator(tmp_path):
    from mace_polmp.calculators import MultipoleMACECalculator
    from tests.helpers import random_model

    known = MultipoleMACECalculator(models=random_model()).implemented_properties
    text = importlib.import_module("reference").labels_page()
    inner = {"node_energy", "virials", "stresses", "magmom"}  # of mace-torch, not of this model
    assert [name for name in known if f"`{name}`" not in text and name not in inner] == []


OUTSIDE = [path for path in written() if ROOT / "docs" not in path.parents]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_files_outside_the_site_lead_somewhere(path):
    """The build looks at the links of the pages themselves."""
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    docs, tutorials = ROOT / "docs", (ROOT / "examples" / "tutorials").glob("*.py")
    made = {docs / "reference" / f"{name}.md" for name in ("flags", "commands", "labels")}
    made |= {docs / "tutorials" / f"{script.stem}.md" for script in tutorials}
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        found = (path.parent / target).resolve()
        there = "://" in target or found.exists() or found in made
        assert there, f"{path.relative_to(ROOT)}: {target} is not there"
