"""How units are written wherever a user reads them: tables, pictures, messages, help texts.

Names of columns and of flags are ASCII and have their own short forms (gap_A, frequency_cm-1).
"""

from __future__ import annotations

ENERGY = "meV"
ENERGY_PER_ATOM = "meV/atom"
DRIFT = "meV/atom/ps"
FORCE = "meV/Å"
STRESS = "meV/Å³"
CHARGE = "e"
DIPOLE = "e Å"
POLARIZABILITY = "e² Å²/eV"
LENGTH = "Å"
INVERSE_CM = "cm⁻¹"
INFRARED = "km/mol"
RAMAN = "Å⁴/amu"
FIELD = "V/Å"
LABORATORY_FIELD = "kV/cm"
POLARIZATION = "e/Å²"
LABORATORY_POLARIZATION = "µC/cm²"
HEAT_OF_LOOP = "J/cm³"
CONDUCTIVITY = "S/cm"


def with_unit(what: str, unit: str) -> str:
    """What an axis or a column shows: "time / ps", and "drift / (meV/atom/ps)" for quotients."""
    if not unit:
        return what
    return f"{what} / ({unit})" if "/" in unit or " per " in unit else f"{what} / {unit}"


def per_wavenumber(unit: str) -> str:
    """The unit of a spectrum whose area is in the given one."""
    return f"{unit} per {INVERSE_CM}"
