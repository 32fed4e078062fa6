"""Charges that are induced along bonds: split charges, which have a polarization in cells.

Edge e = (j → i) with the vector r_e = r_i − r_j, across borders of the cell where it crosses them,
brings the charge

    Δt_e = −k_e (φ_i − φ_j − F·r_e)

to its receiver i and takes it from j, where k_e = k_e' ≥ 0 of the reversed edge. Each pair of atoms
has two edges. What is induced sums to zero in every molecule out of reach of others, its dipole is
Σ_pairs Δt_e r_e in open and periodic structures, and its energy in one step is
−½ Σ_pairs k_e (φ_i − φ_j − F·r_e)².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BondResponse:
    """Edges along which charge is induced, both directions of each.

    Attributes:
        softness: k_e, [n_edges], e²/eV, not negative, the same of an edge and its reverse.
        index: [2, n_edges] int64, sender and receiver.
        vectors: r_e, [n_edges, 3], receiver minus sender, Å.
        extend: where senders have more rows than there are atoms here, what makes the rows of
            senders from those of atoms: see parallel/halo.py.
    """

    softness: Tensor
    index: Tensor
    vectors: Tensor
    extend: Callable[[Tensor], Tensor] | None = None

    def at_rest(self) -> BondResponse:
        """Without derivatives."""
        return replace(self, softness=self.softness.detach(), vectors=self.vectors.detach())

    def at_senders(self, values: Tensor) -> Tensor:
        """Values of atoms, [n_atoms, …], at the sender of each edge."""
        rows = values if self.extend is None else self.extend(values)
        return rows[self.index[0]]

    def differences(self, values: Tensor) -> Tensor:
        """Values of atoms, [n_atoms]: that of the receiver minus that of the sender, [n_edges]."""
        return values[self.index[1]] - self.at_senders(values)

    def to_atoms(self, values: Tensor, n_atoms: int) -> Tensor:
        """Values of edges, [n_edges, …], added up at their receivers."""
        zero = values.new_zeros((n_atoms, *values.shape[1:]))
        return zero.index_add(0, self.index[1], values)

    def along(self, field: Tensor) -> Tensor:
        """F·r_e of each edge, [n_edges], V, from the field at the atoms, [n_atoms, 3], V/Å."""
        return (field[self.index[1]] * self.vectors).sum(1)

    def flow(self, softness: Tensor, drive: Tensor) -> Tensor:
        """Σ_{e → i} k_e (y_i − y_j), [n_atoms]: symmetric in y, positive semi-definite in sum.

        Args:
            softness: k_e, [n_edges].
            drive: y, [n_atoms].
        """
        return self.to_atoms(softness * self.differences(drive), len(drive))

    def moved(self, drive: Tensor, along: Tensor | None) -> Tensor:
        """k_e (y_i − y_j + F·r_e), [n_edges], e.

        Args:
            drive: y, [n_atoms], V.
            along: F·r_e, [n_edges], V, or None without a field.
        """
        pull = self.differences(drive)
        return self.softness * (pull if along is None else pull + along)

    def of_field(self, along: Tensor, n_atoms: int) -> Tensor:
        """Σ_{e → i} k_e F·r_e, the charges [n_atoms], e, that a field alone induces."""
        return self.to_atoms(self.softness * along, n_atoms)

    def moments(self, moved: Tensor, n_atoms: int) -> Tensor:
        """½ Σ_{e → i} t_e r_e of charges along edges, [n_edges]: [n_atoms, 3], e Å."""
        return self.to_atoms(0.5 * moved[:, None] * self.vectors, n_atoms)

    def polarizabilities(self, n_atoms: int) -> Tensor:
        """½ Σ_{e → i} k_e r_e r_e of each receiver, [n_atoms, 3, 3], e² Å²/eV."""
        products = self.vectors[:, :, None] * self.vectors[:, None, :]
        return self.to_atoms(0.5 * self.softness[:, None, None] * products, n_atoms)

    def totals(self, n_atoms: int) -> Tensor:
        """K_i = Σ_{e → i} k_e, [n_atoms], e²/eV."""
        return self.to_atoms(self.softness, n_atoms)


def induced_along_bonds(
    bonds: BondResponse, potential: Tensor, field: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The one-step response: charges, their dipole, their energy.

    Args:
        bonds: edges and their softness.
        potential: φ, [n_atoms], V.
        field: the external field at the atoms, [n_atoms, 3], V/Å, or None.

    Returns:
        Of each atom Δq_i [n_atoms] e, ½ Σ Δt_e r_e [n_atoms, 3] e Å, and half of the energy of its
        edges, [n_atoms] eV.
    """
    n_atoms = len(potential)
    drive = -bonds.differences(potential)
    if field is not None:
        drive = drive + bonds.along(field)
    moved = bonds.softness * drive
    charge = bonds.to_atoms(moved, n_atoms)
    energy = bonds.to_atoms(-0.25 * moved * drive, n_atoms)
    return charge, bonds.moments(moved, n_atoms), energy


def bounded_bonds(bonds: BondResponse, n_atoms: int, most: float) -> BondResponse:
    """Softness of any size to such with Σ_{e → i} k_e below most/2 at every atom.

    The largest eigenvalue of Σ_{e → i} k_e (y_i − y_j) is at most twice the largest K_i, hence
    below most. k_e to k_e/((1 + a K_i)(1 + a K_j)) with a = 2/most: small ones hardly change.

    Args:
        bonds: of a one-step response.
        n_atoms: the number of receivers.
        most: e²/eV.
    """
    total = bonds.totals(n_atoms)
    factor = 1.0 / (1.0 + 2.0 / most * total)
    both = factor[bonds.index[1]] * bonds.at_senders(factor[:, None])[:, 0]
    return replace(bonds, softness=bonds.softness * both)


def check_bonds(bonds: BondResponse, n_atoms: int, like: Tensor) -> None:
    """Check shapes and types; reads no value.

    Args:
        bonds: what was given.
        n_atoms: the number of atoms.
        like: the positions.

    Raises:
        ValueError: names the argument and its shape.
        TypeError: names the argument and its type.
    """
    n_edges = bonds.index.shape[-1]
    wanted = {"index": (2, n_edges), "softness": (n_edges,), "vectors": (n_edges, 3)}
    for name, shape in wanted.items():
        tensor: Tensor = getattr(bonds, name)
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"bonds.{name} must be {list(shape)} for {n_edges} edges, got {list(tensor.shape)}"
            )
        kind = torch.int64 if name == "index" else like.dtype
        if tensor.dtype != kind:
            raise TypeError(f"bonds.{name} must be {kind}, got {tensor.dtype}")
