"""The engine: boundary conditions to solvers, permanent energy, response, external field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mace_polmp.electrostatics.direct import open_boundary
from mace_polmp.electrostatics.ewald import PlaneWaves
from mace_polmp.electrostatics.long_wavelength import induced_charge_moment
from mace_polmp.electrostatics.mesh import DEFAULT_ACCURACY, Mesh, window_width
from mace_polmp.electrostatics.multipoles import Multipoles, ResponseCoefficients, check_inputs
from mace_polmp.electrostatics.packing import Packing
from mace_polmp.electrostatics.plan import (
    DIRECT,
    MESH,
    OPEN,
    Plan,
    Settings,
    log_plan,
    make_plan,
    mesh_shape,
)
from mace_polmp.electrostatics.reciprocal import Solver, reciprocal_sum
from mace_polmp.electrostatics.response import induced_charges, induced_dipoles
from mace_polmp.electrostatics.slab import slab_correction

SOLVERS = ("auto", "ewald", "mesh")


@dataclass(frozen=True)
class ElectrostaticsResult:
    """What the engine returns.

    Attributes:
        energy: [n_structures] eV, the sum of the three that follow.
        energy_permanent: [n_structures] eV, permanent multipoles among themselves and with the
            external field.
        energy_induced_charge: [n_structures] eV.
        energy_induced_dipole: [n_structures] eV.
        potential: [n_atoms] V, of the permanent multipoles without the atom's own; None if it
            was not asked for.
        field: [n_atoms, 3] V/Å, likewise, the external field not included.
        induced_charge: [n_atoms] e; zero without a softness.
        induced_dipole: [n_atoms, 3] e Å; zero without a polarizability.
    """

    energy: Tensor
    energy_permanent: Tensor
    energy_induced_charge: Tensor
    energy_induced_dipole: Tensor
    potential: Tensor | None
    field: Tensor | None
    induced_charge: Tensor
    induced_dipole: Tensor


class Electrostatics(torch.nn.Module):
    """Energy, potential, field and linear response of smeared atomic multipoles.

    Args:
        smearing: width σ of the Gaussian every multipole is smeared with, Å.
        kspace_spacing: dl, Å; the k-space sum of periodic structures runs over |k| ≤ 2π/dl.
        solver: for periodic structures, "ewald" (direct k-space sum), "mesh" (particle mesh,
            the same sum to mesh_accuracy), or "auto" (for each structure what is faster).
        mesh_accuracy: relative error of the mesh's forces on random charges, dipoles and
            quadrupoles; it is smaller for those of a model.

    Raises:
        ValueError: a length that is not positive, a solver that does not exist, or an accuracy
            that no mesh reaches.
    """

    mesh_accuracy: float = DEFAULT_ACCURACY  # also of models saved before there was a mesh

    def __init__(
        self,
        smearing: float = 1.0,
        kspace_spacing: float = 2.0,
        solver: str = "auto",
        mesh_accuracy: float = DEFAULT_ACCURACY,
    ) -> None:
        super().__init__()
        for name, value in (("smearing", smearing), ("kspace_spacing", kspace_spacing)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive length in Å, got {value}")
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        window_width(mesh_accuracy)  # refuses what is too accurate
        self.smearing = smearing
        self.kspace_spacing = kspace_spacing
        self.solver = solver
        self.mesh_accuracy = mesh_accuracy

    @property
    def k_cutoff(self) -> float:
        """k_c = 2π/dl, 1/Å."""
        return 2.0 * math.pi / self.kspace_spacing

    def check(self, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor) -> None:
        """Refuse structures that forward would refuse whatever their multipoles, in no time.

        Args:
            positions, cell, pbc, batch: as in forward.

        Raises:
            ValueError: as forward.
        """
        neutral = Multipoles(torch.zeros_like(positions[:, 0]))
        make_plan(positions, cell, pbc, batch, neutral, self._settings())

    def _settings(self) -> Settings:
        width = window_width(self.mesh_accuracy)
        return Settings(self.solver, self.k_cutoff, self.smearing, width)

    def extra_repr(self) -> str:
        lengths = f"smearing={self.smearing}, kspace_spacing={self.kspace_spacing}"
        return f"{lengths}, solver={self.solver!r}, mesh_accuracy={self.mesh_accuracy}"

    def forward(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        batch: Tensor,
        multipoles: Multipoles,
        response: ResponseCoefficients | None = None,
        external_field: Tensor | None = None,
        conserve_charge: bool = False,
        with_field: bool = True,
    ) -> ElectrostaticsResult:
        """Evaluate a batch of structures, open, periodic and slabs in any mixture.

        A slab is periodic in two directions. Its cell needs vacuum along the third, and its
        atoms must not be wrapped along it; the dipole correction of Yeh and Berkowitz makes its
        results those of infinite vacuum.

        Args:
            positions: [n_atoms, 3], Å.
            cell: [n_structures, 3, 3], Å, rows are lattice vectors; ignored in open structures.
            pbc: [n_structures, 3] bool: periodic (T T T, tin-foil), slab (two), or open (none).
            batch: [n_atoms] int64, the structure of each atom.
            multipoles: the permanent multipoles.
            response: softness and polarizability, or None for no response.
            external_field: uniform field, [n_structures, 3], V/Å, or None. It acts on dipoles
                (permanent and induced) everywhere, on charges in open structures and, along its
                normal, in a slab; the energy of a charge along a periodic direction is not
                defined, its force is the Born charge times the field.
            conserve_charge: induced charges sum to zero in each structure.
            with_field: False spares potential and field where no response needs them.

        Returns:
            ElectrostaticsResult.

        Raises:
            ValueError: a shape that does not fit; a structure that is periodic in one direction,
                has a singular cell, is a slab with a net charge or too little vacuum, or does not
                suit the solver; or arrays that do not fit into memory.
            TypeError: a dtype that does not fit.
        """
        check_inputs(positions, cell, pbc, batch, multipoles, response, external_field)
        n_structures = pbc.shape[0]
        softness = None if response is None else response.softness
        polarizability = None if response is None else response.polarizability
        with_field = with_field or softness is not None or polarizability is not None

        permanent, potential, field = self._permanent(
            positions, cell, pbc, batch, multipoles, with_field
        )
        if external_field is not None:
            acting = acting_on_charges(external_field, cell, pbc)
            permanent = permanent + _field_energy(
                positions, batch, multipoles, external_field, acting
            )

        zero = torch.zeros_like(permanent)
        charge, energy_charge = torch.zeros_like(positions[:, 0]), zero
        dipole, energy_dipole = torch.zeros_like(positions), zero
        if softness is not None:
            assert potential is not None
            charge, energy_charge = induced_charges(
                softness, potential, batch, n_structures, conserve_charge
            )
        if polarizability is not None:
            assert field is not None
            total_field = field if external_field is None else field + external_field[batch]
            dipole, energy_dipole = induced_dipoles(
                polarizability, total_field, batch, n_structures
            )
        return ElectrostaticsResult(
            energy=permanent + energy_charge + energy_dipole,
            energy_permanent=permanent,
            energy_induced_charge=energy_charge,
            energy_induced_dipole=energy_dipole,
            potential=potential,
            field=field,
            induced_charge=charge,
            induced_dipole=dipole,
        )

    def induced_charge_moment(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        batch: Tensor,
        multipoles: Multipoles,
        held: Multipoles,
        softness: Tensor,
    ) -> Tensor:
        """What Born charges need of induced charges in periodic structures: long_wavelength.py.

        Args:
            positions, cell, pbc, batch, multipoles: as in forward, all structures fully periodic.
            held: the multipoles without derivatives with respect to positions.
            softness: [n_atoms], e²/eV, likewise held.

        Returns:
            [n_structures, 3], e Å, of which only derivatives have a meaning.
        """
        settings = self._settings()
        plan = make_plan(positions, cell, pbc, batch, multipoles, settings)
        if DIRECT in plan.kinds:  # a mixture of solvers is not worth its code here
            plan = make_plan(
                positions, cell, pbc, batch, multipoles, replace(settings, solver="ewald")
            )
        kind = plan.kinds[0]
        make_solver = self._solver_of(kind, plan, settings, batch, list(plan.n_atoms))
        limits = plan.common_limits(kind)
        return induced_charge_moment(
            positions,
            cell,
            batch,
            multipoles,
            held,
            softness,
            limits,
            make_solver,
            self.smearing,
            self.k_cutoff,
        )

    def _solver_of(
        self, kind: int, plan: Plan, settings: Settings, batch: Tensor, n_atoms: list[int]
    ) -> Callable[[Tensor], Solver]:
        """What makes the solver of periodic structures for fractional coordinates."""

        def make_solver(sites: Tensor) -> Solver:
            if kind == MESH:
                return Mesh(mesh_shape(plan, settings), sites, batch)
            packing = Packing.of(batch, len(n_atoms), max(n_atoms))
            return PlaneWaves(plan.common_limits(kind), sites, packing)

        return make_solver

    def _permanent(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        batch: Tensor,
        multipoles: Multipoles,
        with_field: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Energy [n_structures], potential and field of the permanent multipoles."""
        settings = self._settings()
        plan = make_plan(positions, cell, pbc, batch, multipoles, settings)
        log_plan(plan, settings)
        sources = _Sources(positions, cell, pbc, batch, multipoles)
        present = [kind for kind in (OPEN, DIRECT, MESH) if kind in plan.kinds]
        if len(present) == 1:
            return self._solve(present[0], sources, plan, settings, with_field)
        # A mixture: each kind on its own atoms, renumbered, and the parts put back in place.
        # Sorting, unlike picking by a mask, does not wait for a GPU.
        ranks = torch.tensor([present.index(kind) for kind in plan.kinds], device=batch.device)
        by_structure = torch.argsort(ranks, stable=True)
        by_atom = torch.argsort(ranks[batch], stable=True)
        members = [plan.of_kind(kind) for kind in present]
        structures = torch.split(by_structure, [len(numbers) for numbers in members])
        atoms = torch.split(by_atom, [sum(plan.n_atoms[n] for n in k) for k in members])
        parts = []
        for kind, structure, atom in zip(present, structures, atoms, strict=True):
            part = sources.select(structure, atom)
            parts.append(self._solve(kind, part, plan, settings, with_field))
        energy = torch.cat([p[0] for p in parts])[torch.argsort(by_structure)]
        if not with_field:
            return energy, None, None
        back = torch.argsort(by_atom)
        potential = torch.cat([p[1] for p in parts if p[1] is not None])[back]
        field = torch.cat([p[2] for p in parts if p[2] is not None])[back]
        return energy, potential, field

    def _solve(
        self, kind: int, sources: _Sources, plan: Plan, settings: Settings, with_field: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same of structures that all have the same kind of solver."""
        positions, batch, multipoles = sources.positions, sources.batch, sources.multipoles
        n_atoms = [plan.n_atoms[n] for n in plan.of_kind(kind)]
        if kind == OPEN:
            n_pairs = sum(n * (n - 1) // 2 for n in n_atoms)
            return open_boundary(
                positions, batch, len(n_atoms), n_pairs, multipoles, self.smearing, with_field
            )
        energy, potential, field = reciprocal_sum(
            positions,
            sources.cell,
            batch,
            multipoles,
            plan.common_limits(kind),
            self._solver_of(kind, plan, settings, batch, n_atoms),
            self.smearing,
            self.k_cutoff,
            with_field,
        )
        if plan.has_slabs:
            correction = slab_correction(
                positions, sources.cell, sources.pbc, batch, multipoles, self.smearing
            )
            energy = energy + correction[0]
            if potential is not None and field is not None:
                potential, field = potential + correction[1], field + correction[2]
        return energy, potential, field


@dataclass(frozen=True)
class _Sources:
    """Some structures of a batch."""

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    multipoles: Multipoles

    def select(self, structures: Tensor, atoms: Tensor) -> _Sources:
        """Those structures, renumbered, which these atoms are part of."""
        number = torch.zeros_like(self.pbc[:, 0], dtype=torch.int64)
        number[structures] = torch.arange(structures.shape[0], device=number.device)
        return _Sources(
            self.positions[atoms],
            self.cell[structures],
            self.pbc[structures],
            number[self.batch[atoms]],
            self.multipoles.select(atoms),
        )


def acting_on_charges(external_field: Tensor, cell: Tensor, pbc: Tensor) -> Tensor:
    """The part of a uniform field in which a charge has an energy, [n_structures, 3].

    All of it in open structures, the part along the normal in slabs, none in periodic structures.
    """
    n_periodic = pbc.sum(1)[:, None]
    # The reciprocal vector of the axis that is not periodic is along the normal.
    axis = (~pbc).to(torch.int64).argmax(1)
    first, second = ((axis + 1) % 3, (axis + 2) % 3)
    each = torch.arange(pbc.shape[0], device=pbc.device)
    normal = torch.linalg.cross(cell[each, first], cell[each, second])
    normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True).clamp(min=1e-12)
    along = (external_field * normal).sum(1, keepdim=True) * normal
    in_slab = torch.where(n_periodic == 2, along, torch.zeros_like(along))
    return torch.where(n_periodic == 0, external_field, in_slab)


def _field_energy(
    positions: Tensor,
    batch: Tensor,
    multipoles: Multipoles,
    external_field: Tensor,
    acting: Tensor,
) -> Tensor:
    """−Σ μ_i·F − Σ q_i r_i·F, the second with what acts on charges: [n_structures] eV."""
    per_atom = -multipoles.charge * (positions * acting[batch]).sum(-1)
    if multipoles.dipole is not None:
        per_atom = per_atom - (multipoles.dipole * external_field[batch]).sum(-1)
    return per_atom.new_zeros(external_field.shape[0]).index_add(0, batch, per_atom)
