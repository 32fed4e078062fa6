"""Small trainings, in this process and as a user types them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.calculators.lj import LennardJones
from ase.io import read, write

from mace_polmp.cli.quickstart import data_file
from tests.helpers import rattled, rock_salt

SMALL = {
    "r_max": 3.5,
    "num_channels": 8,
    "max_L": 1,
    "max_ell": 2,
    "correlation": 2,
    "num_interactions": 2,
    "batch_size": 4,
    "valid_batch_size": 4,
    "max_num_epochs": 2,
    "E0s": "average",
    "plot": "False",
    "seed": 3,
    "default_dtype": "float64",
}


@functools.cache
def _embedded():
    return read(data_file("train"), ":")


def open_frames(n=12):
    """Dimers at the end of the embedded data."""
    return [atoms.copy() for atoms in _embedded()[-n:]]


def periodic_frames(n=8):
    """Rattled NaCl with energy, forces and stress of a Lennard-Jones crystal."""
    frames = []
    for seed in range(n):
        atoms = rattled(rock_salt(), seed=seed, stdev=0.05)
        atoms.calc = LennardJones(sigma=2.5, epsilon=0.3, rc=5.0)
        labels = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
        atoms.calc = None
        atoms.info.update(REF_energy=labels[0], REF_stress=labels[2])
        atoms.arrays["REF_forces"] = labels[1]
        frames.append(atoms)
    return frames


def write_data(folder, frames=None, name="train.xyz") -> Path:
    path = Path(folder) / name
    write(path, frames if frames is not None else open_frames(), format="extxyz")
    return path


def flags(folder, name="m", **changes) -> list[str]:
    settings = {**SMALL, "name": name, "work_dir": folder, **changes}
    settings.setdefault("valid_fraction", 0.34)
    out = []
    for key, value in settings.items():
        if value is True:
            out.append(f"--{key}")
        elif value is not None:
            out.append(f"--{key}={value}")
    return out


def run_module(module, arguments, cwd, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def log_of(folder, name="m", seed=3) -> str:
    return (Path(folder) / "logs" / f"{name}_run-{seed}.log").read_text()


def finite(array) -> bool:
    return bool(np.isfinite(np.asarray(array)).all())
