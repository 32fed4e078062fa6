"""Commands and flags that the documentation names are those of the commands."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import yaml

from tests.docs.pages import ROOT, Block, blocks, written

# Flags of other programs that texts name: pip, torchrun.
OTHERS = {"--no-deps", "--index-url", "--nproc_per_node", "--nnodes"}
TRAINING = ("mace_run_train", "mace_polmp_run_train", "mace_polmp.cli.run_train")
EVALUATION = ("mace_eval_configs", "mace_polmp_eval_configs")
LEFT_OUT = ("…", "...")


@cache
def training() -> argparse.ArgumentParser:
    from mace_polmp.cli.run_train import build_parser

    return build_parser()


@cache
def evaluation() -> argparse.ArgumentParser:
    """The parser that mace-torch makes and uses in one function, and our flags."""
    from mace.cli import eval_configs

    from mace_polmp.cli.eval_configs import build_parser

    found = []

    def keep(parser, *_):
        found.append(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", keep):
        eval_configs.parse_args()
    return argparse.ArgumentParser(
        parents=[found[0], build_parser()], add_help=False, conflict_handler="resolve"
    )


@cache
def ours() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the subcommands of mace_polmp."""
    from mace_polmp.cli.main import build_parser

    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """The parser of a command line and the arguments that it gets; None for other programs."""
    for number, word in enumerate(words):
        name, rest = word.rsplit("/", 1)[-1], words[number + 1 :]
        if name in TRAINING:
            return training(), rest
        if name in EVALUATION:
            return evaluation(), rest
        if name == "mace_polmp" and rest:
            if rest[0] in ("--version", "--help"):
                return None
            assert rest[0] in ours(), f"there is no command mace_polmp {rest[0]}"
            return ours()[rest[0]], rest[1:]
    return None


def command_lines(block: Block) -> list[list[str]]:
    """The words of each command of a block, without prompts and comments."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    commands: list[list[str]] = []
    for line in lines:
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        commands.append([])
        for word in lexer:
            if set(word) <= set("&|;()"):
                commands.append([])
            else:
                commands[-1].append(word)
    return [words for words in commands if words]


def check_flags(parser: argparse.ArgumentParser, words: list[str], place: str) -> None:
    for word in words:
        if word.startswith("--") and word not in LEFT_OUT:
            name = word.split("=")[0]
            assert name in parser._option_string_actions, f"{place}: there is no {name}"


def check_arguments(parser: argparse.ArgumentParser, words: list[str], place: str) -> None:
    """Let the command's own parser read them, where they are complete."""
    left_out = any(mark in word for word in words for mark in LEFT_OUT)
    if left_out or "--config" in words:
        return
    try:
        parser.parse_args(words)
    except SystemExit as stop:
        pytest.fail(f"{place}: the parser refuses {' '.join(words)} ({stop})")


PAGES = written()


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_commands_can_be_copied(path):
    """Flags exist, and what is complete is what the command's parser accepts."""
    for block in blocks(path, "bash", "console", "shell", "sh"):
        for words in command_lines(block):
            found = parser_of(words)
            if found is not None:
                check_flags(*found, block.place)
                check_arguments(*found, block.place)


def flags_of_scripts() -> set[str]:
    """Flags of the scripts and examples of this repository, as their sources spell them."""
    sources = [path for folder in ("scripts", "examples") for path in (ROOT / folder).rglob("*.py")]
    found = (re.findall(r"""["'](--\w+)["']""", path.read_text("utf-8")) for path in sources)
    return {flag for flags in found for flag in flags}


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_flags_in_the_text_exist(path):
    """Text in `code` that begins with two dashes is a flag of one of the commands or scripts."""
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    parsers = [training(), evaluation(), *ours().values()]
    known = OTHERS | flags_of_scripts()
    known |= {name for parser in parsers for name in parser._option_string_actions}
    for code in re.findall(r"`(--[^`]+)`", text):
        for flag in re.findall(r"(?<!\S)--[\w-]+", code):
            assert flag in known, f"{path.relative_to(ROOT)}: there is no flag {flag}"


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_files_of_settings_have_names_of_flags(path):
    """The blocks of YAML are files for mace_run_train --config."""
    known = set(training()._option_string_actions)
    for block in blocks(path, "yaml"):
        for name in yaml.safe_load(block.text):
            assert f"--{name}" in known, f"{block.place}: there is no flag --{name}"


def test_the_readers_of_commands_see_what_is_wrong():
    """A flag that does not exist, a required one that is missing, and an unknown command."""
    parser, words = parser_of(shlex.split(".venv/bin/mace_polmp md --model x --step 3"))
    with pytest.raises(AssertionError, match="there is no --step"):
        check_flags(parser, words, "here")
    parser, words = parser_of(["mpiexec", "-n", "4", "mace_polmp", "md", "--model", "x"])
    with pytest.raises(pytest.fail.Exception, match="the parser refuses"):
        check_arguments(parser, words, "here")
    with pytest.raises(AssertionError, match="there is no command mace_polmp dynamics"):
        parser_of(["mace_polmp", "dynamics"])
    assert parser_of(["pip", "install", "--upgrade", "x"]) is None
