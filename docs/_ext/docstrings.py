"""Docstrings of the package are plain text: what means something else to Sphinx is escaped.

Equations in them are written in words and characters (∂, Σ, |k|), names of commands in `backticks`.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_BEFORE_NAPOLEON = 400


def escaped(line: str) -> str:
    """A line of a docstring for docutils: |, * and name_ mean nothing else."""
    line = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
    parts = re.split(r"(``[^`]*``)", line)
    parts[::2] = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def with_code(lines: list[str]) -> list[str]:
    """The lines of a docstring for docutils: what is indented after a blank line is code.

    Sections such as Args are indented without a blank line.
    """
    out: list[str] = []
    in_code, before = False, ""  # the last line that is not blank
    for line in lines:
        indented = line.startswith("    ")
        if indented and not in_code and out and not out[-1] and not before.startswith(" "):
            out += ["::", ""]
            in_code = True
        if line and not indented:
            in_code = False
        out.append(line if in_code else escaped(line))
        before = line or before
    return out


def _process(
    app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    module = getattr(thing, "__module__", None) or name
    if str(module).startswith("mace_polmp"):
        lines[:] = with_code(lines)


def _dashes(app: Sphinx, doctree: nodes.document) -> None:
    """A dash between an argument and what it is, where Sphinx puts two hyphens."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Escape before napoleon makes sections of Args and Raises."""
    app.connect("autodoc-process-docstring", _process, priority=_BEFORE_NAPOLEON)
    app.connect("doctree-read", _dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
