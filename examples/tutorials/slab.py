# %% [markdown]
# # A slab: two periodic directions, vacuum, and a field across
#
# This tutorial treats a layer of polar molecules as a slab, periodic in two directions: what goes
# wrong in a fully periodic cell, how much vacuum is needed, and what an electric field across the
# layer does. It uses the packaged model (`demo`) of water. That model has learned from clusters
# and a liquid, so the layer is an example of the method, not a prediction of a surface.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import write
from ase.optimize import BFGS
from helper import run, save, start

from mace_polmp import InputError, MultipoleMACECalculator, as_slab

QUICK = start("slab")
calculator = MultipoleMACECalculator("demo", default_dtype="float64")

# %% [markdown]
# ## A polar layer
#
# Four water molecules in a square of 6.4 Å, all dipoles up.

# %%
side = 6.4
layer = Atoms(cell=[side, side, 12.0], pbc=[True, True, False])
for number, (x, y) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
    water = molecule("H2O")  # in the plane y z, hydrogens down
    water.rotate(180, "x")
    water.rotate(45 + 90 * (number % 2), "z")
    water.positions += [(x + 0.5) * side / 2, (y + 0.5) * side / 2, 6.0]
    layer += water
layer.calc = calculator
print(f"{layer.symbols}: dipole along z {layer.get_dipole_moment()[2]:.3f} e Å")

# %% [markdown]
# ## Vacuum and the dipole correction
#
# In a fully periodic cell (pbc T T T) a polar layer meets its images across the vacuum, and the
# boundary at infinity is a metal (tin foil): there is a field through the vacuum and the layer
# that is not there in reality. It goes as 1/volume, so that the energy converges slowly with the
# vacuum. As a slab (pbc T T F) the same sum gets the dipole correction of Yeh and Berkowitz, which
# takes this field off, and the energy does not depend on the vacuum.

# %%
vacuums = np.array([12.0, 16.0, 24.0, 40.0])
as_bulk, as_layer = [], []
for vacuum in vacuums:
    slab = as_slab(layer.copy(), vacuum=vacuum)  # pbc T T F, with this vacuum
    slab.calc = calculator
    as_layer.append(slab.get_potential_energy())
    bulk = slab.copy()
    bulk.pbc = True
    bulk.calc = calculator
    as_bulk.append(bulk.get_potential_energy())
    difference = as_layer[-1] - as_bulk[-1]
    print(
        f"vacuum {vacuum:4.0f} Å: slab {as_layer[-1]:.4f} eV, periodic {as_bulk[-1]:.4f} eV, "
        f"difference {1000 * difference:.0f} meV, times the volume "
        f"{difference * slab.get_volume():.1f} eV Å³"
    )

figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
reference = as_layer[-1]
axis.plot(vacuums, 1000 * (np.array(as_bulk) - reference), "C1o-", label="pbc T T T")
axis.plot(vacuums, 1000 * (np.array(as_layer) - reference), "C0s-", label="pbc T T F (slab)")
axis.set(
    xlabel="vacuum / Å",
    ylabel="energy − that of the slab at 40 Å / meV",
    title="Polar layer of 4 H₂O, demo model",
)
axis.legend(frameon=False)
axis.grid(alpha=0.25)
save(figure, "slab_vacuum")

# %% [markdown]
# The energy of the slab hardly moves. That of the periodic cell comes near it slowly. For fixed
# dipoles the difference would be D²/(2ε₀V), and its product with the volume would be constant. Here
# induced dipoles answer to the field as well. And the latent charges of the demo model do not sum
# to zero in this layer, but to some hundredths of e. Those of a slab are shifted so that they do.
# In the periodic cell a uniform background makes up for them, whose energy grows with the vacuum:
# with much more of it the difference changes its sign. Charges of models that were trained with
# `--constrain_charge` or `--charge_readout bond` sum to zero.
#
# Too little vacuum is refused, with the number that is needed. `as_slab(atoms, vacuum=...)` makes
# the vacuum; it also brings together molecules that a periodic program has wrapped through it.

# %%
tight = layer.copy()
tight.center(vacuum=2.0, axis=2)
tight.calc = calculator
try:
    tight.get_potential_energy()
except InputError as error:
    print("refused:", error)

# %% [markdown]
# ## A field across the layer
#
# Along its normal a slab has an energy in a field, E − D_z F − ½ α_zz F². Fields in its plane are
# refused.

# %%
slab = as_slab(layer.copy(), vacuum=25.0)
slab.calc = calculator
fields = np.linspace(-0.3, 0.3, 7)
energies, moments = [], []
for strength in fields:
    calculator.external_field = [0.0, 0.0, strength]
    energies.append(slab.get_potential_energy())
    moments.append(slab.get_dipole_moment()[2])
calculator.external_field = None
slope, _ = np.polyfit(fields, moments, 1)
alpha = calculator.get_property("polarizability", slab)[2, 2]
print(
    f"dipole {moments[3]:.4f} e Å; it grows by {slope:.5f} e Å per V/Å, α_zz = {alpha:.5f} e² Å²/eV"
)
for strength, energy in zip(fields, energies, strict=True):
    expected = energies[3] - moments[3] * strength - 0.5 * alpha * strength**2
    print(f"F = {strength:+.1f} V/Å: E = {energy:.6f} eV, formula {expected:.6f} eV")

# %% [markdown]
# ## Molecules that turn
#
# With atoms that move, a field against the dipoles turns the molecules over. `mace_polmp md` takes
# the field along z. The layer is relaxed first, which already ends the order of its dipoles to a
# part; then come runs without a field and in fields up and down, with a thermostat at 100 K.

# %%
relaxed = slab.copy()
relaxed.calc = calculator
BFGS(relaxed, logfile=None).run(fmax=0.05, steps=5 if QUICK else 150)
print(f"after the relaxation: dipole along z {relaxed.get_dipole_moment()[2]:.3f} e Å")
write("layer.xyz", relaxed, write_results=False)
for name, strength in (("none", 0.0), ("up", 0.5), ("down", -0.5)):
    run(
        "mace_polmp md --model demo --structure layer.xyz --ensemble langevin --friction 0.02 "
        f"--temperature 100 --steps {10 if QUICK else 500} --timestep 1 --every 10 --seed 2 "
        f"--field 0 0 {strength} --output {name}",
        show="ps of",
    )

# %%
from ase.io import read

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
words = {"none": "no field", "up": "+0.5 V/Å along z", "down": "−0.5 V/Å"}
for name, label in words.items():
    frames = read(f"{name}/trajectory.xyz", ":")
    along = [frame.get_dipole_moment()[2] for frame in frames]
    times = [0.001 * frame.info["time_fs"] for frame in frames]
    axis.plot(times, along, label=label)
    print(f"{label}: mean dipole of the second half {np.mean(along[len(along) // 2 :]):+.3f} e Å")
axis.axhline(0, color="0.6", lw=0.8)
axis.set(
    xlabel="time / ps", ylabel="dipole along z / e Å", title="Layer of 4 H₂O, 100 K, demo model"
)
axis.legend(frameon=False)
save(figure, "slab_field")

# %% [markdown]
# ## Further
#
# - [The calculator](../guide/calculator.md): slabs, vacuum, wrapped molecules.
# - [Limits](../choose/limits.md): Born charges of slabs and fields in their plane are not
#   available; a charged slab has no defined energy.
# - [Electric fields](fields.md) in open structures.
