"""Reading structure files: whole, or refused with the frame and the line that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TypeVar

import ase.io
from ase import Atoms
from ase.data import atomic_numbers
from tqdm import tqdm

from mace_polmp.errors import InputError

T = TypeVar("T")

DEMO_MODEL = "demo"
"""Stands for the packaged model where a model file is asked for."""

_XYZ = (".xyz", ".extxyz")
_HYDROGEN = {"D": 2.014, "T": 3.016}


def existing_file(path: str | Path, what: str = "") -> Path:
    """A path, if it is that of a file.

    Args:
        path: as the user gave it.
        what: the option that it was given to, for the message.

    Raises:
        InputError: there is none, or it is a folder.
    """
    said = f"{what} {path}" if what else f"{path}"
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{said}: is a folder; give a file in it")
    if not path.exists():
        raise InputError(f"{said}: no such file")
    return path


def shown(items: Iterable[T], words: str, shows: bool = True) -> Iterable[T]:
    """The same items, with a bar on a terminal that goes away at the end.

    Args:
        items: to go through.
        words: what is done.
        shows: whether there is a bar.
    """
    bar: Iterable[T] = tqdm(
        items, desc=words, leave=False, delay=2.0, disable=None if shows else True
    )
    return bar


def model_file(path: str | Path, what: str = "") -> Path:
    """A path, if it is that of a file; "demo" is the model that comes with the package.

    A file of that name in the current folder comes first.

    Raises:
        InputError: as existing_file.
    """
    if str(path) == DEMO_MODEL and not Path(path).is_file():
        return Path(str(resources.files("mace_polmp") / "data" / "demo.safetensors"))
    return existing_file(path, what)


def read_structures(path: str | Path) -> list[Atoms]:
    """All frames of a file that ASE reads, as they are written there.

    Raises:
        InputError: no such file, an empty one, one that ASE cannot read or would not read to its
            end, or a frame without atoms or with something that is no element.
    """
    path = existing_file(path)
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; give one with at least one structure")
    is_xyz = path.suffix.lower() in _XYZ
    if is_xyz:
        _scan_xyz(path)
    frames: list[Atoms] = []
    try:
        for atoms in shown(ase.io.iread(path, index=":"), f"reading {path.name}"):
            frames.append(atoms)
    except Exception as error:
        where = f"{path}: frame {len(frames)}" if is_xyz else f"{path}"
        raise InputError(f"{where}: {_reason(error)}") from error
    if not frames:
        raise InputError(f"{path}: holds no structure; give one with at least one")
    return frames


def _reason(error: Exception) -> str:
    """What a reader's error means."""
    name = error.args[0] if isinstance(error, KeyError) and error.args else None
    if isinstance(name, str) and name not in atomic_numbers:
        if name in _HYDROGEN:
            return (
                f"'{name}' is no element symbol; write H, and its mass {_HYDROGEN[name]} in a "
                "column masses"
            )
        element = name.rstrip("0123456789+-_")
        write = f"write {element}" if element in atomic_numbers else "write the element's"
        return f"'{name}' is no element symbol; {write}"
    return f"not readable as a structure file ({str(error) or type(error).__name__})"


def _scan_xyz(path: Path) -> None:
    """Refuse a file that ASE would not read to its end, or only after a very long time.

    ASE takes the first blank line where it expects a frame for the end of the file.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = enumerate(file, start=1)
        frame = 0
        for number, line in lines:
            if line.strip() == "":
                _refuse_more(lines, path, frame, number)
                return
            try:
                n_atoms = int(line)
            except ValueError:
                if frame == 0:
                    return  # another format: ASE knows, or says
                if line.lstrip().startswith("VEC"):
                    continue
                raise InputError(
                    f"{path}: line {number} should be the number of atoms of frame {frame}, but "
                    f"is {line.strip()[:40]!r}"
                ) from None
            if n_atoms < 1:
                raise InputError(
                    f"{path}: frame {frame} (line {number}) has {n_atoms} atoms; remove it"
                )
            there = sum(1 for _ in _take(lines, n_atoms + 1))
            if there < n_atoms + 1:
                raise InputError(
                    f"{path}: frame {frame} (line {number}) should have {n_atoms} atoms, but the "
                    f"file ends after {max(there - 1, 0)}; it is cut off, or the number is "
                    "wrong"
                )
            frame += 1


def _take(lines: Iterator[tuple[int, str]], count: int) -> Iterator[tuple[int, str]]:
    for _, item in zip(range(count), lines, strict=False):
        yield item


def _refuse_more(lines: Iterator[tuple[int, str]], path: Path, frame: int, blank: int) -> None:
    """Refuse text after a blank line that would not be read."""
    for number, line in lines:
        if line.strip():
            raise InputError(
                f"{path}: line {blank}, after {frame} frames, is blank, and more follows from line "
                f"{number} on, which would not be read; remove the blank line"
            )
