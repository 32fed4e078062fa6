#!/usr/bin/env python
"""Fine-tuning where GFN2-xTB has no labels of the frames, or the frames are ions.

    python scripts/benchmarks/fine_tuning_pairs.py --data_dir DATA --pair superionic
    python scripts/benchmarks/fine_tuning_pairs.py --data_dir DATA --pair carbon_chains

trains a small short-range MACE (the foundation) and fine-tunes it:

    superionic     on bulk water, then 54 H2O at 2 g/cm³ and 2000 K (periodic)
    carbon_chains  on neutral C10H2, then C10H2 and C10H3+ with their total charge

The variants have the same frames and epochs:

    short_range  without the head
    plain        the head, energies and forces
    recipe       and dipoles and Born charges of GFN2-xTB times 0.9 (pip install
                 'mace-polmp[label]'). Of a periodic frame they are those of a neutral cluster that
                 is cut out of it, which is a frame of its own without energy and forces
    few          and true Born charges of the first frames (superionic only)

What is done is not repeated, trainings that were stopped go on. errors.csv has a row for each
variant and quantity; those of the test frames with --test only. Electrical labels of superionic
water are true. Carbon chains have none: theirs are GFN2-xTB's times 0.9.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from fine_tuning import errors_and_values
from numpy.typing import NDArray

from mace_polmp.analysis.plots import write_csv
from mace_polmp.analysis.tables import text_table
from mace_polmp.analysis.verdict import slope_of

SCALE = 0.9
MOLECULES = 8  # at least, in a cluster
N_FEW = {"train": 4, "valid": 1, "test": 0}
_END = 0.09  # of the learning rate, in units of the first
COMMON: tuple[str, ...] = (
    "--multiheads_finetuning=False",
    "--valid_batch_size=2",
    "--default_dtype=float32",
    "--scheduler=ExponentialLR",
    "--lr=5e-3",
    "--ema",
    "--ema_decay=0.99",
    "--error_table=PerAtomMAE",
)
HEAD = ("--model=MultipoleMACE", "--constrain_charge=softness")
LABELS = ("--head_lr=1e-2", "--head_growth_epochs=2")
FOUNDATION: tuple[str, ...] = (
    "--model=MACE",
    "--num_interactions=2",
    "--num_channels=16",
    "--max_L=1",
    "--max_ell=2",
    "--correlation=2",
    "--default_dtype=float32",
    "--scheduler=ExponentialLR",
    "--lr=0.01",
    "--energy_weight=10",
    "--forces_weight=100",
    "--ema",
    "--error_table=PerAtomMAE",
)


@dataclass(frozen=True)
class Pair:
    """What a foundation model learns, and what it is fine-tuned on.

    Attributes:
        foundation: file of the frames that the foundation model learns.
        data: file of the frames of the fine-tuning.
        counts: frames of the foundation model (train, valid) and of the fine-tuning (train,
            valid, test).
        r_max: Å, of the foundation model.
        foundation_epochs, epochs: of the two trainings.
        batch_sizes: of the two trainings.
        energy_weight: of the fine-tuning, next to the forces' 100.
        variants: names of VARIANTS.
    """

    foundation: str
    data: str
    counts: tuple[int, int, int, int, int]
    r_max: float
    foundation_epochs: int
    epochs: int
    batch_sizes: tuple[int, int]
    energy_weight: int
    variants: tuple[str, ...]


_BOTH = ("short_range", "plain", "recipe")
PAIRS = {
    "superionic": Pair(
        "water_rpbe_d3.xyz",
        "superionic_water_2gcc.xyz",
        (20, 3, 16, 4, 10),
        3.5,
        15,
        16,
        (2, 1),
        100,
        (*_BOTH, "few"),
    ),
    "carbon_chains": Pair(
        "carbon_chains.xyz",
        "carbon_chains.xyz",
        (20, 4, 46, 10, 20),
        4.0,
        150,
        60,
        (4, 4),
        1000,
        _BOTH,
    ),
}
VARIANTS: dict[str, tuple[str, ...]] = {
    "short_range": ("--model=MACE",),
    "plain": HEAD,
    "recipe": (*HEAD, *LABELS, "--dipole_weight=500", "--born_charges_weight=50"),
    "few": (*HEAD, *LABELS, "--born_charges_weight=150"),
}


def split(pair: Pair, data_dir: Path, seed: int) -> dict[str, list[Atoms]]:
    """Frames of the foundation model and of the fine-tuning; no frame is in two parts."""
    generator = np.random.default_rng(seed)

    def shuffled(name: str) -> list[Atoms]:
        frames = read(data_dir / name, ":")
        return [frames[i] for i in generator.permutation(len(frames))]

    first = shuffled(pair.foundation)
    size = pair.counts[0] + pair.counts[1]
    mine = [n for n, atoms in enumerate(first) if atoms.info.get("total_charge", 0) == 0][:size]
    if pair.foundation == pair.data:
        left = [atoms for n, atoms in enumerate(first) if n not in mine]
    else:
        left = shuffled(pair.data)
    ends = np.cumsum(pair.counts[2:])
    return {
        "foundation_train": [first[n] for n in mine[: pair.counts[0]]],
        "foundation_valid": [first[n] for n in mine[pair.counts[0] :]],
        "train": left[: ends[0]],
        "valid": left[ends[0] : ends[1]],
        "test": left[ends[1] : ends[2]],
    }


def from_zero(frames: list[Atoms], fitted_to: list[Atoms]) -> None:
    """Take energies of atoms off the energies, so that --E0s is 0 for all models.

    mace-torch 0.3.16 keeps the foundation model's --E0s in a fine-tuning without the head,
    whatever it is given.

    Args:
        frames: what is changed.
        fitted_to: whose energies are to be 0 on average (least squares), by element.
    """
    elements = sorted({int(z) for atoms in frames for z in atoms.numbers})

    def counts(some: list[Atoms]) -> NDArray[np.float64]:
        return np.array([[(atoms.numbers == z).sum() for z in elements] for atoms in some], float)

    energies = np.array([atoms.info["REF_energy"] for atoms in fitted_to])
    fitted = np.linalg.lstsq(counts(fitted_to), energies, rcond=None)[0]
    for atoms, lost in zip(frames, counts(frames) @ fitted, strict=True):
        atoms.info["REF_energy"] -= lost


def cluster(atoms: Atoms, centre: int, least: int = MOLECULES) -> Atoms:
    """A neutral cluster of water around an oxygen atom, cut out of a periodic structure.

    Each hydrogen atom goes with the oxygen atom next to it. Oxygen atoms are taken by their
    distance, at least `least` of them, and as many more as it takes to have two hydrogen atoms
    for each.

    Raises:
        ValueError: there is no such cluster within half the cell.
    """
    oxygen = np.flatnonzero(atoms.numbers == 8)
    hydrogen = np.flatnonzero(atoms.numbers == 1)
    owner = oxygen[atoms.get_all_distances(mic=True)[hydrogen][:, oxygen].argmin(1)]
    distances = atoms.get_distances(centre, oxygen, mic=True)
    widest = 0.5 * atoms.cell.lengths().min()
    order = np.argsort(distances)
    for count in range(least, len(oxygen)):
        if distances[order[count - 1]] > widest:
            break
        chosen = oxygen[order[:count]]
        mine = hydrogen[np.isin(owner, chosen)]
        if len(mine) == 2 * count:
            vectors = dict(
                zip(chosen, atoms.get_distances(centre, chosen, mic=True, vector=True), strict=True)
            )
            places = [vectors[o] for o in chosen]
            places += [
                vectors[owner[hydrogen == h][0]]
                + atoms.get_distance(owner[hydrogen == h][0], h, mic=True, vector=True)
                for h in mine
            ]
            return Atoms([8] * count + [1] * len(mine), positions=places)
    raise ValueError(f"no neutral cluster around atom {centre}")


def clusters(frames: list[Atoms]) -> list[Atoms]:
    """A cluster of each frame, around the first oxygen atom that has one."""
    out = []
    for atoms in frames:
        for centre in np.flatnonzero(atoms.numbers == 8):
            try:
                out.append(cluster(atoms, int(centre)))
                break
            except ValueError:
                continue
    return out


def label(path: Path, frames: list[Atoms], *flags: str) -> list[Atoms]:
    """Frames with borrowed labels, by `mace_polmp label`; computed once."""
    if not path.exists():
        source = path.with_name(f"{path.stem}_source.xyz")
        write(source, frames, format="extxyz")
        command = [sys.executable, "-m", "mace_polmp.cli.main", "label", str(source)]
        subprocess.run([*command, "--output", str(path), "--jobs", "1", *flags], check=True)
    found: list[Atoms] = read(path, ":")
    return found


def _labels_of_gfn2(path: Path, frames: list[Atoms]) -> list[Atoms]:
    flags = ("--quantities", "dipole", "born_charges", "--scale", str(SCALE), "--overwrite")
    return label(path, frames, *flags)


def prepare(pair: Pair, args: argparse.Namespace) -> dict[str, list[Atoms]]:
    """Frames by part, with true labels where there are any, as they are compared."""
    parts = split(pair, args.data_dir, args.seed)
    first, then = ("foundation_train", "foundation_valid"), ("train", "valid", "test")
    groups = [(*then, *first)] if pair.foundation == pair.data else [first, then]
    for group in groups:
        from_zero([atoms for part in group for atoms in parts[part]], parts[group[0]])
    for part, frames in parts.items():
        for atoms in frames:
            atoms.info.pop("REF_stress", None)  # nothing is trained on it
            if not atoms.pbc.any():
                atoms.positions -= atoms.positions.mean(0)  # dipoles of ions are about it
        if part in ("train", "valid", "test") and not frames[0].pbc.any():
            parts[part] = _labels_of_gfn2(args.folder / f"{part}_gfn2.xyz", frames)
    return parts


def frames_of(name: str, part: str, frames: list[Atoms], args: argparse.Namespace) -> list[Atoms]:
    """What a variant is trained on, or chosen by."""
    periodic = bool(frames[0].pbc.any())
    out = [atoms.copy() for atoms in frames]
    for number, atoms in enumerate(out):
        if periodic and not (name == "few" and number < N_FEW[part]):
            atoms.arrays.pop("REF_born_charges", None)
        if not periodic and name != "recipe":
            atoms.arrays.pop("REF_born_charges", None)
            atoms.info.pop("REF_dipole", None)
    if periodic and name == "recipe":
        found = _labels_of_gfn2(args.folder / f"{part}_clusters.xyz", clusters(frames))
        for atoms in found:
            atoms.info.update(config_energy_weight=0.0, config_forces_weight=0.0)
        out += found
    return out


def train(name: str, files: dict[str, list[Atoms]], args: argparse.Namespace, *flags: str) -> Path:
    """Run a training that is not done yet; its model."""
    folder = args.folder / name
    path: Path = folder / f"{name}.model"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mace_polmp.cli.run_train", f"--name={name}"]
    command += [f"--work_dir={folder}", f"--seed={args.seed}", "--restart_latest"]
    for part, frames in files.items():
        write(folder / f"{part}.xyz", frames, format="extxyz")
        command.append(f"--{part}_file={folder / part}.xyz")
    began = time.time()
    with open(folder / f"{name}.out", "a") as log:
        subprocess.run([*command, *flags], check=True, stdout=log, stderr=subprocess.STDOUT)
    print(f"{name}: {(time.time() - began) / 60:.1f} minutes", flush=True)
    return path


def errors(name: str, model: Path, frames: list[Atoms]) -> list[list[str]]:
    """Rows of name, quantity, unit, MAE, RMSE, R², slope and correlation of a model.

    The last two are of electrical quantities: the factor of the predictions that the labels would
    make of themselves, and how well the two agree but for a factor.
    """
    rows = []
    for row, values in errors_and_values(name, model, frames):
        more = ["", ""]
        if row[1] in ("dipole", "born_charges"):
            correlation = np.corrcoef(np.ravel(values[0]), np.ravel(values[1]))[0, 1]
            more = [f"{slope_of(*values):.3f}", f"{correlation:.3f}"]
        rows.append([*row, *more])
    return rows


def verdict(folder: Path, name: str) -> str:
    """The verdict in the log of a training, without what it rests on."""
    for line in (folder / name / f"{name}.out").read_text().splitlines():
        if "Verdict: " in line:
            return line.split("Verdict: ")[1].split(" (")[0].removeprefix("charges ")
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--pair", choices=PAIRS, required=True)
    parser.add_argument("--output", type=Path, default=Path("fine_tuning_pairs"))
    parser.add_argument("--epochs", type=int, help="of the fine-tuning")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--test", action="store_true", help="errors on the test frames as well")
    args = parser.parse_args()
    pair = PAIRS[args.pair]
    args.folder = args.output / args.pair
    args.folder.mkdir(parents=True, exist_ok=True)
    names = args.variants or pair.variants
    if strange := sorted(set(names) - set(pair.variants)):
        parser.error(f"--variants: {args.pair} has {', '.join(pair.variants)}, not {strange[0]}")
    parts = prepare(pair, args)
    print(", ".join(f"{len(frames)} {part}" for part, frames in parts.items()), flush=True)

    def length(epochs: int, batch: int) -> tuple[str, ...]:
        gamma = f"--lr_scheduler_gamma={_END ** (1 / epochs):.4f}"
        return f"--max_num_epochs={epochs}", gamma, f"--batch_size={batch}"

    files = {part: parts[f"foundation_{part}"] for part in ("train", "valid")}
    zeros = {int(z): 0.0 for z in sorted(set(files["train"][0].numbers))}
    flags = (*FOUNDATION, f"--r_max={pair.r_max}", f"--E0s={zeros}")
    flags += length(pair.foundation_epochs, pair.batch_sizes[0])
    foundation = train("foundation", files, args, *flags)
    rows = []
    for name in ("foundation", *names):
        model = foundation
        if name != "foundation":
            files = {part: frames_of(name, part, parts[part], args) for part in ("train", "valid")}
            flags = (*COMMON, f"--foundation_model={foundation}", "--E0s=foundation")
            flags += (f"--energy_weight={pair.energy_weight}",)
            flags += (*length(args.epochs or pair.epochs, pair.batch_sizes[1]), *VARIANTS[name])
            model = train(name, files, args, *flags)
            print(f"{name}: charges {verdict(args.folder, name) or '–'}", flush=True)
        for part in ("valid", "test")[: 1 + args.test]:
            rows += errors(f"{name}, {part}", model, parts[part])
    header = ["model", "quantity", "unit", "MAE", "RMSE", "R2", "slope", "correlation"]
    print(text_table(header, rows))
    write_csv(args.folder / "errors.csv", header, rows)


if __name__ == "__main__":
    main()
