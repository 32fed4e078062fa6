"""What all tutorials share: options, commands as in a terminal, pictures as PNG and SVG."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

_COMMANDS = {"mace_polmp": "mace_polmp.cli.main", "mace_run_train": "mace_polmp.cli.run_train"}


def start(name: str) -> bool:
    """Read the options, make the folder of a tutorial and go there.

    Args:
        name: of the tutorial; files go to tutorials/NAME, or to --output.

    Returns:
        Whether --quick was given: the same steps on less data, to see that they run.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few steps: shows only that it runs")
    parser.add_argument("--output", type=Path, default=Path("tutorials") / name)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    os.chdir(args.output)
    return bool(args.quick)


def need(package: str, extra: str) -> None:
    """End politely where a package of an extra is absent."""
    try:
        import_module(package)
    except ImportError:
        raise SystemExit(
            f"This tutorial needs {package}: pip install -c constraints.txt '.[{extra}]'"
        ) from None


def run(command: str, show: str | None = None, until: str | None = None) -> str:
    """Run a command as a terminal would, and print it with what it says.

    Commands of this package run in the same Python, which saves the seconds of its start.

    Args:
        command: a line for the shell.
        show: print only from the first line that has this text on.
        until: and only to the first line after it that has this text.

    Returns:
        All that it printed.

    Raises:
        RuntimeError: it failed.
    """
    print(f"$ {command}")
    words = shlex.split(command)
    failed = False
    if words[0] in _COMMANDS and words[1] != "lammps":  # LAMMPS prints past Python
        said = io.StringIO()
        with _as_it_was(), redirect_stdout(said), redirect_stderr(said):
            try:
                main = import_module(_COMMANDS[words[0]]).main
                with _arguments(words):
                    main()
            except SystemExit as end:
                failed = end.code not in (None, 0)
        text = said.getvalue()
    else:
        words[0] = _program(words[0])
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
        )
        text, failed = done.stdout, done.returncode != 0
    if failed:
        raise RuntimeError(f"{command}\nfailed:\n{text}")
    lines = text.splitlines()
    if show is not None:
        first = [number for number, line in enumerate(lines) if show in line]
        lines = lines[first[0] :] if first else lines
    if until is not None:
        last = [number for number, line in enumerate(lines) if until in line]
        lines = lines[: last[0] + 1] if last else lines
    print("\n".join(lines))
    return text


def save(figure: Any, name: str) -> None:
    """Write a picture as name.png and name.svg, and close it."""
    from mace_polmp.analysis import plots

    plots.save(figure, Path(f"{name}.png"))
    print(f"[{name}.png, {name}.svg]")


def _program(name: str) -> str:
    """The program of this environment, also where that is not activated."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _environment() -> dict[str, str]:
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Trainings add handlers of messages and change torch's precision; put both back."""
    import torch

    root = logging.getLogger()
    handlers, filters, level = list(root.handlers), list(root.filters), root.level
    precision, threads = torch.get_default_dtype(), torch.get_num_threads()
    root.handlers.clear()  # a training adds its own
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.filters[:] = filters
        root.setLevel(level)
        torch.set_default_dtype(precision)
        torch.set_num_threads(threads)
