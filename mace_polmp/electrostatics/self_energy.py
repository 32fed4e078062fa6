"""The energy of each Gaussian multipole in its own potential, which the sums leave out.

Some published models keep it. It has no part in potentials, fields or the response: those are of
the other atoms, whether it is kept or not.
"""

from __future__ import annotations

import math

from torch import Tensor

from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.units import EPS0


def self_energies(multipoles: Multipoles, smearing: float) -> Tensor:
    """[q²/σ + μ²/(3σ³) + Q:Q/(10σ⁵)] / (2 eps0 (2π)^{3/2}) of each atom, [n_atoms], eV.

    Args:
        multipoles: of the atoms.
        smearing: σ, Å.
    """
    scale = 1.0 / (2.0 * EPS0 * (2.0 * math.pi) ** 1.5)
    energies: Tensor = (scale / smearing) * multipoles.charge**2
    if multipoles.dipole is not None:
        energies = energies + (scale / (3.0 * smearing**3)) * (multipoles.dipole**2).sum(-1)
    if multipoles.quadrupole is not None:
        squares = multipoles.traceless().quadrupole
        assert squares is not None
        squares = (squares**2).sum((1, 2))
        energies = energies + (scale / (10.0 * smearing**5)) * squares
    return energies
