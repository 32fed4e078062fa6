# %% [markdown]
# # Ions and charged molecules
#
# This tutorial is about structures that carry a charge: what the latent charges of an ion and its
# waters are, how the interaction falls off when they part, what total charges do in a training,
# and how to say them afterwards. It uses the packaged model (`demo`), data that come
# with the package, and a short training of its own.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase.io import read, write
from helper import run, save, start

from mace_polmp import MultipoleMACECalculator
from mace_polmp.cli.quickstart import data_file

QUICK = start("ions")
demo = MultipoleMACECalculator("demo", default_dtype="float64")

# %% [markdown]
# ## Which atoms carry the charge?
#
# The demo model was trained with the total charges of its structures as labels
# (`--total_charge_weight`), and it tells a fragment's charge from its atoms. Here are frames of
# ions with up to three waters. The sum of the charges is near the total charge, not exactly equal
# to it.

# %%
frames = read(data_file("valid"), ":")
clusters = {a.get_chemical_formula(): a for a in frames if a.info["config_type"] == "cluster"}
print("cluster    total   sum of charges   charge of the ion   mean of a water")
for formula in ("H2O", "H4O2", "H2NaO", "H6NaO3", "H2ClO", "H6ClO3"):
    atoms = clusters[formula]
    atoms.calc = demo
    charges = atoms.get_charges()
    ions = [i for i, symbol in enumerate(atoms.symbols) if symbol in ("Na", "Cl")]
    waters = sum(atoms.symbols == "O")
    ion = charges[ions].sum()
    print(
        f"{formula:9s} {atoms.info['total_charge']:+5.0f} {charges.sum():+13.3f} "
        f"{ion:+18.3f} {(charges.sum() - ion) / waters:+17.3f}"
    )

# %% [markdown]
# ## Pulled apart
#
# Energies of a charge and a dipole fall off as 1/r². A network with a cutoff of 4 Å sees nothing
# of this beyond its reach; the long-range head does. The curves below are embedded in the package:
# fragments pulled apart along a line, computed with GFN2-xTB. The demo model was trained on
# gaps of 1.9 to 7 Å (its card, `mace_polmp/data/DEMO.md`, says more).

# %%


def interaction(atoms, calculator):
    """Energy of a pair less those of its fragments, and its long-range part, eV."""
    n = atoms.info["n_first"]
    energies, long_range = [], []
    for part in (atoms[:], atoms[:n], atoms[n:]):
        part.calc = calculator
        energies.append(part.get_potential_energy())
        long_range.append(float(calculator.results["long_range_energy"]))
    return energies[0] - energies[1] - energies[2], long_range[0] - long_range[1] - long_range[2]


curves = {}
for atoms in read(data_file("curves"), ":")[:: 8 if QUICK else 2]:
    row = (atoms.info["gap"], atoms.info["REF_interaction"], *interaction(atoms, demo))
    curves.setdefault(atoms.info["curve"], []).append(row)

figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.6), layout="constrained")
for axis, (name, rows) in zip(axes, curves.items(), strict=True):
    gap, reference, total, long_range = np.array(rows).T
    axis.plot(gap, reference, "ko", mfc="none", ms=4, label="GFN2-xTB")
    axis.plot(gap, total, "C0-", label="demo model")
    axis.plot(gap, long_range, "C0--", lw=1, label="its long-range part")
    axis.axhline(0, color="0.6", lw=0.8)
    low, high = reference.min(), reference.max()
    axis.set(
        title=name, xlabel="gap / Å", ylim=(low - 0.15 * (high - low), high + 0.15 * (high - low))
    )
    far = gap > 8.5
    if far.any():
        error = 1000 * np.sqrt(np.mean((total - reference)[far] ** 2))
        print(f"{name}: RMSE of gaps above 8.5 Å {error:.1f} meV")
