"""Random charges, dipoles and quadrupoles in random places, and the golden cases."""

import math
from dataclasses import dataclass

import torch

from mace_polmp.electrostatics import Electrostatics, Multipoles, ResponseCoefficients
from tests.devices import rounding, there

TRICLINIC = torch.tensor([[7.0, 0.3, -0.2], [2.1, 6.4, 0.5], [-1.7, 1.9, 8.2]], dtype=torch.float64)


def random_system(n, seed=0, size=5.0):
    """positions, Multipoles (neutral), ResponseCoefficients of n atoms, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = size * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    charge = normal(n)
    quadrupole = normal(n, 3, 3)
    quadrupole = 0.25 * (quadrupole + quadrupole.transpose(1, 2))
    trace = torch.einsum("nii->n", quadrupole)[:, None, None]
    quadrupole = quadrupole - trace * torch.eye(3, dtype=torch.float64) / 3
    root = 0.2 * normal(n, 3, 3)
    return (
        positions,
        Multipoles(charge - charge.mean(), 0.5 * normal(n, 3), quadrupole),
        ResponseCoefficients(0.02 * normal(n).abs(), root @ root.transpose(1, 2)),
    )


def evaluate(positions, multipoles, response=None, cell=None, engine=None, **options):
    """One structure, open without a cell."""
    periodic = cell is not None
    dtype = positions.dtype
    cell = cell if periodic else torch.zeros(3, 3, dtype=dtype)
    return there(engine or Electrostatics())(
        positions,
        cell[None],
        torch.tensor([[periodic] * 3]),
        torch.zeros(len(positions), dtype=torch.int64),
        multipoles,
        response,
        **options,
    )


def cast(multipoles, dtype):
    return Multipoles(
        multipoles.charge.to(dtype), multipoles.dipole.to(dtype), multipoles.quadrupole.to(dtype)
    )


def check_second_derivatives(system, cell, engine=None, fast=False, **options):
    """gradcheck and gradgradcheck in positions, strain, multipoles and coefficients.

    With fast along random directions only.
    """
    positions, multipoles, response = system
    inputs = [
        positions,
        torch.zeros(3, 3, dtype=torch.float64),
        multipoles.charge,
        multipoles.dipole,
        multipoles.quadrupole,
        response.softness,
        response.polarizability,
    ]
    inputs = [x.clone().requires_grad_(True) for x in inputs]

    def energy(r, strain, q, mu, quadrupole, kappa, alpha):
        return evaluate(
            r + r @ strain,
            Multipoles(q, mu, quadrupole),
            ResponseCoefficients(kappa, alpha),
            cell=None if cell is None else cell + cell @ strain,
            engine=engine,
            **options,
        ).energy

    again = dict(nondet_tol=rounding(), fast_mode=fast)
    assert torch.autograd.gradcheck(energy, inputs, atol=1e-6, rtol=1e-5, **again)
    assert torch.autograd.gradgradcheck(energy, inputs, atol=1e-5, rtol=1e-4, **again)


@dataclass(frozen=True)
class Golden:
    """What the engine gives of a golden case, and what it is differentiated by.

    Attributes:
        out: the engine's result.
        positions, strain: [n_atoms, 3] Å and [3, 3], with derivatives.
        volume: Å³; None for an open structure.
    """

    out: object
    positions: torch.Tensor
    strain: torch.Tensor
    volume: torch.Tensor | None

    def stress(self, virial):
        """Of a derivative by the strain, eV/Å³."""
        return 0.5 * (virial + virial.T) / self.volume


def golden(case, dtype, **more):
    """A case of the golden numbers as the engine sees it; more goes to the engine."""

    def read(key):
        return torch.tensor(case[key], dtype=dtype)

    periodic = case["cell"] is not None
    positions = read("positions").requires_grad_(True)
    cell = read("cell")[None] if periodic else torch.zeros(1, 3, 3, dtype=dtype)
    strain = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
    engine = Electrostatics(case["sigma"], 2 * math.pi / case["k_cutoff"])
    out = there(engine)(
        positions + positions @ strain,
        cell + cell @ strain,
        torch.tensor([[periodic] * 3]),
        torch.zeros(len(positions), dtype=torch.int64),
        Multipoles(read("q"), read("mu"), read("Q")),
        ResponseCoefficients(read("kappa"), read("alpha")),
        **more,
    )
    return Golden(out, positions, strain, cell[0].det().abs() if periodic else None)
