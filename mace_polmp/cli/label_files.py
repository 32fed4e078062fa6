"""The files of `mace_polmp label`: what an interrupted run has computed, and the result."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mace_polmp.errors import InputError
from mace_polmp.extended_xyz import ENDINGS
from mace_polmp.quantities import find

if TYPE_CHECKING:
    from ase import Atoms

    from mace_polmp.extended_xyz import FrameText

ORIGIN = "label_origin"
WEIGHED = ("dipole", "born_charges", "polarizability", "charges")


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """No other process writes the file; of what this one leaves beside it only results stay."""
    from mace_polmp.files import locked

    lock, journal = Path(f"{output}.lock"), journal_of(output)
    with locked(lock, str(output)):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
            if journal.exists() and journal.stat().st_size == 0:
                journal.unlink()


def journal_of(output: Path) -> Path:
    """Where results are kept until the file is written."""
    return Path(f"{output}.part")


def write_labels(
    args: argparse.Namespace,
    frames: Sequence[Atoms],
    texts: Sequence[FrameText],
    new: dict[int, dict[str, Any]],
) -> None:
    """Write the file, once it reads as the first one did but for what was added."""
    from mace_polmp.extended_xyz import check_unchanged, write_text
    from mace_polmp.files import replacing
    from mace_polmp.structures import read_structures

    added = {getattr(args, f"{name}_key") for name in args.quantities} | {ORIGIN}
    added |= {f"config_{name}_weight" for name in WEIGHED if args.weight is not None}
    if args.total_charge is not None:
        added.add(args.total_charge_key)
    exact = args.file.suffix.lower() in ENDINGS
    with replacing(args.output) as temporary:
        written = temporary.with_suffix(f".{os.getpid()}.xyz")
        try:
            write_text(written, texts)
            if exact:
                again = read_structures(written)
                for number, (before, after) in enumerate(zip(frames, again, strict=True)):
                    where = f"{args.file}: frame {number}"
                    check_unchanged(before, after, added, where)
                    _check_added(after, new.get(number, {}), args, where)
            os.replace(written, temporary)
        finally:
            with suppress(OSError):
                written.unlink()
    with suppress(OSError):
        journal_of(args.output).unlink()


def _check_added(
    atoms: Atoms, labels: dict[str, Any], args: argparse.Namespace, where: str
) -> None:
    """Refuse a frame whose new labels do not read as they were computed.

    Raises:
        InputError: names the label.
    """
    for name, values in labels.items():
        key = getattr(args, f"{name}_key")
        wanted, found = np.ravel(values), find(atoms, key)
        if found is None or np.shape(np.ravel(found)) != wanted.shape:
            raise InputError(f"{where}: '{key}' is written in an unusual way; remove it first")
        if not np.allclose(np.ravel(found).astype(float), wanted, rtol=0.0, atol=1e-7):
            raise InputError(f"{where}: '{key}' stands there twice; remove it first")
