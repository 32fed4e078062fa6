"""What a file of torch.save says that it holds, found without reading the objects in it."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

POLAR_MACE = (
    "holds a PolarMACE, which mace_polmp neither reads nor converts. Its charges and spins answer "
    "to their own potential in several steps of message passing, and depend on total charge and "
    "spin; a MultipoleMACE reads multipoles once, from each atom's surroundings, and adds their "
    "linear response. Run it with mace-torch and its package graph_longrange, or train a "
    "MultipoleMACE on the same data"
)


class NoArchive(ValueError):
    """A file that torch.save has not written, or not in the format of today."""


def record(archive: zipfile.ZipFile, name: str) -> bytes:
    """A record as torch writes them: not compressed, so that none is larger than the file.

    Raises:
        NoArchive: a compressed one, or none of that name.
    """
    try:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise NoArchive(f"{name} is compressed")
    except KeyError as error:
        raise NoArchive(f"{name} is missing") from error
    return archive.read(name)


def root_of(archive: zipfile.ZipFile) -> str:
    """The folder in which the archive has its records.

    Raises:
        NoArchive: there is not exactly one, or its numbers have another byte order.
    """
    names = archive.namelist()
    roots = [name[: -len("/data.pkl")] for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise NoArchive("no archive of torch.save")
    order = f"{roots[0]}/byteorder"
    if order in names and record(archive, order) != b"little":
        raise NoArchive("numbers in another byte order")
    return roots[0]


def class_in(path: str | Path) -> tuple[str, str] | None:
    """Module and name of the class of the object in a file; None for a file of another kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            program = record(archive, f"{root_of(archive)}/data.pkl")
        texts: list[str] = []
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("GLOBAL", "INST"):
                module, name = str(argument).split(" ", 1)
                return module, name
            if opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
                return texts[-2], texts[-1]
            if isinstance(argument, str):
                texts.append(argument)
    except (zipfile.BadZipFile, OSError, ValueError):
        pass
    return None
