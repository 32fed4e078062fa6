"""Particle mesh: the structure factor of periodic structures in O(N log N).

Every atom's moments are spread over the w × w × w mesh points around it with the derivatives of
one window function, a fast Fourier transform follows, and the window is divided out; potentials
return the same way. The window is the generalized Kaiser–Bessel function of order two (Lewitt,
J. Opt. Soc. Am. A 7, 1834 (1990)), which vanishes at its edges with its first derivative. On
random multipoles it is three (w = 7) to thirty (w = 10) times more accurate than the derivative
B-splines of smooth particle mesh Ewald (Essmann et al., J. Chem. Phys. 103, 8577 (1995)) of the
same width, see scripts/benchmarks/RESULTS.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_polmp.electrostatics.constants import kept, numbers, remembered
from mace_polmp.electrostatics.moments import add_up, evaluate, from_cube, order_of, to_cube
from mace_polmp.electrostatics.packing import blocks
from mace_polmp.electrostatics.vmap import OneByOne

DEFAULT_ACCURACY = 1e-5
"""Relative force error of the mesh on random multipoles."""

OVERSAMPLING = 1.5
"""Mesh points per axis over the 2 N_a that wave vectors up to k_c need at least."""

# Width of the window: relative force error, two to three times the largest seen on 40 random
# charges, dipoles and quadrupoles per cell at spacings of 1 to 2 Å
# (scripts/benchmarks/mesh_accuracy.py), and the factor of the shape parameter that makes it small.
_WINDOWS: dict[int, tuple[float, float]] = {
    7: (1e-3, 1.03),
    8: (1.5e-4, 1.01),
    9: (2e-5, 1.0),
    10: (5e-6, 0.99),
    11: (8e-7, 0.97),
    12: (1.5e-7, 0.96),
    13: (3e-8, 0.93),
}

_FORCES = 3  # the highest derivative of a window that forces on quadrupoles need

# Elements of the largest temporary array: in the processor's cache, or enough for a GPU.
_BLOCK_CPU = 2**19
_BLOCK_GPU = 2**26


def window_width(accuracy: float) -> int:
    """The narrowest window with this relative force error.

    Raises:
        ValueError: no window is that accurate.
    """
    for width, (error, _) in _WINDOWS.items():
        if error <= accuracy:
            return width
    best = min(error for error, _ in _WINDOWS.values())
    raise ValueError(
        f"mesh_accuracy must be at least {best:g}, got {accuracy:g}; for more use solver 'ewald'"
    )


@remembered
def good_size(least: int) -> int:
    """The smallest product of powers of 2, 3, 5 and 7 that is not below least."""
    size = max(least, 1)
    while True:
        rest = size
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1


def mesh_size(limit: int) -> int:
    """Mesh points along an axis whose wave vectors have |n_a| ≤ limit."""
    return good_size(math.ceil(2 * OVERSAMPLING * limit) + 1)


def _shape_parameter(width: int, bandwidth: float) -> float:
    """β, for the band that matters as a fraction of the sampling."""
    return math.pi * width * _WINDOWS[width][1] * (1.0 - bandwidth)


def bandwidth(smearing: float, k_cutoff: float) -> float:
    """The wave vectors that matter as a fraction of the mesh's 2π/h.

    Beyond π/σ the Gaussians leave little, however large k_c is.
    """
    return 0.5 / OVERSAMPLING * min(1.0, math.pi / (smearing * k_cutoff))


def _bessel_2(x: Tensor) -> Tensor:
    """Modified Bessel function I_2."""
    value: Tensor = torch.special.i0(x) - 2.0 * torch.special.i1(x) / x
    return value


@kept()
def _window_polynomials(
    width: int, band: float, order: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The window and its derivatives as polynomials in the offset t from the nearest centre.

    Within each of its w segments the window is replaced by its Chebyshev interpolant. Returns
    [degree + 1, (order + 1) · w]: the coefficients of t^p, t in [−½, ½), for each derivative with
    respect to the mesh coordinate and each of the w points of the stencil.
    """
    beta = torch.tensor(_shape_parameter(width, band), dtype=torch.float64)
    degree = width + 6
    nodes = torch.arange(degree + 1, dtype=torch.float64) + 0.5
    t = 0.5 * torch.cos(math.pi * nodes / (degree + 1))
    offset = t[:, None] + 0.5 * (width - 1) - torch.arange(width)
    root = (1.0 - (2.0 * offset / width) ** 2).clamp(min=1e-30).sqrt()
    values = root**2 * _bessel_2(beta * root) / _bessel_2(beta)
    powers = torch.arange(degree + 1, dtype=torch.float64)
    coefficients = torch.linalg.solve(t[:, None] ** powers, values)
    return _with_derivatives(coefficients, order).to(dtype=dtype, device=device)


def _with_derivatives(coefficients: Tensor, order: int) -> Tensor:
    """Polynomials [degree + 1, w] and, side by side, their derivatives up to order."""
    powers = torch.arange(coefficients.shape[0], dtype=coefficients.dtype)
    derivatives = [coefficients]
    for _ in range(order):
        lower = torch.zeros_like(coefficients)
        lower[:-1] = derivatives[-1][1:] * powers[1:, None]
        derivatives.append(lower)
    return torch.cat(derivatives, dim=1)


