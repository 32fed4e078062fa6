"""The numbers that the sums depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings of the engine, besides the structures.

    Attributes:
        solver: of periodic structures, "auto", "ewald" or "mesh".
        k_cutoff: k_c, 1/Å.
        smearing: σ, Å.
        window_width: of the mesh's window, in mesh points.
        taper: the last fraction of k_c over which weights fall to zero; 0 for a sharp sphere.
    """

    solver: str
    k_cutoff: float
    smearing: float
    window_width: int
    taper: float = 0.0
