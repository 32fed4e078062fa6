"""A MACELES as mace-torch pickles it, with plain formulas in place of the package it needs.

The classes have the names that a file has. Energies of charges are sums as they are written down:
over wave vectors, or over pairs, each Gaussian with itself included.
"""

import math
import sys
import types
from contextlib import contextmanager

import torch
from mace.modules.extensions import MACELES

FACTOR = 90.0474  # eV Å/e², of the published models


class Les(torch.nn.Module):
    def __init__(self, les_arguments):
        super().__init__()
        self.n_layers, self.n_hidden = 3, [32, 16]
        self.add_linear_nn, self.output_scaling_factor = True, 0.1
        self.sigma, self.dl = les_arguments.get("sigma", 1.0), les_arguments.get("dl", 2.0)
        self.remove_mean, self.epsilon_factor = True, 1.0
        self.atomwise, self.bec = Atomwise(), BEC()
        self.ewald = Ewald(self.sigma, self.dl, les_arguments.get("remove_self", False))

    def forward(self, latent_charges, positions, cell, batch, **_):
        energies = []
        for number in range(int(batch.max()) + 1):
            own = batch == number
            energies.append(self.ewald(latent_charges[own], positions[own], cell[number]))
        return {"E_lr": torch.stack(energies), "BEC": None}


class Atomwise(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.n_in, self.n_out, self.n_hidden, self.n_layers = None, 1, [32, 16], 3
        self.activation, self.add_linear_nn, self.bias = torch.nn.functional.silu, True, True
        self.output_scaling_factor, self.outnet = 0.1, None


class BEC(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.remove_mean, self.epsilon_factor, self.normalization_factor = True, 1.0, 1.0


class Ewald(torch.nn.Module):
    def __init__(self, sigma, dl, removed):
        super().__init__()
        self.dl, self.sigma, self.sigma_sq_half = dl, sigma, sigma**2 / 2.0
        self.twopi, self.twopi_sq = 2.0 * math.pi, (2.0 * math.pi) ** 2
        self.remove_self_interaction, self.norm_factor = removed, FACTOR
        self.k_sq_max = (2.0 * math.pi / dl) ** 2

    def forward(self, q, r, cell):
        own = (q**2).sum() * FACTOR / (self.sigma * (2.0 * math.pi) ** 1.5)
        if not bool(cell.any()):
            distance = (r[:, None] - r).square().sum(-1) + torch.eye(len(r))
            distance = distance.sqrt()
            pairs = torch.erf(distance / (math.sqrt(2.0) * self.sigma)) / distance
            pairs = pairs * (1.0 - torch.eye(len(r)))
            energy = FACTOR / (4.0 * math.pi) * (q[:, None] * q * pairs).sum() + own
        else:
            n = (torch.linalg.vector_norm(cell, dim=1) / self.dl).floor().long().tolist()
            grid = torch.cartesian_prod(*[torch.arange(-m, m + 1.0) for m in n])
            k = grid @ (2.0 * math.pi * torch.linalg.inv(cell).t())
            square = (k**2).sum(1)
            k = k[(square > 0) & (square <= self.k_sq_max)]
            square = (k**2).sum(1)
            phase = r @ k.t()
            factor = (q @ phase.cos()) ** 2 + (q @ phase.sin()) ** 2
            terms = torch.exp(-self.sigma_sq_half * square) / square * factor
            energy = FACTOR / torch.linalg.det(cell).abs() * terms.sum()
        return energy - own if self.remove_self_interaction else energy


_PLACES = {
    "les": {"Les": Les},
    "les.les": {"Les": Les},
    "les.module": {},
    "les.module.atomwise": {"Atomwise": Atomwise},
    "les.module.bec": {"BEC": BEC},
    "les.module.ewald": {"Ewald": Ewald},
}
for _module, _classes in _PLACES.items():
    for _one in _classes.values():
        _one.__module__ = _module


@contextmanager
def importable():
    """While the package is there."""
    before = {name: sys.modules.get(name) for name in _PLACES}
    for name, classes in _PLACES.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(classes)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def maceles(settings, seed=0, **les_arguments):
    """A random model in double precision, with charges that matter."""
    torch.manual_seed(seed)
    with importable():
        model = MACELES(les_arguments={"use_atomwise": False, **les_arguments}, **settings)
    with torch.no_grad():
        for weight in model.les_readouts.parameters():
            weight *= 3.0
    return model


def write(model, path):
    """As a training of mace-torch does."""
    with importable():
        torch.save(model, path)
