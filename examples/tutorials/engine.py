# %% [markdown]
# # The electrostatics engine in your own model
#
# This tutorial uses the electrostatics alone, without MACE: energies and fields of charges,
# dipoles and quadrupoles in a crystal, their derivatives, and a charge that is learned from
# energies. It is for those who want long-range electrostatics in a model of their own.
#
# `Electrostatics` is a module of PyTorch. Charges, positions and cells are tensors, and everything
# that comes out can be differentiated. Lengths are in Å, energies in eV, charges in e.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from ase.build import bulk
from helper import save, start

from mace_polmp import Electrostatics, Multipoles

QUICK = start("engine")
torch.manual_seed(1)


def tensors(atoms):
    """Positions [N, 3], cell [1, 3, 3], boundary conditions [1, 3], structure of each atom [N]."""
    positions = torch.tensor(atoms.positions)
    cell = torch.tensor(atoms.cell.array)[None]
    pbc = torch.tensor(atoms.pbc)[None]
    return positions, cell, pbc, torch.zeros(len(atoms), dtype=torch.long)


# %% [markdown]
# ## The Madelung constant of rock salt
#
# The energy of a crystal of point charges ±q, per pair of ions with the nearest distance d, is −M
# q²/(4πε₀ d), and M = 1.747565 for rock salt. In this package every charge is a Gaussian of the
# width σ (`smearing`): two of them interact by q₁q₂ erf(r/(√2 σ))/(4πε₀ r). At d = 2.82 Å and σ =
# 0.4 Å the error function is 1 to 12 digits, and the Gaussians interact as points do. The sum in
# k-space must be fine enough for such a narrow charge: `kspace_spacing` is about σ or smaller.

# %%
COULOMB = 14.399645  # e²/(4πε₀), eV Å
distance = 2.82  # Å
crystal = bulk("NaCl", "rocksalt", a=2 * distance, cubic=True)
q = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)  # Na and Cl in turn
print(crystal.get_chemical_formula(), "charges", q.tolist())

spacings = [1.6, 1.2, 0.8, 0.6, 0.4]
madelung = []
for spacing in spacings:
    engine = Electrostatics(smearing=0.4, kspace_spacing=spacing)
    energy = engine(*tensors(crystal), Multipoles(q)).energy.item()
    madelung.append(-energy / (len(crystal) / 2) * distance / COULOMB)
    print(f"kspace_spacing {spacing:.1f} Å: M = {madelung[-1]:.6f}")

# %% [markdown]
# The sum converges to the constant of the textbooks. A model uses wider Gaussians (σ = 1 Å is the
# default) and a coarser sum: what is smooth at short distances costs less, and the short-range
# network learns the difference.

# %%
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
axis.semilogy(spacings, np.abs(np.array(madelung) - 1.7475646), "o-")
axis.set(
    xlabel="kspace_spacing / Å",
    ylabel="|M − 1.7475646|",
    title="Madelung constant of NaCl, engine with σ = 0.4 Å",
)
axis.grid(alpha=0.25)
save(figure, "engine_madelung")

# %% [markdown]
# ## Derivatives
#
# Forces are the gradient of the energy. One ion is moved out of its place; the force on it is the
# same as the difference of energies.

# %%
engine = Electrostatics(smearing=0.4, kspace_spacing=0.4)
positions, cell, pbc, batch = tensors(crystal)
positions[0, 0] += 0.1
positions.requires_grad_(True)
energy = engine(positions, cell, pbc, batch, Multipoles(q)).energy
forces = -torch.autograd.grad(energy.sum(), positions)[0]


def energy_at(x):
    moved = positions.detach().clone()
    moved[0, 0] += x
    return engine(moved, cell, pbc, batch, Multipoles(q)).energy.item()


numerical = -(energy_at(1e-4) - energy_at(-1e-4)) / 2e-4
print(f"force on the moved Na: {forces[0, 0]:.6f} eV/Å, by differences {numerical:.6f} eV/Å")
print(f"sum of all forces: {forces.sum(0).abs().max():.1e} eV/Å")

# %% [markdown]
# ## A charge from energies, by hand
#
# A model of two parts: a Born–Mayer repulsion A exp(−r/ρ) between all pairs (nearest images), and
# the electrostatics of charges ±q. The "data" are energies of distorted crystals whose true charge
# is 0.8 e. The training finds the charge, although no charge is in the data. This is what the head
# of a MultipoleMACE does, with charges that depend on the surroundings of each atom.

