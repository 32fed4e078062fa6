# %% [markdown]
# # Vibrations of a molecule: modes, infrared, Raman
#
# This tutorial computes normal modes of the water molecule and of the water dimer, with infrared
# intensities and Raman activities, and replaces hydrogen by deuterium. It uses the model that
# comes with the package (`demo`), which has learned water and its clusters from GFN2-xTB. With
# your own model put its file in the place of `demo`.

# %%
import csv

import matplotlib.pyplot as plt
import numpy as np
from ase.build import molecule
from ase.io import write
from ase.vibrations import VibrationsData
from helper import run, save, start

QUICK = start("molecule_modes")

# %% [markdown]
# ## One command
#
# `mace_polmp modes` relaxes a structure (`--relax`), takes exact second derivatives, Born charges
# and derivatives of the polarizability, and prints the modes.

# %%
write("h2o.xyz", molecule("H2O"))
_ = run("mace_polmp modes --model demo --structure h2o.xyz --relax 0.001 --output h2o")

# %% [markdown]
# Measured fundamentals of gaseous H2O are 1595 (bend), 3657 and 3756 cm⁻¹ (stretches). Three
# things lie between them and the table: the model is harmonic, the fundamentals are not (the
# stretches lie 150–200 cm⁻¹ lower for that reason alone); GFN2-xTB has errors of its own; and the
# model has errors against GFN2-xTB (see its card, `mace_polmp/data/DEMO.md`).
#
# Infrared intensities are derivatives of the dipole, that is Born charges. They follow from the
# latent multipoles, also of models without electrical labels. The demo model had dipoles as labels.
#
# ## What moves
#
# The command also writes a JSON file for ASE. From there come the displacements of the atoms.

# %%
data = VibrationsData.read("h2o.json")
atoms, modes = data.get_atoms(), data.get_modes()[-3:]
frequencies = [float(row["frequency_cm-1"]) for row in csv.DictReader(open("h2o.csv"))]

flat = np.linalg.svd(atoms.positions - atoms.positions.mean(0))[2][:2]  # the molecular plane
places = (atoms.positions - atoms.positions.mean(0)) @ flat.T
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for axis, mode, frequency in zip(axes, modes, frequencies, strict=True):
    arrows = 0.8 * (mode @ flat.T) / np.linalg.norm(mode, axis=1).max()
    sizes = [900 if symbol == "O" else 350 for symbol in atoms.symbols]
    colours = ["C3" if symbol == "O" else "0.8" for symbol in atoms.symbols]
    axis.scatter(*places.T, s=sizes, c=colours, edgecolors="k")
    axis.quiver(*places.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.012, zorder=3)
    axis.set(title=f"{frequency:.0f} cm⁻¹", xlabel="Å", aspect="equal")
    axis.set(xlim=(-1.9, 1.9), ylim=(-1.7, 1.7))
figure.suptitle("Modes of H₂O, demo model (GFN2-xTB)")
save(figure, "molecule_modes_arrows")

# %% [markdown]
# ## A hydrogen bond
#
# In the dimer the O–H bond that points to the other molecule gets weaker and its stretch moves to
# lower wavenumbers; its infrared intensity grows several times. Six new modes appear below 1000
# cm⁻¹, in which the molecules move against each other.

# %%
from ase import Atoms

dimer = Atoms(
    "OH2OH2",
    [[-1.46, 0, 0.1], [-1.8, 0.1, -0.8], [-0.5, 0, 0], [1.4, 0, 0], [1.75, 0.75, 0.4],
     [1.75, -0.75, 0.4]],
)  # fmt: skip
write("dimer.xyz", dimer)
_ = run(
    "mace_polmp modes --model demo --structure dimer.xyz --relax 0.001 --output dimer",
    show="vibrations of",
)

# %% [markdown]
# ## Isotopes
#
# Masses are those of the file, where it has a column `masses`. D2O has the same forces, and the
# measured fundamentals 1178, 2671 and 2788 cm⁻¹.

# %%
heavy = atoms.copy()
heavy.set_masses([2.014 if symbol == "H" else None for symbol in heavy.symbols])
heavy.set_array("masses", heavy.get_masses())
write("d2o.xyz", heavy, columns=["symbols", "positions", "masses"])
_ = run("mace_polmp modes --model demo --structure d2o.xyz --output d2o", show="vibrations of")

# %% [markdown]
# ## Spectra
#
# The command draws spectra (`h2o_ir.png`, `h2o_raman.png`). The CSV files hold what is needed for
# a figure of one's own: each line gets a width here (Lorentzians of 20 cm⁻¹ full width).


# %%
def spectrum(name, column, grid, width=20.0):
    """Sticks and their sum of Lorentzians with unit area."""
    rows = list(csv.DictReader(open(f"{name}.csv")))
    centres = np.array([float(row["frequency_cm-1"]) for row in rows])
    heights = np.array([float(row[column]) for row in rows])
    shapes = (width / 2 / np.pi) / ((grid[:, None] - centres) ** 2 + (width / 2) ** 2)
    return centres, heights, shapes @ heights


grid = np.linspace(0, 4200, 2100)
figure, axes = plt.subplots(2, 1, figsize=(8, 5.6), sharex=True, layout="constrained")
columns = [
    ("infrared_km/mol", "absorption /\n(km/mol per cm⁻¹)"),
    ("raman_activity_A4/amu", "Raman activity /\n(Å⁴/amu per cm⁻¹)"),
]
names = {"h2o": "H₂O", "d2o": "D₂O", "dimer": "(H₂O)₂"}
for axis, (column, label) in zip(axes, columns, strict=True):
    for number, (name, words) in enumerate(names.items()):
        axis.plot(grid, spectrum(name, column, grid)[2], color=f"C{number}", lw=1.2, label=words)
    axis.set_ylabel(label)
for fundamental in (1595, 3657, 3756):
    axes[0].axvline(fundamental, color="k", ls=":", lw=0.8)
axes[0].set_title("Harmonic spectra, demo model (dotted: measured fundamentals of H₂O)")
axes[0].legend(frameon=False)
axes[1].set_xlabel("wavenumber / cm⁻¹")
save(figure, "molecule_modes_spectra")

# %% [markdown]
# ## What to trust
#
# - **Frequencies** are as good as the forces. Compare with the method that the model has learned
#   from before you compare with an experiment.
# - **Infrared intensities** are as good as the Born charges. `mace_polmp evaluate` prints a
#   [verdict on the charges](../choose/charges.md) where labels are there.
# - **Raman activities** of this model show only how the command works. The model has induced
#   dipoles, but has never seen a polarizability: energies and forces alone do not say how it
#   changes with the bonds, and its atoms are isotropic. For Raman spectra train with
#   `--polarizability anisotropic` and labels (`--polarizability_weight`), see
#   [labels](../guide/labels.md).
#
# ## Further
#
# - [Spectra](../guide/spectra.md): all options, crystals and their longitudinal modes.
# - [Bulk water](water_ir.md): a spectrum from molecular dynamics, with anharmonicity and
#   temperature.
