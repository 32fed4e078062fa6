"""Formal charges of elements, from which charges that move along edges start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mace_polmp.errors import InputError

# The head works without ase, which has this table as well.
_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
    "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm "
    "Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og "
)
_NUMBERS = {symbol: number for number, symbol in enumerate(_SYMBOLS.split(), start=1)}


def formal_charges(text: str) -> dict[int, float]:
    """Charges by atomic number, e, of a text such as "Na:1,Cl:-1".

    Raises:
        InputError: an element that is none or comes twice, or a charge that is no number.
    """
    found: dict[int, float] = {}
    if not isinstance(text, str):
        raise InputError(f"formal_charges must be a text such as 'Na:1,Cl:-1', got {text!r}")
    for part in filter(None, (part.strip() for part in text.split(","))):
        symbol, _, value = (piece.strip() for piece in part.partition(":"))
        number = _NUMBERS.get(symbol)
        try:
            charge = float(value)
        except ValueError:
            charge = math.nan
        if number is None or number in found or not math.isfinite(charge):
            raise InputError(
                f"formal_charges must name each element once with its charge, such as "
                f"'Na:1,Cl:-1', got {part!r} in {text!r}"
            )
        found[number] = charge
    return found


def screened(text: str, epsilon_infinity: float | str, atomic_numbers: list[int]) -> Tensor:
    """Formal charges of the elements as they are in the energy, [n_elements], e: over √ε∞.

    Args:
        text: as of formal_charges.
        epsilon_infinity: of the options; without formal charges it may be a text.
        atomic_numbers: the elements.
    """
    given, permittivity = formal_charges(text), 1.0
    if given and not isinstance(epsilon_infinity, str):
        permittivity = epsilon_infinity
    charges = torch.tensor([given.get(int(z), 0.0) for z in atomic_numbers])
    return charges.to(torch.get_default_dtype()) / math.sqrt(permittivity)
