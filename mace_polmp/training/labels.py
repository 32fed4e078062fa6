"""Whether training files have the electrical labels that a loss asks for."""

from __future__ import annotations

from ase import Atoms

from mace_polmp.errors import InputError
from mace_polmp.labels import names_in
from mace_polmp.training.options import TrainingOptions


def check_presence(
    found: dict[str, int], options: TrainingOptions, frames: int, where: str, example: Atoms
) -> None:
    """Refuse a training whose files have none of the labels that its loss asks for.

    Args:
        found: number of frames by label.
        options: weights and keys.
        frames: number of training frames.
        where: names of the files.
        example: a frame, whose names are shown.

    Raises:
        InputError: a label with a weight that no frame has.
    """
    for name in options.used:
        if found.get(name, 0) == 0:
            raise InputError(
                f"{where}: none of {frames} frames has the label '{options.key(name)}' that "
                f"--{name}_weight asks for; name it with --{name}_key (the first frame has "
                f"{names_in(example)})"
            )