def _deconvolution(limit: int, size: int, width: int, band: float) -> Tensor:
    """One over the window's Fourier transform at n/size, n = −limit … limit."""
    beta = torch.tensor(_shape_parameter(width, band), dtype=torch.float64)
    n = torch.arange(-limit, limit + 1, dtype=torch.float64)
    z = (beta**2 - (math.pi * width * n / size) ** 2).sqrt()
    spherical = ((z**2 + 3.0) * torch.sinh(z) - 3.0 * z * torch.cosh(z)) / z**5
    return _bessel_2(beta) / (width * beta**2 * spherical)


@dataclass(frozen=True)
class MeshShape:
    """The meshes of a batch of periodic structures, all with the same numbers of points.

    Attributes:
        size: points along each lattice vector.
        limits: the largest |n_a| of a wave vector along each.
        width: of the window, in mesh points.
        band: the wave vectors that matter as a fraction of the mesh's, see bandwidth.
        n_structures: the number of structures.
    """

    size: tuple[int, int, int]
    limits: tuple[int, int, int]
    width: int
    band: float
    n_structures: int


@kept(maxsize=8)
def _window_correction(
    shape: MeshShape, halved: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """One over the window's Fourier transform, [n_1 n_2, n_3 ≥ 0]; halved for n_3 > 0 if asked."""
    d1, d2, d3 = (
        _deconvolution(limit, size, shape.width, shape.band)
        for limit, size in zip(shape.limits, shape.size, strict=True)
    )
    d3 = d3[shape.limits[2] :]
    if halved:
        d3[1:] *= 0.5
    return ((d1[:, None] * d2).view(-1, 1) * d3).to(dtype=dtype, device=device)


class Mesh:
    """The mesh solver of a batch of periodic structures.

    Args:
        shape: of the meshes.
        sites: fractional coordinates, [n_atoms, 3].
        batch: [n_atoms] int64, the structure of each atom.
    """

    def __init__(self, shape: MeshShape, sites: Tensor, batch: Tensor) -> None:
        self.shape = shape
        w, (n1, n2, n3) = shape.width, shape.size
        sites = sites.detach()
        self._size = numbers(shape.size, sites.dtype, sites.device)
        place = sites * self._size
        nearest = place.floor() + 0.5 if w % 2 == 0 else place.round()
        self._offset = place - nearest
        # Short integers halve the traffic of the largest table.
        n_points = shape.n_structures * n1 * n2 * (n3 + w)
        integer = torch.int32 if n_points < 2**31 else torch.int64
        start = (nearest - 0.5 * (w - 1)).to(integer)
        steps = torch.arange(w, device=sites.device, dtype=integer)
        sizes = self._size.to(integer)[:, None]
        i1, i2, self._i3 = torch.remainder(start[..., None] + steps, sizes).unbind(1)
        if shape.n_structures > 1:
            i1 = i1 + (batch.to(integer) * n1)[:, None]
        self._rows = (i1 * n2)[:, :, None] + i2[:, None, :]  # [n_atoms, w, w]
        self._weights: dict[int, Tensor] = {}  # by highest order, [n_atoms, 3, order + 1, w]

    def structure_factor(self, sites: Tensor, moments: Tensor) -> Tensor:
        """S(n) = Σ_iα m_iα (2πi n)^α e^{2πi n·s_i}, [n_structures, n_1 n_2, n_3 ≥ 0], complex."""
        density = add_up(sites, moments, self)
        return _ToWaves.apply(density, self.shape)  # type: ignore[no-untyped-call, no-any-return]

    def at_sites(self, sites: Tensor, waves: Tensor, order: int) -> Tensor:
        """∂^β Re Σ_n Γ(n)* e^{2πi n·s_i}, [n_atoms, n_moments(order)], of Γ like S."""
        potential = _ToMesh.apply(waves, self.shape)  # type: ignore[no-untyped-call]
        return evaluate(sites, potential, order, self)

    def add_up(self, moments: Tensor) -> Tensor:
        """Spread moments [n_atoms, n_moments] over the meshes [n_structures, *size]."""
        n3 = self.shape.size[2]
        flat = moments.new_zeros(self.shape.n_structures * math.prod(self.shape.size))
        weights = self._derivatives(order_of(moments))
        for block in self._blocks():
            x, y, z = weights[block].unbind(1)
            cube = to_cube(moments[block])  # [A, a, b, c]
            patch = torch.matmul(y.transpose(1, 2)[:, None], cube)  # [A, a, y, c]
            patch = torch.bmm(patch.flatten(1, 2), z)  # [A, a y, z]
            patch = torch.bmm(x.transpose(1, 2), patch.view(*x.shape[:2], -1))  # [A, x, y z]
            points = (self._rows[block] * n3)[..., None] + self._i3[block, None, None, :]
            flat.index_add_(0, points.view(-1), patch.view(-1))
        return flat.view(self.shape.n_structures, *self.shape.size)

    def evaluate(self, table: Tensor, order: int) -> Tensor:
        """Interpolate meshes [n_structures, *size] and their derivatives at the atoms."""
        w = self.shape.width
        # With the first w − 1 points repeated at the end, the points along the third axis are
        # consecutive and each row of w of them is copied at once.
        padded = torch.cat([table, table[..., : w - 1]], dim=-1)
        rows = padded.view(-1).as_strided((padded.numel() - w + 1, w), (1, 1))
        weights = self._derivatives(order)
        parts = []
        for block in self._blocks():
            x, y, z = weights[block].unbind(1)
            index = self._rows[block] * padded.shape[-1] + self._i3[block, None, :1]
            patch = rows.index_select(0, index.view(-1)).view(-1, w, w * w)
            patch = torch.bmm(x, patch).view(-1, (order + 1) * w, w)  # [A, a y, z]
            patch = torch.bmm(patch, z.transpose(1, 2)).view(-1, order + 1, w, order + 1)
            parts.append(from_cube(torch.matmul(y[:, None], patch)))  # [A, a, b, c]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _blocks(self) -> list[slice]:
        n_atoms, elements = self._rows.shape[0], self.shape.width**3
        return blocks(n_atoms, elements, self._rows.device, _BLOCK_CPU, _BLOCK_GPU)

    def _derivatives(self, order: int) -> Tensor:
        """Derivatives of the windows with respect to the fractional coordinates.

        [n_atoms, 3, order + 1, w]; those of energies and forces are made at once and kept. (Cut
        from a larger table they would differ in the last digit.)
        """
        highest = max(order, _FORCES)
        if highest not in self._weights:
            w, offset = self.shape.width, self._offset
            polynomials = _window_polynomials(
                w, self.shape.band, highest, offset.dtype, offset.device
            )
            powers = offset[..., None].repeat(1, 1, polynomials.shape[0])
            powers[..., 0] = 1.0
            powers = torch.cumprod(powers, dim=-1)
            weights = torch.matmul(powers, polynomials).view(*offset.shape, highest + 1, w)
            degree = torch.arange(highest + 1, device=offset.device)
            self._weights[highest] = weights * (self._size[:, None] ** degree)[..., None]
        return self._weights[highest][:, :, : order + 1]


class _ToWaves(OneByOne):
    """Density on the mesh to S(n): Σ_m ρ_m e^{2πi n·m/size} over the window's transform."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mesh = inputs[1]

    @staticmethod
    def forward(density: Tensor, mesh: MeshShape) -> Tensor:
        (l1, l2, l3) = mesh.limits
        # One axis after the other, dropping what lies outside the box of wave vectors.
        waves = torch.fft.rfft(density, dim=3)[..., : l3 + 1]
        waves = _crop(torch.fft.fft(waves, dim=2), 2, l2)
        waves = _crop(torch.fft.fft(waves, dim=1), 1, l1)
        correction = _window_correction(mesh, False, density.dtype, density.device)
        return waves.flatten(1, 2).conj() * correction

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _ToMesh.apply(grad, ctx.mesh), None  # type: ignore[no-untyped-call]


class _ToMesh(OneByOne):
    """The transpose of _ToWaves: Re Σ_n Γ(n)* e^{2πi n·m/size} over the window's transform."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mesh = inputs[1]

    @staticmethod
    def forward(waves: Tensor, mesh: MeshShape) -> Tensor:
        (n1, n2, n3), (l1, l2, l3) = mesh.size, mesh.limits
        # Halved, since the real inverse transform adds the conjugate of every n_3 > 0.
        correction = _window_correction(mesh, True, waves.real.dtype, waves.device)
        waves = (waves.conj() * correction).view(-1, 2 * l1 + 1, 2 * l2 + 1, l3 + 1)
        waves = torch.fft.ifft(_pad(waves, 1, n1), dim=1, norm="forward")
        waves = torch.fft.ifft(_pad(waves, 2, n2), dim=2, norm="forward")
        out: Tensor = torch.fft.irfft(waves, n=n3, dim=3, norm="forward")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _ToWaves.apply(grad, ctx.mesh), None  # type: ignore[no-untyped-call]


def _crop(waves: Tensor, dim: int, limit: int) -> Tensor:
    """Frequencies −limit … limit, in this order."""
    size = waves.shape[dim]
    if limit == 0:
        return waves.narrow(dim, 0, 1)
    parts = [waves.narrow(dim, size - limit, limit), waves.narrow(dim, 0, limit + 1)]
    return torch.cat(parts, dim)


def _pad(waves: Tensor, dim: int, size: int) -> Tensor:
    """The transpose of _crop, with size frequencies along dim."""
    limit = waves.shape[dim] // 2
    shape = list(waves.shape)
    shape[dim] = size - 2 * limit - 1
    parts = [
        waves.narrow(dim, limit, limit + 1),
        waves.new_zeros(shape),
        waves.narrow(dim, 0, limit),
    ]
    return torch.cat(parts, dim)
