"""Units and constants, each defined once: Å, eV, e, and V = eV/e.

Values follow CODATA 2018, to the digits the reference numbers in ``tests/data`` were made with.
"""

import math

EPS0 = 5.526349406e-3
"""Vacuum permittivity, e²/(eV Å)."""

COULOMB_CONSTANT = 1.0 / (4.0 * math.pi * EPS0)
"""1/(4π eps0), eV Å/e²."""

BOHR = 0.529177210903
"""Å."""

HARTREE = 27.211386245988
"""eV."""

DEBYE = 0.2081943
"""e Å."""

SPEED_OF_LIGHT = 2997.92458
"""Å/fs."""

HBAR = 0.6582119569
"""eV fs."""

BOLTZMANN = 8.617333262e-5
"""eV/K."""

AMU = 103.642697
"""Atomic mass unit, eV fs²/Å²."""

AVOGADRO = 6.02214076e23
"""1/mol."""

ELEMENTARY_CHARGE = 1.602176634e-19
"""C."""

WAVENUMBER = 2.0 * math.pi * SPEED_OF_LIGHT * 1e-8
"""Angular frequency of 1 cm⁻¹, 1/fs."""

KV_PER_CM = 1e5
"""1 V/Å in kV/cm."""

MICROCOULOMB_PER_CM2 = ELEMENTARY_CHARGE * 1e22
"""1 e/Å² in µC/cm²."""

JOULE_PER_CM3 = ELEMENTARY_CHARGE * 1e24
"""1 eV/Å³ in J/cm³."""

SIEMENS_PER_METRE = ELEMENTARY_CHARGE * 1e25
"""1 e/(V Å fs) in S/m."""
