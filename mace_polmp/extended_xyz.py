"""Extended XYZ files as text: labels are added to frames, and all else stays as it was written.

Reading a file and writing it again would round its numbers and rename its columns.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from mace_polmp.errors import InputError

_PLAIN = "species:S:1:pos:R:3"  # columns where a frame does not name them
_PROPERTIES = "Properties"
ENDINGS = (".xyz", ".extxyz")


@dataclass
class FrameText:
    """One frame of a file.

    Attributes:
        count: the line with the number of atoms.
        comment: the line of names and values.
        rows: a line for each atom.
        more: lines after them (old files have lattice vectors there).
    """

    count: str
    comment: str
    rows: list[str]
    more: list[str]

    def lines(self) -> list[str]:
        """As they are written."""
        return [self.count, self.comment, *self.rows, *self.more]

    def set_info(self, key: str, value: str | float | Sequence[float]) -> None:
        """Give the frame a value, in place of one of the same name."""
        if isinstance(value, str):
            text = f'"{value}"'
        elif isinstance(value, int | float):
            text = f"{value:.10g}"
        else:
            text = '"' + " ".join(f"{x:.8f}" for x in value) + '"'
        self._put(key, text)

    def set_columns(self, key: str, values: np.ndarray) -> None:
        """Give each atom values, in place of those of the same name.

        Args:
            key: of the columns.
            values: [n_atoms, n_columns].

        Raises:
            InputError: the columns of the frame are not what its line says.
        """
        found = self._find(_PROPERTIES)
        said = self.comment[found[1] : found[2]].strip("\"'") if found else _PLAIN
        parts = said.split(":")
        names, widths = parts[0::3], [int(width) for width in parts[2::3]]
        start, width = sum(widths), values.shape[1]
        replaced = width if key in names else 0
        if replaced:
            start = sum(widths[: names.index(key)])
            if widths[names.index(key)] != width:
                raise InputError(f"'{key}' has other columns than the {width} of the new label")
        else:
            self._put(_PROPERTIES, f"{said}:{key}:R:{width}")
        for number, own in enumerate(values.tolist()):
            spans = [match.span() for match in re.finditer(r"\S+", self.rows[number])]
            if len(spans) < start + replaced:
                raise InputError(
                    f"atom {number} has {len(spans)} columns, and {_PROPERTIES}={said} names "
                    f"{sum(widths)}"
                )
            row, text = self.rows[number], " ".join(f"{value:14.8f}" for value in own)
            if replaced:
                first, last = spans[start][0], spans[start + width - 1][1]
                self.rows[number] = row[:first] + text.lstrip() + row[last:]
            else:
                last = spans[start - 1][1]
                self.rows[number] = f"{row[:last]} {text}{row[last:]}"

    def _put(self, key: str, text: str) -> None:
        found = self._find(key)
        if found is None:
            self.comment = f"{self.comment.rstrip()} {key}={text}".lstrip()
        else:
            self.comment = f"{self.comment[: found[1]]}{text}{self.comment[found[2] :]}"

    def _find(self, key: str) -> tuple[int, int, int] | None:
        """Where a key begins, and where its value begins and ends."""
        for start, middle, end in _entries(self.comment):
            if self.comment[start:middle].split("=")[0].strip().strip("\"'") == key:
                return start, middle, end
        return None


def _entries(comment: str) -> Iterator[tuple[int, int, int]]:
    """Where keys with values begin, and where their values begin and end."""
    at = 0
    while match := re.compile(r'("[^"]*"|[^\s="]+)\s*(=\s*)?').search(comment, at):
        at = match.end()
        if match.group(2) and at < len(comment):
            end = _end_of_value(comment, at)
            yield match.start(), at, end
            at = end
        if match.end() == match.start():
            return


def _end_of_value(text: str, start: int) -> int:
    opening = text[start]
    if opening in "\"'":
        match = re.compile(rf"(?:\\.|[^\\{opening}])*{opening}").match(text, start + 1)
        return len(text) if match is None else match.end()
    if opening in "[{":
        depth = 0
        for at in range(start, len(text)):
            depth += (text[at] in "[{") - (text[at] in "]}")
            if depth == 0:
                return at + 1
        return len(text)
    match = re.compile(r"\S*").match(text, start)
    assert match is not None
    return match.end()


def read_text(path: str | Path, frames: Sequence[Atoms]) -> list[FrameText]:
    """The frames of a file as text; of other formats than XYZ, as ASE writes them.

    Args:
        path: of the file, which read_structures has read.
        frames: what it read.
    """
    path = Path(path)
    if path.suffix.lower() in ENDINGS:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        first = text.partition("\n")[0].strip()
        if first.isdigit():
            return _frames_of(text, path)
    buffer = io.StringIO()
    ase.io.write(buffer, list(frames), format="extxyz")
    return _frames_of(buffer.getvalue(), path)


def _frames_of(text: str, path: Path) -> list[FrameText]:
    try:
        return list(_split([line.rstrip("\r") for line in text.split("\n")]))
    except (IndexError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as text ({error}); write it again with ASE first"
        ) from error


def _split(lines: list[str]) -> Iterator[FrameText]:
    at = 0
    while at < len(lines) and lines[at].strip():
        end = at + 2 + int(lines[at])
        after = end
        while after < len(lines) and lines[after].lstrip().startswith("VEC"):
            after += 1
        yield FrameText(lines[at], lines[at + 1], lines[at + 2 : end], lines[end:after])
        at = after


def write_text(path: Path, texts: Sequence[FrameText]) -> None:
    """Write frames to a file."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        for text in texts:
            file.write("\n".join(text.lines()) + "\n")


def check_unchanged(before: Atoms, after: Atoms, added: set[str], where: str) -> None:
    """Refuse a frame that reads otherwise than before in anything but what was added.

    Raises:
        InputError: names what differs.
    """
    results = [{} if atoms.calc is None else atoms.calc.results for atoms in (before, after)]
    pairs = {
        "info": (before.info, after.info),
        "columns": (before.arrays, after.arrays),
        "results": (results[0], results[1]),
        "frame": tuple({"cell": a.cell.array, "pbc": a.pbc} for a in (before, after)),
    }
    for old, new in pairs.values():
        for key in (set(old) | set(new)) - added:
            if key not in old or key not in new or not _same(old[key], new[key]):
                raise InputError(
                    f"{where}: a label cannot be added without changing '{key}', which is written "
                    "in an unusual way; write the file again with ASE first"
                )


def _same(one: object, other: object) -> bool:
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True))
    except TypeError:  # texts have no NaN
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