# %%
engine = Electrostatics(smearing=1.0, kspace_spacing=2.0)
signs = q


def model(atoms, charge, strength):
    """Energy of a structure, eV."""
    positions, cell, pbc, batch = tensors(atoms)
    vectors = torch.tensor(atoms.get_all_distances(mic=True, vector=True))
    near = vectors.norm(dim=-1)[np.triu_indices(len(atoms), 1)]
    repulsion = strength * torch.exp(-near / 0.32).sum()
    coulomb = engine(positions, cell, pbc, batch, Multipoles(charge * signs)).energy[0]
    return repulsion + coulomb


frames = []
for seed in range(10):
    atoms = crystal.copy()
    atoms.set_cell(atoms.cell * (0.96 + 0.01 * seed), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    frames.append(atoms)
true_charge, true_strength = torch.tensor(0.8).double(), torch.tensor(1000.0).double()
labels = torch.stack([model(atoms, true_charge, true_strength) for atoms in frames])

charge = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
log_strength = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.LBFGS(
    [charge, log_strength], max_iter=5 if QUICK else 60, line_search_fn="strong_wolfe"
)
history = []


def closure():
    optimizer.zero_grad()
    found = torch.stack([model(atoms, charge, log_strength.exp()) for atoms in frames])
    loss = ((found - labels) ** 2).mean()
    loss.backward()
    history.append((charge.item(), loss.item() ** 0.5))
    return loss


optimizer.step(closure)
print(f"learned charge: {charge.item():.4f} e (true 0.8)")
print(f"learned A: {log_strength.exp().item():.1f} eV (true 1000)")
print(f"RMSE of the energies: from {1000 * history[0][1]:.0f} to {1000 * history[-1][1]:.3f} meV")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
axes[0].plot([each[0] for each in history])
axes[0].axhline(0.8, color="k", ls=":", label="true charge")
axes[0].set(xlabel="evaluation", ylabel="charge / e", title="the charge")
axes[0].legend(frameon=False)
axes[1].semilogy([1000 * each[1] for each in history], color="C3")
axes[1].set(xlabel="evaluation", ylabel="RMSE of energies / meV", title="the loss")
figure.suptitle("A charge learned from energies of 10 distorted cells of NaCl")
save(figure, "engine_training")

# %% [markdown]
# Energies hold only products of charges: −0.8 e would fit as well. That is why a model needs a
# hint which element is negative, or labels such as dipoles.
#
# ## Molecules, slabs, dipoles and response
#
# The boundary conditions decide which sum is used: three periodic directions (k-space, tin-foil
# boundary), two (a slab, with the dipole correction), or none (all pairs). `Multipoles` also holds
# dipoles and quadrupoles, and `ResponseCoefficients` polarizabilities, which make induced dipoles.
# Here is a point-like ion next to a polarizable atom: the energy of the induced dipole falls off
# as −½ α E², that is as 1/r⁴.

# %%
from mace_polmp import ResponseCoefficients

engine = Electrostatics(smearing=0.4)
alpha = 0.05  # e² Å²/eV, 0.72 Å³
for r in (3.0, 4.0, 6.0):
    positions = torch.tensor([[0.0, 0.0, 0.0], [r, 0.0, 0.0]], dtype=torch.float64)
    out = engine(
        positions,
        torch.eye(3, dtype=torch.float64)[None],
        torch.tensor([[False, False, False]]),
        torch.tensor([0, 0]),
        Multipoles(torch.tensor([1.0, 0.0], dtype=torch.float64)),
        ResponseCoefficients(polarizability=torch.tensor([0.0, alpha], dtype=torch.float64)),
    )
    expected = -0.5 * alpha * (COULOMB / r**2) ** 2
    induced = out.induced_dipole[1, 0].item()
    print(
        f"r = {r:.0f} Å: induced dipole {induced:.4f} e Å, energy {out.energy.item():.5f} eV, "
        f"−½αE² = {expected:.5f} eV"
    )

# %% [markdown]
# ## Further
#
# - [The engine](../guide/engine.md): plans, batches of structures, the particle mesh for large
#   cells.
# - [The head on other backbones](../guide/other_backbones.md): the charges themselves from your
#   network's features.
# - [The theory](../theory/electrostatics.md) of the sums.
