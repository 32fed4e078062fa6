# %% [markdown]
# # Path integrals with i-PI
#
# This tutorial treats the nuclei of a water molecule as quantum particles: i-PI moves a ring of
# beads, copies of the molecule joined by springs, and the calculator answers over a socket. It
# needs `pip install ipi` (the extra `.[ipi]`). `examples/ipi` has the same as two commands for a
# terminal.
#
# A bond O–H at 300 K is in its ground state, and the classical picture is wrong for it: the
# zero-point energy of H2O is 0.57 eV, while k_B T is 0.026 eV.

# %%
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase import units
from ase.build import molecule
from ase.calculators.socketio import SocketClient
from ase.io import read, write
from ase.optimize import BFGS
from helper import need, save, start

from mace_polmp import MultipoleMACECalculator

QUICK = start("path_integrals")
need("ipi", "ipi")
import ipi

calculator = MultipoleMACECalculator("demo", default_dtype="float64")
water = molecule("H2O")
water.calc = calculator
BFGS(water, logfile=None).run(fmax=0.001)
water.cell = [30.0] * 3  # i-PI wants a cell, also where nothing is periodic
write("init.xyz", water, columns=["symbols", "positions"], write_results=False)

# %% [markdown]
# ## i-PI's input
#
# `nbeads` is the number of copies: 1 is classical dynamics, 16 to 32 are converged for water at
# 300 K. We take 1 and 8.

# %%
INPUT = """<simulation verbosity='low'>
  <output prefix='{prefix}'>
    <properties stride='4' filename='out'>
      [ step, time{{picosecond}}, conserved{{electronvolt}}, potential{{electronvolt}},
        kinetic_cv{{electronvolt}} ]
    </properties>
    <trajectory stride='4' filename='pos' format='ase'> positions{{ase}} </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> 3 </seed> </prng>
  <ffsocket name='mace_polmp' mode='unix' pbc='false'>
    <address> {address} </address>
    <latency> 1e-4 </latency>
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase'> init.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces> <force forcefield='mace_polmp'/> </forces>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'> 0.25 </timestep>
        <thermostat mode='pile_l'> <tau units='femtosecond'> 50 </tau> </thermostat>
      </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
  </system>
</simulation>
"""


def run_ipi(beads, steps):
    """Start i-PI, answer it until it ends, and read what it wrote."""
    prefix, address = f"beads{beads}", f"mace_polmp_{os.getpid()}_{beads}"
    text = INPUT.format(prefix=prefix, steps=steps, address=address, beads=beads)
    Path(f"{prefix}.xml").write_text(text)
    beside = [Path(sys.executable).parent, Path(ipi.__file__).parents[1] / "bin"]
    program = shutil.which("i-pi", path=os.pathsep.join(map(str, beside)))
    log = open(f"{prefix}.log", "w")
    server = subprocess.Popen(
        [sys.executable, program, f"{prefix}.xml"], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        while not Path(f"/tmp/ipi_{address}").exists():  # it listens after a second or two
            if server.poll() is not None:
                raise RuntimeError(f"i-PI ended: see {prefix}.log")
            time.sleep(0.1)
        atoms = water.copy()
        atoms.calc = calculator
        SocketClient(unixsocket=address).run(atoms, use_stress=False)
        server.wait(60)
    finally:
        server.kill()
        log.close()
    table = np.loadtxt(f"{prefix}.out")
    bonds = []
    for path in sorted(Path().glob(f"{prefix}.pos_*")):
        frames = read(path, ":", format="extxyz")
        bonds.append([frame.get_distances(0, [1, 2]) for frame in frames])
    return table, np.array(bonds)


begun = time.perf_counter()
runs = {}
for beads, steps in ((1, 40), (4, 12)) if QUICK else ((1, 2400), (8, 500)):
    runs[beads] = run_ipi(beads, steps)
    table, bonds = runs[beads]
    print(
        f"{beads} beads: {steps} steps, conserved energy within "
        f"{1000 * np.ptp(table[:, 2]):.1f} meV, "
        f"bond lengths of {bonds.shape[0]} beads x {bonds.shape[1]} frames"
    )

# %% [markdown]
# i-PI's conserved quantity shows whether the time step is small enough. Several clients can share
# the beads: start `examples/ipi/client.py` as many times as there are cores or GPUs.
#
# ## Energies
#
# In the harmonic approximation the mean kinetic energy of P beads is known for each vibration. The
# first quarter of each run is left out.

# %%
hessian = calculator.get_hessian(water).reshape(9, 9)
masses = np.repeat(water.get_masses(), 3)
squares = np.linalg.eigvalsh(hessian / np.sqrt(np.outer(masses, masses)))[-3:]
energies = (
    units._hbar * np.sqrt(squares * units._e / units._amu * 1e20) / units._e
)  # hbar omega, eV
kT = units.kB * 300


def harmonic(beads):
    """Kinetic energy of three vibrations of a ring of beads and six classical motions, eV."""
    k = np.arange(beads)
    springs = (2 * beads * kT * np.sin(np.pi * k / beads)) ** 2  # (hbar omega_k)^2
    each = [kT / 2 * np.sum(energy**2 / (energy**2 + springs)) for energy in energies]
    return sum(each) + 6 * kT / 2


exact = sum(energy / 4 / np.tanh(energy / (2 * kT)) for energy in energies) + 6 * kT / 2
for beads, (table, _) in runs.items():
    kinetic = table[len(table) // 4 :, 4]
    print(
        f"{beads} beads: kinetic energy {kinetic.mean():.3f} eV, harmonic with so many beads "
        f"{harmonic(beads):.3f} eV"
    )
print(f"harmonic, infinitely many beads: {exact:.3f} eV; classical {9 * kT / 2:.3f} eV")

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for number, (beads, (_, bonds)) in enumerate(runs.items()):
    words = "classical" if beads == 1 else f"{beads} beads"
    lengths = bonds[:, bonds.shape[1] // 4 :].ravel()
    axis.hist(lengths, bins=np.linspace(0.75, 1.25, 51), density=True, histtype="step",
              color=f"C{number}", lw=1.6, label=words)  # fmt: skip
    print(f"{words}: O-H {lengths.mean():.3f} Å, spread {lengths.std():.3f} Å")
axis.axvline(water.get_distance(0, 1), color="k", ls=":", lw=0.9, label="minimum of the energy")
axis.set(
    xlabel="O–H distance / Å",
    ylabel="probability density / Å⁻¹",
    title="H₂O at 300 K, demo model, i-PI",
)
axis.legend(frameon=False)
save(figure, "path_integrals_bonds")

# %% [markdown]
# The quantum bond is two to three times as broad as the classical one and a little longer, because
# the energy rises more slowly outwards than inwards. Infrared spectra with such effects need more:
# thermostatted ring-polymer or centroid dynamics, which i-PI has as well; dipoles of its frames
# come from the calculator afterwards.
#
# ## Further
#
# - [i-PI and OpenMM](../guide/ipi_openmm.md).
# - [Vibrations](molecule_modes.md): the harmonic frequencies behind the comparison.
