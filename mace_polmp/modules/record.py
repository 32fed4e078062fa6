"""What a model remembers of its training, for those who use it later."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mace_polmp.quantities import boundary


@dataclass(frozen=True)
class TrainingRecord:
    """What a model was trained on.

    Attributes:
        total_charge_key: name of the total charge in info, for structures to evaluate as well.
        boundaries: boundary conditions of its structures (open, slab, periodic), in alphabetical
            order; empty where they are not known.
    """

    total_charge_key: str = "total_charge"
    boundaries: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """As numbers, names and lists."""
        return {**asdict(self), "boundaries": list(self.boundaries)}

    @classmethod
    def of(cls, description: dict[str, Any]) -> TrainingRecord:
        """From describe()."""
        return cls(
            str(description.get("total_charge_key", cls.total_charge_key)),
            tuple(str(name) for name in description.get("boundaries", ())),
        )

    def unknown_boundary(self, pbc: Any) -> str | None:
        """A sentence on boundary conditions that the model has not seen; None if it has."""
        kind = boundary(pbc)
        if not self.boundaries or kind in self.boundaries:
            return None
        seen = " and ".join(self.boundaries)
        return (
            f"the structure is {kind} (pbc {' '.join('FT'[int(p)] for p in pbc)}), but the model "
            f"was trained on {seen} structures only: energies of one and the other differ"
        )
