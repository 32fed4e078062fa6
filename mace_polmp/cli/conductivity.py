"""`mace_polmp spectrum conductivity`: the ionic conductivity of a trajectory, in two ways."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from mace_polmp.analysis import plots
from mace_polmp.analysis.conductivity import Conductivity, conductivity
from mace_polmp.analysis.tables import text_table, with_error
from mace_polmp.cli.common import named
from mace_polmp.cli.trajectory import Series, details
from mace_polmp.errors import InputError
from mace_polmp.unit_names import CONDUCTIVITY, with_unit

_PER_CM = 0.01  # 1 S/m in S/cm


def write_conductivity(
    args: argparse.Namespace, series: Series, temperature: float, base: Path
) -> None:
    """Print the conductivity, and write the functions that it is from as CSV, PNG and SVG.

    Args:
        args: of `mace_polmp spectrum`, with lag.
        series: of a structure that is periodic in three directions.
        temperature: K.
        base: name of the files without ending.

    Raises:
        InputError: too short a run, or no lag.
    """
    assert series.volume is not None
    if args.lag is not None and not (math.isfinite(args.lag) and args.lag > 0):
        raise InputError(f"--lag must be a positive number of fs, got {args.lag}")
    found = conductivity(
        series.volume,
        temperature,
        series.timestep,
        current=series.current,
        moment=series.dipole if series.current is None else None,
        lag=args.lag,
    )
    header = ["lag_fs", "correlation_e2A2/fs2", "green_kubo_S/cm", "standard_error_S/cm"]
    header += ["square_change_e2A2", "standard_error_e2A2"]
    columns = [found.lags, found.correlation, _PER_CM * found.running]
    columns += [_PER_CM * found.running_error, found.square, found.square_error]
    plots.write_csv(named(base, ".csv"), header, np.column_stack(columns).tolist())
    _draw(found, details(args, series, temperature), base)
    print(_said(found, series, temperature))
    print(f"{named(base, '.csv')}, {plots.said(named(base, '.png'))}")


def _said(found: Conductivity, series: Series, temperature: float) -> str:
    """What the command prints: a table, and what is to be said against the numbers."""
    source = series.dipole if series.current is None else series.current
    assert source is not None
    frames = len(source)
    begin, end = (time / 1000.0 for time in found.window)
    out = [
        f"conductivity at {temperature:.0f} K from {frames} frames, "
        f"{frames * series.timestep / 1000:g} ps; lags of {begin:.3g} to {end:.3g} ps"
    ]
    ways = {
        "Green-Kubo": (found.green_kubo, found.green_kubo_error),
        "Einstein": (found.einstein, found.einstein_error),
    }
    rows = [
        [name, with_error(_PER_CM * value, _PER_CM * error), with_error(value, error)]
        for name, (value, error) in ways.items()
    ]
    out.append(text_table(["", with_unit("σ", CONDUCTIVITY), with_unit("σ", "S/m")], rows))
    if not found.has_plateau:
        change = with_error(_PER_CM * found.change, _PER_CM * found.change_error)
        out.append(
            f"note: there is no plateau yet: the slope still changes, by {change} {CONDUCTIVITY}. "
            "Give a longer --lag, and run longer: ten times the lag and more"
        )
    elif abs(found.einstein) < 2.0 * found.einstein_error:
        out.append(
            "note: not different from zero within twice the error: no ions travel, the run is too "
            "short, or the model has bond charges without --formal_charges: its ions carry nothing"
        )
    elif found.einstein_error > 0.2 * abs(found.einstein):
        ratio = (found.einstein_error / (0.1 * found.einstein)) ** 2
        out.append(
            f"note: the error is large; for one of a tenth of the value the run must be about "
            f"{ratio:.0f} times as long"
        )
    return "\n".join(out)


def _draw(found: Conductivity, conditions: list[str], base: Path) -> None:
    """The running integral, and the square of the change of the dipole with its line."""
    made, (left, right) = plots.figure(2, size=(10.0, 4.2))
    lags = found.lags / 1000.0
    window = [time / 1000.0 for time in found.window]

    def band(axis: object, values: np.ndarray, error: np.ndarray) -> None:
        axis.plot(lags, values, color="C0", lw=1.3)  # type: ignore[attr-defined]
        axis.fill_between(  # type: ignore[attr-defined]
            lags, values - error, values + error, color="C0", alpha=0.2, lw=0, label="± error"
        )

    band(left, _PER_CM * found.running, _PER_CM * found.running_error)
    value = with_error(_PER_CM * found.green_kubo, _PER_CM * found.green_kubo_error)
    left.plot(
        window, 2 * [_PER_CM * found.green_kubo], "k--", lw=1.2, label=f"{value} {CONDUCTIVITY}"
    )
    low = min(0.0, *(_PER_CM * (found.running - found.running_error)))
    top = max(_PER_CM * found.running + _PER_CM * found.running_error)
    left.set_ylim(low, 1.25 * top if top > 0 else None)
    left.set(
        xlabel=with_unit("time", "ps"),
        ylabel=with_unit("running integral", CONDUCTIVITY),
        title="Green–Kubo",
    )
    band(right, found.square, found.square_error)
    value = with_error(_PER_CM * found.einstein, _PER_CM * found.einstein_error)
    inside = lags >= window[0] - 1e-9
    label = f"slope: {value} {CONDUCTIVITY}"
    right.plot(lags[inside], found.fit[inside], "k--", lw=1.2, label=label)
    right.set(
        xlabel=with_unit("time", "ps"),
        ylabel=with_unit("⟨|ΔM|²⟩", "(e Å)²"),
        title="Einstein",
    )
    for axis in (left, right):
        axis.set_xlim(0.0, float(lags[-1]))
        axis.grid(True, alpha=0.25)
        axis.legend(frameon=False)
    made.suptitle(plots.heading("Ionic conductivity", *conditions), fontsize=10)
    plots.save(made, named(base, ".png"))
