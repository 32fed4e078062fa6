"""The energy of each Gaussian multipole in its own potential, which the sums leave out.

Some published models keep it. It has no part in potentials, fields or the response: those are of
the other atoms, whether it is kept or not.
"""

from __future__ import annotations

from torch import Tensor

from mace_polmp.electrostatics.constants import numbers
from mace_polmp.electrostatics.moments import cartesian
from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.electrostatics.reciprocal import own_terms


def self_energies(multipoles: Multipoles, smearing: float) -> Tensor:
    """[q²/σ + μ²/(3σ³) + Q:Q/(10σ⁵)] / (2 eps0 (2π)^{3/2}) of each atom, [n_atoms], eV.

    Of all wave vectors, whatever the edge of the k-space sum.

    Args:
        multipoles: of the atoms.
        smearing: σ, Å.
    """
    table = cartesian(multipoles.traceless())
    terms = own_terms(smearing, 0.0, 0.0)[: table.shape[1]]
    out: Tensor = (table * table * numbers(terms, table.dtype, table.device)).sum(1)
    return out
