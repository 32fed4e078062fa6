# %% [markdown]
# # Electric fields
#
# This tutorial puts a molecule into a uniform electric field: its energy and forces, its
# polarizability, a vibration that moves with the field, and a pulse in molecular dynamics. Then it
# shows what is refused in periodic cells, a field that goes back and forth, and a hysteresis loop.
# Fields are in V/Å: 0.1 V/Å is 0.0019 atomic units, the field of an electron at 12 Å.

# %%
import csv

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
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
# Models with bond charges (`--charge_readout bond`) have a polarization and an energy in fields
# along all directions: see [bond charges](../theory/bond_charges.md).
#
# ## A field that goes back and forth
#
# `--field_ramp SHAPE PERIOD` lets the field go 0 → +F → 0 → −F → 0 in each period (ps). The column
# `work_eV` of md.csv is the work that the field has done, −∫ D·dF. At constant energy the total
# energy less this work does not change:

# %%
_ = run(
    "mace_polmp md --model demo --structure start.xyz --temperature 5 --no_rotation --ensemble nve "
    f"--steps {40 if QUICK else 800} --timestep 0.25 --every 4 --field {x} {y} {z} "
    f"--field_ramp triangle {0.01 if QUICK else 0.1} --output ramp"
)
table = list(csv.DictReader(open("ramp/md.csv")))
total, work = (np.array([float(row[name]) for row in table]) for name in ("total_eV", "work_eV"))
print(f"total energy: changes by {1000 * np.ptp(total):.1f} meV")
print(f"less the work of the field: by {1000 * np.ptp(total - work):.1e} meV")

# %% [markdown]
# ## A hysteresis loop
#
# `mace_polmp spectrum hysteresis` folds such a run of a crystal into one loop of polarization
# against field. The model must have bond charges. There is none in the package, so the run of this
# example is not that of a model: 216 cells, each with a dipole that prefers ±p and follows its
# neighbours, move in a bath (Langevin dynamics, here without inertia). The frames say what those of
# `mace_polmp md` say.

# %%
rng = np.random.default_rng(0)
shape, cell, moment = (6, 6, 6), 4.0, 1.5  # cells along x, y and z; Å; p in e Å
period, step, barrier, coupling, warmth = 20000.0, 5.0, 0.030, 0.012, 0.008  # fs, fs, eV, eV, eV
drag = 20.0  # eV fs
dipoles = np.ones(shape)  # in units of p
frames = []
for number in range(round((1.25 if QUICK else 5) * period / step) + 1):
    strength = 0.06 * (1 - abs(4 * ((number * step / period + 0.25) % 1) - 2))  # V/Å
    if number % 20 == 0:
        box = Atoms("Ti", cell=cell * np.diag(shape), pbc=True)
        box.info.update(time_fs=number * step, external_field=[0.0, 0.0, strength])
        box.info.update(dipole=[0.0, 0.0, moment * dipoles.sum()], field_period_fs=period)
        frames.append(box)
    around = sum(np.roll(dipoles, shift, axis) for axis in range(3) for shift in (-1, 1))
    push = 4 * barrier * dipoles * (1 - dipoles**2) + coupling * (around - 6 * dipoles)
    push += moment * strength
    dipoles = dipoles + push * step / drag
    dipoles += np.sqrt(2 * warmth * step / drag) * rng.normal(size=shape)
write("loop.xyz", frames)
_ = run("mace_polmp spectrum hysteresis loop.xyz --output loop")

# %%
loop = list(csv.DictReader(open("loop.csv")))
strengths = np.array([float(row["field_kV/cm"]) for row in loop])
mean = np.array([float(row["polarization_uC/cm2"]) for row in loop])
figure, axis = plt.subplots(figsize=(5.5, 4), layout="constrained")
axis.plot(np.append(strengths, strengths[0]), np.append(mean, mean[0]))
axis.axhline(0, color="k", lw=0.6)
axis.axvline(0, color="k", lw=0.6)
axis.set(xlabel="field / (kV/cm)", ylabel="polarization / (µC/cm²)", title="a lattice of dipoles")
save(figure, "fields_loop")

# %% [markdown]
# The remanent polarization is what is left at zero field, the coercive field is where the
# polarization changes its sign, and the area is the heat of one period. The command draws the loop
# with a band of its error and the single periods, too (`loop.png`). Of a model with bond charges:
#
# ```bash
# mace_polmp md --model batio3.model --structure cell.xyz --ensemble langevin --temperature 300 \
#     --steps 200000 --timestep 1 --every 20 --field 0 0 0.05 --field_ramp triangle 40 --output run
# mace_polmp spectrum hysteresis run/trajectory.xyz --centre
# ```
#
# A period of dynamics is short, and a small cell has no walls between domains. Coercive fields are
# therefore larger than measured ones, often ten times and more. Compare periods of several lengths.
#
# ## Further
#
# - [The calculator](../guide/calculator.md): fields as functions of time, `follow`.
# - [Molecular dynamics](../guide/md.md): the options of fields.
# - [Response](../theory/response.md): where the formulas are from.
