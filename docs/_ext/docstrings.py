"""Docstrings of the package are plain text: what means something else to Sphinx is escaped.

Equations in them are written in words and characters (∂, Σ, |k|), names of commands in `backticks`.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_BEFORE_NAPOLEON = 400


def escaped(line: str) -> str:
    """A line of a docstring for docutils: |, * and name_ mean nothing else."""
    line = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
    parts = re.split(r"(``[^`]*``)", line)
    parts[::2] = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _process(
    app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    module = getattr(thing, "__module__", None) or name
    if str(module).startswith("mace_polmp"):
        lines[:] = [escaped(line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Escape before napoleon makes sections of Args and Raises."""
    app.connect("autodoc-process-docstring", _process, priority=_BEFORE_NAPOLEON)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
