"""Mistakes in the words of a command: one line and exit status 1, as all other mistakes."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command.

    Args:
        parser: of the command, with or without subcommands.
        argv: words of the command line; None for those of the process.

    Raises:
        SystemExit: with status 1, after one line, if the words do not fit.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    flags = {flag for each in _with_subcommands(parser) for flag in each._option_string_actions}
    for each in _with_subcommands(parser):
        each.error = _Complaint(each.prog, words, sorted(flags))  # type: ignore[method-assign]
    return parser.parse_args(words)


def _with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _with_subcommands(each)


class _Complaint:
    """In place of ArgumentParser.error, which prints all flags first.

    Args:
        program: its name.
        words: of the command line.
        flags: that are known.
    """

    def __init__(self, program: str, words: Sequence[str], flags: Sequence[str]) -> None:
        self._program, self._words, self._flags = program, words, flags

    def __call__(self, message: str) -> NoReturn:
        # A misspelt flag is named first: what is said to be missing may be what it was meant for.
        words = [*self._words, *message.partition("unrecognized arguments:")[2].split()]
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and not any(flag.startswith(name) for flag in self._flags):
                near = difflib.get_close_matches(name, self._flags, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                message = f"there is no flag {name}{hint}"
                break
        print(f"{self._program}: error: {message} (--help lists all flags)", file=sys.stderr)
        raise SystemExit(1)
