"""Response coefficients of the self-consistent response: what they may be, and what they do.

Sources and potentials of an atom are rows of a table [n_atoms, 4]: a charge and a dipole x = (Δq,
Δμ), and what drives them, y = (−φ, E). Coefficients turn one into the other: Δq = κ y_0 and
Δμ = α·y_1…3. Where a structure conserves its charge, Δq = κ (y_0 − ȳ_0) with the κ-weighted mean.
Along bonds Δq_i = Σ k_e (y_0,i − y_0,j): the Laplacian of the graph in place of κ (bonds.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mace_polmp.electrostatics.bonds import BondResponse, bounded_bonds
from mace_polmp.electrostatics.multipoles import ResponseCoefficients
from mace_polmp.electrostatics.products import small_product
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.units import EPS0

_MOST = 0.95  # of the bounds, what models have


def largest_coefficients(smearing: float) -> tuple[float, float]:
    """κ_max and α_max, e²/eV and e² Å²/eV: below them the self-consistent response is stable.

    The interaction of Gaussian charges and dipoles has no negative eigenvalue if each sees itself
    as well. These are the inverses of the terms of itself, which potential and field leave out:
    κ_max = eps0 σ (2π)^{3/2} and α_max = 3 σ³ eps0 (2π)^{3/2}.

    Args:
        smearing: σ, Å.
    """
    scale = EPS0 * (2.0 * math.pi) ** 1.5
    return scale * smearing, 3.0 * scale * smearing**3


def bounded(
    response: ResponseCoefficients, smearing: float, n_atoms: int = 0
) -> ResponseCoefficients:
    """Coefficients of any size, not negative, to such below the bounds: x to x/(1 + x/x_max).

    Small ones hardly change. x_max is 0.95 of the bound, so that what is induced stays finite where
    atoms meet, and single precision does not round to the bound itself. Of tensors eigenvalues are
    meant, and of bonds those of what they make of potentials: see bounded_bonds.

    Args:
        response: coefficients of a one-step response.
        smearing: σ, Å.
        n_atoms: the number of atoms, where there are bonds.
    """
    kappa_max, alpha_max = (_MOST * bound for bound in largest_coefficients(smearing))
    kappa, alpha = response.softness, response.polarizability
    if kappa is not None:
        kappa = kappa / (1.0 + kappa / kappa_max)
    if alpha is not None and alpha.dim() == 1:
        alpha = alpha / (1.0 + alpha / alpha_max)
    elif alpha is not None:
        unit = torch.eye(3, dtype=alpha.dtype, device=alpha.device)
        found = small_product(alpha, _inverse(unit + alpha / alpha_max))
        alpha = 0.5 * (found + found.transpose(1, 2))
    bonds = response.bonds
    if bonds is not None:
        bonds = bounded_bonds(bonds, n_atoms, kappa_max)
    return ResponseCoefficients(kappa, alpha, bonds)


def _inverse(matrix: Tensor) -> Tensor:
    """Of symmetric positive definite matrices [n, 3, 3], by their cofactors."""
    a, b, c = matrix.unbind(1)
    cross = torch.linalg.cross
    cofactors = torch.stack([cross(b, c), cross(c, a), cross(a, b)], 2)
    return cofactors / (a * cofactors[:, :, 0]).sum(1)[:, None, None]


@dataclass(frozen=True, eq=False)
class Couplings:
    """Which atoms' coefficients take part, and how.

    Attributes:
        sums: over the atoms.
        has_charges, has_dipoles: whether there is a softness, and a polarizability.
        conserved: [n_structures, 1] of 1 where induced charges sum to zero, else 0; None where
            they do so nowhere.
        bonds: the edges along which charges are induced, whose softness is given as that of atoms
            is; None without.
    """

    sums: AtomSums
    has_charges: bool
    has_dipoles: bool
    conserved: Tensor | None
    bonds: BondResponse | None = None

    def induced(self, softness: Tensor, polarizability: Tensor, drive: Tensor) -> Tensor:
        """x = D y, [n_atoms, 4], e and e Å: symmetric and linear in y.

        Args:
            softness: κ, [n_atoms], or k of bonds, [n_edges], e²/eV; anything where there is none.
            polarizability: α, [n_atoms] or [n_atoms, 3, 3], e² Å²/eV; likewise.
            drive: y, [n_atoms, 4], V and V/Å.
        """
        first, rest = drive[:, :1], drive[:, 1:]
        if self.bonds is not None:
            charge = self.bonds.flow(softness, drive[:, 0])[:, None]
        elif self.has_charges:
            charge = softness[:, None] * first
            if self.conserved is not None:
                # A structure without any softness has no induced charge and any mean will do.
                both = self.sums.total(torch.cat([softness[:, None], charge], 1))
                total, weighted = both[:, :1], both[:, 1:]
                mean = self.conserved * weighted / torch.where(total > 0, total, 1.0)
                charge = charge - softness[:, None] * self.sums.at_atoms(mean)
        else:
            charge = torch.zeros_like(first)
        if not self.has_dipoles:
            dipole = torch.zeros_like(rest)
        elif polarizability.dim() == 1:
            dipole = polarizability[:, None] * rest
        else:
            dipole = (polarizability * rest[:, None, :]).sum(-1)
        return torch.cat([charge, dipole], 1)

    def rounding(self, softness: Tensor, drive: Tensor) -> Tensor | None:
        """What y·D y of bonds has of rounding, [n_structures], eV; None without bonds.

        Of potentials that are the same at all atoms nothing else is left: k (y_i − y_j) is then
        k y_i times the precision, and of one sign or the other.

        Args:
            softness: k of bonds, [n_edges], e²/eV.
            drive: y, [n_atoms, 4], V and V/Å.
        """
        if self.bonds is None:
            return None
        total = replace(self.bonds, softness=softness.detach()).totals(len(drive))
        square = self.sums.total(total.double() * drive.detach()[:, 0].double() ** 2)
        return torch.finfo(drive.dtype).eps * square

    def without(self, softness: Tensor, polarizability: Tensor) -> Tensor:
        """Where coefficients are zero, [n_atoms, 4] bool: there y has no part in the solution.

        With bonds only differences of y have one, everywhere.
        """
        alpha = polarizability
        dipole = alpha == 0 if alpha.dim() == 1 else (alpha == 0).flatten(1).all(1)
        charge = torch.ones_like(dipole) if self.bonds is not None else softness == 0
        return torch.stack([charge, dipole, dipole, dipole], 1)


def are_stable(response: ResponseCoefficients, smearing: float, n_atoms: int) -> Tensor:
    """Whether coefficients are not negative and below their bounds, [2, n_atoms] bool.

    Softness in the first row, of bonds twice the sum over the edges of each atom, polarizability in
    the second. Does not wait for the device.
    """
    kappa_max, alpha_max = largest_coefficients(smearing)
    kappa, alpha, bonds = response.softness, response.polarizability, response.bonds
    rows = []
    if bonds is not None:
        negative = bonds.to_atoms((~(bonds.softness >= 0)).to(bonds.softness.dtype), n_atoms)
        rows.append((negative == 0) & (2.0 * bonds.totals(n_atoms) < kappa_max))
    elif kappa is not None:
        rows.append((kappa >= 0) & (kappa < kappa_max))
    if alpha is not None and alpha.dim() == 1:
        rows.append((alpha >= 0) & (alpha < alpha_max))
    elif alpha is not None:
        # Rounding may leave a tensor without an inverse a negative eigenvalue.
        unit = torch.eye(3, dtype=alpha.dtype, device=alpha.device)
        rounding = 1e-5 if alpha.dtype == torch.float32 else 1e-10
        above = _is_positive(alpha + rounding * alpha_max * unit)
        rows.append(above & _is_positive(alpha_max * unit - alpha))
    if len(rows) == 1:
        rows.insert(1 if alpha is None else 0, torch.ones_like(rows[0]))
    return torch.stack(rows)


def _is_positive(matrix: Tensor) -> Tensor:
    """Whether symmetric matrices [n, 3, 3] are positive definite: Sylvester's minors."""
    a, b, c = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    second = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    third = (a * torch.linalg.cross(b, c)).sum(1)
    out: Tensor = (a[:, 0] > 0) & (second > 0) & (third > 0)
    return out


