# %% [markdown]
# # Many structures in one batch with torch-sim
#
# This tutorial relaxes many small clusters together and runs molecular dynamics of all of them at
# once, with torch-sim. One call of the model then evaluates all structures, which saves the
# overhead of a call for each: a lot for molecules on a CPU, more on a GPU. It needs `pip install
# -c constraints.txt '.[torch-sim]'` (Python 3.11 or newer).

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read
from helper import need, save, start

QUICK = start("torch_sim_batches")
need("torch_sim", "torch-sim")
import torch_sim as ts

from mace_polmp import MultipoleMACECalculator
from mace_polmp.cli.quickstart import data_file
from mace_polmp.interfaces.torch_sim import MultipoleMACEModel

torch.set_num_threads(1)

# %% [markdown]
# ## One state of many systems
#
# A state holds all structures; the model returns a row for each. The results are those of the ASE
# calculator. (The demo model needs no total charge. For a model with constrained charges give
# `total_charge`, a number or numbers by formula.)

# %%
frames = [a for a in read(data_file("valid"), ":") if a.info["config_type"] == "cluster"]
frames = [Atoms(a.numbers, a.positions) for a in frames][: 4 if QUICK else 16]
model = MultipoleMACEModel("demo", dtype=torch.float64)
state = ts.io.atoms_to_state(frames, model.device, model.dtype)
out = model(state)
calculator = MultipoleMACECalculator("demo", default_dtype="float64")
worst = 0.0
for number, atoms in enumerate(frames):
    atoms.calc = calculator
    worst = max(worst, abs(out["energy"][number].item() - atoms.get_potential_energy()))
print(f"{len(frames)} structures, {state.n_atoms} atoms")
print("outputs:", ", ".join(out))
print(f"largest difference from the ASE calculator: {worst:.1e} eV")

# %% [markdown]
# ## How much faster?
#
# The same water molecules in one batch, and one by one with the calculator, on one core in single
# precision; processor time.

# %%
single = MultipoleMACEModel("demo", dtype=torch.float32, compute_stress=False)
one = MultipoleMACECalculator("demo", default_dtype="float32")
rng = np.random.default_rng(1)


def waters(n):
    """n slightly different molecules."""
    made = []
    for _ in range(n):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(0, 0.02, (3, 3))
        made.append(atoms)
    return made


def best_time(call, repeats=2 if QUICK else 5):
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return min(times)


def by_calculator(structures):
    for atoms in structures:
        one.calculate(atoms, ["energy", "forces"])


sizes = [1, 4] if QUICK else [1, 4, 16, 64]
rows = []
for n in sizes:
    structures = waters(n)
    batch = ts.io.atoms_to_state(structures, single.device, single.dtype)
    for _ in range(3):
        single(batch)  # PyTorch optimizes in the first calls
        by_calculator(structures[:1])
    together = best_time(lambda b=batch: single(b))
    apart = best_time(lambda s=structures: by_calculator(s))
    rows.append((together, apart))
    print(
        f"{n:3d} H2O: batch {1000 * together / n:6.2f} ms each, calculator "
        f"{1000 * apart / n:6.2f} ms each, {apart / together:.1f} times as fast"
    )

figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
batch_times, single_times = 1000 * np.array(rows).T / np.array(sizes)
axis.loglog(sizes, single_times, "C1s-", label="ASE calculator, one by one")
axis.loglog(sizes, batch_times, "C0o-", label="torch-sim, one batch")
axis.set(
    xlabel="molecules of H₂O",
    ylabel="time per molecule / ms",
    title="Energy and forces, demo model, float32, one core",
)
axis.set_xticks(sizes, sizes)
axis.set_yticks([0.3, 1, 3, 10, 30], [0.3, 1, 3, 10, 30])
axis.legend(frameon=False)
axis.grid(alpha=0.25)
save(figure, "torch_sim_batches_speed")

# %% [markdown]
# The demo model is small, and so the overhead of a call weighs much. With a larger model the gain
# is less; the [page on torch-sim](../guide/torch_sim.md) has figures. Batches of more than some
# 200 atoms gain nothing on a CPU. torch-sim's autobatchers cut a long list into batches of a size
# that you set.
#
# ## Relax all of them
#
# Structures that are done leave the batch (`InFlightAutoBatcher`).

# %%
from torch_sim.autobatching import InFlightAutoBatcher

batcher = InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=200)
relaxed = ts.optimize(
    system=state,
    model=model,
    optimizer=ts.optimizers.fire,
    max_steps=10 if QUICK else 400,
    autobatcher=batcher,
    convergence_fn=ts.generate_force_convergence_fn(force_tol=0.02, include_cell_forces=False),
)
before, after = model(state), model(relaxed)
gained = before["energy"] - after["energy"]
largest = [each["forces"].abs().max() for each in (before, after)]
print(f"largest force before {largest[0]:.3f} eV/Å, after {largest[1]:.3f} eV/Å")
print(f"energies fell by {gained.min():.3f} to {gained.max():.3f} eV")

# %% [markdown]
# ## Dynamics of all of them
#
# Each structure has its own random numbers, temperature and trajectory. Times are in ps.

# %%
from torch_sim.quantities import calc_temperature

kinetic = []
state = relaxed
for _ in range(2 if QUICK else 10):
    state = ts.integrate(
        system=state,
        model=model,
        integrator=ts.nvt_langevin,
        n_steps=5 if QUICK else 20,
        temperature=200,
        timestep=0.0005,
    )
    kinetic.append(
        calc_temperature(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
    )
temperatures = torch.stack(kinetic).numpy()
print("temperature of the systems at the end:", temperatures[-1].round(0)[:8], "... K")
final = ts.io.state_to_atoms(state)
distances = [a.get_all_distances()[a.numbers == 8][:, a.numbers == 1].min() for a in final]
print(f"shortest O-H distances: {min(distances):.2f} to {max(distances):.2f} Å")

# %% [markdown]
# ## Further
#
# - [torch-sim](../guide/torch_sim.md): slabs, total charges, stress.
# - torch-sim's own documentation has reporters, trajectories and more integrators.
