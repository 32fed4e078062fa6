"""A MultipoleMACE on the part of a structure that one process has.

Features of atoms at the border are exchanged before each convolution, structure factors and other
sums over atoms are added up over processes: energies, forces and virials are those of the whole
structure, to rounding. Molecules (no periodic direction) are gathered: every process evaluates the
electrostatics of all atoms and keeps the forces of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mace  # noqa: F401  before e3nn
import torch
from mace.modules import ScaleShiftMACE
from torch import Tensor

from mace_polmp.electrostatics import (
    Electrostatics,
    Multipoles,
    Plan,
    PlanShape,
    ResponseCoefficients,
)
from mace_polmp.electrostatics.checks import check_vacuum
from mace_polmp.electrostatics.grouping import letters
from mace_polmp.electrostatics.keeper import margin_of_new
from mace_polmp.electrostatics.plan import plan_shape
from mace_polmp.electrostatics.slab import longest_period, required_vacuum, slab_frame
from mace_polmp.errors import InputError
from mace_polmp.head import Edges, HeadInput, HeadOutput
from mace_polmp.head.observables import atom_energies, screening_factor
from mace_polmp.modules import MultipoleMACE
from mace_polmp.modules.atom_energies import exact_short
from mace_polmp.modules.backbone import edges_of_pass, exact_energy
from mace_polmp.modules.heads import head_index
from mace_polmp.modules.outputs import charges_of_place
from mace_polmp.parallel.halo import Halo, gathered
from mace_polmp.parallel.processes import Processes
from mace_polmp.parallel.read import Read, check_field, gathered_bonds
from mace_polmp.parallel.sums import SharedSums


@dataclass(frozen=True, eq=False)
class Part:
    """The atoms of one process, and their neighbours.

    Attributes:
        halo: exchanges rows with the other processes.
        positions: [n_own, 3], Å, of own atoms.
        species: [n_own + n_halo] int64, the place of each atom's element in the model's
            atomic_numbers; own atoms first.
        index: [2, n_edges] int64, sender (any row) and receiver (an own atom) of each pair closer
            than the cutoff.
        shifts: [n_edges, 3], whole lattice vectors to add to receiver minus sender.
        cell: [3, 3], Å, the same in every process.
        pbc: the boundary conditions.
        n_atoms: of the whole structure.
    """

    halo: Halo
    positions: Tensor
    species: Tensor
    index: Tensor
    shifts: Tensor
    cell: Tensor
    pbc: tuple[bool, bool, bool]
    n_atoms: int


@dataclass(frozen=True, eq=False)
class PartResult:
    """Of the whole structure, the same in every process, and of own atoms.

    Attributes:
        energy, long_range_energy: eV, of the whole.
        forces: [n_own, 3], eV/Å.
        virial: [3, 3], eV, of the whole: −∂E/∂ε.
        charges: [n_own], e; atomic_dipoles: [n_own, 3], e Å; permanent plus induced.
        charges_of_place: [n_own], e, by which the dipole changes where atoms are put elsewhere.
        dipole: [3], e Å, of the whole as its atoms are given, in cells times √ε∞, as are
            charges_of_place.
        energies: [n_own], eV, of own atoms, which sum to the energy over all processes; None where
            they were not asked for.
    """

    energy: float
    long_range_energy: float
    forces: Tensor
    virial: Tensor
    charges: Tensor
    atomic_dipoles: Tensor
    charges_of_place: Tensor
    dipole: Tensor
    energies: Tensor | None = None


class SharedModel:
    """Evaluates parts of a structure, every process its own, all at the same time.

    Args:
        model: the same in every process; its weights are no longer trained.
        processes: that share the structure.
        head: which of a model with several, by name; None for the default.
        total_charge: e, what constrain_charge sums to.
        external_field: [3], V/Å, or None; along periodic directions it is refused, but of models
            with charge_readout bond and without formal charges.

    Raises:
        InputError: a model that cannot be shared, or a head that it does not have.
    """

    def __init__(
        self,
        model: MultipoleMACE,
        processes: Processes,
        head: str | None = None,
        total_charge: float = 0.0,
        external_field: Tensor | None = None,
    ) -> None:
        if hasattr(model, "joint_embedding"):
            raise InputError(
                "a model with embedded features (total charge or spin of a structure) cannot be "
                "shared by processes: use one process and the calculator"
            )
        self._head = head_index(head, list(getattr(model, "heads", None) or ["Default"]))
        self.model = model.eval().requires_grad_(False)
        self.processes = processes
        self._total_charge = total_charge
        self._field = external_field
        self._shape: PlanShape | None = None
        self._plan: Plan | None = None  # of the last evaluation
        self._long_range = model.head

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def evaluate(self, part: Part, with_energies: bool = False) -> PartResult:
        """Energy, forces, virial and multipoles; every process has to call it.

        Args:
            part: the atoms of this process.
            with_energies: whether energies of atoms are computed, the same in every process.

        Raises:
            InputError: a field along a periodic direction.
            ValueError: a structure that the electrostatics refuses.
        """
        check_field(self._field, part.cell, part.pbc, self._long_range.options)
        is_empty = len(part.positions) == 0
        if is_empty:
            part = _with_a_row(part)
        given = part.positions.to(self.device, self.dtype).clone().requires_grad_(True)
        strain = torch.zeros(3, 3, dtype=self.dtype, device=self.device, requires_grad=True)
        symmetric = 0.5 * (strain + strain.t())
        unstrained = part.cell.to(self.device, self.dtype)
        positions = given + given @ symmetric
        cell = unstrained + unstrained @ symmetric

        short, node_energy, edges, node_feats, node_attrs = self._backbone(part, positions, cell)
        readouts = self._long_range.readouts
        multipoles, response = readouts(node_feats, node_attrs, edges)
        moments = None
        if readouts.has_bonds:
            moments = readouts.bond_moments(positions, node_feats, node_attrs, edges)
        rows = slice(None)
        read = Read(multipoles, response, moments)
        if is_empty:
            short, read = short * 0.0, read.off()
        if any(part.pbc):
            out = self._reduced(part, positions, cell, read, is_empty)
            own_energy = whole = out.energy
        else:
            out = self._replicated(part, positions, cell, read, is_empty)
            own_energy, whole = out.energy, out.energy / self.processes.n_ranks
            rows = slice(self._first, self._first + len(given) - int(is_empty))
        pbc = torch.tensor([part.pbc])
        factor = float(screening_factor(None, pbc, self._long_range.permittivity()))
        gradients = torch.autograd.grad((short + own_energy).sum(), [given, strain])
        by_strain = 0.5 * (gradients[1] + gradients[1].t())
        parts = [(short + whole).detach().sum()[None], whole.detach().sum()[None]]
        sums = self.processes.sum(
            torch.cat([p.double() for p in (*parts, by_strain.detach().reshape(-1))])
        )
        n_own = 0 if is_empty else len(given)
        charges = out.charges.detach()[rows][:n_own].double()
        elements: Any = self.model.atomic_numbers
        numbers = elements.cpu()[part.species[:n_own].cpu()]
        energies = None
        if with_energies:
            heads = torch.full_like(node_attrs.argmax(-1), self._head)
            energies = exact_short(self.model, node_energy, node_attrs, heads).detach()[:n_own]
            energies = energies + self._atom_energies(out, cell)[rows][:n_own]
        return PartResult(
            energy=float(sums[0]),
            long_range_energy=float(sums[1]),
            forces=-gradients[0].detach()[:n_own].double(),
            virial=-sums[2:].view(3, 3),
            charges=charges,
            charges_of_place=factor * charges_of_place(self.model, charges, numbers),
            atomic_dipoles=out.atomic_dipoles.detach()[rows][:n_own].double(),
            dipole=factor * out.dipole.detach()[0].double(),
            energies=energies,
        )

    @torch.no_grad()
    def _atom_energies(self, out: HeadOutput, cell: Tensor) -> Tensor:
        """The long-range part of the energies of the atoms that this process evaluates, eV."""
        assert self._plan is not None
        if self._field is not None and bool(self._field.any()):
            raise InputError("energies of atoms in an external field are not defined; leave it out")
        engine = self._long_range.electrostatics
        operator = engine.prepare(self._plan, out.positions, cell[None])
        found: Tensor = atom_energies(engine, operator, out.multipoles, out.response, out.result)
        return found.double()

    def _backbone(
        self, part: Part, positions: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Edges, Tensor, Tensor]:
        """Short-range energy of own atoms and of each, edges, features [n_own, …], attributes."""
        model: Any = self.model
        index = part.index.to(self.device)
        rows = part.halo.extend(positions)
        vectors = rows[index[1]] - rows[index[0]] + part.shifts.to(cell) @ cell
        n_elements = len(model.atomic_numbers)
        one_hot = torch.nn.functional.one_hot(part.species.to(self.device), n_elements)
        node_attrs = one_hot.to(self.dtype)
        n_own = part.halo.n_own
        data: dict[str, Any] = {
            "vectors": vectors,
            "node_attrs": node_attrs,
            "edge_index": index,
            "batch": torch.zeros(n_own, dtype=torch.int64, device=self.device),
            "head": torch.tensor([self._head], device=self.device),
            "natoms": (n_own, part.halo.n_halo),
            "lammps_class": part.halo,
        }
        with edges_of_pass(model, index) as found:
            out: dict[str, Any] = ScaleShiftMACE.forward(
                model, data, compute_force=False, lammps_mliap=True
            )
        own = node_attrs[:n_own]
        energy = exact_energy(
            model,
            {"batch": data["batch"], "node_attrs": own, "head": data["head"]},
            out["energy"][:1],
            out["interaction_energy"][:1],
        )
        edges = replace(found[0], extend=part.halo.extend)
        return energy, out["node_energy"], edges, out["node_feats"][:n_own], own

    def _electrostatics(
        self,
        positions: Tensor,
        cell: Tensor,
        plan: Plan,
        read: Read,
    ) -> HeadOutput:
        """The head, from what its readouts say of the atoms."""
        none = positions.new_zeros(0)
        field = None
        if self._field is not None and bool(self._field.any()):
            field = self._field.to(positions).view(1, 3)
        inputs = HeadInput(
            positions=positions,
            cell=cell[None],
            pbc=plan.pbc,
            batch=plan.sums.batch,
            node_feats=none,
            node_attrs=none,
            total_charge=positions.new_full((1,), self._total_charge),
            external_field=field,
            plan=plan,
        )
        held = self._long_range.constrained(inputs, read.multipoles, read.response)
        return self._long_range.evaluate(inputs, *held, read.moments)

    def _reduced(
        self,
        part: Part,
        positions: Tensor,
        cell: Tensor,
        read: Read,
        is_empty: bool,
    ) -> HeadOutput:
        """Of a periodic structure: sums over own atoms, added up over processes."""
        engine = self._long_range.electrostatics
        batch = torch.zeros(len(positions), dtype=torch.int64, device=self.device)
        plan = self._plan_of(engine, part, batch, SharedSums(batch, 1, self.processes, is_empty))
        if sum(part.pbc) == 2:
            self._check_slab(part, is_empty)
        return self._electrostatics(positions, cell, plan, read)

    def _replicated(
        self,
        part: Part,
        positions: Tensor,
        cell: Tensor,
        read: Read,
        is_empty: bool,
    ) -> HeadOutput:
        """Of an open structure: all atoms on every process."""
        rows = slice(0, 0) if is_empty else slice(None)

        def whole(values: Tensor | None) -> Tensor | None:
            return None if values is None else gathered(values[rows], self.processes)

        multipoles, response = read.multipoles, read.response
        counts = self.processes.gather(torch.tensor([positions[rows].shape[0]]))[0].tolist()
        self._first = int(sum(counts[: self.processes.rank]))
        bonds = response.bonds
        if bonds is not None:
            bonds = gathered_bonds(bonds, self._first, len(positions), self.processes)
        everywhere = whole(positions)
        charge = whole(multipoles.charge)
        assert everywhere is not None and charge is not None
        every = Read(
            Multipoles(charge, whole(multipoles.dipole), whole(multipoles.quadrupole)),
            ResponseCoefficients(whole(response.softness), whole(response.polarizability), bonds),
            whole(read.moments),
        )
        batch = torch.zeros(len(everywhere), dtype=torch.int64, device=self.device)
        plan = self._plan_of(self._long_range.electrostatics, part, batch, None)
        return self._electrostatics(everywhere, cell, plan, every)

    def _plan_of(
        self, engine: Electrostatics, part: Part, batch: Tensor, sums: SharedSums | None
    ) -> Plan:
        """The plan of own atoms; its numbers are the same in every process."""
        cell, pbc = part.cell.to(self.dtype).double()[None], torch.tensor([part.pbc])
        known, settings = self._shape, engine.settings()
        margin = margin_of_new(known, settings, cell, pbc, [part.n_atoms])
        if known is None or margin is not None:
            known = plan_shape(cell, pbc, [part.n_atoms], settings, margin or 0.0)
        self._shape, self._plan = known, Plan.of(known, batch, sums)
        return self._plan

    def _check_slab(self, part: Part, is_empty: bool) -> None:
        """Refuse too little vacuum, of the atoms of all processes."""
        cell, pbc = part.cell.double()[None], torch.tensor([part.pbc])
        z = part.positions.double()[: 0 if is_empty else None]
        height, normal = slab_frame(cell, pbc)
        along = z @ normal[0]
        ends = along.new_zeros(0, 2) if is_empty else torch.stack([along.min(), along.max()])[None]
        every, _ = self.processes.gather(ends)
        extent = float(every[:, 1].max() - every[:, 0].min())
        period = float(longest_period(cell, pbc)[0])
        least = required_vacuum(period, self._long_range.electrostatics.smearing)
        where = f"the structure has boundary {letters(part.pbc)}"
        check_vacuum(where, float(height[0]), extent, least)


def _with_a_row(part: Part) -> Part:
    """A process without atoms gets one that counts nothing: mace-torch cannot do without."""
    return replace(
        part,
        positions=torch.zeros(1, 3, dtype=torch.float64),
        species=torch.zeros(1, dtype=torch.int64),
        index=torch.zeros(2, 0, dtype=torch.int64),
        shifts=torch.zeros(0, 3, dtype=torch.float64),
    )
