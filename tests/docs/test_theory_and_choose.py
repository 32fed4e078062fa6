"""What the pages on theory and on how to choose name is there, and their settings are valid."""

import contextlib
import importlib
import io
import re
import shlex

import pytest

from mace_polmp.cli import run_train
from mace_polmp.head.options import LongRangeOptions
from mace_polmp.training.options import TrainingOptions
from tests.docs.pages import ROOT, blocks

DOCS = ROOT / "docs"
THEORY = sorted((DOCS / "theory").glob("*.md"))
CHOOSE = sorted((DOCS / "choose").glob("*.md"))
NAMED = re.compile(r"`(mace_polmp(?:\.\w+)+)`")


def text_of(page):
    return page.read_text(encoding="utf-8")


def of_language(page, language):
    return [block.text for block in blocks(page, language)]


def find(name):
    """The object of a dotted name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        module = ".".join(parts[:n])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # another package is missing
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", THEORY + CHOOSE, ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page):
    for name in NAMED.findall(text_of(page)):
        find(name)


@pytest.mark.parametrize("page", THEORY, ids=lambda page: page.stem)
def test_every_section_with_an_equation_says_what_computes_it(page):
    for section in re.split(r"^#+ ", text_of(page), flags=re.M):
        if "\n$$\n" in section:
            assert "Code:" in section, section.splitlines()[0]


@pytest.mark.parametrize("page", CHOOSE, ids=lambda page: page.stem)
def test_values_of_the_head_are_valid(page):
    """The parser of the training leaves what is not valid to the options."""
    for block in of_language(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command, *rest = shlex.split(line)
            if command == "mace_run_train":
                args = run_train.build_parser().parse_args(rest)
                LongRangeOptions(**run_train.asked_options(args))
                TrainingOptions.of(args)


def test_signs_are_those_that_the_example_prints():
    page = DOCS / "theory" / "conventions.md"
    (code,), (printed,) = of_language(page, "python"), of_language(page, "text")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue() == printed
