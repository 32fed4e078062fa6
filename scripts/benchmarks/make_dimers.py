#!/usr/bin/env python
"""Make dimers of the classes CP, PA and AA, on which no setting of the benchmark was chosen.

    python scripts/benchmarks/make_dimers.py --data_dir DATA --output xtb_dimers

Molecules of the published dimer set (its files in DATA), relaxed, turned at random and
pulled apart from a gap of 2.6 Å to 15 Å in a periodic 30 Å box; ten frames to train, the farthest
three to test, in the format of that set. Labels: GFN2-xTB from tblite (pip install
'mace-polmp[data]').
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.optimize import BFGS
from scipy.spatial.transform import Rotation
from tblite.ase import TBLite
from tqdm import tqdm

BOX, GAP, FARTHEST, N_FRAMES, N_TEST = 30.0, 2.6, 15.0, 13, 3  # Å
ALONG = np.ones(3) / np.sqrt(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the set")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("xtb_dimers"),
        help="not the folder of the set, whose own files of these classes have the same names",
    )
    args = parser.parse_args()
    if args.output.resolve() == args.data_dir.resolve():
        parser.error("--output must not be --data_dir: files there would be overwritten")
    args.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    ions, with_apolar, polars = (
        read(args.data_dir / f"dimers_{name}_train.xyz", 0) for name in ("CC", "CA", "PP")
    )
    cation, apolar, polar = (
        relaxed(ions[:16], 1),
        relaxed(with_apolar[16:], 0),
        relaxed(polars[12:], 0),
    )
    classes = {"CP": (cation, polar, 1), "PA": (polar, apolar, 0), "AA": (apolar, apolar, 0)}
    for name, (first, second, charge) in classes.items():
        frames = pulled_apart(turned(first, rng), turned(second, rng), charge, name)
        write(args.output / f"dimers_{name}_train.xyz", frames[:-N_TEST])
        write(args.output / f"dimers_{name}_test.xyz", frames[-N_TEST:])


def calculator(charge: int) -> TBLite:
    """Converged tightly: interactions at 15 Å are a tenth of an meV."""
    return TBLite(method="GFN2-xTB", charge=charge, verbosity=0, accuracy=0.001, max_iterations=500)


def relaxed(molecule: Atoms, charge: int) -> Atoms:
    atoms = Atoms(molecule.numbers, molecule.positions, calculator=calculator(charge))
    BFGS(atoms, logfile=None).run(fmax=0.03, steps=200)
    return Atoms(atoms.numbers, atoms.positions - atoms.get_center_of_mass())


def turned(molecule: Atoms, rng: np.random.Generator) -> Atoms:
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    return Atoms(molecule.numbers, molecule.positions @ turn.T)


def labelled(atoms: Atoms, charge: int) -> Atoms:
    frame = Atoms(atoms.numbers, atoms.positions, cell=3 * [BOX], pbc=True)
    boxed = frame.copy()
    boxed.calc = calculator(charge)
    frame.info["REF_energy"] = boxed.get_potential_energy()
    frame.arrays["REF_forces"] = boxed.get_forces()
    return frame


def pulled_apart(first: Atoms, second: Atoms, charge: int, name: str) -> list[Atoms]:
    """Labelled frames of rising distance of the centres of mass; the first molecule has the
    charge.
    """

    def closest(distance: float) -> float:
        apart = first.positions[:, None] - (second.positions + distance * ALONG)
        return float(np.linalg.norm(apart, axis=-1).min())

    parts = labelled(first, charge), labelled(second, 0)
    alone = sum(part.info["REF_energy"] for part in parts)
    nearest = next(distance for distance in np.arange(3, 9, 0.05) if closest(distance) > GAP)
    frames = []
    for distance in tqdm(np.geomspace(nearest, FARTHEST, N_FRAMES), desc=name, disable=None):
        moved = Atoms(second.numbers, second.positions + distance * ALONG)
        frame = labelled(first + moved, charge)
        frame.info.update(
            distance=float(distance),
            inter_energy=frame.info["REF_energy"] - alone,
            energy_monomers=alone,
        )
        frames.append(frame)
    return frames


if __name__ == "__main__":
    main()
