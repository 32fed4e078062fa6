"""Structures of a training's files that it is not trained on, for what is looked at afterwards."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ase import Atoms

from mace_polmp.calculators.verdict import choose
from mace_polmp.structures import near_origin


class HeldOut:
    """Validation and test structures as they are in their files, some of them.

    What mace-torch makes of a structure lacks labels that are not in the loss.

    Args:
        files: by name, the structures that were read.
        keys: names of labels by quantity; structures that have them come first.
    """

    def __init__(self, files: dict[str, list[Atoms]], keys: dict[str, str]) -> None:
        self._all: list[Sequence[Atoms]] = list(files.values())
        self.keys = keys
        self.frames: list[Atoms] = []

    def add(self, collections: Any) -> None:
        """Find the structures of a split in the files.

        Args:
            collections: what mace-torch read and split: valid, and tests by name.
        """
        wanted = {
            config.positions.tobytes()
            for configs in (collections.valid, *(tests for _, tests in collections.tests))
            for config in configs
        }
        found = [atoms for frames in self._all for atoms in frames if _places(atoms) & wanted]
        if wanted and self._all and not found:
            logging.warning("No verdict on the charges: the structures were not found in the files")
        self.frames = choose([*self.frames, *found], self.keys)

    def forget_others(self) -> None:
        """Once all splits are known, nothing else is needed."""
        self._all = []


def _places(atoms: Atoms) -> set[bytes]:
    """Positions as they are in the file, and near the origin, where single precision needs them."""
    return {atoms.positions.tobytes(), near_origin(atoms).atoms.positions.tobytes()}
