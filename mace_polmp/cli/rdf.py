"""`mace_polmp spectrum rdf`: radial distribution functions of a trajectory."""

from __future__ import annotations

import argparse
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.geometry.rdf import get_rdf

from mace_polmp.analysis import plots
from mace_polmp.analysis.correlation import Array
from mace_polmp.cli.common import named
from mace_polmp.cli.trajectory import check_same
from mace_polmp.errors import InputError
from mace_polmp.quantities import is_finite_number
from mace_polmp.reading import read_structures, shown
from mace_polmp.unit_names import LENGTH, with_unit


def write_rdf(args: argparse.Namespace, base: Path) -> None:
    """Write g(r) of pairs of elements as CSV, PNG and SVG.

    Args:
        args: trajectory, skip, elements, r_max, bins.
        base: name of the files without ending.

    Raises:
        InputError: frames of several structures or without cells, elements that are not there, a
            radius that is too large.
    """
    where = str(args.trajectory)
    every = read_structures(args.trajectory)
    check_same(every, where)
    frames = _without_start(every, args.skip, where)
    if not all(atoms.pbc.all() for atoms in frames):
        raise InputError(
            f"{where}: radial distribution functions need a density: frames that are periodic in "
            "three directions"
        )
    pairs = _pairs(args.elements, frames[0], where)
    largest = min(float(_heights(atoms).min()) for atoms in frames) / 2.0
    radius = largest if args.r_max is None else args.r_max
    if not 0.0 < radius <= largest + 1e-9:
        raise InputError(f"--r_max must be at most half the cell, {largest:.2f} Å, got {radius:g}")
    if args.bins < 1:
        raise InputError(f"--bins must be 1 or more, got {args.bins}")
    totals: dict[str, Array] = {f"{a}-{b}": np.zeros(args.bins) for a, b in pairs}
    for atoms in shown(frames, "counting pairs"):
        distances = atoms.get_all_distances(mic=True)
        for a, b in pairs:
            totals[f"{a}-{b}"] += get_rdf(
                atoms, radius, args.bins, distances, elements=(a, b), no_dists=True
            )
    found = {name: total / len(frames) for name, total in totals.items()}
    middles = (np.arange(args.bins) + 0.5) * radius / args.bins
    rows = np.column_stack([middles, *found.values()])
    plots.write_csv(named(base, ".csv"), ["r_A", *found], rows.tolist())
    model = str(frames[0].info.get("model", ""))
    title = plots.heading(
        "Radial distribution functions",
        f"model {model}" if model else "",
        f"{plots.names(args.trajectory)} ({plots.typeset(frames[0].get_chemical_formula())})",
        f"{len(frames)} frames",
    )
    plots.draw_lines(named(base, ".png"), middles, found, (with_unit("r", LENGTH), "g(r)"), title)
    for name, values in found.items():
        top = int(values.argmax())
        print(f"g({name}): highest at {middles[top]:.2f} Å ({values[top]:.2f})")
    print(f"{len(frames)} frames: {named(base, '.csv')}, {plots.said(named(base, '.png'))}")


def _without_start(frames: list[Atoms], skip: float, where: str) -> list[Atoms]:
    """The frames from that time on, fs after the first."""
    if skip == 0.0:
        return frames
    times = [atoms.info.get("time_fs") for atoms in frames]
    if any(not is_finite_number(time) for time in times):
        raise InputError(f"{where}: frames do not say their time (time_fs); leave out --skip")
    first = float(times[0])  # type: ignore[arg-type]
    kept = [a for a, t in zip(frames, times, strict=True) if t - first >= skip - 1e-6]  # type: ignore[operator]
    if not kept:
        raise InputError(f"--skip {skip:g} leaves out the whole run")
    return kept


def _heights(atoms: Atoms) -> Array:
    """Distances between opposite faces of the cell, [3], Å."""
    out: Array = 1.0 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    return out


def _pairs(wanted: list[str] | None, atoms: Atoms, where: str) -> list[tuple[str, str]]:
    """Pairs of elements: those asked for, or all."""
    known = sorted(set(atoms.get_chemical_symbols()), key=lambda s: atomic_numbers[s])
    missing = [name for name in wanted or [] if name not in known]
    if missing:
        raise InputError(f"--elements: {missing[0]} is not in {where}, which has {' '.join(known)}")
    if wanted and len(wanted) == 2:
        return [(wanted[0], wanted[1])]
    return list(combinations_with_replacement(wanted or known, 2))
