# %% [markdown]
# # Fine-tuning a foundation model
#
# This tutorial adds the long-range head to a MACE that is already trained, and shows why labels
# for the charges belong to it: `mace_polmp label` borrows them from GFN2-xTB. It needs `pip
# install -c constraints.txt '.[label]'` (tblite).
#
# No network is needed: the "foundation model" here is a small plain MACE that the script trains
# first. With a real one, `--foundation_model small` (mace-torch fetches it) or the path of a file
# takes its place, and nothing else changes.

# %%
import csv

import matplotlib.pyplot as plt
import numpy as np
from ase.io import read, write
from helper import need, run, save, start

from mace_polmp import MultipoleMACECalculator
from mace_polmp.cli.quickstart import data_file

QUICK = start("fine_tuning")
need("tblite", "label")

# %% [markdown]
# ## A plain MACE
#
# Energies and forces of clusters of one to three waters (the embedded data), no charges anywhere.
# The dipoles in the file are removed, as most data sets have none.

# %%


def waters(name, step):
    """Every step-th cluster of water molecules without ions, with energies and forces only."""
    frames = [a for a in read(data_file(name), ":") if a.info["config_type"] == "cluster"]
    frames = [a for a in frames if set(a.symbols) == {"H", "O"}][::step]
    for atoms in frames:
        atoms.info.pop("REF_dipole")
    return frames


write("train.xyz", waters("train", 40 if QUICK else 3))
write("valid.xyz", waters("valid", 9 if QUICK else 1))
print(len(read("train.xyz", ":")), "frames to train on")
_ = run(
    "mace_run_train --name plain --model MACE --train_file train.xyz --valid_file valid.xyz "
    "--E0s '{1: -10.7, 8: -116.488}' --r_max 4 --num_channels 8 --max_L 1 --max_ell 2 "
    "--correlation 2 --batch_size 4 --valid_batch_size 18 --energy_weight 40 --forces_weight 1 "
    "--lr 0.02 --scheduler ExponentialLR --lr_scheduler_gamma 0.85 "
    f"--max_num_epochs {1 if QUICK else 20} --ema --ema_decay 0.99 "
    "--error_table PerAtomRMSE --plot False --seed 1",
    show="Error-table on TRAIN",
)

# %% [markdown]
# ## Borrow labels
#
# `mace_polmp label` computes dipoles and Born charges with GFN2-xTB for all open structures of a
# file. Here the energies are GFN2-xTB's as well, so that the factor stays 1. With energies of a
# density functional give `--scale 0.9`: GFN2-xTB's dipoles are some 10 % too large.

# %%
for part in ("train", "valid"):
    _ = run(
        f"mace_polmp label {part}.xyz --output {part}_labelled.xyz "
        "--quantities dipole born_charges --jobs 1"
    )

# %% [markdown]
# ## Fine-tune twice
#
# `--foundation_model` takes the backbone with its weights, and the head is added. Once with
# energies and forces alone, once with the borrowed labels. Everything else is the same.

# %%
common = (
    "mace_run_train --model MultipoleMACE --foundation_model plain.model "
    "--multiheads_finetuning False --E0s foundation --train_file train_labelled.xyz "
    "--valid_file valid_labelled.xyz --batch_size 4 --valid_batch_size 18 --energy_weight 40 "
    "--forces_weight 1 --lr 5e-3 --head_lr 1e-2 "
    f"--head_growth_epochs {0 if QUICK else 2} --scheduler ExponentialLR --lr_scheduler_gamma 0.85 "
    f"--max_num_epochs {1 if QUICK else 16} --ema --ema_decay 0.99 --error_table PerAtomRMSE "
    "--plot False --seed 1"
)
_ = run(f"{common} --name without", show="Error-table on TRAIN")
_ = run(
    f"{common} --name borrowed --dipole_weight 500 --born_charges_weight 50",
    show="Error-table on TRAIN",
)

# %% [markdown]
# ## Compare

# %%
results = {}
for name in ("without", "borrowed"):
    _ = run(
        f"mace_polmp evaluate --model {name}.model --configs valid_labelled.xyz --output {name}",
        show="Verdict",
    )
    rows = csv.DictReader(open(f"{name}/errors.csv"))
    results[name] = {row["quantity"]: row for row in rows if row["element"] == "all"}
print("labels     forces RMSE / meV/Å   dipole R²   Born charges R²")
for name, found in results.items():
    forces, dipole, born = (float(found["forces"]["RMSE"]), float(found["dipole"]["R2"]),
                            float(found["born_charges"]["R2"]))  # fmt: skip
    print(f"{name:9s} {forces:14.1f} {dipole:18.4f} {born:13.4f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained", sharex=True, sharey=True)
titles = {"without": "energies and forces alone", "borrowed": "with borrowed labels"}
frames = read("valid_labelled.xyz", ":")
for axis, (name, words) in zip(axes, titles.items(), strict=True):
    calculator = MultipoleMACECalculator(f"{name}.model", default_dtype="float64")
    labels = np.array([atoms.info["REF_dipole"] for atoms in frames]).ravel()
    mine = np.array([calculator.get_property("dipole", atoms) for atoms in frames]).ravel()
    axis.plot(labels, mine, ".", color="C0")
    ends = 1.1 * np.array([-1, 1]) * np.abs(labels).max()
    axis.plot(ends, ends, "k-", lw=0.8)
    axis.set(title=words, xlabel="dipole, GFN2-xTB / e Å", aspect="equal")
axes[0].set_ylabel("dipole, model / e Å")
figure.suptitle("Dipoles of (H₂O)ₙ after fine-tuning a plain MACE")
save(figure, "fine_tuning_dipoles")

# %% [markdown]
# ## What to expect of a real run
#
# This run is tiny: molecules of one kind, a foundation model of eight channels, few epochs. It
# shows how the steps follow each other, not how good the result will be: forces do not get better
# than those of the foundation model here, and need more epochs. Measured figures
# (`scripts/benchmarks/RESULTS.md`, on the page of [accuracy](../benchmarks/accuracy.md)): a
# published MACE of zwitterionic dipeptides, fine-tuned on 77 frames of other peptides for 40
# epochs, and tested on molecules that were not trained on:
#
# | labels besides energies and forces | minutes | forces MAE, meV/Å | dipole R² | Born charges R² |
# | --- | --- | --- | --- | --- |
# | none | 5.5 | 66.7 | 0.42 | 0.32 |
# | borrowed dipoles and Born charges | 9.4 | 62.1 | 0.98 | 0.91 |
# | then true ones of 20 frames | 2.7 more | 60.0 | 0.98 | 0.94 |
#
# From energies and forces alone the charges of a fine-tuned model stay too small, whatever was
# tried: a trained backbone has already learned what it can of electrostatics. Born charges matter
# more than dipoles, of which a molecule has three numbers.
#
# ## Further
#
# - [Fine-tuning](../guide/fine_tuning.md): all options, names and licences of foundation models,
#   `--training_mode head_only`.
# - [Labels](labels.md): your own dipoles and Born charges.
