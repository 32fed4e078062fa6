"""What a training needs to know beyond the model: electrical labels and what is trained when."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import Any

from mace_polmp.errors import InputError
from mace_polmp.head.options import choose, option
from mace_polmp.quantities import QUANTITIES

ELECTRICAL_LABELS = (
    "dipole",
    "polarization",
    "polarizability",
    "born_charges",
    "charges",
    "total_charge",
)

_WEIGHTS = tuple(
    f"{name}_weight" for name in ("energy", "forces", "stress", "virials", *ELECTRICAL_LABELS)
)
_LOSS = ("loss", "huber_delta", "config_type_weights", "valid_file", "valid_fraction", *_WEIGHTS)


def loss_settings(stage_two: bool) -> tuple[str, ...]:
    """Settings after whose change validation losses cannot be compared with those before."""
    return (*_LOSS, *(f"swa_{name}" for name in _WEIGHTS if stage_two))


# Upstream has flags for these already, with weights of 1 and keys that ASE would move elsewhere.
UPSTREAM_FLAGS = (
    "dipole_weight",
    "swa_dipole_weight",
    "dipole_key",
    "polarizability_weight",
    "swa_polarizability_weight",
    "polarizability_key",
)
TRAINING_MODES = ("all", "head_first", "head_only")


@dataclass(frozen=True)
class TrainingOptions:
    """Flags of a training that are not the model's; the weights and keys of upstream's are added.

    Raises:
        InputError: a value that is not valid.
    """

    polarization_key: str = option(
        QUANTITIES["polarization"].key,
        "key of the polarization of periodic structures and slabs times their volume, 3 numbers",
        str,
    )
    polarization_weight: float = option(
        0.0,
        "weight of the polarization in the loss, compared on the nearest branch; with "
        "--charge_readout bond",
        float,
    )
    swa_polarization_weight: float | None = option(
        None, "weight of the polarization in stage two, by default the same", float
    )
    born_charges_key: str = option(
        QUANTITIES["born_charges"].key, "key of Born charges, 9 columns per atom", str
    )
    born_charges_weight: float = option(0.0, "weight of Born charges in the loss", float)
    swa_born_charges_weight: float | None = option(
        None, "weight of Born charges in stage two, by default the same", float
    )
    born_charges_directions: int = option(
        1,
        "random directions of polarization in which Born charges are compared with their labels "
        "in a step of the training, 3 for all, which cost twice as much; with --lbfgs always 3",
        int,
        (1, 2, 3),
    )
    charges_weight: float = option(
        0.0,
        "weight of the charges of atoms in the loss, labels of --charges_key, for instance partial "
        "charges of a population analysis",
        float,
    )
    swa_charges_weight: float | None = option(
        None, "weight of the charges of atoms in stage two, by default the same", float
    )
    total_charge_weight: float = option(0.0, "weight of the total charge in the loss", float)
    swa_total_charge_weight: float | None = option(
        None, "weight of the total charge in stage two, by default the same", float
    )
    training_mode: str = option(
        "all",
        "what is trained: everything; the long-range head alone for --head_epochs, then "
        "everything; or the head alone, on cached features of the backbone",
        str,
        TRAINING_MODES,
    )
    head_epochs: int | None = option(
        None, "epochs of the head alone with head_first, by default a quarter of all", int
    )
    head_growth_epochs: int | None = option(
        None,
        "epochs in which the backbone adapts to a new head, which grows from next to nothing to "
        "its natural size in the first half of them; by default a quarter of all and at most 8; "
        "with --training_mode all",
        int,
    )
    head_lr: float | None = option(
        None,
        "learning rate of the long-range head, by default --lr with a foundation model, without "
        "one five times that but at most 0.05",
        float,
    )
    head_warmup_epochs: int = option(
        0,
        "epochs in which the head's learning rate rises from zero to its value; where the backbone "
        "knows nothing yet a fast head can lose its charges; with --training_mode all",
        int,
    )
    head_directions: int = option(
        12,
        "directions in which forces of a structure are cached when the head is trained alone, 0 "
        "for no cache",
        int,
    )
    dipole_weight: float = 0.0
    swa_dipole_weight: float | None = None
    dipole_key: str = QUANTITIES["dipole"].key
    polarizability_weight: float = 0.0
    swa_polarizability_weight: float | None = None
    polarizability_key: str = QUANTITIES["polarizability"].key
    charges_key: str = QUANTITIES["charges"].key
    total_charge_key: str = "total_charge"

    def __post_init__(self) -> None:
        choose("training_mode", self.training_mode, TRAINING_MODES)
        choose("born_charges_directions", self.born_charges_directions, (1, 2, 3))
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("_weight") and value is not None:
                _check_number(f.name, value, 0.0)
        if self.head_lr is not None:
            _check_number("head_lr", self.head_lr, 0.0)
        for name, least in (
            ("head_epochs", 1),
            ("head_directions", 0),
            ("head_growth_epochs", 0),
            ("head_warmup_epochs", 0),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise InputError(f"{name} must be a whole number of {least} or more, got {value!r}")
        if self.head_warmup_epochs > 0 and self.training_mode != "all":
            raise InputError(
                f"--head_warmup_epochs {self.head_warmup_epochs} is for --training_mode all, not "
                f"{self.training_mode}: leave it out"
            )

    @classmethod
    def of(cls, args: argparse.Namespace) -> TrainingOptions:
        """From parsed arguments; what was not given there has the default of this class."""
        given = {f.name: getattr(args, f.name, None) for f in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def weights(self, stage_two: bool = False) -> dict[str, float]:
        """The labels with a weight in a stage of the training."""
        out = {}
        for name in ELECTRICAL_LABELS:
            weight = getattr(self, f"{name}_weight")
            second = getattr(self, f"swa_{name}_weight")
            out[name] = second if stage_two and second is not None else weight
        return {name: weight for name, weight in out.items() if weight > 0}

    def key(self, name: str) -> str:
        """The key of a label."""
        return str(getattr(self, f"{name}_key"))

    @property
    def used(self) -> list[str]:
        """Labels that have a weight in either stage."""
        either = self.weights() | self.weights(stage_two=True)
        return [name for name in ELECTRICAL_LABELS if name in either]


def _check_number(name: str, value: Any, least: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value >= least):
        raise InputError(f"{name} must be a number of {least:g} or more, got {value!r}")
