"""The head as a module: node features of a backbone in, long-range energy and observables out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.plan import log_plan
from mace_polmp.electrostatics.sums import AtomSums
from mace_polmp.head.field_energies import (
    check_conserved,
    with_field_on_bonds,
    with_field_on_induced_charges,
)
from mace_polmp.head.field_response import FieldResponse
from mace_polmp.head.inputs import HeadInput, HeadOutput
from mace_polmp.head.observables import charge_shift, neutral_slabs, screening_factor
from mace_polmp.head.options import LEARN, LongRangeOptions
from mace_polmp.head.readouts import MultipoleReadouts


class LongRangeHead(torch.nn.Module):
    """Readouts of latent multipoles and their electrostatics, for any backbone.

    The energy is E_perm + Σ U^iq + Σ U^iu (arXiv:2605.05746) of smeared multipoles, or with a
    self-consistent response its minimum by what is induced.

    Args:
        options: settings; the defaults if None.
        layer_irreps: irreps of each layer's node features, one after the other in node_feats.
        atomic_numbers: the elements.
        n_radial: width of Edges.features.
        avg_num_neighbors: mean number of neighbours.
        cutoff: of the graph, Å.
        initial_scale: size of the initial output, 1 from scratch, small for a trained backbone.
        layout: of node features, "mul_ir" or "ir_mul".

    The start suits scalars of a root mean square near 0.2, as MACE has them: scale features that
    are much larger.

    Attributes:
        options: the settings.
        readouts: what reads multipoles and coefficients from node features.
        electrostatics: the engine with these settings.

    Raises:
        ValueError: layer_irreps without scalars (0e).
    """

    def __init__(
        self,
        options: LongRangeOptions | None,
        layer_irreps: Sequence[str | o3.Irreps],
        atomic_numbers: Sequence[int],
        n_radial: int,
        avg_num_neighbors: float,
        cutoff: float,
        initial_scale: float = 1.0,
        layout: str = "mul_ir",
    ) -> None:
        super().__init__()
        self.options = options or LongRangeOptions()
        irreps = [o3.Irreps(str(layer)) for layer in layer_irreps]
        if not any(ir == o3.Irrep("0e") for layer in irreps for _, ir in layer):
            raise ValueError(f"layer_irreps must have scalars (0e), got {list(layer_irreps)}")
        self.electrostatics: Electrostatics = self.options.make_engine()
        self.readouts = MultipoleReadouts(
            layer_irreps=irreps,
            options=self.options,
            atomic_numbers=[int(z) for z in atomic_numbers],
            n_radial=n_radial,
            avg_num_neighbors=avg_num_neighbors,
            cutoff=cutoff,
            initial_scale=initial_scale,
            layout=layout,
        )
        self.raw_permittivity: torch.nn.Parameter | None = None
        if self.options.epsilon_infinity == LEARN:
            # ε∞ = 1 + softplus of this
            self.raw_permittivity = torch.nn.Parameter(torch.zeros(()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.options = self.readouts.options  # brought up to date with them

    @classmethod
    def of_parts(
        cls,
        options: LongRangeOptions,
        readouts: MultipoleReadouts,
        electrostatics: Electrostatics,
        raw_permittivity: torch.nn.Parameter | None,
    ) -> LongRangeHead:
        """A head of parts that are there, as in model files of earlier versions."""
        head = cls.__new__(cls)
        torch.nn.Module.__init__(head)
        head.options, head.readouts, head.electrostatics = options, readouts, electrostatics
        head.raw_permittivity = raw_permittivity
        return head

    @property
    def needs_edges(self) -> bool:
        """Whether forward needs the edges of the graph."""
        return self.readouts.needs_edges

    @property
    def epsilon_infinity(self) -> Tensor | float:
        """The electronic permittivity that the head was given, or learned from Born charges."""
        epsilon = self.options.epsilon_infinity
        if isinstance(epsilon, str):
            assert self.raw_permittivity is not None
            return 1.0 + torch.nn.functional.softplus(self.raw_permittivity)
        return epsilon

    def permittivity(self) -> float:
        """epsilon_infinity as a number."""
        epsilon = self.epsilon_infinity
        return float(epsilon.detach() if isinstance(epsilon, Tensor) else epsilon)

    def set_permittivity(self, epsilon_infinity: float) -> None:
        """Where a learned permittivity starts."""
        excess = max(epsilon_infinity - 1.0, 1e-3)
        assert self.raw_permittivity is not None
        with torch.no_grad():
            self.raw_permittivity.fill_(math.log(math.expm1(excess)))

    def own_parameters(self) -> list[torch.nn.Parameter]:
        """Its parameters, those of the readouts first."""
        own = list(self.readouts.parameters())
        if self.raw_permittivity is not None:
            own.append(self.raw_permittivity)
        return own

    def read(
        self, inputs: HeadInput, shift: Tensor | None = None, hold_shift: bool = False
    ) -> tuple[Multipoles, ResponseCoefficients, Tensor | None]:
        """Permanent multipoles, response coefficients and λ of constrain_charge.

        Args:
            inputs: of the backbone.
            shift: λ [n_structures] where it is known.
            hold_shift: whether λ, where it is not known, has no derivatives.

        Raises:
            ValueError: a shape that does not fit the head, or edges that are missing.
            TypeError: features of another precision than the positions.
        """
        self._check(inputs)
        multipoles, response = self.readouts(inputs.node_feats, inputs.node_attrs, inputs.edges)
        return self.constrained(inputs, multipoles, response, shift, hold_shift)

    def constrained(
        self,
        inputs: HeadInput,
        multipoles: Multipoles,
        response: ResponseCoefficients,
        shift: Tensor | None = None,
        hold_shift: bool = False,
    ) -> tuple[Multipoles, ResponseCoefficients, Tensor | None]:
        """What read returns, from what the readouts say of the atoms."""
        if self.options.constrain_charge != "none":
            plan = inputs.plan
            sums = AtomSums(inputs.batch, inputs.pbc.shape[0]) if plan is None else plan.sums
            weight = torch.ones_like(multipoles.charge)
            if self.options.constrain_charge == "softness":
                assert response.softness is not None
                weight = response.softness
            if shift is None:
                total = inputs.total_charge
                if total is None:
                    total = inputs.positions.new_zeros(inputs.pbc.shape[0])
                total = total.view(-1).to(inputs.positions)
                shift = charge_shift(multipoles.charge, weight, total, sums)
                shift = shift.detach() if hold_shift else shift
            charge = multipoles.charge + sums.at_atoms(shift) * weight
            multipoles = replace(multipoles, charge=charge)
        if not self.options.induces_charges:
            response = replace(response, softness=None)
        return multipoles, response, shift

    def _check(self, inputs: HeadInput) -> None:
        """Refuse inputs that do not fit, by shapes and types alone."""
        n_atoms = inputs.positions.shape[0]
        for name, width in (
            ("node_feats", self.readouts.n_features),
            ("node_attrs", len(self.readouts.atomic_numbers)),
        ):
            tensor: Tensor = getattr(inputs, name)
            if width is not None and tuple(tensor.shape) != (n_atoms, width):
                raise ValueError(
                    f"{name} must be [n_atoms, {width}] = [{n_atoms}, {width}] for this head, got "
                    f"{list(tensor.shape)}"
                )
            if tensor.dtype != inputs.positions.dtype:
                raise TypeError(
                    f"{name} must have the dtype of positions, {inputs.positions.dtype}, got "
                    f"{tensor.dtype}"
                )
        if inputs.edges is None and self.needs_edges:
            raise ValueError("edges are missing: this head reads them (needs_edges); give Edges")

    def forward(
        self, inputs: HeadInput, shift: Tensor | None = None, hold_shift: bool = False
    ) -> HeadOutput:
        """Multipoles and their electrostatics.

        The charges of a slab are shifted by one number so that they sum to zero: the energy of a
        charged slab is not defined, and nothing makes latent charges neutral. (In a fully periodic
        cell the uniform background does the same.)

        Args:
            inputs: of the backbone.
            shift, hold_shift: as of read.

        Raises:
            ValueError: structures that the electrostatics cannot evaluate.
        """
        return self.evaluate(
            inputs, *self.read(inputs, shift, hold_shift), self.bond_moments(inputs)
        )

    def bond_moments(self, inputs: HeadInput) -> Tensor | None:
        """Of each atom, [n_atoms, 3], e Å: see HeadOutput."""
        if not self.readouts.has_bonds:
            return None
        assert inputs.edges is not None
        return self.readouts.bond_moments(
            inputs.positions, inputs.node_feats, inputs.node_attrs, inputs.edges
        )

    def acting_field(self, inputs: HeadInput) -> Tensor | None:
        """The external field on the latent multipoles, [n_structures, 3], V/Å.

        A field acts on physical charges, √ε∞ times the latent ones where structures are periodic
        in three directions. So √ε∞ F acts on the latent ones: forces are Z*ᵀF, and −∂E/∂F is the
        dipole, with the Born charges Z* and the dipole that √ε∞ has made physical.
        """
        field = inputs.external_field
        if field is None:
            return None
        given = inputs.epsilon_infinity
        factor = screening_factor(
            None, inputs.pbc, self.epsilon_infinity if given is None else given
        )
        return field * factor.to(field)[:, None]

    def evaluate(
        self,
        inputs: HeadInput,
        multipoles: Multipoles,
        response: ResponseCoefficients,
        shift: Tensor | None,
        moments: Tensor | None = None,
    ) -> HeadOutput:
        """The electrostatics of what read and bond_moments return."""
        where = (inputs.positions, inputs.cell, inputs.pbc, inputs.batch)
        plan = inputs.plan
        if plan is None:
            plan = self.electrostatics.checked_plan(*where)
            log_plan(plan.shape)
        multipoles = neutral_slabs(multipoles, plan)
        field = self.acting_field(inputs)
        inputs = replace(inputs, external_field=field)
        conserves, iterates = self.options.conserves_charge, self.options.is_self_consistent
        if iterates and field is not None and response.softness is not None and not conserves:
            check_conserved(plan)
        result = self.electrostatics(
            *where,
            multipoles,
            response=response,
            external_field=field,
            conserve_charge=conserves,
            with_field=False,
            plan=plan,
            self_consistent=iterates,
        )
        if field is not None and response.softness is not None and not iterates:
            result = with_field_on_induced_charges(inputs, result, plan.sums)
        if field is not None and moments is not None:
            result = with_field_on_bonds(inputs, result, moments, plan.sums)
        in_field = None
        if iterates:
            in_field = FieldResponse(
                self.electrostatics, plan, inputs.positions, inputs.cell, response, conserves
            )
        return HeadOutput(
            multipoles, response, result, shift, inputs.positions, plan.sums, moments, in_field
        )
