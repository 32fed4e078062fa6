"""The options of the long-range head: one dataclass from which flags, YAML and checkpoints come."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from mace_polmp.electrostatics.engine import SOLVERS, Electrostatics
from mace_polmp.electrostatics.mesh import DEFAULT_ACCURACY, window_width
from mace_polmp.errors import InputError
from mace_polmp.head.formal_charges import formal_charges

LEARN = "learn"
BOND, BOND_DIPOLE = "bond", "bond_dipole"
ONE_STEP, SELF_CONSISTENT = "one_step", "self_consistent"


def option(
    default: Any,
    help: str,
    parse: Callable[[str], Any] | None = None,
    choices: tuple[Any, ...] | None = None,
    kind: str = "length in Å",
    limits: tuple[float, float] = (0.0, math.inf),
) -> Any:
    """A field of a dataclass of options, with what its flag needs."""
    metadata = {"help": help, "type": parse, "choices": choices, "kind": kind, "limits": limits}
    return field(default=default, metadata=metadata)


def choose(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        InputError: names the nearest valid one.
    """
    if value not in choices or isinstance(value, bool):
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0)
        raise InputError(
            f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}; did you mean "
            f"{near[0]}?"
        )


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


@dataclass(frozen=True)
class LongRangeOptions:
    """Settings of the long-range electrostatics.

    Raises:
        InputError: a value that is not among the valid ones; names the nearest valid one.
    """

    multipole_lmax: int = option(
        2, "highest latent multipole: 0 charges, 1 and dipoles, 2 and quadrupoles", int, (0, 1, 2)
    )
    charge_readout: str = option(
        "transfer",
        "charges read from each atom alone; or also moved along edges from one atom to another, "
        "which keeps molecules neutral until the data say otherwise; or read also from the "
        "features of each layer by itself, as MACELES models do; or moved along edges only "
        "(bond), beside formal charges: the polarization of periodic structures is then defined",
        str,
        ("transfer", "atomic", "layers", BOND),
    )
    formal_charges: str = option(
        "",
        "with --charge_readout bond: charges of elements to which what moves along edges is added, "
        "such as 'Na:1,Cl:-1'; 0 of those that are not named. Physical charges: with a number for "
        "--epsilon_infinity they are divided by its square root",
        str,
    )
    layer_hidden: int = option(
        16,
        "with --charge_readout layers: width of the network that reads the last of several "
        "layers, 0 for a linear map; those before have linear maps",
        int,
    )
    induced: str = option(
        "both",
        "linear response to the potential (induced charges) and the field (induced dipoles); with "
        "--charge_readout bond also charges that are induced along edges (bond), alone or beside "
        "dipoles (bond_dipole): they have a polarization in periodic structures",
        str,
        ("none", "charge", "dipole", "both", BOND, BOND_DIPOLE),
    )
    response: str = option(
        ONE_STEP,
        "what is induced answers to the permanent multipoles alone (one_step), or also to what is "
        "induced elsewhere (self_consistent, which costs about ten evaluations of the field more "
        "and has exact local fields)",
        str,
        (ONE_STEP, SELF_CONSISTENT),
    )
    polarizability: str = option(
        "isotropic",
        "atomic polarizability: a number or a symmetric tensor",
        str,
        ("isotropic", "anisotropic"),
    )
    conserve_charge: bool = option(False, "induced charges of a structure sum to zero")
    constrain_charge: str = option(
        "none",
        "let permanent charges sum to total_charge of each structure (0 where it has none), the "
        "difference spread in proportion to the softness of the atoms, or uniformly; induced "
        "charges then sum to zero",
        str,
        ("none", "softness", "uniform"),
    )
    epsilon_infinity: float | str = option(
        1.0,
        "electronic permittivity by whose square root Born charges of periodic structures are "
        "multiplied: a number of 1 or more, or 'learn' to fit it to their labels",
        lambda text: text if text == LEARN else float(text),
        kind="permittivity",
    )
    smearing: float = option(
        1.0,
        "σ (Å): two unit charges interact as erf(r / (√2 σ)) / r, so that each "
        "multipole is a Gaussian of standard deviation σ/√2",
        float,
        limits=(0.05, 20.0),
    )
    kspace_spacing: float = option(
        2.0, "k-space sums run over |k| <= 2 pi / kspace_spacing (Å)", float, limits=(0.05, 20.0)
    )
    kspace_taper: float = option(
        0.1,
        "soft edge of the k-space sums: weights fall to zero over this last fraction of the "
        "largest k, so that energies do not jump where a cell changes; 0 for a sharp edge",
        float,
        kind="fraction",
        limits=(0.0, 0.9),
    )
    self_interaction: bool = option(
        False,
        "keep the energy of each Gaussian multipole in its own potential, as MACELES models do",
    )
    long_range_solver: str = option(
        "auto",
        "solver of periodic structures: direct sum, particle mesh, or what is faster",
        str,
        SOLVERS,
    )
    mesh_accuracy: float = option(
        DEFAULT_ACCURACY,
        "relative force error of the particle mesh on random multipoles",
        float,
        kind="number",
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata["choices"] is not None:
                choose(f.name, value, f.metadata["choices"])
            if f.name == "kspace_taper" and value == 0.0:
                continue
            if f.metadata["type"] is float and not _is_positive(value):
                raise InputError(f"{f.name} must be a positive {f.metadata['kind']}, got {value!r}")
            low, high = f.metadata["limits"]
            if f.metadata["type"] is float and not low <= value <= high:
                raise InputError(
                    f"{f.name} must be a {f.metadata['kind']} from {low} to {high}, got {value!r}"
                )
            if f.metadata["type"] is None and not isinstance(value, bool):
                raise InputError(f"{f.name} must be true or false, got {value!r}")
        self._check_bonds()
        hidden = self.layer_hidden
        if not isinstance(hidden, int) or isinstance(hidden, bool) or not 0 <= hidden <= 4096:
            raise InputError(f"layer_hidden must be a whole number up to 4096, got {hidden!r}")
        permittivity = self.epsilon_infinity
        is_one = isinstance(permittivity, int | float) and math.isfinite(permittivity)
        if permittivity != LEARN and not (is_one and float(permittivity) >= 1.0):
            raise InputError(
                f"epsilon_infinity must be a number of 1 or more, or {LEARN}, got {permittivity!r}"
            )
        try:
            window_width(self.mesh_accuracy)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _check_bonds(self) -> None:
        """Refuse formal charges that have no meaning, and what bond charges do not go with."""
        charges = formal_charges(self.formal_charges)
        if self.charge_readout != BOND:
            if self.induces_bonds:
                raise InputError(
                    f"induced {self.induced} needs charge_readout {BOND}, got "
                    f"{self.charge_readout!r}: charges that move along edges, all of them"
                )
            if charges:
                raise InputError(
                    f"formal_charges {self.formal_charges!r} needs charge_readout {BOND}, got "
                    f"{self.charge_readout!r}"
                )
            return
        if self.induces_charges:
            raise InputError(
                f"induced {self.induced} does not go with charge_readout {BOND}: charges that each "
                f"atom induces have no polarization in a periodic structure; take {BOND}, dipole, "
                f"{BOND_DIPOLE} or none"
            )
        if self.constrain_charge != "none":
            raise InputError(
                f"constrain_charge {self.constrain_charge} does not go with charge_readout {BOND}: "
                "its charges sum to the formal charges; give those of the elements instead "
                "(formal_charges)"
            )
        if charges and self.epsilon_infinity == LEARN:
            raise InputError(
                f"formal_charges needs a number for epsilon_infinity, got {LEARN}: the charges in "
                "the energy are divided by its square root"
            )

    @property
    def defines_polarization(self) -> bool:
        """Whether the polarization of periodic structures is defined, and an energy in a field."""
        return self.charge_readout == BOND

    def make_engine(self) -> Electrostatics:
        """The electrostatics with these settings."""
        return Electrostatics(
            smearing=self.smearing,
            kspace_spacing=self.kspace_spacing,
            solver=self.long_range_solver,
            mesh_accuracy=self.mesh_accuracy,
            taper=self.kspace_taper,
            self_interaction=self.self_interaction,
        )

    @property
    def is_self_consistent(self) -> bool:
        """Whether what is induced acts on itself."""
        return self.response == SELF_CONSISTENT and self.induced != "none"

    @property
    def conserves_charge(self) -> bool:
        """Whether induced charges of a structure sum to zero."""
        return self.conserve_charge or self.constrain_charge != "none"

    @property
    def reads_softness(self) -> bool:
        """Whether anything depends on the softness of atoms."""
        return self.induces_charges or self.constrain_charge == "softness"

    @property
    def induces_charges(self) -> bool:
        return self.induced in ("charge", "both")

    @property
    def induces_dipoles(self) -> bool:
        return self.induced in ("dipole", "both", BOND_DIPOLE)

    @property
    def induces_bonds(self) -> bool:
        """Whether charges are induced along edges."""
        return self.induced in (BOND, BOND_DIPOLE)

    @property
    def is_polarizable(self) -> bool:
        """Whether a uniform field induces anything in a periodic structure."""
        return self.induces_dipoles or self.induces_bonds
