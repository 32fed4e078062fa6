"""MultipoleMACE: a MACE model with latent multipoles and linear response."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import mace  # noqa: F401  before e3nn
import torch
from mace.modules import ScaleShiftMACE
from mace.modules.utils import get_outputs
from torch import Tensor

from mace_polmp.electrostatics import Multipoles, ResponseCoefficients
from mace_polmp.head import Edges, HeadInput, HeadOutput, LongRangeHead, LongRangeOptions
from mace_polmp.head.observables import electronic_polarizability, polarizability_tensors
from mace_polmp.modules.backbone import (
    double_e0s,
    edges_of,
    edges_of_pass,
    exact_energy,
    feature_layout,
)
from mace_polmp.modules.born_charges import labelled_born_charges
from mace_polmp.modules.graph import Graph
from mace_polmp.modules.labelled import asks_for_labels, labelled_outputs
from mace_polmp.modules.outputs import ELECTRICAL_OUTPUTS, BackboneOutput, electrical_outputs
from mace_polmp.modules.record import TrainingRecord
from mace_polmp.modules.summary import summary

__all__ = ["ELECTRICAL_OUTPUTS", "FORMAT_VERSION", "BackboneOutput", "MultipoleMACE"]

FORMAT_VERSION = 6
"""Version of what a .model file holds; a file with a higher one is refused."""


class MultipoleMACE(ScaleShiftMACE):
    """MACE plus the smeared electrostatic energy of latent multipoles and their linear response.

    The energy is E_MACE + E_perm + Σ U^iq + Σ U^iu (arXiv:2605.05746), or with a self-consistent
    response E_MACE and the least energy of what is induced. Both parts see the same
    strained positions and cell and are differentiated together, so forces and stress are exact.

    Args:
        long_range: settings of the head; the defaults if None.
        initial_scale: size of the head's initial output: 1, or less for a trained backbone.
        **kwargs: of mace.modules.ScaleShiftMACE.

    Attributes:
        long_range_options, electrostatics, multipole_readouts: parts of the head.
        trained_on: what the model remembers of its training.
    """

    trained_on: TrainingRecord = TrainingRecord()  # also of models saved before they remembered
    _double_e0s: Tensor | None = None  # what a model in single precision rounds
    born_directions: int = 3  # of polarization, in which a training sees its Born charges
    gives_polarizability: bool = True  # where that of a structure takes solving for it
    asked_labels: frozenset[str] = frozenset()  # of a training, that ask for more outputs
    compiled: Any = None  # a CompiledPass, for evaluations that need first derivatives only
    __repr__ = summary

    def __init__(
        self,
        long_range: LongRangeOptions | None = None,
        initial_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._add_head(long_range, initial_scale)
        self.keep_atomic_energies(torch.as_tensor(kwargs["atomic_energies"]))

    def keep_atomic_energies(self, energies: Tensor) -> None:
        """Keep atomic energies in double precision, where the model's own are rounded.

        Args:
            energies: as many as the model has, eV.
        """
        own = self.atomic_energies_fn.atomic_energies
        self._double_e0s = energies.to(own.device, torch.float64).reshape(own.shape)

    def _apply(self, fn: Any, recurse: bool = True) -> MultipoleMACE:
        """Of torch, for .float(), .to(…): atomic energies in double precision are kept aside."""
        table = double_e0s(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.atomic_energies_fn.atomic_energies.device
        self._double_e0s = table.to(device)
        return self

    @classmethod
    def from_mace(
        cls,
        backbone: ScaleShiftMACE,
        long_range: LongRangeOptions | None = None,
        initial_scale: float = 1.0,
    ) -> MultipoleMACE:
        """A MultipoleMACE that takes over the modules of an existing MACE, weights included.

        Args:
            backbone: the model; its modules are shared, not copied.
            long_range: settings of the head; the defaults if None.
            initial_scale: size of the head's initial output.

        Raises:
            TypeError: backbone is not a ScaleShiftMACE, or has a long-range head already.
        """
        if not isinstance(backbone, ScaleShiftMACE) or isinstance(backbone, MultipoleMACE):
            raise TypeError(
                f"backbone must be a mace.modules.ScaleShiftMACE, got {type(backbone).__name__}"
            )
        model = cls.__new__(cls)
        torch.nn.Module.__init__(model)
        model.__dict__.update(backbone.__dict__)
        # What the head adds must not enter the backbone.
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            model.__dict__[name] = backbone.__dict__[name].copy()
        model._add_head(long_range, initial_scale)
        return model

    def _add_head(self, options: LongRangeOptions | None, initial_scale: float) -> None:
        self.format_version = FORMAT_VERSION
        own: Any = self  # its modules have no types
        head = LongRangeHead(
            options,
            [str(product.linear.irreps_out) for product in own.products],
            own.atomic_numbers.tolist(),
            n_radial=int(own.radial_embedding.out_dim),
            avg_num_neighbors=float(own.interactions[0].avg_num_neighbors),
            cutoff=float(own.r_max),
            initial_scale=initial_scale,
            layout=feature_layout(self),
        )
        reference = next(self.node_embedding.parameters())
        head.to(dtype=reference.dtype, device=reference.device)
        # Under the names that model files and checkpoints have known from the first version on.
        self.long_range_options = head.options
        self.electrostatics = head.electrostatics
        self.multipole_readouts = head.readouts
        if head.raw_permittivity is not None:
            self.raw_permittivity = head.raw_permittivity

    @property
    def head(self) -> LongRangeHead:
        """The long-range head: a view of the model's parts."""
        return LongRangeHead.of_parts(
            self.long_range_options,
            self.multipole_readouts,
            self.electrostatics,
            self._parameters.get("raw_permittivity"),
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.format_version = max(self.format_version, FORMAT_VERSION)
        self.long_range_options = self.multipole_readouts.options  # brought up to date with them

    @property
    def epsilon_infinity(self) -> Tensor | float:
        """The electronic permittivity that the model was given, or learned from Born charges."""
        return self.head.epsilon_infinity

    def permittivity(self) -> float:
        """epsilon_infinity as a number."""
        return self.head.permittivity()

    def set_permittivity(self, epsilon_infinity: float) -> None:
        """Where a learned permittivity starts."""
        self.head.set_permittivity(epsilon_infinity)

    def head_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that are not the backbone's."""
        return self.head.own_parameters()

    def short_range(self) -> ScaleShiftMACE:
        """The backbone alone, as the class that mace-torch knows; modules are shared."""
        backbone = ScaleShiftMACE.__new__(ScaleShiftMACE)
        torch.nn.Module.__init__(backbone)
        backbone.__dict__.update(self.__dict__)
        own = ("multipole_readouts", "electrostatics", "raw_permittivity")
        for name in ("_modules", "_parameters"):
            kept = {k: v for k, v in self.__dict__[name].items() if k not in own}
            backbone.__dict__[name] = kept
        return backbone

    def forward(
        self,
        data: dict[str, Tensor],
        training: bool = False,
        compute_force: bool = True,
        compute_virials: bool = False,
        compute_stress: bool = False,
        compute_displacement: bool = False,
        compute_hessian: bool = False,
        compute_edge_forces: bool = False,
        compute_atomic_stresses: bool = False,
        lammps_mliap: bool = False,
    ) -> dict[str, Tensor | None]:
        """Evaluate a batch as ScaleShiftMACE does, with the long-range energy added.

        Args:
            data: upstream's batch dictionary; needs "pbc" [n_structures, 3] bool. An entry
                "applied_field" [n_structures, 3], V/Å, adds a uniform external field, whose
                energy is −D·F − ½ F·α·F with the dipole D and polarizability α of the model,
                in structures that are periodic in three directions with √ε∞ F for F (see
                LongRangeHead.acting_field; an entry "epsilon_infinity" is in place of the
                model's). Along periodic directions it acts on dipoles only; see
                born_charges.field_on_charges. "total_charge" [n_structures], e, is what
                constrain_charge sums to, 0 if it is not there; structures with a positive
                "born_charges_weight" [n_structures] get Born charges; "plan" is that of the
                electrostatics (see Electrostatics.plan), without which the pass waits for the
                device.
            training, compute_*: as upstream.

        Returns:
            Upstream's dictionary, where energies with atomic energies in them are in double
            precision whatever the model's, node_energy holds the short-range energies only
            (atom_energies.py has those with the long-range part), and
            short_range_energy, long_range_energy [n_structures] eV;
            charges [n_atoms] e, atomic_dipoles [n_atoms, 3] e Å (permanent plus induced);
            atomic_quadrupoles [n_atoms, 3, 3] e Å²;
            induced_charges [n_atoms] e, induced_dipoles [n_atoms, 3] e Å;
            softness [n_atoms] e²/eV, atomic_polarizabilities [n_atoms, 3, 3] e² Å²/eV;
            dipole [n_structures, 3] e Å, polarizability [n_structures, 3, 3] e² Å²/eV;
            born_charges [n_atoms, 3, 3] e and what labelled_outputs gives where labels in data ask
            for them. The polarizability of a
            self-consistent response takes three more solutions: data["with_polarizability"]
            False, or the model's gives_polarizability, leaves None in its place.

        Raises:
            NotImplementedError: per-edge forces, atomic stresses or LAMMPS' ML-IAP, which a
                long-range energy does not have.
            KeyError: data lacks "pbc".
        """
        if compute_edge_forces or compute_atomic_stresses or lammps_mliap:
            raise NotImplementedError(
                "MultipoleMACE has no edge forces, atomic stresses or ML-IAP interface: its "
                "long-range energy is not a sum over edges"
            )
        graph = Graph.of(data)
        strained, displacement = graph.strained(
            compute_virials or compute_stress or compute_displacement
        )
        labelled = asks_for_labels(self, graph)
        outputs: dict[str, Tensor | None] | None = None
        precision: AbstractContextManager[None] = nullcontext()
        if self.compiled is not None and not (training or compute_hessian or labelled):
            outputs = self.compiled(self, strained)
            precision = self.compiled.precision()  # derivatives run after the function
        if outputs is None:
            short, out = self.long_range(strained)
            wanted = graph.data.get("with_polarizability", self.gives_polarizability)
            outputs = self.outputs(short, out, wanted)
            outputs.update(labelled_outputs(self, strained, out))
            if graph.born_charges_weight is not None:
                outputs["born_charges"] = labelled_born_charges(self, graph, training, out)
        interaction: Any = outputs["interaction_energy"]
        with precision:
            forces, virials, stress, hessian, _ = get_outputs(
                energy=interaction,
                positions=graph.positions,
                displacement=displacement,
                cell=graph.cell.reshape(-1, 3),
                training=training,
                compute_force=compute_force,
                compute_virials=compute_virials,
                compute_stress=compute_stress,
                compute_hessian=compute_hessian,
            )
        energy: Any = outputs["energy"]
        if training and isinstance(self.long_range_options.epsilon_infinity, str):
            # A distributed training wants a gradient of every parameter, labels or not.
            energy = energy + 0.0 * self.raw_permittivity
            forces = None if forces is None else forces + 0.0 * self.raw_permittivity
        return {
            **outputs,
            "energy": energy,
            "forces": forces,
            "virials": virials,
            "stress": stress,
            "hessian": hessian,
            "displacement": displacement,
        }

    def outputs(
        self, short: BackboneOutput, out: HeadOutput, with_polarizability: bool = True
    ) -> dict[str, Tensor | None]:
        """The outputs of forward that are not derivatives of the energy."""
        return {
            **short.outputs,
            "energy": short.energy + out.energy,
            "interaction_energy": short.interaction_energy + out.energy,
            "short_range_energy": short.energy,
            "long_range_energy": out.energy,
            **electrical_outputs(out, with_polarizability),
        }

    def backbone(self, graph: Graph) -> BackboneOutput:
        """What the backbone alone gives, without derivatives; energies in double precision."""
        if torch.compiler.is_dynamo_compiling():  # which knows no hooks, and no computation twice
            found: list[Edges] = []
            out: dict[str, Any] = super().forward(dict(graph.data), compute_force=False)
        else:
            with edges_of_pass(self, graph.edge_index) as found:
                out = super().forward(dict(graph.data), compute_force=False)
        energy = exact_energy(self, graph.data, out["energy"], out["interaction_energy"])
        edges = found[0] if found else None
        return BackboneOutput(energy, out["interaction_energy"], out["node_feats"], edges, out)

    def head_input(
        self, graph: Graph, short: BackboneOutput, needs_edges: bool | None = None
    ) -> HeadInput:
        """What the backbone gives to the head."""
        edges = short.edges
        if edges is None and (self.head.needs_edges if needs_edges is None else needs_edges):
            edges = edges_of(self, graph)
        return HeadInput(
            positions=graph.positions,
            cell=graph.cell,
            pbc=graph.pbc,
            batch=graph.batch,
            node_feats=short.node_feats,
            node_attrs=graph.node_attrs,
            edges=edges,
            total_charge=graph.total_charge,
            external_field=graph.external_field,
            plan=graph.plan,
            epsilon_infinity=graph.epsilon_infinity,
        )

    def long_range(
        self,
        graph: Graph,
        short: BackboneOutput | None = None,
        shift: Tensor | None = None,
        hold_shift: bool = False,
    ) -> tuple[BackboneOutput, HeadOutput]:
        """Backbone and head, at the positions and cell of a batch.

        Args:
            graph: the batch.
            short: of the backbone, where it is known.
            shift, hold_shift: as of LongRangeHead.read.
        """
        short = self.backbone(graph) if short is None else short
        return short, self.head(self.head_input(graph, short), shift, hold_shift)

    def read_multipoles(
        self, data: dict[str, Tensor]
    ) -> tuple[BackboneOutput, Multipoles, ResponseCoefficients]:
        """What the backbone gives, permanent multipoles, response coefficients of a batch."""
        graph = Graph.of(data)
        short = self.backbone(graph)
        multipoles, response, _ = self.head.read(self.head_input(graph, short))
        return short, multipoles, response

    def electronic_polarizability(self, data: dict[str, Tensor]) -> Tensor:
        """Of induced dipoles, with local fields, [n_structures, 3, 3], e² Å²/eV: observables.py."""
        graph = Graph.of(data)
        if self.long_range_options.is_self_consistent:
            without = Graph.of({k: v for k, v in data.items() if k != "applied_field"})
            return self.long_range(without)[1].polarizability
        response = self.read_multipoles(data)[2]
        return self._with_local_fields(graph, response)

    def local_polarizability(self, graph: Graph, out: HeadOutput) -> Tensor:
        """The same, of structures without a field whose head output is known."""
        if self.long_range_options.is_self_consistent:
            return out.polarizability
        return self._with_local_fields(graph, out.response)

    def _with_local_fields(self, graph: Graph, response: ResponseCoefficients) -> Tensor:
        where = (graph.positions, graph.cell, graph.pbc, graph.batch)
        dipoles = replace(response, bonds=None)
        alpha = polarizability_tensors(dipoles, len(graph.positions), graph.positions)
        bonds = response.bonds
        return electronic_polarizability(self.electrostatics, *where, alpha, graph.plan, bonds)
