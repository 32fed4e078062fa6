"""Node features to latent multipoles and response coefficients, for any backbone.

Scalars of all layers feed one small network; vectors (1o) and tensors (2e) of all layers are mixed
and weighted by it. What l a backbone lacks — the last layer keeps only scalars, a one-layer or
a 128x0e model has nothing else — comes from a light equivariant lift, one convolution of
the node scalars with the spherical harmonics of the edges. Charges are a sum of what the atoms
have of their own and what moves along edges.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from mace_polmp.electrostatics import Multipoles, ResponseCoefficients
from mace_polmp.electrostatics.coefficients import bounded
from mace_polmp.electrostatics.products import small_product
from mace_polmp.head.bond_softness import BondSoftness
from mace_polmp.head.convolutions import (
    CHANNELS,
    HIDDEN,
    ChargeTransfer,
    Edges,
    EquivariantLift,
    moments_of_bonds,
)
from mace_polmp.head.earlier import bring_up_to_date
from mace_polmp.head.electronegativity import electropositivity
from mace_polmp.head.features import feature_slices, gathered
from mace_polmp.head.formal_charges import formal_charges, screened
from mace_polmp.head.layer_charges import LayerCharges
from mace_polmp.head.options import BOND, LongRangeOptions

# The size of an output at a network value of one, e Å, e Å², e²/eV, e² Å²/eV; 1 e of charges.
_DIPOLE, _QUADRUPOLE, _SOFTNESS, _POLARIZABILITY = 0.02, 0.02, 0.01, 0.05
# Charges of atoms start at this fraction of their size, e per unit of electronegativity: where
# charge moves along edges as well, and where it does not. Where it moves along edges only, the
# network's value is what drives it.
_CHARGE_START = {"transfer": 0.1, "atomic": 0.3, "layers": 0.3, BOND: 0.3}
# Softplus of this is where response coefficients start: 0.02 and 0.18 of the sizes above. Softness
# lets charge flow between molecules however far apart; few data do not undo what is there.
_RESPONSE_START = {"softness": -4.0, "polarizability": -1.6, "bond_softness": -1.6}


# Coefficients that are products of this many scalars of atoms.
_FACTORS = {"bond_softness": 2}


class MultipoleReadouts(torch.nn.Module):
    """q, μ, Q, κ and α of every atom from the node features of all layers.

    Args:
        layer_irreps: irreps of each interaction layer's output, in the order of node_feats.
        options: what to read out.
        atomic_numbers: the model's elements.
        n_radial: width of the backbone's radial embedding.
        avg_num_neighbors: the backbone's.
        cutoff: the backbone's, Å.
        initial_scale: size of the initial multipoles and coefficients, 1 for a model trained from
            scratch. Never 0: the energy is quadratic in the multipoles and has no gradient there.
        layout: of node features, "mul_ir", or "ir_mul" of backbones converted for accelerators.
    """

    layout: str = "mul_ir"  # also of models saved before there was another
    _width: int | None = None

    _quadrupole_basis: Tensor
    orientation: Tensor
    formal: Tensor

    def __init__(
        self,
        layer_irreps: list[o3.Irreps],
        options: LongRangeOptions,
        atomic_numbers: list[int],
        n_radial: int,
        avg_num_neighbors: float,
        cutoff: float,
        initial_scale: float = 1.0,
        layout: str = "mul_ir",
    ) -> None:
        super().__init__()
        if layout not in ("mul_ir", "ir_mul"):
            raise ValueError(f"layout must be mul_ir or ir_mul, got {layout!r}")
        self.layout = layout
        self.options = options
        self.atomic_numbers = list(atomic_numbers)
        self._slices = feature_slices(layer_irreps)
        self._width = sum(irreps.dim for irreps in layer_irreps)
        n_scalars = sum(mul for _, mul in self._slices[0])
        self.scalar_names = ["charge"]
        if options.reads_softness:
            self.scalar_names.append("softness")
        if options.induces_dipoles:
            self.scalar_names.append("polarizability")
        if options.induces_bonds:
            self.scalar_names.append("bond_softness")
        self._anisotropic = options.induces_dipoles and options.polarizability == "anisotropic"

        # Tensors read out for each l, and the l that only a lift can give.
        outputs = {1: int(options.multipole_lmax >= 1)}
        outputs[2] = int(options.multipole_lmax >= 2) + int(self._anisotropic)
        self._tensor_outputs = {degree: n for degree, n in outputs.items() if n > 0}
        lacking = [degree for degree in self._tensor_outputs if not self._slices[degree]]
        self.lift = (
            EquivariantLift(n_scalars, n_radial, lacking, avg_num_neighbors) if lacking else None
        )
        self.mixers = torch.nn.ModuleDict()
        for degree in self._tensor_outputs:
            n_in = sum(mul for _, mul in self._slices[degree]) or CHANNELS
            self.mixers[str(degree)] = torch.nn.Linear(n_in, CHANNELS, bias=False)

        n_out = len(self.scalar_names)
        n_gates = CHANNELS * sum(self._tensor_outputs.values())
        self.network = torch.nn.Sequential(
            torch.nn.Linear(n_scalars, HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, n_out + n_gates),
        )
        self.linear = torch.nn.Linear(n_scalars, n_out, bias=False)
        self.element_bias = torch.nn.Parameter(torch.zeros(len(atomic_numbers), n_out))
        self.transfer = (
            ChargeTransfer(n_scalars, atomic_numbers, cutoff, is_driven=self.has_bonds)
            if options.charge_readout in ("transfer", BOND)
            else None
        )
        self.layers = (
            LayerCharges(layer_irreps, options.layer_hidden)
            if options.charge_readout == "layers"
            else None
        )
        self.bond_softness = BondSoftness(cutoff) if options.induces_bonds else None
        if self.has_bonds:
            formal = screened(options.formal_charges, options.epsilon_infinity, atomic_numbers)
            self.register_buffer("formal", formal, persistent=False)
        # 1 or −1: energies do not know the sign that all multipoles have in common.
        self.register_buffer("orientation", torch.ones((), dtype=torch.get_default_dtype()))
        # Symmetric traceless matrices of norm 1, one for each component of l = 2.
        basis = math.sqrt(5.0) * o3.wigner_3j(2, 1, 1, dtype=torch.float64)
        self.register_buffer(
            "_quadrupole_basis", basis.to(torch.get_default_dtype()), persistent=False
        )
        self._initialize(atomic_numbers, initial_scale)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        bring_up_to_date(self)

    def _initialize(self, atomic_numbers: list[int], scale: float) -> None:
        """Small random values around charges that follow electronegativity.

        The energy does not know the overall sign of the multipoles; this start does:
        electronegative elements negative.
        """
        start = torch.tensor(electropositivity(atomic_numbers), dtype=self.element_bias.dtype)
        with torch.no_grad():
            for index, name in enumerate(self.scalar_names):
                if name == "charge":
                    size = _CHARGE_START[self.options.charge_readout]
                    self.linear.weight[index] *= size
                    self._outer.weight[index] *= size
                    self._outer.bias[index] *= size
                    if not self.has_bonds:  # there, charge transfer starts with them
                        self.element_bias[:, index] = size * start
                else:
                    self.element_bias[:, index] = _RESPONSE_START[name]
        self.rescale(scale)

    @property
    def has_bonds(self) -> bool:
        """Whether charges are formal ones and what moves along edges."""
        return self.options.defines_polarization

    @property
    def _outer(self) -> torch.nn.Linear:
        """The last layer of the network."""
        last = self.network[-1]
        assert isinstance(last, torch.nn.Linear)
        return last

    def turn(self) -> None:
        """Change the sign of all multipoles; energies stay what they are.

        Raises:
            ValueError: formal charges, which say the sign.
        """
        if formal_charges(self.options.formal_charges):
            raise ValueError("multipoles beside formal charges have a sign of their own")
        self.orientation.neg_()

    def rescale(self, scale: float) -> None:
        """Multiply the multipoles by a factor, and the response coefficients as nearly so."""
        last, n_out = self._outer, len(self.scalar_names)
        if self.transfer is not None:
            self.transfer.rescale(scale)
        if self.layers is not None:
            self.layers.rescale(scale)
        with torch.no_grad():
            for index, name in enumerate(self.scalar_names):
                if name == "charge" and self.has_bonds:
                    continue  # it drives what charge transfer has rescaled
                if name == "charge":
                    for values in (self.element_bias[:, index], self.linear.weight[index]):
                        values *= scale
                    last.weight[index] *= scale
                    last.bias[index] *= scale
                else:  # softplus: the factor becomes a shift of its argument
                    self.element_bias[:, index] += math.log(scale) / _FACTORS.get(name, 1)
            last.weight[n_out:] *= scale
            last.bias[n_out:] *= scale

    def weaken(self, names: list[str]) -> None:
        """Make response coefficients ten times smaller."""
        with torch.no_grad():
            for name in names:
                shift = math.log(10.0) / _FACTORS.get(name, 1)
                self.element_bias[:, self.scalar_names.index(name)] -= shift

    def take_over(self, other: MultipoleReadouts, atomic_numbers: list[int]) -> None:
        """Become what other readouts of the same backbone are, without effect of what they lack.

        Multipoles that the other readouts do not have start at zero; with charges there they have
        a gradient. Response coefficients keep their start and can be weakened.

        Args:
            other: readouts with no term that these do not have.
            atomic_numbers: the elements of the other readouts.
        """
        mine = self._rows()
        theirs = {n: row for n, row in other._rows().items() if n in mine}
        columns = [atomic_numbers.index(z) for z in self.atomic_numbers]
        last, before = self._outer, other._outer
        with torch.no_grad():
            self.orientation.copy_(other.orientation)
            self.network[0].load_state_dict(other.network[0].state_dict())
            for name, row in mine.items():
                if name in theirs:
                    last.weight[row] = before.weight[theirs[name]].to(last.weight)
                    last.bias[row] = before.bias[theirs[name]].to(last.bias)
                elif name not in self.scalar_names:
                    last.weight[row] = 0.0
                    last.bias[row] = 0.0
            for name in set(self.scalar_names) & set(other.scalar_names):
                index, their = self.scalar_names.index(name), other.scalar_names.index(name)
                self.linear.weight[index] = other.linear.weight[their].to(self.linear.weight)
                bias = other.element_bias[columns, their]
                self.element_bias[:, index] = bias.to(self.element_bias)
            for degree, mixer in other.mixers.items():
                if degree in self.mixers:
                    self.mixers[degree].load_state_dict(mixer.state_dict())
            if self.lift is not None and other.lift is not None:
                self.lift.take_over(other.lift)
            if self.transfer is not None and other.transfer is not None:
                self.transfer.take_over(other.transfer, columns)
            if self.layers is not None and other.layers is not None:
                self.layers.load_state_dict(other.layers.state_dict())
            if self.bond_softness is not None and other.bond_softness is not None:
                self.bond_softness.load_state_dict(other.bond_softness.state_dict())

    def _rows(self) -> dict[str, slice]:
        """Which outputs of the network belong to what."""
        rows = {name: slice(n, n + 1) for n, name in enumerate(self.scalar_names)}
        start = len(rows)
        names = {1: ["dipole"], 2: ["quadrupole"] if self.options.multipole_lmax >= 2 else []}
        if self._anisotropic:
            names[2].append("anisotropy")
        for degree, count in self._tensor_outputs.items():
            for name in names[degree][:count]:
                rows[name] = slice(start, start + CHANNELS)
                start += CHANNELS
        return rows

    @property
    def n_features(self) -> int | None:
        """The number of features of an atom; None of models saved before it was kept."""
        return self._width

    @property
    def needs_edges(self) -> bool:
        """Whether forward needs the edges of the graph."""
        return self.lift is not None or self.transfer is not None

    def messages(self) -> list[torch.nn.Module]:
        """The modules through which one row per edge passes on its way to a sum over edges."""
        return [part.messages for part in (self.lift, self.transfer) if part is not None]

    def forward(
        self, node_feats: Tensor, node_attrs: Tensor, edges: Edges | None
    ) -> tuple[Multipoles, ResponseCoefficients]:
        """Read out the multipoles.

        Args:
            node_feats: [n_atoms, sum of the dimensions of layer_irreps].
            node_attrs: [n_atoms, n_elements], one-hot.
            edges: the graph's edges, or None where needs_edges is False.

        Returns:
            Multipoles (e, e Å, e Å²) and ResponseCoefficients (e²/eV, e² Å²/eV).
        """
        scalars = self._gather(node_feats, 0).squeeze(-1)
        lifted = {}
        if self.lift is not None:
            assert edges is not None
            lifted = self.lift(scalars, edges)
        columns, gates = self._columns(scalars, node_attrs)
        tensors: dict[int, list[Tensor]] = {}
        for degree, n_tensors in self._tensor_outputs.items():
            features = lifted[degree] if degree in lifted else self._gather(node_feats, degree)
            mixed = self.mixers[str(degree)](features.transpose(1, 2))  # [n_atoms, 2l+1, channels]
            tensors[degree] = []
            for _ in range(n_tensors):
                tensors[degree].append((mixed * gates.pop(0)[:, None]).sum(-1))
        charge = columns["charge"]
        if self.transfer is not None:
            assert edges is not None
            drive = charge if self.has_bonds else None
            moved = self.transfer(self.transfer.pairs(scalars, node_attrs, drive), edges)
            charge = moved + (node_attrs @ self.formal if self.has_bonds else charge)
        if self.layers is not None:
            charge = charge + self.layers(node_feats)
        return self._multipoles(charge, tensors), self._response(columns, tensors, edges)

    def bond_moments(
        self, positions: Tensor, node_feats: Tensor, node_attrs: Tensor, edges: Edges
    ) -> Tensor:
        """f r + ½ Σ t r of each atom's formal charge and edges, [n_atoms, 3], e Å.

        They sum to the dipole of the charges, in periodic structures too: see convolutions.py.

        Args:
            positions: [n_atoms, 3], Å.
            node_feats, node_attrs, edges: as of forward.
        """
        assert self.transfer is not None
        scalars = self._gather(node_feats, 0).squeeze(-1)
        drive = self._columns(scalars, node_attrs)[0]["charge"]
        pairs = self.transfer.pairs(scalars, node_attrs, drive)
        along = self.orientation * self.transfer.along_edges(pairs, edges)
        formal = (node_attrs @ self.formal)[:, None] * positions
        return formal + moments_of_bonds(along, edges, len(positions))

    def _columns(
        self, scalars: Tensor, node_attrs: Tensor
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Scalar outputs by name, [n_atoms] each, and the gates of the tensors."""
        sizes = [len(self.scalar_names)] + [CHANNELS] * sum(self._tensor_outputs.values())
        values, *gates = self.network(scalars).split(sizes, dim=1)
        values = values + self.linear(scalars) + node_attrs @ self.element_bias
        return dict(zip(self.scalar_names, values.unbind(1), strict=True)), gates

    def _multipoles(self, charge: Tensor, tensors: dict[int, list[Tensor]]) -> Multipoles:
        lmax, sign = self.options.multipole_lmax, self.orientation
        quadrupole = None
        if lmax >= 2:
            quadrupole = self._to_cartesian(sign * _QUADRUPOLE * tensors[2][0])
        return Multipoles(
            charge=sign * charge,
            dipole=sign * _DIPOLE * tensors[1][0] if lmax >= 1 else None,
            quadrupole=quadrupole,
        )

    def _response(
        self, columns: dict[str, Tensor], tensors: dict[int, list[Tensor]], edges: Edges | None
    ) -> ResponseCoefficients:
        softness = polarizability = bonds = None
        if "softness" in columns:
            softness = _SOFTNESS * torch.nn.functional.softplus(columns["softness"])
        if "polarizability" in columns:
            column = columns["polarizability"]
            polarizability = _POLARIZABILITY * torch.nn.functional.softplus(column)
            if self._anisotropic:
                # A Aᵀ with A = √α (1 + T): positive semi-definite whatever T.
                root = torch.eye(3, dtype=column.dtype, device=column.device)
                root = root + self._to_cartesian(tensors[2][-1])
                polarizability = polarizability[:, None, None] * small_product(root, root)
        if self.bond_softness is not None:
            assert edges is not None
            scalars = torch.nn.functional.softplus(columns["bond_softness"])
            bonds = self.bond_softness(scalars, edges)
        found = ResponseCoefficients(softness, polarizability, bonds)
        if self.options.is_self_consistent:
            return bounded(found, self.options.smearing, len(columns["charge"]))
        return found

    def _gather(self, node_feats: Tensor, degree: int) -> Tensor:
        """All features of one degree, [n_atoms, channels, 2l + 1]."""
        return gathered(node_feats, self._slices[degree], degree, self.layout)

    def _to_cartesian(self, components: Tensor) -> Tensor:
        """l = 2 components [n_atoms, 5] to a symmetric traceless tensor [n_atoms, 3, 3]."""
        return small_product(components, self._quadrupole_basis.flatten(1)).view(-1, 3, 3)
