"""Containers for the sources of the electrostatics, and the checks of what users put in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mace_polmp.electrostatics.bonds import BondResponse, check_bonds
from mace_polmp.electrostatics.constants import kept
from mace_polmp.electrostatics.products import small_product


@dataclass(frozen=True)
class Multipoles:
    """Permanent latent multipoles of n_atoms atoms.

    Attributes:
        charge: [n_atoms], e.
        dipole: [n_atoms, 3], e Å, pointing from − to +; None for none.
        quadrupole: [n_atoms, 3, 3], e Å², symmetric and traceless, in the second-moment
            convention: the potential of Q is +½ Q:∇∇(1/r). None for none. A trace, which no
            potential outside shows, is taken off by the electrostatics.
    """

    charge: Tensor
    dipole: Tensor | None = None
    quadrupole: Tensor | None = None

    def select(self, index: Tensor) -> Multipoles:
        """The multipoles of the atoms named by index [n_selected]."""
        return Multipoles(
            charge=self.charge[index],
            dipole=None if self.dipole is None else self.dipole[index],
            quadrupole=None if self.quadrupole is None else self.quadrupole[index],
        )

    def traceless(self) -> Multipoles:
        """Without the trace of the quadrupoles."""
        if self.quadrupole is None:
            return self
        flat = self.quadrupole.flatten(1)
        flat = small_product(flat, _off_trace(flat.dtype, flat.device))
        return replace(self, quadrupole=flat.view(-1, 3, 3))


@kept()
def _off_trace(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What takes a third of the trace off the diagonal of nine elements, [9, 9]."""
    unit = torch.eye(3, dtype=torch.float64).view(9)
    whole = torch.eye(9, dtype=torch.float64) - unit[:, None] * unit / 3.0
    return whole.to(dtype=dtype, device=device)


def symmetric_components(quadrupole: Tensor) -> Tensor:
    """xx, yy, zz, xy, xz, yz of [n_atoms, 3, 3]: [n_atoms, 6].

    Off-diagonal elements are taken from both halves, so that both get their gradient.
    """
    flat = quadrupole.flatten(1)
    return 0.5 * (flat[:, [0, 4, 8, 1, 2, 5]] + flat[:, [0, 4, 8, 3, 6, 7]])


@dataclass(frozen=True)
class ResponseCoefficients:
    """Coefficients of the linear response.

    Attributes:
        softness: charge response κ, [n_atoms], e²/eV, not negative; None for no induced charges.
        polarizability: α, [n_atoms] (isotropic) or [n_atoms, 3, 3] (symmetric, positive
            semi-definite), e² Å²/eV; None for no induced dipoles.
        bonds: edges along which charge is induced, in place of a softness of atoms; None for none.
    """

    softness: Tensor | None = None
    polarizability: Tensor | None = None
    bonds: BondResponse | None = None

    @property
    def is_none(self) -> bool:
        """Whether nothing is induced."""
        return self.softness is None and self.polarizability is None and self.bonds is None


def check_inputs(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    multipoles: Multipoles,
    response: ResponseCoefficients | None,
    external_field: Tensor | None,
) -> None:
    """Check shapes and dtypes; reads no value, so it never waits for the device.

    Raises:
        ValueError: an argument has another shape than documented, or is on another device.
        TypeError: an argument has the wrong dtype.
    """
    n = positions.shape[0]
    n_structures = pbc.shape[0]
    _check_shape("positions", positions, (n, 3), "n_atoms, 3")
    _check_shape("pbc", pbc, (n_structures, 3), "n_structures, 3")
    _check_shape("cell", cell, (n_structures, 3, 3), "n_structures, 3, 3")
    _check_shape("batch", batch, (n,), "n_atoms")
    if pbc.dtype != torch.bool:
        raise TypeError(f"pbc must be torch.bool, got {pbc.dtype}; convert it with pbc.bool()")
    if batch.dtype != torch.int64:
        raise TypeError(
            f"batch must be torch.int64, got {batch.dtype}; convert it with batch.long()"
        )
    if positions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"positions must be float32 or float64, got {positions.dtype}")

    floats: dict[str, tuple[Tensor | None, tuple[int, ...], str]] = {
        "charge": (multipoles.charge, (n,), "n_atoms"),
        "dipole": (multipoles.dipole, (n, 3), "n_atoms, 3"),
        "quadrupole": (multipoles.quadrupole, (n, 3, 3), "n_atoms, 3, 3"),
        "external_field": (external_field, (n_structures, 3), "n_structures, 3"),
    }
    if response is not None:
        if response.bonds is not None:
            if response.softness is not None:
                raise ValueError("softness and bonds: charges are induced by one of them; give one")
            check_bonds(response.bonds, n, positions)
        floats["softness"] = (response.softness, (n,), "n_atoms")
        alpha = response.polarizability
        if alpha is not None and alpha.dim() == 1:
            floats["polarizability"] = (alpha, (n,), "n_atoms")
        else:
            floats["polarizability"] = (alpha, (n, 3, 3), "n_atoms] or [n_atoms, 3, 3")
    for name, other in (("cell", cell), ("pbc", pbc), ("batch", batch)):
        _check_device(name, other, positions)
    for name, (tensor, shape, words) in floats.items():
        if tensor is None:
            continue
        _check_shape(name, tensor, shape, words)
        _check_device(name, tensor, positions)
        if tensor.dtype != positions.dtype:
            raise TypeError(
                f"{name} must have the dtype of positions, {positions.dtype}, got {tensor.dtype}"
            )


def _check_device(name: str, tensor: Tensor, positions: Tensor) -> None:
    if tensor.device != positions.device:
        raise ValueError(
            f"{name} is on {tensor.device}, positions on {positions.device}; move one of them"
        )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], words: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be [{words}] = {list(shape)}, got {list(tensor.shape)}")
