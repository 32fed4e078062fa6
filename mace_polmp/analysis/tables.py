"""Numbers and tables as text: the digits that mean something, at most 80 columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

WIDTH = 80
"""Of a terminal, columns."""

_MOST_DECIMALS = 6


def significant(value: float, digits: int = 3) -> str:
    """A number with so many digits that mean something: 0.0123, 1.23, 123; "-" for NaN.

    Numbers of four and more digits before the point are not cut: 12345.
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else f"{value}"
    if value == 0.0:
        return "0"
    exponent = _exponent(value, digits)
    if not -5 < exponent < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - exponent, 0)}f}"


def aligned(values: Sequence[float], digits: int = 3) -> list[str]:
    """Numbers of one column with the decimals that the largest of them needs for so many digits.

    What is small next to the largest is not shown with more decimals than that: 166.8, 2.6, 0.0.
    """
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest > 0.0 and not -5 < _exponent(largest, digits) < 7:
        return [significant(value, digits) for value in values]
    decimals = max(digits - 1 - _exponent(largest, digits), 0) if largest > 0.0 else 0
    return [f"{value:.{decimals}f}" if math.isfinite(value) else "-" for value in values]


def with_error(value: float, error: float) -> str:
    """A number and its standard error, which has two digits: 12.9 ± 1.7."""
    if not (math.isfinite(error) and error > 0.0):
        return significant(value)
    decimals = max(1 - _exponent(error, 2), 0)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def r_squared(value: float) -> str:
    """R² with two digits of what it leaves unexplained, 1 − R².

    0.944 and 0.99963, 0.65, −1.8, −1300: more decimals would be noise, and fewer would hide how
    close to 1 a good one is. "-" for NaN.
    """
    if not math.isfinite(value):
        return significant(value)
    rest = 1.0 - value
    if rest < 0.5 * 10.0**-_MOST_DECIMALS:
        return "1.0000"
    decimals = min(1 - _exponent(rest, 2), _MOST_DECIMALS)
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int = WIDTH) -> str:
    """A table with a frame, as wide as the terminal at most.

    Where it is too wide the heads of columns are broken, first before their units, then between
    words; where that is not enough the table is cut into several with the same first column.

    Args:
        columns: heads, all different.
        rows: cells, as many as columns; numbers are written by the caller.
        width: columns of the terminal.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    changes: tuple[Callable[[str], str], ...] = (_unchanged, _unit_below, _words_below)
    for change in changes:
        text = _framed([change(head) for head in columns], cells)
        if _widest(text) <= width:
            return text
    heads = [_words_below(head) for head in columns]
    return "\n".join(_parts(heads, cells, width))


def _parts(heads: list[str], cells: list[list[str]], width: int) -> list[str]:
    """The table in pieces, each with the first column."""
    parts: list[str] = []
    kept = [0]
    for column in range(1, len(heads)):
        wider = [*kept, column]
        if len(kept) > 1 and _widest(_chosen(heads, cells, wider)) > width:
            parts.append(_chosen(heads, cells, kept))
            wider = [0, column]
        kept = wider
    return [*parts, _chosen(heads, cells, kept)]


def _chosen(heads: list[str], cells: list[list[str]], columns: list[int]) -> str:
    return _framed([heads[c] for c in columns], [[row[c] for c in columns] for row in cells])


def _framed(heads: list[str], cells: list[list[str]]) -> str:
    """Heads, of one or more lines, over right-aligned cells."""
    tall = max(head.count("\n") for head in heads) + 1
    above = [([""] * tall + head.split("\n"))[-tall:] for head in heads]
    every = [list(line) for line in zip(*above, strict=True)] + cells
    widths = [max(len(line[column]) for line in every) for column in range(len(heads))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def framed(line: list[str]) -> str:
        padded = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    lines = [framed(line) for line in every]
    return "\n".join([rule, *lines[:tall], rule, *lines[tall:], rule])


def _widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def _unchanged(head: str) -> str:
    return head


def _unit_below(head: str) -> str:
    return head.replace(" / ", "\n/ ", 1)


def _words_below(head: str) -> str:
    what, slash, unit = head.partition(" / ")
    return what.replace(" ", "\n") + (f"\n/ {unit}" if slash else "")


def _exponent(value: float, digits: int) -> int:
    """Of ten, after rounding to so many digits: 9.996 with three is 10.0."""
    return int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
