"""MultipoleMACE: a MACE model with latent multipoles and linear response."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mace  # noqa: F401  before e3nn
import torch
from e3nn import o3
from mace.modules import ScaleShiftMACE
from mace.modules.utils import get_edge_vectors_and_lengths, get_outputs
from torch import Tensor

from mace_polmp.electrostatics import ElectrostaticsResult, Multipoles, ResponseCoefficients
from mace_polmp.modules.born_charges import labelled_born_charges
from mace_polmp.modules.convolutions import Edges
from mace_polmp.modules.inputs import (
    double_e0s,
    exact_energy,
    feature_layout,
    field_on_induced_charges,
    strain,
    total_charges,
)
from mace_polmp.modules.observables import (
    atomic_dipoles,
    charge_shift,
    electronic_polarizability,
    neutral_slabs,
    polarizability_tensors,
    total_dipole,
    total_polarizability,
)
from mace_polmp.modules.options import LEARN, LongRangeOptions
from mace_polmp.modules.readouts import MultipoleReadouts
from mace_polmp.modules.record import TrainingRecord

# What calculators and files show of the model's electrical outputs: per atom or per structure,
# and the shape of one.
ELECTRICAL_OUTPUTS: dict[str, tuple[bool, tuple[int, ...]]] = {
    "charges": (True, ()),
    "atomic_dipoles": (True, (3,)),
    "atomic_quadrupoles": (True, (3, 3)),
    "atomic_polarizabilities": (True, (3, 3)),
    "dipole": (False, (3,)),
    "polarizability": (False, (3, 3)),
    "long_range_energy": (False, ()),
}

FORMAT_VERSION = 2
"""Version of what a .model file holds; a file with a higher one is refused."""


class MultipoleMACE(ScaleShiftMACE):
    """MACE plus the smeared electrostatic energy of latent multipoles and their linear response.

    The energy is E_MACE + E_perm + Σ U^iq + Σ U^iu (arXiv:2605.05746). Both parts see the same
    strained positions and cell and are differentiated together, so forces and stress are exact.

    Args:
        long_range: settings of the head; the defaults if None.
        initial_scale: size of the head's initial output, 1 from scratch, small for a trained
            backbone.
        **kwargs: of mace.modules.ScaleShiftMACE.

    Attributes:
        trained_on: what the model remembers of its training.
    """

    trained_on: TrainingRecord = TrainingRecord()  # also of models saved before they remembered
    _double_e0s: Tensor | None = None  # what a model in single precision rounds

    def __init__(
        self,
        long_range: LongRangeOptions | None = None,
        initial_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._add_long_range(long_range or LongRangeOptions(), initial_scale)
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
        out = super()._apply(fn, recurse)
        device = self.atomic_energies_fn.atomic_energies.device
        self._double_e0s = table.to(device)
        return out

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
        model._add_long_range(long_range or LongRangeOptions(), initial_scale)
        return model

    def _add_long_range(self, options: LongRangeOptions, initial_scale: float) -> None:
        self.format_version = FORMAT_VERSION
        self.long_range_options = options
        self.electrostatics = options.make_engine()
        self.multipole_readouts = MultipoleReadouts(
            layer_irreps=[o3.Irreps(str(p.linear.irreps_out)) for p in self.products],
            options=options,
            atomic_numbers=self.atomic_numbers.tolist(),
            n_radial=int(self.radial_embedding.out_dim),
            avg_num_neighbors=float(self.interactions[0].avg_num_neighbors),
            cutoff=float(self.r_max),
            initial_scale=initial_scale,
            layout=feature_layout(self),
        )
        reference = next(self.node_embedding.parameters())
        self.multipole_readouts.to(dtype=reference.dtype, device=reference.device)
        if options.epsilon_infinity == LEARN:
            # ε∞ = 1 + softplus of this
            self.raw_permittivity = torch.nn.Parameter(reference.new_zeros(()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.format_version < 2:  # before charges moved along edges
            self.format_version = FORMAT_VERSION
            self.long_range_options = replace(self.long_range_options, charge_readout="atomic")
            readouts = self.multipole_readouts
            readouts.options = self.long_range_options
            readouts.transfer = None
            readouts.register_buffer("orientation", torch.ones_like(readouts.element_bias[0, 0]))

    @property
    def epsilon_infinity(self) -> Tensor | float:
        """The electronic permittivity that the model was given, or learned from Born charges."""
        epsilon = self.long_range_options.epsilon_infinity
        if isinstance(epsilon, str):
            return 1.0 + torch.nn.functional.softplus(self.raw_permittivity)
        return epsilon

    def permittivity(self) -> float:
        """epsilon_infinity as a number."""
        epsilon = self.epsilon_infinity
        return float(epsilon.detach() if isinstance(epsilon, Tensor) else epsilon)

    def set_permittivity(self, epsilon_infinity: float) -> None:
        """Where a learned permittivity starts."""
        excess = max(epsilon_infinity - 1.0, 1e-3)
        with torch.no_grad():
            self.raw_permittivity.fill_(math.log(math.expm1(excess)))

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

    def head_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that are not the backbone's."""
        own = list(self.multipole_readouts.parameters())
        if self.long_range_options.epsilon_infinity == LEARN:
            own.append(self.raw_permittivity)
        return own

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
                energy is −D·F − ½ F·α·F with the dipole D and polarizability α of the model.
                Along periodic directions it acts on dipoles only; see
                born_charges.field_on_charges. "total_charge" [n_structures], e, is what
                constrain_charge sums to, 0 if it is not there; structures with a positive
                "born_charges_weight" [n_structures] get Born charges.
            training, compute_*: as upstream.

        Returns:
            Upstream's dictionary, where energies with atomic energies in them are in double
            precision whatever the model's, node_energy holds the short-range energies only
            (the long-range energy belongs to no single atom), and
            short_range_energy, long_range_energy [n_structures] eV;
            charges [n_atoms] e, atomic_dipoles [n_atoms, 3] e Å (permanent plus induced);
            atomic_quadrupoles [n_atoms, 3, 3] e Å²;
            induced_charges [n_atoms] e, induced_dipoles [n_atoms, 3] e Å;
            softness [n_atoms] e²/eV, atomic_polarizabilities [n_atoms, 3, 3] e² Å²/eV;
            dipole [n_structures, 3] e Å, polarizability [n_structures, 3, 3] e² Å²/eV;
            born_charges [n_atoms, 3, 3] e where they are asked for.

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
        if "pbc" not in data:
            raise KeyError(
                "data lacks 'pbc' [n_structures, 3]; the boundary conditions are not guessed"
            )
        # Other programs give cells as views that upstream cannot reshape.
        data = dict(data, cell=data["cell"].reshape(-1, 3))
        strained, displacement = strain(
            data, compute_virials or compute_stress or compute_displacement
        )
        extra = {}
        if "born_charges_weight" in data:
            extra["born_charges"] = labelled_born_charges(self, data, training)
        short, multipoles, response, result = self.long_range(strained)
        interaction = short["interaction_energy"] + result.energy
        forces, virials, stress, hessian, _ = get_outputs(
            energy=interaction,
            positions=data["positions"],
            displacement=displacement,
            cell=data["cell"],
            training=training,
            compute_force=compute_force,
            compute_virials=compute_virials,
            compute_stress=compute_stress,
            compute_hessian=compute_hessian,
        )
        energy = short["energy"] + result.energy
        if training and isinstance(self.long_range_options.epsilon_infinity, str):
            # A distributed training wants a gradient of every parameter, labels or not.
            energy = energy + 0.0 * self.raw_permittivity
            forces = None if forces is None else forces + 0.0 * self.raw_permittivity
        return {
            **short,
            "energy": energy,
            "interaction_energy": interaction,
            "short_range_energy": short["energy"],
            "long_range_energy": result.energy,
            "forces": forces,
            "virials": virials,
            "stress": stress,
            "hessian": hessian,
            "displacement": displacement,
            **self.electrical_outputs(strained, multipoles, response, result),
            **extra,
        }

    def read_multipoles(
        self, data: dict[str, Tensor], shift: Tensor | None = None
    ) -> tuple[dict[str, Tensor | None], Multipoles, ResponseCoefficients]:
        """Upstream's outputs without derivatives, permanent multipoles, response coefficients.

        Args:
            data: upstream's batch dictionary.
            shift: what total_charge_shift returns, where it is held while positions change.
        """
        short, multipoles, response = self._read(data)
        if self.long_range_options.constrain_charge != "none":
            weight = self._shift_weight(multipoles, response)
            if shift is None:
                shift = charge_shift(multipoles.charge, weight, total_charges(data), data["batch"])
            charge = multipoles.charge + shift[data["batch"]] * weight
            multipoles = replace(multipoles, charge=charge)
        if not self.long_range_options.induces_charges:
            response = replace(response, softness=None)
        return short, multipoles, response

    def total_charge_shift(self, data: dict[str, Tensor]) -> Tensor | None:
        """λ of constrain_charge, [n_structures]; None without that constraint."""
        if self.long_range_options.constrain_charge == "none":
            return None
        _, multipoles, response = self._read(data)
        weight = self._shift_weight(multipoles, response)
        return charge_shift(multipoles.charge, weight, total_charges(data), data["batch"])

    def backbone_outputs(self, data: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """What the backbone alone returns, without derivatives; energies in double precision."""
        out = super().forward(dict(data), compute_force=False)
        energy = exact_energy(self, data, out["energy"], out["interaction_energy"])
        return {**out, "energy": energy}

    def _shift_weight(self, multipoles: Multipoles, response: ResponseCoefficients) -> Tensor:
        if self.long_range_options.constrain_charge == "uniform":
            return torch.ones_like(multipoles.charge)
        assert response.softness is not None
        return response.softness

    def _read(
        self, data: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor | None], Multipoles, ResponseCoefficients]:
        """What backbone and readouts give, before charges are constrained.

        Where data has "node_feats" [n_atoms, n_features] and "cached_energies" [n_structures, 2],
        energy and interaction energy, the backbone is not evaluated.
        """
        if "node_feats" in data:
            energy, interaction = data["cached_energies"].unbind(1)
            features = {"node_feats": data["node_feats"]}
            short = {**features, "energy": energy, "interaction_energy": interaction}
        else:
            short = self.backbone_outputs(data)
        edges = None
        if self.multipole_readouts.needs_edges:
            vectors, lengths = get_edge_vectors_and_lengths(
                positions=data["positions"], edge_index=data["edge_index"], shifts=data["shifts"]
            )
            features, cutoff = self.radial_embedding(
                lengths, data["node_attrs"], data["edge_index"], self.atomic_numbers
            )
            edges = Edges(data["edge_index"], vectors, features, cutoff)
        multipoles, response = self.multipole_readouts(
            short["node_feats"], data["node_attrs"], edges
        )
        return short, multipoles, response

    def long_range(
        self, data: dict[str, Tensor], shift: Tensor | None = None
    ) -> tuple[dict[str, Tensor | None], Multipoles, ResponseCoefficients, ElectrostaticsResult]:
        """read_multipoles and their electrostatics, at the positions and cell in data.

        The charges of a slab are shifted by one number so that they sum to zero: the energy of a
        charged slab is not defined, and nothing in the model makes latent charges neutral. (In a
        fully periodic cell the uniform background does the same.)
        """
        short, multipoles, response = self.read_multipoles(data, shift)
        pbc = data["pbc"].reshape(-1, 3)
        multipoles = neutral_slabs(multipoles, pbc, data["batch"])
        result = self.electrostatics(
            data["positions"],
            data["cell"].reshape(-1, 3, 3),
            pbc,
            data["batch"],
            multipoles,
            response=response,
            external_field=data.get("applied_field"),
            conserve_charge=self.long_range_options.conserves_charge,
            with_field=False,
        )
        if "applied_field" in data and response.softness is not None:
            result = field_on_induced_charges(data, result)
        return short, multipoles, response, result

    def electronic_polarizability(self, data: dict[str, Tensor]) -> Tensor:
        """Polarizability with local fields, [n_structures, 3, 3], e² Å²/eV: see observables.py."""
        response = self.read_multipoles(data)[2]
        positions = data["positions"]
        return electronic_polarizability(
            self.electrostatics,
            positions,
            data["cell"].reshape(-1, 3, 3),
            data["pbc"].reshape(-1, 3),
            data["batch"],
            polarizability_tensors(response, positions.shape[0], positions),
        )

    def electrical_outputs(
        self,
        data: dict[str, Tensor],
        multipoles: Multipoles,
        response: ResponseCoefficients,
        result: ElectrostaticsResult,
    ) -> dict[str, Tensor]:
        """The outputs of forward that are not energies or their derivatives."""
        positions = data["positions"]
        n_atoms, n_structures = positions.shape[0], data["ptr"].numel() - 1
        alpha = polarizability_tensors(response, n_atoms, positions)
        quadrupole = multipoles.quadrupole
        if quadrupole is None:
            quadrupole = positions.new_zeros(n_atoms, 3, 3)
        softness = response.softness
        return {
            "charges": multipoles.charge + result.induced_charge,
            "atomic_dipoles": atomic_dipoles(multipoles, result),
            "atomic_quadrupoles": quadrupole,
            "induced_charges": result.induced_charge,
            "induced_dipoles": result.induced_dipole,
            "softness": torch.zeros_like(multipoles.charge) if softness is None else softness,
            "atomic_polarizabilities": alpha,
            "dipole": total_dipole(positions, data["batch"], n_structures, multipoles, result),
            "polarizability": total_polarizability(alpha, data["batch"], n_structures),
        }
