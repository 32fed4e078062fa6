"""What a backbone gives to the long-range head, and what it gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics import (
    ElectrostaticsResult,
    Multipoles,
    Plan,
    ResponseCoefficients,
)
from mace_polmp.electrostatics.once import computed_once
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.head.convolutions import Edges
from mace_polmp.head.field_response import FieldResponse
from mace_polmp.head.observables import atomic_dipoles, polarizability_tensors, total_dipole


@dataclass(frozen=True, eq=False)
class HeadInput:
    """What a backbone gives to the head.

    Attributes:
        positions: [n_atoms, 3], Å; those that energies are differentiated by.
        cell: [n_structures, 3, 3], Å, rows are lattice vectors; ignored in open structures.
        pbc: [n_structures, 3] bool.
        batch: [n_atoms] int64, the structure of each atom.
        node_feats: [n_atoms, n_features], the features of all layers one after the other.
        node_attrs: [n_atoms, n_elements], one-hot, in the order of the head's atomic numbers.
        edges: of the graph; None where the head needs none (see LongRangeHead.needs_edges).
        total_charge: [n_structures], e, what constrain_charge sums to; None for 0.
        external_field: the macroscopic field F, [n_structures, 3], V/Å, or None. Its energy is
            −D·F − ½ F·α·F with the dipole and polarizability of the model; along periodic
            directions it acts on dipoles, with bond charges on all. Where structures are periodic
            in three directions the field on the latent multipoles is √ε∞ F (acting_field).
        plan: of the structures, see Electrostatics.plan; None to make one, which waits for the
            device.
        epsilon_infinity: ε∞ of the field in place of the head's own; None for that.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    node_feats: Tensor
    node_attrs: Tensor
    edges: Edges | None = None
    total_charge: Tensor | None = None
    external_field: Tensor | None = None
    plan: Plan | None = None
    epsilon_infinity: Tensor | None = None


@dataclass(frozen=True, eq=False)
class HeadOutput:
    """Multipoles, response and long-range energy; observables are computed where asked for.

    Attributes:
        multipoles: permanent ones, as they enter the energy.
        response: coefficients.
        result: of the electrostatics.
        charge_shift: λ of constrain_charge, [n_structures]; None without that constraint.
        positions: [n_atoms, 3], Å.
        sums: over the atoms.
        bond_moments: [n_atoms, 3], e Å, whose sum is the dipole of the permanent charges where
            that needs no choice of periodic images (charge_readout bond); None elsewhere.
        in_field: the response to fields, of a self-consistent response; else None.
    """

    multipoles: Multipoles
    response: ResponseCoefficients
    result: ElectrostaticsResult
    charge_shift: Tensor | None
    positions: Tensor
    sums: AtomSums
    bond_moments: Tensor | None = None
    in_field: FieldResponse | None = None

    @property
    def energy(self) -> Tensor:
        """Long-range energy, [n_structures], eV."""
        return self.result.energy

    @computed_once
    def charges(self) -> Tensor:
        """Permanent plus induced charges, [n_atoms], e."""
        return self.multipoles.charge + self.result.induced_charge

    @computed_once
    def atomic_dipoles(self) -> Tensor:
        """Permanent plus induced dipoles, [n_atoms, 3], e Å."""
        return atomic_dipoles(self.multipoles, self.result)

    @property
    def atomic_quadrupoles(self) -> Tensor:
        """[n_atoms, 3, 3], e Å²; zero without quadrupoles."""
        if self.multipoles.quadrupole is None:
            return self.positions.new_zeros(len(self.positions), 3, 3)
        return self.multipoles.quadrupole

    @property
    def softness(self) -> Tensor:
        """κ, [n_atoms], e²/eV; zero without induced charges."""
        if self.response.softness is None:
            return torch.zeros_like(self.multipoles.charge)
        return self.response.softness

    @computed_once
    def atomic_polarizabilities(self) -> Tensor:
        """α, [n_atoms, 3, 3], e² Å²/eV; zero where a field induces nothing.

        With half of ½ k r r of each edge of the atom, along which charge moves: see bonds.py.
        """
        return polarizability_tensors(self.response, len(self.positions), self.positions)

    @computed_once
    def dipole(self) -> Tensor:
        """Σ (q + Δq) r + (μ + Δμ), [n_structures, 3], e Å, about the origin of the coordinates.

        With charges that move along bonds that of their bonds: see convolutions.py.
        """
        if self.bond_moments is None:
            return total_dipole(self.positions, self.sums, self.charges, self.atomic_dipoles)
        moments = self.bond_moments + self.atomic_dipoles
        if self.result.induced_moment is not None:
            moments = moments + self.result.induced_moment
        return self.sums.total(moments)

    @computed_once
    def polarizability(self) -> Tensor:
        """Σ α, [n_structures, 3, 3], e² Å²/eV; of a self-consistent response −∂²E/∂F²."""
        if self.in_field is not None:
            return self.in_field.polarizability()
        return self.sums.total(self.atomic_polarizabilities)
