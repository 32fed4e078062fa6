"""What the accuracy benchmarks are read as: one table (CSV, markdown) and plots."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mace_polmp.analysis import plots
from mace_polmp.analysis.tables import r_squared
from mace_polmp.quantities import QUANTITIES
from mace_polmp.unit_names import ENERGY, ENERGY_PER_ATOM, FORCE, with_unit

from .suite import Run, learning_curve, variants

# Columns of the table: quantity, measure, factor.
_COLUMNS = {
    "E MAE": ("energy", "mae", 1e3),
    "E RMSE": ("energy", "rmse", 1e3),
    "F MAE": ("forces", "mae", 1e3),
    "F RMSE": ("forces", "rmse", 1e3),
    "stress RMSE": ("stress", "rmse", 1e3),
    "dipole R²": ("dipole", "r2", 1.0),
    "Born R²": ("born_charges", "r2", 1.0),
    "Born MAE": ("born_charges", "mae", 1.0),
}
_NOTE = (
    "Energies in meV/atom, or meV where marked *; forces in meV/Å, stress in meV/Å³, Born charges "
    "in e. Mean over the seeds ± half of their range."
)

Groups = dict[tuple[str, str], list[dict[str, Any]]]


def write_report(runs: list[Run], output: Path) -> None:
    """Write errors.csv, errors.md and the plots of runs that are done; print the table."""
    output.mkdir(parents=True, exist_ok=True)
    results = [(run, run.load_result()) for run in runs]
    groups: Groups = defaultdict(list)
    for run, result in results:
        groups[run.system.name, run.variant].append(result)
    _write_runs(output / "errors.csv", [result for _, result in results])
    table = _table(groups)
    unfinished = output / ".errors.md"
    unfinished.write_text(f"{table}\n\n{_NOTE}\n", encoding="utf-8")
    os.replace(unfinished, output / "errors.md")
    print(f"\n{table}\n\n{_NOTE}")
    for data in dict.fromkeys(name for name, _ in groups):
        mine = [run for run in runs if run.system.name == data]
        _draw_errors(output / f"errors_{data}.png", data, groups)
        _draw_learning(output / f"learning_{data}.png", mine)
        _draw_curves(output / f"curves_{data}.png", mine)
        for quantity in ("dipole", "born_charges"):
            _draw_parity(output / f"parity_{quantity}_{data}.png", quantity, mine)
    print(f"written: {output}/errors.csv, errors.md and plots")


def _write_runs(path: Path, results: list[dict[str, Any]]) -> None:
    """Each run with all its numbers, one row per quantity."""
    header = ["data", "variant", "seed", "part", "parameters", "epochs", "seconds_per_epoch"]
    rows = []
    for result in results:
        for name, measures in result["measures"].items():
            factor, unit = QUANTITIES[name].factor, QUANTITIES[name].unit
            if name == "energy" and result["energies_per_atom"]:
                unit += "/atom"
            numbers = [factor * measures["mae"], factor * measures["rmse"], measures["r2"]]
            rows.append([*(result[key] for key in header), name, unit, *numbers])
    plots.write_csv(path, [*header, "quantity", "unit", "MAE", "RMSE", "R2"], rows)


def _values(results: list[dict[str, Any]], column: str) -> list[float]:
    quantity, measure, factor = _COLUMNS[column]
    return [factor * r["measures"][quantity][measure] for r in results if quantity in r["measures"]]


def _table(groups: Groups) -> str:
    """The summary in markdown."""
    used = [c for c in _COLUMNS if any(_values(results, c) for results in groups.values())]
    header = ["data", "variant", *used, "parameters", "s/epoch", "seeds"]
    lines = [header, ["---"] * len(header)]
    for (data, variant), results in groups.items():
        star = "" if results[0]["energies_per_atom"] else " *"
        cells = [_spread(_values(results, column), column) for column in used]
        seconds = np.mean([result["seconds_per_epoch"] for result in results])
        rest = [str(results[0]["parameters"]), f"{seconds:.3g}", str(len(results))]
        lines.append([data + star, variant, *cells, *rest])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: list[float], column: str) -> str:
    if not values:
        return "–"
    mean, half = float(np.mean(values)), 0.5 * float(np.ptp(values))
    return (r_squared(mean) if column.endswith("R²") else f"{mean:.3g}") + (
        f" ± {half:.2g}" if len(values) > 1 else ""
    )


def _draw_errors(path: Path, data: str, groups: Groups) -> None:
    """RMSE of energies and forces of each variant, a dot for each seed."""
    names = [name for name in variants() if (data, name) in groups]
    made, axes = plots.figure(2, size=(2.0 + 0.9 * len(names) + 3.0, 3.6))
    per_atom = groups[data, names[0]][0]["energies_per_atom"]
    energy = ENERGY_PER_ATOM if per_atom else ENERGY
    for axis, column, unit in zip(axes, ("E RMSE", "F RMSE"), (energy, FORCE), strict=True):
        means: list[float] = []
        for place, name in enumerate(names):
            values = _values(groups[data, name], column)
            color = "0.6" if name == "sr" else "C0"
            axis.bar(place, np.mean(values), color=color, alpha=0.6, width=0.7)
            axis.plot([place] * len(values), values, "k.", ms=5)
            means.append(float(np.mean(values)))
        if max(means) > 20 * min(means) > 0:  # else the short-range model dwarfs all others
            axis.set_yscale("log")
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        words = f"RMSE of {'energies' if column[0] == 'E' else 'forces'}"
        axis.set(ylabel=with_unit(words, unit))
    made.suptitle(f"{data}: errors by variant; bars are means over seeds, dots are seeds")
    plots.save(made, path)


def _draw_learning(path: Path, runs: list[Run]) -> None:
    """Force errors on the validation frames during the training, first seed of each variant."""
    made, (axis,) = plots.figure()
    for variant, run in _first_of_each(runs).items():
        curve = learning_curve(run.best_start().folder)
        epochs = [entry["epoch"] + 1 for entry in curve]
        forces = [1e3 * entry["rmse_f"] for entry in curve]
        axis.loglog(epochs, forces, "k--" if variant == "sr" else "-", lw=1.2, label=variant)
    axis.set(xlabel="epoch", ylabel=with_unit("RMSE of forces", FORCE))
    axis.set_title(f"{runs[0].system.name}: validation frames, by variant, seed {runs[0].seed}")
    axis.grid(True, which="both", alpha=0.25)
    axis.legend(frameon=False)
    plots.save(made, path)


def _draw_curves(path: Path, runs: list[Run]) -> None:
    """Interaction energies over the distance, where a data set has one."""
    lines = {}
    for variant, run in _first_of_each(runs).items():
        arrays = np.load(run.folder / f"arrays_{run.part}.npz")
        if "curve" in arrays:
            lines[variant] = arrays["curve"]
    if not lines:
        return
    some = next(iter(lines.values()))
    seen = some[some[:, 3] > 0, 0]
    made, axes = plots.figure(2, size=(9.5, 4.0))
    for axis, factor, what in zip(axes, (1.0, 1e3), ("energy / eV", "error / meV"), strict=True):
        axis.axvspan(seen.min(), seen.max(), color="0.93", zorder=0, label="trained on")
        if factor == 1.0:
            axis.plot(some[:, 0], some[:, 1], "k.", ms=7, label="reference")
        for variant, rows in lines.items():
            values = rows[:, 2] if factor == 1.0 else factor * (rows[:, 2] - rows[:, 1])
            style = "k--" if variant == "sr" else "-"
            axis.plot(rows[:, 0], values, style, marker=".", ms=3, lw=1.2, label=variant)
        axis.set(xlabel="distance / Å", ylabel=f"interaction {what}")
        axis.grid(True, alpha=0.25)
    others = np.concatenate([r[:, 2] - r[:, 1] for v, r in lines.items() if v != "sr"] or [[0.01]])
    limit = max(1.3e3 * float(np.abs(others).max()), 2.0)
    axes[1].set_ylim(-limit, limit)
    axes[0].legend(frameon=False, fontsize=8)
    made.suptitle(f"{runs[0].system.name}: interaction by variant, seed {runs[0].seed}")
    plots.save(made, path)


def _draw_parity(path: Path, quantity: str, runs: list[Run]) -> None:
    """Predictions over references, the first and the last variant that have them."""
    groups = {}
    for variant, run in _first_of_each(runs).items():
        arrays = np.load(run.folder / f"arrays_{run.part}.npz")
        if f"{quantity}_reference" in arrays:
            pair = (arrays[f"{quantity}_reference"], arrays[f"{quantity}_predicted"])
            r2 = run.load_result()["measures"][quantity]["r2"]
            groups[f"{variant}, R² {r_squared(r2)}"] = pair
    if not groups:
        return
    chosen = {name: groups[name] for name in (list(groups)[0], list(groups)[-1])}
    words = {"born_charges": "Born charge"}.get(quantity, quantity)
    label = with_unit(words, QUANTITIES[quantity].unit)
    title = plots.heading(f"{runs[0].system.name}: {words} by variant", f"{runs[0].part} frames")
    plots.draw_parity(path, label, chosen, title)


def _first_of_each(runs: list[Run]) -> dict[str, Run]:
    out: dict[str, Run] = {}
    for run in runs:
        out.setdefault(run.variant, run)
    return out
