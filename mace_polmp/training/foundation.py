"""The foundation model of a training: what file or name it is, and whether it can be used."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mace.modules import ScaleShiftMACE

from mace_polmp.errors import InputError
from mace_polmp.files import write_torch
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.io import check_format, load_any
from mace_polmp.modules.safe_files import SUFFIX, is_safe
from mace_polmp.reading import DEMO_MODEL, model_file
from mace_polmp.training.fine_tuning import check_cutoff
from mace_polmp.upstream.foundation import load_by_name

_LOOKS_LIKE_A_FILE = (".model", SUFFIX, ".pt", ".pth", ".ckpt")


def check_foundation_model(args: argparse.Namespace) -> torch.nn.Module | None:
    """The model of --foundation_model, from a file or by a name that upstream knows; None for none.

    Raises:
        InputError: the file does not exist, holds something else than a ScaleShiftMACE or a
            MultipoleMACE, or has another cutoff than --r_max; a name that nobody knows, or that
            cannot be downloaded.
    """
    name = args.foundation_model
    if name is None:
        return None
    is_file = (
        name == DEMO_MODEL
        or Path(name).exists()
        or "/" in name
        or name.lower().endswith(_LOOKS_LIKE_A_FILE)
    )
    model = load_any(model_file(name, "--foundation_model")) if is_file else load_by_name(name)
    if not isinstance(model, ScaleShiftMACE):
        raise InputError(
            f"{name}: holds a {type(model).__name__}, not a ScaleShiftMACE or MultipoleMACE; give "
            "a MACE model that was trained on energies and forces"
        )
    if isinstance(model, MultipoleMACE):
        check_format(model, name)
    if args.r_max is not None:
        check_cutoff(args.r_max, model)
    return model


@contextmanager
def readable_foundation(args: argparse.Namespace, model: torch.nn.Module | None) -> Iterator[None]:
    """While upstream runs, let --foundation_model name a file that it can read."""
    name = args.foundation_model
    path = model_file(name) if name == DEMO_MODEL else Path(name or "")
    if model is None or not path.is_file() or not is_safe(path):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        args.foundation_model = str(Path(folder) / "foundation.model")
        write_torch(args.foundation_model, model)
        try:
            yield
        finally:
            args.foundation_model = name
