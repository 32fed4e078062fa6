"""The engine: boundary conditions to solvers, permanent energy, response, external field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mace_polmp.electrostatics.checks import check_memory, check_slabs
from mace_polmp.electrostatics.coefficients import are_stable, check_coefficients
from mace_polmp.electrostatics.equations import Equations
from mace_polmp.electrostatics.external_field import ExternalField, acting_on_charges
from mace_polmp.electrostatics.mesh import DEFAULT_ACCURACY, window_width
from mace_polmp.electrostatics.multipoles import Multipoles, ResponseCoefficients, check_inputs
from mace_polmp.electrostatics.operator import FieldOperator
from mace_polmp.electrostatics.plan import Plan, log_plan, plan_shape
from mace_polmp.electrostatics.response import one_step
from mace_polmp.electrostatics.result import ElectrostaticsResult, Permanent
from mace_polmp.electrostatics.self_consistent import respond
from mace_polmp.electrostatics.self_energy import self_energies
from mace_polmp.electrostatics.settings import Settings
from mace_polmp.electrostatics.sums import AtomSums

SOLVERS = ("auto", "ewald", "mesh")


class Electrostatics(torch.nn.Module):
    """Energy, potential, field and linear response of smeared atomic multipoles.

    Args:
        smearing: σ, Å: two unit charges interact as k_e erf(r/(√2 σ))/r, so that each multipole is
            a Gaussian of standard deviation σ/√2.
        kspace_spacing: dl, Å; the k-space sum of periodic structures runs over |k| ≤ 2π/dl.
        solver: for periodic structures, "ewald" (direct k-space sum), "mesh" (particle mesh,
            the same sum to mesh_accuracy), or "auto" (for each structure what is faster).
        mesh_accuracy: relative error of the mesh's forces on random charges, dipoles and
            quadrupoles; it is smaller for those of a model.
        taper: soft edge of the sphere of wave vectors: over this last fraction of 2π/dl their
            weights fall smoothly to zero, and energies do not jump where a cell changes. 0 for a
            sharp sphere.
        self_interaction: whether the energy holds that of each multipole in its own potential as
            well, see self_energy.py. Potential, field and response never do.

    Raises:
        ValueError: a length that is not positive, a solver that does not exist, an accuracy that
            no mesh reaches, or a taper that is no fraction.
    """

    mesh_accuracy: float = DEFAULT_ACCURACY  # also of models saved before there was a mesh
    taper: float = 0.0  # or a soft edge
    self_interaction: bool = False

    def __init__(
        self,
        smearing: float = 1.0,
        kspace_spacing: float = 2.0,
        solver: str = "auto",
        mesh_accuracy: float = DEFAULT_ACCURACY,
        taper: float = 0.0,
        self_interaction: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("smearing", smearing), ("kspace_spacing", kspace_spacing)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive length in Å, got {value}")
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        window_width(mesh_accuracy)  # refuses what is too accurate
        if not 0.0 <= taper <= 0.9:
            raise ValueError(f"taper must be a fraction from 0 to 0.9, got {taper}")
        self.smearing = smearing
        self.kspace_spacing = kspace_spacing
        self.solver = solver
        self.mesh_accuracy = mesh_accuracy
        self.taper = taper
        self.self_interaction = self_interaction

    @property
    def k_cutoff(self) -> float:
        """k_c = 2π/dl, 1/Å."""
        return 2.0 * math.pi / self.kspace_spacing

    def settings(self) -> Settings:
        """What plans depend on."""
        width = window_width(self.mesh_accuracy)
        return Settings(self.solver, self.k_cutoff, self.smearing, width, self.taper)

    def plan(
        self,
        cell: Tensor,
        pbc: Tensor,
        counts: Tensor | Sequence[int],
        margin: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Plan:
        """How structures are evaluated, from numbers on the host: make it once, keep it.

        It stays valid while pbc and counts are the same and lattice vectors are at most so long
        as to need no further wave vectors (plan.covers says so). Results of cells that it does not
        cover are NaN, as are all results with other boundary conditions or another batch. Vacuum
        and charge of slabs are not looked at with a plan: see check.

        Args:
            cell: [n_structures, 3, 3], Å, a CPU tensor or a numpy array.
            pbc: [n_structures, 3] bool, likewise.
            counts: [n_structures], atoms of each structure; those of one follow each other.
            margin: by how much lattice vectors may grow, as a fraction.
            device: where the engine will run.
            dtype: of the positions it will get, whose arrays must fit into memory; None for torch's
                default.

        Raises:
            ValueError: as forward, of what cells and boundary conditions show; or numbers of
                structures that differ.
        """
        shape = plan_shape(cell, pbc, counts, self.settings(), margin)
        log_plan(shape)
        where = torch.device("cpu" if device is None else device)
        check_memory(shape, (dtype or torch.get_default_dtype()).itemsize, where)
        number = torch.arange(len(shape.counts))
        batch = torch.repeat_interleave(number, torch.tensor(shape.counts, dtype=torch.int64))
        return Plan.of(shape, batch.to(where))

    def plan_of(self, cell: Tensor, pbc: Tensor, batch: Tensor) -> Plan:
        """The plan of a batch on its device, in any order, waiting for the device once.

        Args:
            cell, pbc, batch: as in forward.

        Raises:
            ValueError: as of plan.
        """
        n = pbc.shape[0]
        counts = AtomSums(batch, n).counts()
        numbers = torch.cat(
            [cell.detach().reshape(n, 9).double(), pbc.double(), counts[:, None].double()], dim=1
        ).cpu()
        shape = plan_shape(
            numbers[:, :9].reshape(n, 3, 3), numbers[:, 9:12] > 0.5, numbers[:, 12], self.settings()
        )
        return Plan.of(shape, batch)

    def prepare(self, plan: Plan, positions: Tensor, cell: Tensor) -> FieldOperator:
        """The field operator of structures: energies and fields of any multipoles at their atoms.

        Args:
            plan: of these structures.
            positions: [n_atoms, 3], Å.
            cell: [n_structures, 3, 3], Å.

        Returns:
            FieldOperator, with energy(multipoles) and field(multipoles).

        Raises:
            ValueError: the plan is of other numbers of atoms or structures.
        """
        self._check_plan(plan, positions, cell)
        return FieldOperator.of(plan, positions, cell)

    def _check_plan(self, plan: Plan, positions: Tensor, cell: Tensor) -> None:
        n_atoms, n_structures = plan.sums.batch.shape[0], plan.sums.n_structures
        if (positions.shape[0], cell.shape[0]) != (n_atoms, n_structures):
            raise ValueError(
                f"plan is of {n_structures} structures with {n_atoms} atoms, got {cell.shape[0]} "
                f"with {positions.shape[0]}; make a plan of these structures"
            )
        if plan.device != positions.device:
            raise ValueError(
                f"plan is on {plan.device}, positions on {positions.device}; make it with device="
            )
        if plan.shape.settings != self.settings():
            raise ValueError("plan is of an engine with other settings; make it with this one")

    def check(self, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor) -> None:
        """Refuse structures that forward would refuse whatever their multipoles, in no time.

        Args:
            positions, cell, pbc, batch: as in forward.

        Raises:
            ValueError: as forward.
        """
        self.checked_plan(positions, cell, pbc, batch)

    def checked_plan(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        batch: Tensor,
        charge: Tensor | None = None,
    ) -> Plan:
        """The plan of a batch that has been looked at in every respect, for this batch only.

        Args:
            positions, cell, pbc, batch: as in forward.
            charge: [n_atoms], e, for slabs, whose energy is not defined unless they sum to zero.

        Raises:
            ValueError: as forward.
        """
        plan = self.plan_of(cell, pbc, batch)
        if charge is None:
            charge = torch.zeros_like(positions[:, 0])
        check_slabs(positions, cell, pbc, batch, charge, plan.shape)
        check_memory(plan.shape, positions.element_size(), positions.device)
        return plan

    def extra_repr(self) -> str:
        lengths = f"smearing={self.smearing}, kspace_spacing={self.kspace_spacing}"
        return (
            f"{lengths}, solver={self.solver!r}, mesh_accuracy={self.mesh_accuracy}, "
            f"taper={self.taper}, self_interaction={self.self_interaction}"
        )

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
        plan: Plan | None = None,
        self_consistent: bool = False,
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
            plan: of these structures, see plan; None to make one, which waits for the device.
            self_consistent: induced charges and dipoles feel each other, and what the external
                field induces, see self_consistent.py; else the response is one step to the
                permanent multipoles. In slabs induced charges then sum to zero in any case.

        Returns:
            ElectrostaticsResult.

        Raises:
            ValueError: a shape that does not fit; a structure that is periodic in one direction,
                has a singular cell, is a slab with a net charge or too little vacuum, or does not
                suit the solver; arrays that do not fit into memory; coefficients beyond what a
                self-consistent response allows (see coefficients.py; with a plan on a GPU they
                give NaN), or one that does not converge.
            TypeError: a dtype that does not fit.
        """
        check_inputs(positions, cell, pbc, batch, multipoles, response, external_field)
        response = ResponseCoefficients() if response is None else response
        responds = not response.is_none
        checked = plan is None
        if plan is None:
            plan = self.checked_plan(positions, cell, pbc, batch, multipoles.charge)
            log_plan(plan.shape)
        else:
            self._check_plan(plan, positions, cell)
            multipoles = _valid(plan, pbc, batch, multipoles)
        operator = FieldOperator.of(plan, positions, cell)
        sums = plan.sums
        permanent, potential, field = operator.evaluate(multipoles, with_field or responds)
        own = None
        if self.self_interaction:
            own = sums.own(self_energies(multipoles, self.smearing))
            permanent = permanent + own
        external = None
        if external_field is not None:
            acting = acting_on_charges(external_field, cell, pbc)
            external = ExternalField(external_field, acting)
            permanent = permanent + external.energy(positions, sums, multipoles)
        known = Permanent(positions, cell, multipoles, operator, permanent, potential, field)
        if not (self_consistent and responds):
            return one_step(known, response, external, conserve_charge)
        if checked or positions.device.type == "cpu":
            check_coefficients(response, self.smearing, len(positions))
        stable = are_stable(response, self.smearing, len(positions)).all().to(positions.dtype)
        equations = Equations.of(operator, cell, response, conserve_charge)
        return respond(known, response, external, equations, stable / stable, own)


def _valid(plan: Plan, pbc: Tensor, batch: Tensor, multipoles: Multipoles) -> Multipoles:
    """The multipoles, or NaN where the plan is of other structures: no wait, no wrong number."""
    same = (batch == plan.sums.batch).all() & (pbc == plan.pbc).all()
    one = same.to(multipoles.charge.dtype)
    return replace(multipoles, charge=multipoles.charge * (one / one))
