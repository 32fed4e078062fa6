"""What the pages on theory and on how to choose name is there, and their commands are taken."""

import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

from mace_polmp.cli import main, run_train
from mace_polmp.head.options import LongRangeOptions
from mace_polmp.training.options import TrainingOptions

DOCS = Path(__file__).parents[2] / "docs"
THEORY = sorted((DOCS / "theory").glob("*.md"))
CHOOSE = sorted((DOCS / "choose").glob("*.md"))
NAMED = re.compile(r"`(mace_polmp(?:\.\w+)+)`")
PARSERS = {"mace_run_train": run_train.build_parser, "mace_polmp": main.build_parser}


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.M | re.S)


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
def test_commands_are_taken(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command, *rest = shlex.split(line)
            if command not in PARSERS:
                continue
            args = PARSERS[command]().parse_args(rest)
            if command == "mace_run_train":
                LongRangeOptions(**run_train.asked_options(args))  # refuses what is not valid
                TrainingOptions.of(args)


def test_signs_are_those_that_the_example_prints():
    page = DOCS / "theory" / "conventions.md"
    (code,), (printed,) = blocks(page, "python"), blocks(page, "text")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue() == printed
