"""Three-dimensionally periodic structures: the k-space sum with separable phases, tin-foil.

With fractional coordinates s and k = 2π Σ_a n_a b_a the phase e^{ik·r} is a product of three
one-dimensional factors, and k·μ and k·Q·k are polynomials in n_a. The structure factor is then a
batched matrix product; no table of atoms × wave vectors is built. k and −k give the same
term, so n_3 runs over 0 … N_3 only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_polmp.electrostatics.multipoles import Multipoles
from mace_polmp.units import EPS0

# A k-vector that lies on the sphere |k| = k_c but for rounding counts as inside, whatever the
# precision and orientation of the cell.
_SPHERE_TOLERANCE = 1e-6
_SMALLEST_VOLUME = 1e-6  # Å³


@dataclass(frozen=True)
class _Packing:
    """Where the atoms of a batch lie in a table [n_structures, n_largest]."""

    index: Tensor | None  # [n_atoms] into the flattened table; None: one structure, all atoms
    n_structures: int
    n_largest: int

    def pack(self, x: Tensor) -> Tensor:
        """[n_atoms, …] to [n_structures, n_largest, …], empty places zero."""
        if self.index is None:
            return x.unsqueeze(0)
        table = x.new_zeros((self.n_structures * self.n_largest, *x.shape[1:]))
        table = table.index_put((self.index,), x)
        return table.view(self.n_structures, self.n_largest, *x.shape[1:])

    def unpack(self, table: Tensor) -> Tensor:
        """[n_structures, n_largest, …] to [n_atoms, …]."""
        flat = table.flatten(0, 1)
        return flat if self.index is None else flat[self.index]


def _make_packing(batch: Tensor, n_structures: int) -> _Packing:
    if n_structures == 1:
        return _Packing(None, 1, batch.shape[0])
    counts = torch.bincount(batch, minlength=n_structures)
    order = torch.argsort(batch, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(batch)
    rank[order] = torch.arange(batch.shape[0], device=batch.device) - starts[batch[order]]
    n_largest = int(counts.max())
    return _Packing(batch * n_largest + rank, n_structures, n_largest)


@dataclass(frozen=True)
class _WaveVectors:
    """The half-box of integer triples that holds the sphere of every structure."""

    n1: Tensor  # [2 N_1 + 1]
    n2: Tensor  # [2 N_2 + 1]
    n3: Tensor  # [N_3 + 1]
    weight: Tensor  # [S, n12, n3]: w(k)/(eps0 V), doubled where −k is left out, 0 outside


def _make_wave_vectors(
    cell: Tensor, reciprocal: Tensor, volume: Tensor, smearing: float, k_cutoff: float
) -> _WaveVectors:
    lengths = torch.linalg.vector_norm(cell.detach().double(), dim=-1).amax(0)
    # |n_a| ≤ |k| |a_a| / 2π, since k·a_a = 2π n_a.
    limits = (lengths * k_cutoff / (2.0 * math.pi) * (1.0 + _SPHERE_TOLERANCE)).floor()
    smallest = volume.detach().double().min()
    *n_limits, smallest_volume = torch.cat([limits, smallest[None]]).tolist()
    if not smallest_volume > _SMALLEST_VOLUME:
        raise ValueError(
            f"a periodic structure has a singular cell (volume {smallest_volume:.3g} Å³): give "
            "three independent lattice vectors, or set its pbc to F F F"
        )
    n_max = [int(n) for n in n_limits]
    ranges = [
        torch.arange(low, n + 1, dtype=cell.dtype, device=cell.device)
        for low, n in zip((-n_max[0], -n_max[1], 0), n_max, strict=True)
    ]
    n = torch.cartesian_prod(*ranges)
    kvec = 2.0 * math.pi * torch.matmul(n, reciprocal)  # [S, K, 3]
    k2 = (kvec * kvec).sum(-1)
    exact_k = torch.matmul(n.double(), reciprocal.detach().double())
    exact_k2 = (2.0 * math.pi) ** 2 * (exact_k * exact_k).sum(-1)
    inside = exact_k2 <= (k_cutoff * (1.0 + _SPHERE_TOLERANCE)) ** 2
    inside &= (n != 0).any(-1)
    k2 = torch.where(inside, k2, 1.0)
    weight = torch.exp(-0.5 * smearing**2 * k2) / k2 * inside
    weight = weight * torch.where(n[:, 2] > 0, 2.0, 1.0).to(weight)
    weight = weight / (EPS0 * volume)[:, None]
    n12 = ranges[0].numel() * ranges[1].numel()
    return _WaveVectors(ranges[0], ranges[1], ranges[2], weight.view(cell.shape[0], n12, -1))


def _phase(fraction: Tensor, n: Tensor) -> Tensor:
    """e^{2πi n s}: [S, A] and [n] to complex [S, A, n]."""
    angle = 2.0 * math.pi * fraction[..., None] * n
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """[S, A, n1] and [S, A, n2] to [S, A, n1·n2]."""
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def _structure_factor(
    charge: Tensor,
    dipole: Tensor | None,
    quadrupole: Tensor | None,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    k: _WaveVectors,
) -> Tensor:
    """S(k) = Σ_i (q_i + i k·μ_i − ½ k·Q_i·k) e^{ik·r_i}, complex [S, n12, n3].

    dipole [S, A, 3] and quadrupole [S, A, 3, 3] are components along the reciprocal vectors, so
    that k·μ = Σ_a n_a μ_a. The terms are sorted by their power of n_2 and n_3: those powers do
    not depend on the atom and are applied after the sum over atoms.
    """
    yn = y * k.n2
    x_power0 = charge[..., None] * x
    x_power1 = None  # what multiplies n_2 e^{2πi n_2 s_2}
    linear_n3 = None
    if dipole is not None:
        d = dipole[..., None] * 1j  # [S, A, 3, 1]
        x_power0 = x_power0 + d[..., 0, :] * k.n1 * x
        x_power1 = d[..., 1, :] * x
        linear_n3 = _outer(d[..., 2, :] * x, y)
    if quadrupole is None:
        total = _outer(x_power0, y)
        if x_power1 is not None:
            total = total + _outer(x_power1, yn)
        terms = [total] if linear_n3 is None else [total, linear_n3]
    else:
        q = quadrupole[..., None]
        xn = x * k.n1
        x_power0 = x_power0 - 0.5 * q[..., 0, 0, :] * k.n1 * xn
        cross = -q[..., 0, 1, :] * xn
        x_power1 = cross if x_power1 is None else x_power1 + cross
        total = (
            _outer(x_power0, y)
            + _outer(x_power1, yn)
            - _outer(0.5 * q[..., 1, 1, :] * x, yn * k.n2)
        )
        mixed = -_outer(q[..., 0, 2, :] * xn, y) - _outer(q[..., 1, 2, :] * x, yn)
        linear_n3 = mixed if linear_n3 is None else linear_n3 + mixed
        terms = [total, linear_n3, -0.5 * _outer(q[..., 2, 2, :] * x, y)]
    n12 = x.shape[-1] * y.shape[-1]
    sums = torch.matmul(torch.cat(terms, dim=-1).transpose(-1, -2), z)
    factor = sums[:, :n12]
    for power in range(1, len(terms)):
        factor = factor + sums[:, power * n12 : (power + 1) * n12] * k.n3**power
    return factor


def _site_sums(
    gamma: Tensor, x: Tensor, y: Tensor, z: Tensor, k: _WaveVectors
) -> tuple[Tensor, Tensor]:
    """Re Σ_k e^{−ik·r_i} Γ(k) [S, A] and Re Σ_k i n_a e^{−ik·r_i} Γ(k) [S, A, 3]."""
    n12 = gamma.shape[1]
    along_3 = torch.matmul(
        z.conj(), torch.cat([gamma, gamma * k.n3], dim=1).transpose(-1, -2)
    )  # [S, A, 2 n12]
    xy = _outer(x, y).conj()
    grid = torch.cartesian_prod(k.n1, k.n2)  # [n12, 2]
    columns = torch.cat([torch.ones_like(grid[:, :1]), grid], dim=1).to(gamma.dtype)
    value_and_12 = torch.matmul(xy * along_3[..., :n12], columns)  # [S, A, 3]
    third = (xy * along_3[..., n12:]).sum(-1, keepdim=True)
    # Re(i z) = −Im(z)
    gradient = -torch.cat([value_and_12[..., 1:], third], dim=-1).imag
    return value_and_12[..., 0].real, gradient


def ewald(
    positions: Tensor,
    cell: Tensor,
    batch: Tensor,
    multipoles: Multipoles,
    smearing: float,
    k_cutoff: float,
    with_field: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Energy, and potential and field at the atoms, of periodic structures.

    Args:
        positions: [n_atoms, 3], Å, inside the cell or not.
        cell: [n_structures, 3, 3], Å, rows are lattice vectors, right- or left-handed.
        batch: [n_atoms] int64.
        multipoles: of the same atoms.
        smearing: σ, Å.
        k_cutoff: k_c, 1/Å; the sum runs over 0 < |k| ≤ k_c.
        with_field: whether potential and field are wanted.

    Returns:
        Energy [n_structures] eV; potential [n_atoms] V and field [n_atoms, 3] V/Å, each without
        the atom's own Gaussian, or None.

    Raises:
        ValueError: a cell is singular.
    """
    packing = _make_packing(batch, cell.shape[0])
    # Columns are the reciprocal vectors without 2π; singular cells are refused below.
    inverse = torch.linalg.inv_ex(cell).inverse
    reciprocal = inverse.transpose(-1, -2)
    volume = torch.linalg.det(cell).abs()
    k = _make_wave_vectors(cell, reciprocal, volume, smearing, k_cutoff)

    fraction = (positions[:, None, :] @ inverse[batch]).squeeze(1)
    fraction = packing.pack(fraction - fraction.detach().round())
    x, y, z = (_phase(fraction[..., a], n) for a, n in enumerate((k.n1, k.n2, k.n3)))
    charge = packing.pack(multipoles.charge)
    dipole = quadrupole = None
    if multipoles.dipole is not None:
        dipole = 2.0 * math.pi * torch.matmul(packing.pack(multipoles.dipole), inverse)
    if multipoles.quadrupole is not None:
        packed = packing.pack(multipoles.quadrupole)
        quadrupole = (2.0 * math.pi) ** 2 * (reciprocal[:, None] @ packed @ inverse[:, None])
    factor = _structure_factor(charge, dipole, quadrupole, x, y, z, k)
    energy = 0.5 * (k.weight * (factor.real**2 + factor.imag**2)).sum((1, 2))
    energy = energy - _self_energy(multipoles, batch, cell.shape[0], smearing)
    if not with_field:
        return energy, None, None

    potential, gradient = _site_sums(k.weight * factor, x, y, z, k)
    field = 2.0 * math.pi * torch.matmul(gradient, reciprocal)
    potential = packing.unpack(potential) - _self_potential(multipoles.charge, smearing)
    field = packing.unpack(field)
    if multipoles.dipole is not None:
        field = field + _self_field(multipoles.dipole, smearing)
    return energy, potential, field


# The interaction of each Gaussian multipole with itself, which the k-space sum contains.
_SELF: float = 1.0 / (2.0 * EPS0 * (2.0 * math.pi) ** 1.5)


def _self_energy(
    multipoles: Multipoles, batch: Tensor, n_structures: int, smearing: float
) -> Tensor:
    per_atom = multipoles.charge**2 / smearing
    if multipoles.dipole is not None:
        per_atom = per_atom + multipoles.dipole.square().sum(-1) / (3.0 * smearing**3)
    if multipoles.quadrupole is not None:
        per_atom = per_atom + multipoles.quadrupole.square().sum((-1, -2)) / (10.0 * smearing**5)
    return per_atom.new_zeros(n_structures).index_add(0, batch, _SELF * per_atom)


def _self_potential(charge: Tensor, smearing: float) -> Tensor:
    return charge * (2.0 * _SELF / smearing)


def _self_field(dipole: Tensor, smearing: float) -> Tensor:
    return dipole * (2.0 * _SELF / (3.0 * smearing**3))
