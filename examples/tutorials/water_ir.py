# %% [markdown]
# # Bulk water: from labels to an infrared spectrum
#
# This tutorial goes the whole way on a box of liquid water: a few frames with labels, a look at
# them, a short training, molecular dynamics, and an infrared spectrum. The box is tiny (8
# molecules) and the reference cheap (GFN2-xTB), so that all of it takes minutes. It needs `pip
# install -c constraints.txt '.[label]'` (tblite).

# %%
import csv

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from helper import need, run, save, start

from mace_polmp import MultipoleMACECalculator

QUICK = start("water_ir")
need("tblite", "label")
from tblite.ase import TBLite

# %% [markdown]
# ## Frames
#
# Data should look like what the model will see. Here the packaged model (`demo`), which knows
# clusters of water and a few snapshots of the liquid, moves a box at the density of water. Frames
# some time apart get energies and forces of GFN2-xTB. With a density functional this is the step
# that costs the computer time: some hundred frames of 64 molecules are usual.

# %%
rng = np.random.default_rng(3)
side = 6.21  # Å, 8 molecules at 1 g/cm³
box = Atoms(cell=[side] * 3, pbc=True)
for place in np.ndindex(2, 2, 2):
    water = molecule("H2O")
    water.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
    water.positions += (np.array(place) + 0.5) * side / 2 - water.get_center_of_mass()
    box += water
box.calc = MultipoleMACECalculator("demo", default_dtype="float32")
FIRE(box, logfile=None).run(fmax=0.5, steps=100)
dynamics = Langevin(
    box, 0.5 * units.fs, temperature_K=300, friction=0.02 / units.fs, rng=rng, fixcm=False
)
dynamics.run(20 if QUICK else 200)

frames = []
for _ in range(4 if QUICK else 20):
    dynamics.run(5 if QUICK else 30)
    atoms = Atoms(box.numbers, box.positions, cell=box.cell, pbc=True)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    atoms.info["REF_energy"] = atoms.get_potential_energy()
    atoms.arrays["REF_forces"] = atoms.get_forces()
    atoms.calc = None
    frames.append(atoms)
write("valid.xyz", frames[::5])
write("train.xyz", [atoms for number, atoms in enumerate(frames) if number % 5])
_ = run("mace_polmp check-data train.xyz", until="notes")

# %% [markdown]
# ## A short training
#
# From nothing, sixteen frames and a minute of training give a model that is not fit for dynamics.
# Starting from a model that knows water they go further: the demo model is taken as foundation
# model, and learns what is different in the liquid. First come its errors as it is. (An error of
# the energy that is the same in all frames does no harm to forces.)

# %%
_ = run("mace_polmp evaluate --model demo --configs valid.xyz --output before", until="acoustic")
_ = run(
    "mace_run_train --name water --model MultipoleMACE --foundation_model demo "
    "--multiheads_finetuning False --train_file train.xyz --valid_file valid.xyz --E0s foundation "
    "--batch_size 2 --valid_batch_size 4 --energy_weight 40 --forces_weight 1 --lr 2e-3 "
    "--head_lr 2e-4 --scheduler ExponentialLR --lr_scheduler_gamma 0.85 "
    f"--max_num_epochs {1 if QUICK else 20} --ema --ema_decay 0.99 "
    "--default_dtype float32 --error_table PerAtomRMSE --plot False --seed 1",
    show="Error-table on TRAIN",
)
_ = run(
    "mace_polmp evaluate --model water.model --configs valid.xyz --output after", show="Verdict"
)

# %% [markdown]
# The validation line of the table is to be compared with the errors before. The charges keep what
# they have learned: their learning rate (`--head_lr`) is small. From energies and forces
# alone charges that were right become smaller again, see [fine-tuning](fine_tuning.md).
#
# ## Dynamics with the current
#
# In a periodic cell the dipole is not defined, but its change in time is: the current J = Σ Z*·v,
# with the Born charges Z*. `md` writes it into the frames. A resolution of 10 cm⁻¹ needs a run of
# 3.8 ps at least; this one is good for 60 cm⁻¹.

# %%
write("start.xyz", Atoms(box.numbers, box.positions, cell=box.cell, pbc=True))
_ = run(
    f"mace_polmp md --model water.model --structure start.xyz --steps {120 if QUICK else 2400} "
    "--timestep 0.5 --ensemble bussi --temperature 300 --every 4 --observables current "
    "--default_dtype float32 --seed 1 --output run",
    show="ps of",
)
table = list(csv.DictReader(open("run/md.csv")))
half = [float(row["temperature_K"]) for row in table[len(table) // 2 :]]
print(f"mean temperature of the second half: {np.mean(half):.0f} K")

# %% [markdown]
# ## The spectrum
#
# The dotted lines in the picture are measured bands of liquid water.

# %%
_ = run(
    f"mace_polmp spectrum ir run/trajectory.xyz --skip {5 if QUICK else 300} "
    f"--resolution {2000 if QUICK else 60} --output ir"
)

# %%
rows = np.array([[float(word) for word in row] for row in list(csv.reader(open("ir.csv")))[1:]])
figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
axis.plot(rows[:, 0], rows[:, 1] / 1000, lw=1.2)
for position, words in (
    (200, "hydrogen\nbond"),
    (680, "libration"),
    (1640, "bend"),
    (3400, "stretch"),
):
    axis.axvline(position, color="k", ls=":", lw=0.9)
    axis.annotate(
        words, (position + 15, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=8
    )
axis.set(
    xlabel="wavenumber / cm⁻¹",
    ylabel="n·α / (1000 cm⁻¹)",
    xlim=(0, 4200),
    ylim=(0, 1.2 * rows[:, 1].max() / 1000),
    title="Liquid water, 300 K, resolution 60 cm⁻¹: demo model tuned on 16 frames (GFN2-xTB)",
)
save(figure, "water_ir_spectrum")

# %% [markdown]
# ## What to trust
#
# Bends and stretches can be no better than the reference: GFN2-xTB puts the bend of H2O at 1539
# cm⁻¹ (measured: 1595) and its stretches at 3643 and 3651 (3657 and 3756). Nuclei move
# classically, which leaves the stretch too high. Heights are those of one short run of 8
# molecules: repeat it with other seeds to see how much they vary.
#
# For a spectrum that is worth publishing:
#
# | | here | better |
# | --- | --- | --- |
# | reference | GFN2-xTB, Γ point | a density functional that is known to be good for water |
# | frames | 16 of 8 molecules | some hundred of 64, from several temperatures |
# | model | the demo model, tuned | trained from the start on all of them |
# | run | 1.2 ps of 8 molecules | 50 ps and more of 64, several seeds |
# | resolution | 60 cm⁻¹ | 10 to 20 cm⁻¹ |
# | charges | from energies and forces | checked against Born charges of some frames |
#
# ## Further
#
# - [Spectra](../guide/spectra.md): windows, quantum corrections, Raman, dielectric constants.
# - [Accuracy on bulk water](../benchmarks/accuracy.md), with RPBE-D3 as reference.
# - [Labels](labels.md): dipoles and Born charges as targets.
