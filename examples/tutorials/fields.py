# %% [markdown]
# # Electric fields
#
# This tutorial puts a molecule into a uniform electric field: its energy and forces, its
# polarizability, a vibration that moves with the field, and a pulse in molecular dynamics. At the
# end it shows what is refused in periodic cells. Fields are in V/Å: 0.1 V/Å is 0.0019 atomic
# units, the field of an electron at 12 Å.

# %%
import csv

import matplotlib.pyplot as plt
import numpy as np
from ase.build import molecule
from ase.io import write
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from helper import run, save, start

from mace_polmp import InputError, MultipoleMACECalculator

QUICK = start("fields")
calculator = MultipoleMACECalculator("demo", default_dtype="float64")
water = molecule("H2O")
water.calc = calculator
BFGS(water, logfile=None).run(fmax=0.001)
water.positions -= water.get_center_of_mass()

# %% [markdown]
# ## Energy and polarizability
#
# In an open structure the energy is E(F) = E(0) − D·F − ½ F·α·F, with the dipole D and the
# polarizability α of the model. Setting `external_field` is all that is needed.

# %%
dipole = water.get_dipole_moment()
alpha = calculator.get_property("polarizability", water)
zero = water.get_potential_energy()
along = dipole / np.linalg.norm(dipole)
print("dipole / e Å:", dipole.round(4))
print("polarizability / Å³:", (14.3996 * np.linalg.eigvalsh(alpha)).round(3))

fields = np.linspace(-0.5, 0.5, 11)
energies = []
for strength in fields:
    calculator.external_field = strength * along
    energies.append(water.get_potential_energy() - zero)
expected = -np.linalg.norm(dipole) * fields - 0.5 * along @ alpha @ along * fields**2
print(f"largest difference from the formula: {np.abs(energies - expected).max():.1e} eV")

# %% [markdown]
# The measured mean polarizability of H2O is 1.45 Å³. The demo model has never seen one. What
# energies and forces teach is the response that matters between molecules, and a small model puts
# only part of it into induced dipoles. Train with polarizabilities as labels where they matter.
#
# Forces are the exact gradient, in the field as well:

# %%
calculator.external_field = [0.1, 0.2, 0.3]
forces = water.get_forces()
moved = water.copy()
moved.calc = calculator
ends = []
for sign in (1, -1):
    moved.positions[0, 2] = water.positions[0, 2] + sign * 1e-4
    ends.append(moved.get_potential_energy())
print(
    f"force on O along z: {forces[0, 2]:.6f}, by differences {-(ends[0] - ends[1]) / 2e-4:.6f} eV/Å"
)
print(f"sum of forces: {np.abs(forces.sum(0)).max():.1e} eV/Å (times the total charge, here 0)")
calculator.external_field = None

# %% [markdown]
# ## A vibration that feels the field
#
# The wavenumber of a vibration shifts with the field (vibrational Stark effect). The molecule is
# relaxed in each field, and its second derivatives are differences of forces.

# %%
strengths = [-0.2, 0.2] if QUICK else [-0.3, -0.15, 0.0, 0.15, 0.3]
rows = []
for strength in strengths:
    calculator.external_field = strength * along
    atoms = water.copy()
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=0.001, steps=100)
    vibrations = Vibrations(atoms, name=f"vib_{strength}")
    vibrations.run()
    rows.append(vibrations.get_frequencies().real[-3:])
    print(f"F = {strength:+.2f} V/Å:", "  ".join(f"{value:7.1f}" for value in rows[-1]), "cm⁻¹")
calculator.external_field = None

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
axes[0].plot(fields, energies, "o", label="model in the field")
axes[0].plot(fields, expected, "k-", lw=0.9, label="−D·F − ½ F·α·F")
axes[0].set(xlabel="field along the dipole / (V/Å)", ylabel="E(F) − E(0) / eV", title="energy")
axes[0].legend(frameon=False)
shifts = np.array(rows) - np.array(rows)[len(rows) // 2]
for shift, words in zip(
    shifts.T, ("bend", "symmetric stretch", "antisymmetric stretch"), strict=True
):
    axes[1].plot(strengths, shift, "o-", label=words)
axes[1].set(xlabel="field along the dipole / (V/Å)", ylabel="shift / cm⁻¹", title="vibrations")
axes[1].legend(frameon=False)
figure.suptitle("H₂O in a uniform field, demo model (GFN2-xTB)")
save(figure, "fields_water")

# %% [markdown]
# ## A pulse
#
# `mace_polmp md` takes constant, oscillating (`--field_wavenumber`) and pulsed (`--field_pulse`)
# fields. A pulse of 0.3 V/Å that oscillates with the bend of the molecule pumps energy into it:
# before and after the pulse the total energy is constant.

# %%
bend = rows[len(rows) // 2][0]
write("start.xyz", water, columns=["symbols", "positions"], write_results=False)
x, y, z = (float(each) for each in (0.3 * along).round(4))
_ = run(
    "mace_polmp md --model demo --structure start.xyz --temperature 5 --no_rotation --ensemble nve "
    f"--steps {40 if QUICK else 1600} --timestep 0.25 --every 4 --field {x} {y} {z} "
    f"--field_wavenumber {bend:.0f} --field_pulse 150 30 --output pulse"
)
table = list(csv.DictReader(open("pulse/md.csv")))
print("columns of md.csv:", ", ".join(table[0]))

# %%
from ase.io import read

frames = read("pulse/trajectory.xyz", ":")
times = np.array([float(row["time_fs"]) for row in table])
total = np.array([float(row["total_eV"]) for row in table])
moments = np.array([frame.get_dipole_moment() @ along for frame in frames])
pulse = np.array([frame.info["external_field"] @ along for frame in frames])
total += moments * pulse - 0.5 * (along @ alpha @ along) * pulse**2  # without the field's part
figure, axes = plt.subplots(3, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
axes[0].plot(times, pulse, color="k", lw=1)
axes[0].set(
    ylabel="field / (V/Å)", title="H₂O in a pulse that oscillates with its bend, demo model"
)
axes[1].plot(times, moments, color="C0", lw=1)
axes[1].set(ylabel="dipole along\nthe field / e Å")
axes[2].plot(times, 1000 * (total - total[0]), color="C3", lw=1)
axes[2].set(ylabel="energy without that\nof the field / meV", xlabel="time / fs")
save(figure, "fields_pulse")
print(f"energy taken up: {1000 * (total[-1] - total[0]):.1f} meV")

# %% [markdown]
# ## Slabs and periodic cells
#
# Along the normal of a slab a field works as in open structures; see [slabs](slab.md). Along
# periodic directions a charge has no energy in a field. Forces are there, from the Born charges
# (Z\*ᵀF). The energy and the stress are refused:

# %%
box = water.copy()
box.set_cell([8.0, 8.0, 8.0])
box.pbc = True
box.calc = calculator
calculator.external_field = [0.0, 0.0, 0.1]
print("forces:\n", box.get_forces().round(4))
try:
    box.get_potential_energy()
except InputError as error:
    print("refused:", error)
calculator.external_field = None

# %% [markdown]
# In this version the response of a periodic structure to the field itself is that of the atoms'
# polarizabilities. Polarization as a quantity that is driven around a loop (hysteresis of a
# ferroelectric) is not there. Fields in the plane of a slab are refused.
#
# ## Further
#
# - [The calculator](../guide/calculator.md): fields as functions of time, `follow`.
# - [Molecular dynamics](../guide/md.md): the options of fields.
# - [Response](../theory/response.md): where the formulas are from.
