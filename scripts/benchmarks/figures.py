"""The pictures of the results: drawn from the tables that the benchmarks wrote, nothing measured.

    python scripts/benchmarks/figures.py [--results scripts/benchmarks/results]

draws again all pictures whose numbers are there: those of the CSV files in a folder, and those of
the tables in RESULTS.md beside it. Benchmarks call the same functions when they end.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis import plots
from mace_polmp.unit_names import ENERGY, FORCE, with_unit

Rows = Sequence[Mapping[str, Any]]
Series = dict[str, list[tuple[float, float]]]
HERE = Path(__file__).parent
VARIANTS = ("sr", "les", "u", "uQ", "uiu", "uiq", "uiqiu", "uQiqiu", "anisotropic")
_MACHINES = "machines.json"


def note_machine(folder: Path, name: str, machine: str) -> None:
    """Write down where and when a table was measured, for the titles of its pictures."""
    path = folder / _MACHINES
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps({**known, name: machine}, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def draw(
    series: Series,
    labels: tuple[str, str],
    path: Path,
    title: str,
) -> None:
    """Lines of (x, y) on doubly logarithmic axes."""
    made, (axes,) = plots.figure(size=(7.0, 5.0))
    _lines(axes, series)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    print(f"written: {plots.save(made, path)}")


def _lines(axes: Any, series: Series) -> None:
    for label, points in series.items():
        xs, ys = zip(*sorted(points), strict=True)
        line = "o--" if "training" in label else "s:" if "torch-pme" in label else "o-"
        axes.loglog(xs, ys, line, markersize=4, label=label)
    axes.grid(True, which="both", alpha=0.25)


def head(rows: Rows, folder: Path, machine: str) -> None:
    """Time of the head over the number of atoms, and the memory that it takes."""
    kinds = {"auto": "head", "training": "head, training", "torch-pme": "torch-pme, charges alone"}
    for column, name, what in (
        ("min / ms", "head", "time"),
        ("memory / MB", "head_memory", "memory"),
    ):
        series: Series = {}
        for row in rows:
            words = str(row["case"]).split()
            of_one = len(words) == 2 and words[0] in ("open", "periodic")
            if of_one and row["what"] in kinds and row[column] != "":
                label = f"{words[0]}, {kinds[row['what']]}"
                series.setdefault(label, []).append((float(words[1]), float(row[column])))
        unit = column.partition(" / ")[2]
        title = plots.heading(
            f"{what.capitalize()} of energies and forces of the head alone",
            "random multipoles and response at the density of water, single precision",
            machine,
            columns=90,
        )
        draw(series, ("atoms", with_unit(what, unit)), folder / f"{name}.png", title)


def model(rows: Rows, folder: Path, machine: str) -> None:
    """Time and memory of a whole model with and without the head."""
    made, panels = plots.figure(2, size=(10.0, 4.4))
    kept = [row for row in rows if re.fullmatch(r"periodic \d+", str(row["case"]))]
    for axes, unit, what in zip(panels, ("ms", "MB"), ("time", "memory"), strict=True):
        series = {
            f"{name} the head": [
                (float(str(row["case"]).split()[1]), float(row[f"{name} / {unit}"])) for row in kept
            ]
            for name in ("without", "with")
        }
        _lines(axes, series)
        axes.set(xlabel="atoms", ylabel=with_unit(what, unit))
    panels[0].legend(frameon=False)
    title = plots.heading(
        "Energies and forces of a MACE (two layers of 32x0e + 32x1o) with and without the head",
        "periodic random atoms, single precision",
        machine,
        columns=100,
    )
    made.suptitle(title, fontsize=10)
    print(f"written: {plots.save(made, folder / 'model.png')}")


def mesh_accuracy(rows: Rows, folder: Path, machine: str) -> None:
    """Error of the forces over the time, for three roads to a mesh."""
    words = {
        "kaiser-bessel": "Kaiser–Bessel (used)",
        "b-spline": "derivative B-splines",
        "channels": "channels, Kaiser–Bessel",
    }
    series: Series = {}
    for row in rows:
        point = (float(row["min / ms"]), float(row["force error"]))
        series.setdefault(words.get(row["road"], row["road"]), []).append(point)
    title = plots.heading(
        "Accuracy of the mesh and its time, for windows of several widths",
        "error: 300 random multipoles, double precision; time: 1536 atoms, single precision",
        machine,
        columns=90,
    )
    labels = ("time of energies and forces / ms", "relative error of forces")
    draw(series, labels, folder / "mesh_accuracy.png", title)


def slab(rows: Rows, folder: Path, machine: str) -> None:
    """Forces of slabs over the vacuum."""
    series: Series = {}
    for row in rows:
        label = f"{row['slab']}, spacing {row['kspace_spacing']} Å"
        point = (float(row["vacuum / period"]), float(row["forces"]))
        series.setdefault(label, []).append(point)
    title = plots.heading(
        "Slabs: how forces depend on the vacuum",
        "random multipoles with response",
        machine,
        columns=90,
    )
    labels = ("vacuum / period", "relative deviation of forces")
    draw(series, labels, folder / "slab.png", title)


def solvers(rows: Rows, folder: Path, machine: str) -> None:
    """Time of the direct sum and of the mesh in the smallest cells."""
    smallest: dict[float, Mapping[str, Any]] = {}
    for row in rows:
        atoms = float(row["atoms"])
        if atoms not in smallest or float(row["cell / Å"]) < float(smallest[atoms]["cell / Å"]):
            smallest[atoms] = row
    series = {
        words: [(atoms, float(row[f"{name} / ms"])) for atoms, row in smallest.items()]
        for name, words in (("direct", "direct sum"), ("mesh", "mesh"))
    }
    title = plots.heading(
        "Which solver: energies and forces of all multipoles",
        "random atoms in cubes",
        machine,
        columns=90,
    )
    draw(series, ("atoms, in the smallest cell", "time / ms"), folder / "solvers.png", title)


def charge_transfer(rows: Rows, folder: Path, machine: str) -> None:
    """Changes of charges and errors of forces over the distance from the proton."""
    made, (left, right) = plots.figure(2, size=(10.0, 4.4))
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        distances = [float(row["distance"]) for row in mine]
        has_charges = mine[0].get("change") not in (None, "")
        style = "-" if has_charges else "k--"
        if has_charges:
            left.plot(distances, [float(row["change"]) for row in mine], style, marker=".",
                      label=name)  # fmt: skip
        errors = [float(row["forces, protonated"]) for row in mine]
        right.plot(distances, errors, style, marker=".", label=name)
    left.set(ylabel=with_unit("charge of CHₙ that the proton adds", "e"))
    right.set(ylabel=with_unit("RMSE of forces on C", FORCE), ylim=(0, None))
    for axis in (left, right):
        axis.set(xlabel="distance along the chain / Å")
        axis.grid(True, alpha=0.25)
        axis.legend(frameon=False)
    title = plots.heading(
        "Carbon chains with a proton on one end: charges and errors of forces",
        "test frames, models of one seed",
        machine,
        columns=100,
    )
    made.suptitle(title, fontsize=10)
    print(f"written: {plots.save(made, folder / 'charge_transfer.png')}")


def table_of(text: str, name: str) -> list[dict[str, str]]:
    """A table of RESULTS.md by its name: rows by the heads of the columns.

    Args:
        text: of the page.
        name: of the comment `<!-- table: NAME -->` before the table.
    """
    after = text.partition(f"<!-- table: {name} -->")[2]
    lines = re.search(r"(?:^\|.*\n?)+", after, re.MULTILINE)
    if lines is None:
        raise ValueError(f"RESULTS.md has no table named {name}")
    cells = [[c.strip() for c in line[1:-1].split("|")] for line in lines[0].splitlines()]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def numbers(cell: str) -> list[float]:
    """The numbers of a cell, one for each seed."""
    return [float(x.replace("−", "-")) for x in re.findall(r"[−-]?\d+\.?\d*", cell)]


def _errors_of(rows: list[dict[str, str]], data: str) -> dict[str, dict[str, str]]:
    """Rows of one data set by the name of the variant; those with other settings are left out."""
    found: dict[str, dict[str, str]] = {}
    current = ""
    for row in rows:
        current = row["data"] or current
        name, _, more = row["variant"].partition(",")
        if current == data and name in VARIANTS and more.strip() in ("", "seeds 1 and 2"):
            found.setdefault(name, row)
    return found


def hierarchy(text: str, folder: Path) -> None:
    """RMSE of forces by variant for all data sets, a dot for each seed."""
    rows = table_of(text, "hierarchy")
    sets = {
        "dipeptides, 16x0e, 50 epochs": "dipeptides (16x0e, 50 epochs)",
        "carbon chains (test)": "carbon chains",
        "water (test)": "water",
        "superionic water (test)": "superionic water",
        "Au2 on MgO (test)": "Au₂ on MgO",
    }
    made, panels = plots.figure(len(sets), size=(15.0, 4.0))
    for axis, (data, words) in zip(panels, sets.items(), strict=True):
        found = _errors_of(rows, data)
        for place, name in enumerate(VARIANTS):
            if name in found:
                values = numbers(found[name]["F RMSE"])
                color = "0.6" if name == "sr" else "C0"
                axis.bar(place, np.mean(values), color=color, alpha=0.6, width=0.7)
                axis.plot([place] * len(values), values, "k.", ms=5)
        axis.set_xticks(range(len(VARIANTS)), VARIANTS, rotation=60, ha="right", fontsize=8)
        axis.set_title(words, fontsize=10)
    panels[0].set_ylabel(with_unit("RMSE of forces", FORCE))
    made.suptitle("Errors of forces by variant: bars are means over seeds, dots are seeds")
    print(f"written: {plots.save(made, folder / 'accuracy_forces.png')}")


def anchors(text: str, folder: Path) -> None:
    """Dipeptides and dimers beside the published figures."""
    made, (left, right) = plots.figure(2, size=(11.0, 4.4))
    mine = _errors_of(table_of(text, "hierarchy"), "dipeptides (validation)")
    published = table_of(text, "anchors_dipeptides")
    bars = [(f"{name}, here", numbers(row["F MAE, meV/Å"]), "C0") for name, row in mine.items()]
    bars += [(row["model"], numbers(row["F MAE, meV/Å"]), "C1") for row in published]
    for place, (_, values, color) in enumerate(bars):
        left.bar(place, np.mean(values), color=color, alpha=0.6, width=0.7)
        left.plot([place] * len(values), values, "k.", ms=5)
    left.set_xticks(range(len(bars)), [bar[0] for bar in bars], rotation=25, ha="right", fontsize=8)
    left.set(ylabel=with_unit("MAE of forces", FORCE))
    left.set_title(
        "Dipeptides, validation; blue: here, orange: published, larger cutoff", fontsize=9
    )
    dimers = {row["test RMSE, E meV / F meV/Å"]: row for row in table_of(text, "anchors_dimers")}
    columns = {
        "no interaction": "0.75",
        "published short range": "C1",
        "published latent charges": "C3",
        "MultipoleMACE": "C0",
    }
    for number, (name, color) in enumerate(columns.items()):
        heights = [numbers(dimers[c][name])[0] for c in ("CC", "CA", "PP")]
        right.bar(np.arange(3) + 0.2 * (number - 1.5), heights, 0.18, color=color, label=name)
    right.set_yscale("log")
    right.set_xticks(range(3), ["CC: two ions", "CA: ion, apolar", "PP: two polar"])
    right.set(ylabel=with_unit("RMSE of energies", ENERGY))
    right.set_title("Dimers at 12–15 Å, trained on 4–12 Å, seed 1", fontsize=9)
    right.legend(frameon=False, fontsize=8)
    made.suptitle("Beside published models on the same files")
    print(f"written: {plots.save(made, folder / 'accuracy_anchors.png')}")


def born_charges(text: str, folder: Path) -> None:
    """R² of Born charges, never trained on, by variant."""
    rows = table_of(text, "hierarchy")
    sets = ("dipeptides, 16x0e, 50 epochs", "superionic water (test)")
    charged = VARIANTS[1:]
    made, panels = plots.figure(len(sets), size=(9.0, 4.0))
    for axis, data in zip(panels, sets, strict=True):
        found = _errors_of(rows, data)
        for place, name in enumerate(charged):
            values = numbers(found[name]["Born R²"]) if name in found else []
            if values:
                axis.bar(place, np.mean(values), color="C2", alpha=0.6, width=0.7)
                axis.plot([place] * len(values), values, "k.", ms=5)
        axis.set_xticks(range(len(charged)), charged, rotation=60, ha="right", fontsize=8)
        axis.set(ylim=(0.0, 1.0))
        axis.grid(True, axis="y", alpha=0.25)
        axis.set_title(data, fontsize=10)
    panels[0].set_ylabel("R² of Born charges")
    made.suptitle("Born charges of models trained on energies and forces alone")
    print(f"written: {plots.save(made, folder / 'accuracy_born_charges.png')}")


def scale(text: str, folder: Path) -> None:
    """Time of a step in LAMMPS: measured, and by the fitted model for larger systems."""
    made, (left, right) = plots.figure(2, size=(11.0, 4.2))
    measured = {
        int(row["processes"]): float(row["s/step"])
        for row in table_of(text, "ranks")
        if row["program"] == "LAMMPS"
    }
    left.bar(list(measured), list(measured.values()), width=0.5, color="C0", alpha=0.6)
    ideal = [measured[1] / n for n in measured]
    left.plot(list(measured), ideal, "k--", marker=".", label="as the cores")
    left.set_xticks(list(measured))
    left.set(xlabel="processes of one thread", ylabel="time of a step / s")
    left.set_title("Measured: 1536 atoms of water, 2026-11-25", fontsize=10)
    left.legend(frameon=False)
    rows = table_of(text, "scale")
    names = [f"{row['atoms']} atoms\n{row['processes']} processes" for row in rows]
    bottom = np.zeros(len(rows))
    parts = {"backbone, s": "C0", "mesh, s": "C1", "all-reduce, s": "C3"}
    totals = np.array([sum(float(row[column]) for column in parts) for row in rows])
    for column, color in parts.items():
        values = np.array([float(row[column]) for row in rows])
        shares = 100.0 * values / totals
        right.bar(names, shares, bottom=bottom, color=color, alpha=0.7,
                  label=column.removesuffix(", s"))  # fmt: skip
        bottom += shares
    for place, row in enumerate(rows):
        right.text(place, 50.0, f"{row['step, s']} s", ha="center", color="white", fontsize=9)
    right.tick_params(axis="x", labelsize=8)
    right.set(ylabel="share of a step / %")
    right.set_title("Estimated from fitted costs, not run", fontsize=10)
    right.legend(loc="lower center", ncols=3, framealpha=0.9)
    made.suptitle("Many processes: LAMMPS on a CPU, 16 channels, double precision")
    print(f"written: {plots.save(made, folder / 'ranks.png')}")


_OF_CSV: dict[str, Callable[[Rows, Path, str], None]] = {
    "head": head,
    "model": model,
    "mesh_accuracy": mesh_accuracy,
    "slab": slab,
    "solvers": solvers,
    "charge_transfer": charge_transfer,
}
_OF_PAGE = (hierarchy, anchors, born_charges, scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the CSV")
    args = parser.parse_args()
    path = args.results / _MACHINES
    machines = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, function in _OF_CSV.items():
        table = args.results / f"{name}.csv"
        if table.exists():
            with table.open(newline="", encoding="utf-8") as file:
                function(list(csv.DictReader(file)), args.results, machines.get(name, ""))
    page = args.results.parent / "RESULTS.md"
    if page.exists():
        for draw_page in _OF_PAGE:
            draw_page(page.read_text(encoding="utf-8"), args.results)


if __name__ == "__main__":
    main()