def check_coefficients(response: ResponseCoefficients, smearing: float, n_atoms: int) -> None:
    """Refuse coefficients for which there is no stable response, waiting for the device.

    NaN passes: results are then NaN.

    Raises:
        ValueError: names the coefficient, its value, the atom and the bound.
    """
    if response.is_none:
        return
    bounds = largest_coefficients(smearing)
    stable = are_stable(response, smearing, n_atoms)
    if bool(stable.all()):
        return
    softness, name = response.softness, "softness"
    if response.bonds is not None:
        least = float(response.bonds.softness.detach().min())
        if least < 0:
            raise ValueError(f"bonds.softness must not be negative, got {least:.4g} e²/eV")
        softness = 2.0 * response.bonds.totals(n_atoms)
        name = "twice the sum of bonds.softness at an atom"
    named = (
        (name, softness, bounds[0], "e²/eV", "eps0 σ (2π)^{3/2}"),
        ("polarizability", response.polarizability, bounds[1], "e² Å²/eV", "3 σ³ eps0 (2π)^{3/2}"),
    )
    for row, (name, values, bound, unit, formula) in zip(stable, named, strict=True):
        if values is None or bool(row.all()):
            continue
        found = values.detach().double()
        words = name
        if found.dim() == 3:
            if not bool(found.isfinite().all()):
                continue
            found = torch.linalg.eigvalsh(found)
            worst = torch.where(found[:, 2] >= bound, found[:, 2], found[:, 0])
            words, found = f"an eigenvalue of {name}", worst
        atom = int((~row).to(torch.int64).argmax())
        value = float(found[atom])
        if math.isnan(value):
            continue
        raise ValueError(
            f"{words} must be from 0 to below {bound:.4g} {unit} ({formula} with σ = "
            f"{smearing:g} Å) for a self-consistent response, got {value:.4g} (atom {atom}); "
            "beyond it charges and dipoles would grow without end. Give smaller coefficients or "
            "a larger smearing"
        )
