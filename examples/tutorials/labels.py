# %% [markdown]
# # Training on dipoles and Born charges
#
# This tutorial trains three models on the same forty-eight structures: on energies and forces
# alone, with dipoles, and with Born charges as well. It shows how labels stand in the files, which
# weights to give, and what the labels do to the charges. It needs `pip install -c constraints.txt
# '.[label]'` (tblite), which makes the Born charges.

# %%
import csv

import matplotlib.pyplot as plt
import numpy as np
from ase.io import read, write
from helper import need, run, save, start

from mace_polmp import MultipoleMACECalculator
from mace_polmp.cli.quickstart import data_file

QUICK = start("labels")
need("tblite", "label")

# %% [markdown]
# ## Structures with labels
#
# The frames are clusters of one to three waters from the embedded data (GFN2-xTB). They have
# dipoles (`REF_dipole`, e Å). `mace_polmp label` adds Born charges of the same method: nine
# columns per atom, [polarization, displacement], in e. With labels of your own reference method
# write the same names into the file.

# %%


def waters(name, step):
    """Every step-th cluster of water molecules without ions."""
    frames = read(data_file(name), ":")
    frames = [
        a for a in frames if a.info["config_type"] == "cluster" and set(a.symbols) == {"H", "O"}
    ]
    return frames[::step]


train, valid = waters("train", 40 if QUICK else 4), waters("valid", 9 if QUICK else 1)
write("train_plain.xyz", train[:48])
write("valid_plain.xyz", valid)
for part in ("train", "valid"):
    _ = run(
        f"mace_polmp label {part}_plain.xyz --output {part}.xyz "
        "--quantities dipole born_charges --compare 4 --jobs 1"
    )

# %%
_ = run("mace_polmp check-data train.xyz")

# %% [markdown]
# `check-data` proposes weights for the labels that it finds. A label counts when its weight is
# given: the same files serve all three trainings.
#
# ## Three trainings

# %%
common = (
    "mace_run_train --model MultipoleMACE --train_file train.xyz --valid_file valid.xyz "
    "--E0s '{1: -10.7, 8: -116.488}' --r_max 4 --num_channels 8 --max_L 1 --max_ell 2 "
    "--correlation 2 --batch_size 4 --valid_batch_size 18 --energy_weight 40 --forces_weight 1 "
    "--lr 0.02 --scheduler ExponentialLR --lr_scheduler_gamma 0.9 "
    f"--max_num_epochs {1 if QUICK else 24} --ema --ema_decay 0.99 "
    "--error_table PerAtomRMSE --plot False --seed 1"
)
labels = {
    "none": "",
    "dipole": " --dipole_weight 100",
    "born": " --dipole_weight 100 --born_charges_weight 10",
}
for name, flags in labels.items():
    _ = run(f"{common} --name {name}{flags}", show="Error-table on TRAIN")

# %% [markdown]
# ## What the labels do
#
# `mace_polmp evaluate` compares with all labels of a file, whether they were trained on or not,
# and gives a verdict on the charges.

# %%
results = {}
for name in labels:
    _ = run(
        f"mace_polmp evaluate --model {name}.model --configs valid.xyz --output {name}",
        show="Verdict",
    )
    rows = csv.DictReader(open(f"{name}/errors.csv"))
    results[name] = {row["quantity"]: row for row in rows if row["element"] == "all"}

# %%
print("labels    forces RMSE   dipole RMSE   R²       Born charges RMSE   R²")
print("          meV/Å         e Å                    e")
for name, found in results.items():
    forces, dipole, born = found["forces"], found["dipole"], found["born_charges"]
    print(
        f"{name:9s} {float(forces['RMSE']):8.1f}      {float(dipole['RMSE']):.4f}   "
        f"{float(dipole['R2']):8.4f}   {float(born['RMSE']):13.4f}    {float(born['R2']):10.4f}"
    )

figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained", sharex=True, sharey=True)
frames = read("valid.xyz", ":")
titles = {"none": "energies and forces", "dipole": "and dipoles", "born": "and Born charges"}
for axis, (name, words) in zip(axes, titles.items(), strict=True):
    calculator = MultipoleMACECalculator(f"{name}.model", default_dtype="float64")
    for symbol, colour in (("O", "C3"), ("H", "C0")):
        pairs = []
        for atoms in frames:
            mine = calculator.get_property("born_charges", atoms)
            label = atoms.arrays["REF_born_charges"].reshape(-1, 3, 3)
            chosen = atoms.symbols == symbol
            pairs.append((label[chosen].ravel(), mine[chosen].ravel()))
        reference, predicted = (np.concatenate(each) for each in zip(*pairs, strict=True))
        axis.plot(reference, predicted, ".", ms=3, color=colour, label=symbol)
    axis.plot([-1.5, 1.2], [-1.5, 1.2], "k-", lw=0.8)
    axis.set(title=words, xlabel="Born charge, GFN2-xTB / e", aspect="equal")
axes[0].set_ylabel("Born charge, model / e")
axes[0].legend(frameon=False, markerscale=3)
figure.suptitle("Born charges of (H₂O)ₙ that were not trained on, three models")
save(figure, "labels_parity")

# %% [markdown]
# Energies and forces of so few small clusters say little about charges. Dipoles fix the charges of
# a molecule as a whole, and Born charges how they move with the atoms, which is what an infrared
# spectrum needs. The forces need not suffer: the table above has them too.
#
# ## Choosing weights
#
# - The loss adds squares: of dipoles in e Å (per atom), of Born charges in e, of forces in eV/Å.
#   When all errors contribute about the same, the weights are right. 100 for dipoles and 10 for
#   Born charges are a fair start.
# - Born charges cost about one more evaluation of the structures that have them. A part of the
#   frames is enough.
# - Dipoles and polarizabilities are labels of open structures. Born charges may be those of a
#   crystal or a liquid: give `--epsilon_infinity` then, or let it be learned.
# - Labels of another method than the energies are fine. GFN2-xTB's, times 0.9 for its too large
#   dipoles (`--scale 0.9`), are much better than none: see [fine-tuning](fine_tuning.md).
#
# ## Further
#
# - [Labels](../guide/labels.md): names, units, weights, stage two.
# - [Are my charges sensible?](../choose/charges.md): the verdict.
# - [Born charges](../theory/born_charges.md): definition and conventions.
