"""The structure factor of periodic structures by direct sums over atoms with separable phases.

With fractional coordinates s and k = 2π Σ_a n_a b_a the phase e^{ik·r} is a product of three
one-dimensional factors e^{2πi n_a s_a}, and a derivative multiplies each by a power of 2πi n_a.
The sum over atoms is then a batched matrix product; no table of atoms × wave vectors is built,
and the sums run over blocks of atoms, so that memory stays bounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mace_polmp.electrostatics.constants import kept
from mace_polmp.electrostatics.moments import add_up, evaluate, from_cube, order_of, to_cube
from mace_polmp.electrostatics.packing import Packing, blocks

# Elements of the largest temporary array.
_BLOCK_CPU = 2**19
_BLOCK_GPU = 2**25


@kept()
def _frequencies(
    limits: tuple[int, int, int], order: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """All n_1, n_2, n_3 one after the other, the axis of each, and (2πi n)^a [order + 1, n]."""
    n1, n2, n3 = limits
    parts = [torch.arange(-n1, n1 + 1), torch.arange(-n2, n2 + 1), torch.arange(n3 + 1)]
    n = torch.cat(parts).double()
    axis = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
    powers = (2j * math.pi * n) ** torch.arange(order + 1)[:, None]
    powers[0] = 1.0
    angles = (2.0 * math.pi * n).to(dtype=dtype, device=device)
    return angles, axis.to(device), powers.to(dtype=_complex(dtype), device=device)


class PlaneWaves:
    """e^{2πi n·s} for the half box |n_1| ≤ N_1, |n_2| ≤ N_2, 0 ≤ n_3 ≤ N_3.

    Args:
        limits: N_1, N_2, N_3.
        sites: fractional coordinates, [n_atoms, 3].
        packing: where the atoms of the batch lie in a table [n_structures, n_largest].
    """

    def __init__(self, limits: tuple[int, int, int], sites: Tensor, packing: Packing) -> None:
        self.limits = limits
        self._packing = packing
        packed = packing.pack(sites.detach())
        self._dtype = _complex(packed.dtype)
        angles, axis, _ = _frequencies(limits, 0, packed.dtype, packed.device)
        angle = packed.index_select(2, axis) * angles
        self._phases = torch.complex(torch.cos(angle), torch.sin(angle))  # [S, A, n1 + n2 + n3]

    def structure_factor(self, sites: Tensor, moments: Tensor) -> Tensor:
        """S(n) = Σ_iα m_iα (2πi n)^α e^{2πi n·s_i}, [n_structures, n_1 n_2, n_3 ≥ 0], complex."""
        return add_up(sites, moments, self)

    def at_sites(self, sites: Tensor, waves: Tensor, order: int) -> Tensor:
        """∂^β Re Σ_n Γ(n)* e^{2πi n·s_i}, [n_atoms, n_moments(order)], of Γ like S."""
        return evaluate(sites, waves, order, self)

    def add_up(self, moments: Tensor) -> Tensor:
        order = order_of(moments)
        m = self._packing.pack(moments)
        n1, n2, n3 = self._counts()
        total = m.new_zeros(m.shape[0], n1 * n2, n3, dtype=self._dtype)
        for block in self._blocks(order):
            x, y, z = self._factors(block, order)
            cube = to_cube(m[:, block]).to(self._dtype).permute(0, 1, 4, 2, 3)  # [S, A, c, a, b]
            part = torch.matmul(x.transpose(2, 3)[:, :, None], cube)  # [S, A, c, n1, b]
            part = torch.matmul(part.flatten(2, 3), y)  # [S, A, c n1, n2]
            part = part.view(m.shape[0], -1, n1 * n2).transpose(1, 2)  # [S, n12, A c]
            total.baddbmm_(part, z.flatten(1, 2))
        return total

    def evaluate(self, table: Tensor, order: int) -> Tensor:
        n1, n2, _ = self._counts()
        conjugate = table.conj().transpose(1, 2)  # [S, n3, n12]
        parts = []
        for block in self._blocks(order):
            x, y, z = self._factors(block, order)
            part = torch.matmul(z.flatten(1, 2), conjugate)  # [S, A c, n12]
            part = part.view(*z.shape[:2], -1, n2)
            part = torch.matmul(part, y.transpose(2, 3)).view(*z.shape[:3], n1, -1)
            part = torch.matmul(x[:, :, None], part)  # [S, A, c, a, b]
            parts.append(part.real.permute(0, 1, 3, 4, 2))
        cube = torch.cat(parts, dim=1) if len(parts) != 1 else parts[0]
        return self._packing.unpack(from_cube(cube))

    def _counts(self) -> tuple[int, int, int]:
        n1, n2, n3 = self.limits
        return 2 * n1 + 1, 2 * n2 + 1, n3 + 1

    def _blocks(self, order: int) -> list[slice]:
        n1, n2, _ = self._counts()
        n_structures, n_largest = self._phases.shape[:2]
        elements = n_structures * (order + 1) * n1 * n2
        return blocks(n_largest, elements, self._phases.device, _BLOCK_CPU, _BLOCK_GPU)

    def _factors(self, block: slice, order: int) -> tuple[Tensor, ...]:
        """(2πi n)^a e^{2πi n s} along the three axes, [n_structures, n_atoms, order + 1, n]."""
        phases = self._phases[:, block, None]
        real = torch.float64 if self._dtype == torch.complex128 else torch.float32
        powers = _frequencies(self.limits, order, real, phases.device)[2]
        return torch.split(phases * powers, list(self._counts()), dim=-1)


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64