axes[0].set_ylabel("interaction energy / eV")
figure.suptitle("Two fragments pulled apart: GFN2-xTB and the demo model")
axes[-1].legend(frameon=False)
save(figure, "ions_curves")

# %% [markdown]
# Far apart the whole interaction is the long-range part: the dashed line meets the solid one.
#
# ## Total charges in a training
#
# There are two ways to tell a training about charges:
#
# - `--total_charge_weight W`: the total charge of a structure is a label. The model learns which
#   fragments are ions, and needs no charge later. Right for ions among neutral molecules, which
#   may be far apart.
# - `--constrain_charge softness`: the charges of a structure sum exactly to `total_charge`, and
#   what is lacking is spread over its atoms. Right for one molecule at a time, also one whose
#   charge its atoms do not tell (a cation and an anion of the same molecule). The model then needs
#   the charge of every structure.
#
# Here is a short training of the second kind. `total_charge` stands in the comment line of each
# frame. It is far too short for good forces, and long enough to see what the constraint does.

# %%
train = [a for a in read(data_file("train"), ":") if a.info["config_type"] == "cluster"]
write("train.xyz", train[:: 40 if QUICK else 6])
write("valid.xyz", [a for a in frames if a.info["config_type"] == "cluster"][::6])
print(open("train.xyz").readlines()[1].strip())

# %%
E0S = "{1: -10.7, 8: -116.488, 11: 5.319, 17: -130.210}"  # eV; of Na+ and Cl-, not of the atoms
_ = run(
    "mace_run_train --name constrained --model MultipoleMACE --constrain_charge softness "
    f"--train_file train.xyz --valid_file valid.xyz --E0s '{E0S}' --r_max 4 --num_channels 8 "
    f"--max_L 1 --max_ell 2 --correlation 2 --batch_size 8 --max_num_epochs {2 if QUICK else 25} "
    "--lr 0.02 --energy_weight 40 --forces_weight 1 --dipole_weight 20 --ema --ema_decay 0.99 "
    "--error_table PerAtomRMSE --plot False --seed 1",
    show="Error-table on TRAIN",
)

# %% [markdown]
# ## Saying the total charge afterwards
#
# `atoms.info["total_charge"]` says it in Python, `--total_charge` for commands whose file says
# nothing. Where nothing says it, 0 is assumed, and printed once. A wrong one gives wrong charges
# and a wrong energy, as the last line shows:

# %%
constrained = MultipoleMACECalculator("constrained.model", default_dtype="float64")
atoms = clusters["H6NaO3"].copy()
atoms.calc = constrained
for charge in (1, 0):
    atoms.info["total_charge"] = charge
    energy = atoms.get_potential_energy()
    print(
        f"total_charge {charge:+d}: charges sum to {atoms.get_charges().sum():+.6f} e, "
        f"Na {atoms.get_charges()[0]:+.2f} e, energy {energy:.2f} eV"
    )
print(f"GFN2-xTB, charge +1: {clusters['H6NaO3'].info['REF_energy']:.2f} eV")

# %% [markdown]
# ## The energy of a bare ion
#
# An atom without neighbours within the cutoff has the energy E0 of its element. So E0 must be the
# energy of the *ion* where bare ions occur (a frame of one atom with `config_type=IsolatedAtom`
# and its `total_charge`, or `--E0s` as above). An average over clusters is 0.7 eV off for Cl⁻, and
# no training mends it.

# %%
from ase import Atoms

for symbol, charge in (("Na", 1), ("Cl", -1)):
    ion = Atoms(symbol, info={"total_charge": charge})
    ion.calc = demo
    print(
        f"{symbol}: E = {ion.get_potential_energy():.4f} eV, "
        f"latent charge {ion.get_charges()[0]:+.3f} e"
    )

# %% [markdown]
# ## Further
#
# - [Total charges](../guide/total_charges.md): names, options, what is refused.
# - [Charge constraints](../theory/charge_constraints.md): how the charge is spread.
# - [Are my charges sensible?](../choose/charges.md)
